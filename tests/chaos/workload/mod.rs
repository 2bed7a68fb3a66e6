//! Clients that write and read all the time, each one thread at the client's place in the network.

mod append;
mod insert;
mod transfer;

use crate::history::{Call, Op, Outcome, Recorder, Seen};
use crate::outcome::{Stage, Verdict, judge};
use crate::random::Random;
use crate::session::{Hosts, Patience, Session, find_writable, open_anywhere};
use pgquorum_tests::{CLIENT, NetCluster};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::NoTls;

pub use transfer::{ACCOUNTS, START_BALANCE};

/// Everything that is there before the first call.
pub fn schema(password: &str) -> String {
    format!(
        "CREATE ROLE chaos LOGIN PASSWORD '{password}';
         GRANT USAGE ON SCHEMA quorum TO chaos;
         GRANT SELECT ON quorum.leadership TO chaos;
         ALTER ROLE chaos SET idle_in_transaction_session_timeout = '5s';
         CREATE TABLE chaos_insert (id bigint PRIMARY KEY, at timestamptz DEFAULT now());
         CREATE TABLE chaos_account (id int PRIMARY KEY, balance bigint NOT NULL);
         INSERT INTO chaos_account SELECT i, {START_BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
         CREATE TABLE chaos_transfer (id bigint PRIMARY KEY, source int, target int, amount bigint);
         CREATE TABLE chaos_list (key bigint PRIMARY KEY, list bigint[] NOT NULL);
         GRANT ALL ON chaos_insert, chaos_account, chaos_transfer, chaos_list TO chaos;"
    )
}

/// What a client does.
#[derive(Clone, Copy)]
enum Kind {
    Insert,
    Transfer,
    Append,
    /// Inserts with little patience, so that it sees at once when writes are possible again.
    Prober,
}

const CLIENTS: [Kind; 14] = [
    Kind::Prober,
    Kind::Prober,
    Kind::Insert,
    Kind::Insert,
    Kind::Insert,
    Kind::Transfer,
    Kind::Transfer,
    Kind::Transfer,
    Kind::Transfer,
    Kind::Append,
    Kind::Append,
    Kind::Append,
    Kind::Append,
    Kind::Insert,
];

/// Error of a call, with how far it was.
type Failure = (Stage, tokio_postgres::Error);

/// The clients; they stop when this is dropped or told to.
pub struct Workload {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Workload {
    /// `cancels`: clients send cancel requests and have a `statement_timeout`, as drivers do.
    pub fn start(
        cluster: &Arc<NetCluster>,
        hosts: &Hosts,
        recorder: &Arc<Recorder>,
        seed: u64,
        cancels: bool,
    ) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = CLIENTS.iter().enumerate().map(|(number, kind)| {
            let client = Client {
                number: number as u32,
                kind: *kind,
                hosts: hosts.clone(),
                recorder: recorder.clone(),
                stop: stop.clone(),
                random: Random::new(seed ^ ((number as u64 + 1) << 32)),
                cancels,
                patience: patience(*kind, cancels && number % 2 == 1),
            };
            let cluster = cluster.clone();
            std::thread::spawn(move || cluster.network.inside(CLIENT, || client.run()))
        });
        Workload { threads: threads.collect(), stop }
    }

    /// Lets the calls that are under way end.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
    }
}

fn patience(kind: Kind, statement_timeout: bool) -> Patience {
    match kind {
        Kind::Prober => Patience {
            connect: Duration::from_millis(500),
            call: Duration::from_millis(1000),
            statement: Duration::ZERO,
        },
        _ => Patience {
            connect: Duration::from_secs(2),
            call: Duration::from_secs(5),
            statement: if statement_timeout { Duration::from_secs(3) } else { Duration::ZERO },
        },
    }
}

struct Client {
    number: u32,
    kind: Kind,
    hosts: Hosts,
    recorder: Arc<Recorder>,
    stop: Arc<AtomicBool>,
    random: Random,
    cancels: bool,
    patience: Patience,
}

