//! The REST interface over real connections, with a driver that answers as the test tells it.

// A refusal names the leader; in a test its size does not matter.
#![allow(clippy::result_large_err)]

mod applier;
mod changes;
mod channel_nodes;
mod channels;
mod checks;
mod delta;
mod followers_and_dumps;
mod oauth;
mod operations;
mod publications;
mod readonly;
mod reads;
mod registry;
mod remote;
mod replication;
mod replication_failures;
mod restore;
mod streams;
mod subscriptions;
mod table;
mod transport;
mod users;

use super::{PeerConnection, RestConfig, bind};
use crate::clock;
use crate::feed::fake::Fake;
use crate::follow::Board;
use crate::handle::{Asked, Handle, Traces};
use crate::postgres::WeakCommits;
use crate::statements::{self, Statements};
use pgquorum_agent::cluster::Cluster;
use pgquorum_agent::entry::{Appointment, Entry};
use pgquorum_agent::member::{Member, Role};
use pgquorum_agent::postgres::{PgObservation, PgProcess};
use pgquorum_agent::quorum::Durability;
use pgquorum_agent::registry::RegistryOutcome;
use pgquorum_agent::request::{LeaderAddress, Rejection, RejectionKind, Reply, Request};
use pgquorum_agent::settings::Settings;
use pgquorum_agent::types::{Lsn, NodeId, Position};
use pgquorum_agent::view::{NodeStatus, State, View};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(10);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

type Driver = fn(&Request) -> Result<Reply, Rejection>;

/// A served port with all its ends in the test's hands.
struct Served {
    address: SocketAddr,
    view: watch::Sender<Arc<View>>,
    traces: Traces,
    weak_commits: watch::Sender<Vec<WeakCommits>>,
    asked: Arc<Mutex<Vec<Request>>>,
    /// What its channels are read from.
    database: Arc<Fake>,
    board: Board,
    /// What it knows of statements.
    learner: Arc<statements::fake::Fake>,
    statements: Arc<Statements>,
    peers: mpsc::Receiver<PeerConnection>,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

fn open_config() -> RestConfig {
    RestConfig { listen: SocketAddr::new(LOCAL, 0), token: None, cluster_key: None, tls: None }
}

async fn serve(view: View, driver: Driver) -> Served {
    serve_with(&open_config(), view, driver).await
}

async fn serve_with(config: &RestConfig, view: View, driver: Driver) -> Served {
    let bound = bind(config).await.unwrap();
    let address = bound.address();
    let (view, views) = watch::channel(Arc::new(view));
    let (requests, mut queue) = mpsc::channel::<Asked>(16);
    let (peer, peers) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let traces = Traces::default();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Some(Asked { request, answer }) = queue.recv().await {
            let _ = answer.send(driver(&request));
            noted.lock().unwrap().push(request);
        }
    });
    let (weak_commits, counts) = watch::channel(Vec::new());
    let subscriptions_changed = Arc::new(tokio::sync::Notify::new());
    let board = Board::default();
    let handle = Handle {
        view: views,
        requests,
        traces: traces.clone(),
        weak_commits: counts,
        subscriptions_changed,
        subscriptions: board.clone(),
        server: None,
    };
    let database = Arc::new(Fake::default());
    let source = Arc::<Fake>::clone(&database);
    let learner = Arc::<statements::fake::Fake>::default();
    let statements = Arc::new(Statements::new(Arc::<statements::fake::Fake>::clone(&learner)));
    let serving = Arc::clone(&statements);
    let done = tokio::spawn(async move {
        bound.serve(handle, source, serving, peer, async move { stopped.await.unwrap_or_default() }).await;
    });
    Served {
        address,
        view,
        traces,
        weak_commits,
        asked,
        database,
        board,
        learner,
        statements,
        peers,
        stop,
        done,
    }
}

impl Served {
    async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), &[], "").await
    }

    async fn send(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        send(self.address, line, headers, body).await
    }

    fn change_view(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| change(Arc::make_mut(view)));
    }

    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// A response as it came over the wire.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The refusal's word, after a look at whether it is a proper refusal.
    fn code(&self) -> String {
        let json = self.json();
        assert!(json["message"].as_str().is_some_and(|m| m.len() > 10), "{self:?}");
        json["code"].as_str().unwrap().to_owned()
    }

    fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }
}

/// `line` is method and path; a body is sent with its length.
fn request(line: &str, headers: &[&str], body: &str) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

async fn send(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    exchange(stream, request(line, headers, body).as_bytes()).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Answer {
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(bytes).await.unwrap();
        stream.read_to_end(&mut answer).await.unwrap();
    };
    tokio::time::timeout(DEADLINE, talk).await.expect("no answer in time");
    Answer::parse(&answer)
}

