//! The one loop of the sidecar: whatever happens becomes an input of the agent, whatever it decides is done here, in
//! this order: what must be remembered is on disk before a message or an action that depends on it leaves the node.

use crate::clock;
use crate::handle::{Asked, Traces};
use crate::peer::{Peers, Roll};
use crate::postgres::{PgEvent, Postgres};
use crate::store::{Store, StoreError};
use crate::timer::Timer;
use crate::watchdog::{Duty, Watchdog};
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::node::{Action, Input, Link, Node, Output};
use pgquorum_agent::postgres::PgOp;
use pgquorum_agent::request::{Rejection, Reply};
use pgquorum_agent::types::NodeId;
use pgquorum_agent::view::{State, View};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the data directory belongs to another database: its system identifier is {found}, the cluster's is \
         {expected}. Nothing was changed. Point data-dir to this node's own data, or join with an empty directory"
    )]
    ForeignDatabase { found: u64, expected: u64 },
    #[error("the system gives no timer: {0}")]
    Timer(#[from] io::Error),
}

/// So many inputs after which nothing is decided may be taken before what they have changed is shown.
const UNSEEN_MAX: u32 = 16;

pub struct Driver {
    node: Node,
    store: Store,
    postgres: Postgres,
    peers: Peers,
    traces: Traces,
    watchdog: Watchdog,
    view: watch::Sender<Arc<View>>,
    asked: HashMap<u64, oneshot::Sender<Result<Reply, Rejection>>>,
    next_request: u64,
    /// Members as the connections know them.
    members_index: u64,
    /// Inputs since the view was made.
    unseen: u32,
}

/// The queues that inputs come from.
pub struct Sources {
    pub inputs: mpsc::Receiver<Input>,
    pub postgres: mpsc::Receiver<PgEvent>,
    pub requests: mpsc::Receiver<Asked>,
}

impl Driver {
    pub fn new(
        id: NodeId,
        restored: &Restored,
        store: Store,
        postgres: Postgres,
        peers: Peers,
        traces: Traces,
        watchdog: Watchdog,
    ) -> (Driver, watch::Receiver<Arc<View>>) {
        let node = Node::new(id, restored, clock::now(), rand::random());
        let (view, seen) = watch::channel(Arc::new(node.view()));
        let driver = Driver {
            node,
            store,
            postgres,
            peers,
            traces,
            watchdog,
            view,
            asked: HashMap::new(),
            next_request: 1,
            members_index: 0,
            unseen: 0,
        };
        (driver, seen)
    }

    /// Runs until the node has left, or cannot go on.
    pub async fn run(mut self, mut sources: Sources) -> Result<(), DriverError> {
        let mut timer = Timer::new()?;
        let mut looked = 0;
        self.connect_members();
        loop {
            if looked < self.node.ticked_at() {
                looked = self.node.ticked_at();
                if let Some(path) = self.postgres.write_path_if_changed()
                    && self.take(Input::WritePath(path))?
                {
                    return Ok(());
                }
            }
            if self.unseen > 0 && (sources.inputs.is_empty() || self.unseen >= UNSEEN_MAX) {
                self.show();
            }
            timer.set(self.node.next_tick())?;
            let input = tokio::select! {
                biased;
                // Time first: a flood of messages must not keep heartbeats and timeouts from happening.
                ran_out = timer.ran_out() => {
                    ran_out?;
                    Input::Tick
                }
                Some(event) = sources.postgres.recv() => match event {
                    PgEvent::Observed(observation) => {
                        self.check_identity(observation.system_identifier)?;
                        Input::Postgres(observation)
                    }
                    PgEvent::Done { id, result } => Input::PostgresDone { id, result },
                    PgEvent::Lost(report) => Input::Lost(report),
                    PgEvent::Exited { pid, status } => {
                        self.traces.add("postgres", format!("the server (process {pid}) ended: {status}"));
                        continue;
                    }
                },
                Some(input) = sources.inputs.recv() => {
                    if matches!(input, Input::Link { link: Link::Down | Link::Gone, .. }) {
                        self.postgres.look();
                    }
                    input
                }
                Some((id, address)) = self.peers.caller() => {
                    // Only a node that has just joined, and knows no members, calls back to strangers.
                    if self.node.cluster().members.is_empty() {
                        self.peers.answer(id, address);
                    }
                    continue;
                }
                Some(asked) = sources.requests.recv() => {
                    let id = self.next_request;
                    self.next_request += 1;
                    self.asked.insert(id, asked.answer);
                    Input::Request { id, request: asked.request }
                }
            };
            if self.take(input)? {
                return Ok(());
            }
        }
    }