impl Client {
    fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let mut session = None;
            while !self.stop.load(Ordering::Relaxed) {
                self.one_call(&mut session).await;
                let pause = match self.kind {
                    Kind::Prober => 25,
                    // As pools do: clients that all try again at once keep the processors from the servers.
                    _ if session.is_none() => self.random.between(50, 300),
                    _ => self.random.between(5, 60),
                };
                sleep(Duration::from_millis(pause)).await;
            }
        });
    }

    async fn one_call(&mut self, session: &mut Option<Session>) {
        let op = match self.kind {
            Kind::Insert | Kind::Prober => Op::Insert { id: self.recorder.id() },
            Kind::Transfer => transfer::draw(&mut self.random, &self.recorder),
            Kind::Append => append::draw(&mut self.random, &self.recorder),
        };
        if op == (Op::Balances { anywhere: true }) {
            // A session of its own: the client's other calls are for the leader.
            let at = self.random.below(self.hosts.nodes.len() as u64) as usize;
            if let Ok(mut once) = open_anywhere(&self.hosts, at, self.patience).await {
                self.call(op, &mut once).await;
            }
            return;
        }
        if session.is_none() {
            let first = self.random.below(self.hosts.nodes.len() as u64) as usize;
            match find_writable(&self.hosts, first, self.patience).await {
                Ok(found) => *session = Some(found),
                Err(why) => {
                    let why = format!("no session: {why}");
                    self.record(op, self.recorder.now(), None, Outcome::Failed(why), false);
                    return;
                }
            }
        }
        if let Some(open) = session.as_mut()
            && !self.call(op, open).await
        {
            *session = None;
        }
    }

    /// False: the session is of no more use.
    async fn call(&mut self, op: Op, session: &mut Session) -> bool {
        let way = self.random.next();
        let cancel = session.client.cancel_token();
        // As a user who is in a hurry: at once, or when a call takes a little long, and not only when its time is over.
        let hasty = self.cancels && self.random.percent(4);
        let hurry = if self.random.percent(50) { 6_000 } else { 800_000 };
        let hurry = Duration::from_micros(self.random.below(hurry));
        session.was_warned();
        let start = self.recorder.now();
        let asked = op.clone();
        let work = perform(&asked, way, session);
        tokio::pin!(work);
        let mut answer = None;
        if hasty {
            answer = timeout(hurry, &mut work).await.ok();
            if answer.is_none() {
                let _ = timeout(Duration::from_secs(1), cancel.cancel_query(NoTls)).await;
            }
        }
        if answer.is_none() {
            answer = timeout(self.patience.call, &mut work).await.ok();
        }
        if answer.is_none() && self.cancels && way.is_multiple_of(2) && !matches!(self.kind, Kind::Prober) {
            // What many drivers do when their time is over.
            let _ = timeout(Duration::from_secs(1), cancel.cancel_query(NoTls)).await;
            answer = timeout(Duration::from_secs(1), &mut work).await.ok();
        }
        let (outcome, usable) = match answer {
            Some(Ok(seen)) => (Outcome::Ok(seen), true),
            Some(Err((stage, error))) => {
                let (verdict, why) = judge(stage, &error);
                // After an ERROR in a block the session is still in it; 25006 asks to look for another node.
                let usable = error.as_db_error().is_some_and(|e| e.code().code() != "25006")
                    && stage == Stage::MayCommit
                    && verdict == Verdict::Failed;
                match verdict {
                    Verdict::Failed => (Outcome::Failed(why), usable),
                    Verdict::Unknown => (Outcome::Unknown(why), false),
                }
            }
            None => (Outcome::Unknown("no answer in time".to_owned()), false),
        };
        let warned = session.was_warned();
        self.record(op, start, Some(session), outcome, warned);
        usable
    }

    fn record(&self, op: Op, start: u64, session: Option<&Session>, outcome: Outcome, warned: bool) {
        let (node, epoch) = session.map_or((0, 0), |s| (s.node, s.epoch));
        let end = self.recorder.now();
        self.recorder.add(Call { client: self.number, op, start, end, node, epoch, outcome, warned });
    }
}

async fn perform(op: &Op, way: u64, session: &Session) -> Result<Seen, Failure> {
    let client = &session.client;
    match op {
        Op::Insert { id } => insert::run(client, *id, way).await,
        Op::Transfer { id, from, to, amount } => {
            transfer::run(client, &transfer::Transfer { id: *id, from: *from, to: *to, amount: *amount }, way)
                .await
        }
        Op::Balances { .. } => transfer::balances(client).await,
        Op::Append { id, key } => append::run(client, *key, *id).await,
        Op::Read { key } => append::read(client, *key).await,
    }
}

/// An error while the block is open: nothing of it can be committed.
fn before(error: tokio_postgres::Error) -> Failure {
    (Stage::BeforeCommit, error)
}

fn at_commit(error: tokio_postgres::Error) -> Failure {
    (Stage::MayCommit, error)
}