/// Does what is asked.
fn accept(request: &Request) -> Result<Reply, Rejection> {
    Ok(match request {
        Request::SetSettings { patch } => {
            Reply::Settings { settings: patch.applied_to(&Settings::default()) }
        }
        Request::SetDbConfig { set } => Reply::DbConfig {
            parameters: set.iter().filter_map(|(n, v)| Some((n.clone(), v.clone()?))).collect(),
            restart_required: vec!["shared_buffers".to_owned()],
        },
        Request::ChangeLeader { node } => Reply::Leader { node: *node },
        Request::AddNode { ip, db_port, api_port, role, auto_upgrade } => Reply::Node {
            member: Member {
                ip: *ip,
                db_port: db_port.unwrap_or(5432),
                api_port: api_port.unwrap_or(8080),
                auto_upgrade: *auto_upgrade,
                ..member(4, *role)
            },
        },
        Request::UpgradeNode { node, .. } | Request::NodeDown { node, .. } => {
            Reply::Node { member: member(*node, Role::Node) }
        }
        Request::RemoveNode { node } => Reply::Removed { node: *node },
        Request::User(change) => Reply::User { user: users::after(change) },
        Request::Registry { changes, .. } => {
            Reply::Registry { outcomes: changes.iter().map(|_| RegistryOutcome::Done).collect() }
        }
    })
}

fn refuse_with(kind: RejectionKind) -> Rejection {
    let leader = LeaderAddress { id: 1, api: SocketAddr::new(LOCAL, 8001), db: SocketAddr::new(LOCAL, 5001) };
    Rejection { leader: Some(leader), ..Rejection::new(kind, "as_told", "the driver was told to refuse") }
}

fn member(id: NodeId, role: Role) -> Member {
    let port = u16::try_from(id).unwrap();
    Member {
        id,
        ip: LOCAL,
        db_port: 5000 + port,
        api_port: 8000 + port,
        role,
        down: false,
        auto_upgrade: false,
        identity: None,
    }
}

fn status(state: State, lsn: u64, replay: u64) -> NodeStatus {
    NodeStatus {
        state,
        position: Position { epoch: 7, lsn: Lsn(lsn) },
        replay_lsn: Lsn(replay),
        streaming: state == State::Replica,
        pid: 100,
        sees: vec![],
        pending_restart: vec![],
        trouble: None,
        copy_progress: None,
        writes: Default::default(),
    }
}

/// Node 1 leads, 2 acknowledges, 3 is a listener, 4 a witness.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(
        "c0ffee".to_owned(),
        7_300_000_000_000_000_001,
        member(1, Role::Node),
        Settings::default(),
    );
    let durability = Durability { voters: BTreeSet::from([1, 2]), k: 1, witnesses: 0 };
    for (id, role) in [(2, Role::Node), (3, Role::Listener), (4, Role::Witness)] {
        let index = cluster.applied_index + 1;
        cluster.apply(index, 6, &Entry::AddNode { member: member(id, role) });
    }
    cluster.apply(4, 7, &Entry::Durability(durability.clone()));
    let appointment =
        Appointment { epoch: 7, node: 1, timeline: 3, from_timeline: 2, lsn: Lsn(1000), durability };
    cluster.apply(5, 7, &Entry::Appoint(appointment));
    cluster.apply(6, 7, &Entry::Opened { epoch: 7, node: 1, timeline: 3, switch_lsn: Lsn(1000) });
    cluster
}

/// What node `id` of that cluster knows.
fn view(id: NodeId) -> View {
    let now = clock::now();
    let leader = LeaderAddress { id: 1, api: SocketAddr::new(LOCAL, 8001), db: SocketAddr::new(LOCAL, 5001) };
    let nodes = BTreeMap::from([
        (1, status(State::Leader, 50_000_000, 50_000_000)),
        (2, status(State::Replica, 50_000_000, 49_999_000)),
        (3, status(State::Replica, 40_000_000, 20_000_000)),
        (4, status(State::Witness, 0, 0)),
    ]);
    let own = &nodes[&id];
    let postgres = PgObservation {
        process: if id == 4 { PgProcess::Absent } else { PgProcess::Running },
        in_recovery: id != 1,
        timeline: 3,
        flush_lsn: own.position.lsn,
        replay_lsn: own.replay_lsn,
        streaming: own.streaming,
        ..PgObservation::default()
    };
    View {
        id,
        member: true,
        removed: false,
        outcast: None,
        term: 8,
        raft_leader: Some(1),
        state: own.state,
        is_open_leader: id == 1,
        lease_until: if id == 1 { now + 60_000 } else { 0 },
        epoch: 7,
        leader: Some(leader),
        cluster: Arc::new(cluster()),
        postgres,
        nodes,
        change_in_flight: false,
        at: now + 60_000,
    }
}

/// The same for tests elsewhere.
pub(super) fn view_of(id: NodeId) -> View {
    view(id)
}

fn stranger() -> View {
    View { member: false, leader: None, raft_leader: None, cluster: Arc::new(Cluster::unknown()), ..view(2) }
}

fn removed() -> View {
    View { removed: true, ..stranger() }
}

fn stalled(id: NodeId) -> View {
    View { at: clock::now().saturating_sub(6000), ..view(id) }
}

fn leaderless(id: NodeId) -> View {
    View { leader: None, raft_leader: None, is_open_leader: false, ..view(id) }
}