    /// True when the node has left.
    fn take(&mut self, input: Input) -> Result<bool, DriverError> {
        let output = self.node.step(clock::now(), input);
        self.carry_out(output)
    }

    /// Does what the agent decided. True when the node has left.
    fn carry_out(&mut self, output: Output) -> Result<bool, DriverError> {
        let decided = !(output.persist.is_empty() && output.actions.is_empty() && output.traces.is_empty());
        if !output.persist.is_empty() {
            // A write that fails ends the process: a promise that is not on disk must not be given.
            tokio::task::block_in_place(|| self.store.write(&output.persist))?;
        }
        for (to, wire) in output.messages {
            self.peers.send(to, wire);
        }
        let mut exit = false;
        for action in output.actions {
            match action {
                Action::Postgres { id, op } => match self.allowed(&op) {
                    Ok(()) => self.postgres.submit(id, op),
                    Err(why) => self.postgres.refuse(id, why),
                },
                Action::RenewLease { epoch, sent_at, ms } => {
                    self.watchdog.keep_alive();
                    self.postgres.renew_lease(epoch, sent_at * 1_000_000, ms);
                }
                Action::RevokeLease { epoch, hint } => self.postgres.revoke_lease(epoch, hint),
                Action::LostReported { id } => self.postgres.lost_reported(&id),
                Action::Exit => exit = true,
            }
        }
        for (kind, message) in output.traces {
            tracing::info!(kind, "{message}");
            self.traces.add(kind, message);
        }
        self.connect_members();
        self.unseen += 1;
        // Whoever asked for a change and looks for it then finds it.
        if exit || decided || !output.replies.is_empty() {
            self.show();
        }
        for (id, reply) in output.replies {
            if let Some(answer) = self.asked.remove(&id) {
                // Whoever asked may have gone away.
                let _ = answer.send(reply);
            }
        }
        Ok(exit)
    }

    /// Shows what the inputs have changed. Heartbeats bring several at a time after which nothing is decided; these are shown
    /// together, since making the view costs more than taking them.
    fn show(&mut self) {
        self.unseen = 0;
        self.postgres.set_patience(self.node.cluster().settings.node_timeout.ms());
        let view = self.node.view();
        self.watchdog.follow(duty(&view));
        // Readers look when they want to. Those who wait are woken, which costs more than all else here, only by what
        // anybody waits for: positions move with every message.
        self.view.send_if_modified(|old| {
            let before = std::mem::replace(old, Arc::new(view));
            !before.is_like(old)
        });
    }

    /// Nothing is promoted without the watchdog where that is asked for.
    fn allowed(&mut self, op: &PgOp) -> Result<(), String> {
        if matches!(op, PgOp::Promote { .. }) { self.watchdog.require() } else { Ok(()) }
    }

    fn connect_members(&mut self) {
        let cluster = self.node.cluster();
        if cluster.applied_index == self.members_index {
            return;
        }
        self.members_index = cluster.applied_index;
        let members: BTreeMap<NodeId, SocketAddr> =
            cluster.members.values().map(|m| (m.id, m.api_address())).collect();
        let identities = cluster.members.values().filter_map(|m| Some((m.id, m.identity?))).collect();
        self.peers.set_members(&members, Roll { removed: cluster.removed.clone(), identities });
    }

    fn check_identity(&self, found: u64) -> Result<(), DriverError> {
        let expected = self.node.cluster().system_identifier;
        if found != 0 && expected != 0 && found != expected {
            return Err(DriverError::ForeignDatabase { found, expected });
        }
        Ok(())
    }
}

/// What the machine's watchdog must know of this node.
fn duty(view: &View) -> Duty {
    match view.state {
        State::Leader => Duty::Open,
        State::Electing => Duty::OnTheWay,
        _ if view.postgres.is_primary() => Duty::Ending,
        // A server that does not answer may still be the primary it was.
        State::Starting if view.postgres.trouble.is_some() => Duty::Ending,
        _ => Duty::None,
    }
}
