//! The event queue, virtual time, and what moves between the parts.

use crate::check::Check;
use crate::disk::Disk;
use crate::machine::Machine;
use crate::network::Network;
use crate::postgres::{Record, Server};
use pgquorum_agent::cluster::Cluster;
use pgquorum_agent::entry::Entry;
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::member::{Member, Role};
use pgquorum_agent::message::Wire;
use pgquorum_agent::node::{Action, Input, Node, Output};
use pgquorum_agent::postgres::{PgFailure, PgObservation, PgOutcome};
use pgquorum_agent::request::{Rejection, Reply};
use pgquorum_agent::settings::Settings;
use pgquorum_agent::standing::{Caller, Outcast, Standing, is_other};
use pgquorum_agent::types::{Lsn, NodeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Milliseconds of true time, which no node knows.
pub type Time = u64;

const TICK_MS: Time = 12;
const UPKEEP_MS: Time = 50;
const OBSERVE_MS: Time = 50;

pub type Script = Box<dyn FnOnce(&mut World)>;

pub enum Event {
    Tick {
        node: NodeId,
        life: u64,
    },
    /// Over a connection to this very process.
    Deliver {
        from: NodeId,
        to: NodeId,
        life: u64,
        wire: Box<Wire>,
    },
    Written {
        node: NodeId,
        life: u64,
    },
    Observe {
        node: NodeId,
        again: bool,
    },
    Observed {
        node: NodeId,
        life: u64,
        observation: Box<PgObservation>,
    },
    Operation {
        node: NodeId,
        token: u64,
    },
    OperationEnds {
        node: NodeId,
        life: u64,
        id: u64,
        result: Result<PgOutcome, PgFailure>,
    },
    Wal {
        to: NodeId,
        generation: u64,
        first: usize,
        records: Vec<Record>,
    },
    Confirm {
        from: NodeId,
        to: NodeId,
        generation: u64,
        flush: Lsn,
    },
    Upkeep {
        again: bool,
    },
    Client,
    Script(Script),
}

/// How a cluster begins.
#[derive(Clone)]
pub struct Setup {
    pub seed: u64,
    pub nodes: u64,
    pub witness: bool,
    pub settings: Settings,
    /// Probability that an operation on a server fails.
    pub op_failures: f64,
    /// Clocks that differ.
    pub skew: bool,
    pub verbose: bool,
}

impl Setup {
    pub fn new(seed: u64, nodes: u64) -> Setup {
        Setup {
            seed,
            nodes,
            witness: false,
            settings: Settings::default(),
            op_failures: 0.0,
            skew: true,
            verbose: std::env::var("SEED").is_ok(),
        }
    }

    pub fn with_k(mut self, k: u32) -> Setup {
        self.settings.quorum_replication = false;
        self.settings.replication_factor = k;
        self
    }
}

pub struct World {
    pub setup: Setup,
    pub now: Time,
    pub rng: SmallRng,
    pub net: Network,
    pub machines: BTreeMap<NodeId, Machine>,
    pub check: Check,
    pub op_failures: f64,
    /// The run ended with too few whole copies.
    pub beyond_repair: bool,
    /// The node whose server takes long for everything.
    pub slow_server: Option<NodeId>,
    /// Rewinds fail before they have changed anything.
    pub rewinds_fail: bool,
    /// No server has the WAL any more that data lack which do not fit together.
    pub wal_recycled: bool,
    /// How long a copy takes at most.
    pub copy_ms: Time,
    pub client_ms: Time,
    pub replies: Vec<(NodeId, u64, Result<Reply, Rejection>)>,
    pub next_request: u64,
    queue: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    next_token: u64,
    pub digest: DefaultHasher,
    pub steps: u64,
    /// What happened, for people; empty unless asked for.
    pub log: Vec<String>,
    /// Traces of agents by kind, for scenarios that look for one.
    pub traces: Vec<(Time, NodeId, &'static str, String)>,
}

pub fn member(id: NodeId, role: Role) -> Member {
    let (db_port, api_port) = (5000 + id as u16, 8000 + id as u16);
    Member {
        id,
        ip: [127, 0, 0, 1].into(),
        db_port,
        api_port,
        role,
        down: false,
        auto_upgrade: false,
        identity: Some(id),
    }
}

impl World {
    pub fn new(setup: Setup) -> World {
        let mut world = World {
            now: 0,
            rng: SmallRng::seed_from_u64(setup.seed),
            net: Network::default(),
            machines: BTreeMap::new(),
            check: Check::default(),
            op_failures: setup.op_failures,
            beyond_repair: false,
            slow_server: None,
            rewinds_fail: false,
            wal_recycled: false,
            copy_ms: 1500,
            client_ms: 15,
            replies: Vec::new(),
            next_request: 1,
            queue: BTreeMap::new(),
            next_event: 0,
            next_token: 1,
            digest: DefaultHasher::new(),
            steps: 0,
            log: Vec::new(),
            traces: Vec::new(),
            setup,
        };
        let setup = world.setup.clone();
        let mut cluster = Cluster::new("sim".into(), 1, member(1, Role::Node), setup.settings.clone());
        let voters = setup.nodes + u64::from(setup.witness);
        for id in 2..=voters {
            let role = if id > setup.nodes { Role::Witness } else { Role::Node };
            cluster.apply(id, 1, &Entry::AddNode { member: member(id, role) });
        }
        let wanted = cluster.wanted_durability();
        cluster.apply(voters + 1, 1, &Entry::Durability(wanted));
        cluster.log.clear();
        let mut restored = pgquorum_agent::first_state(&cluster, 1);
        restored.snapshot.mut_metadata().mut_conf_state().voters = (1..=voters).collect();
        for id in 1..=voters {
            restored.identity = id;
            let server = if id > setup.nodes { Server::absent() } else { Server::initial() };
            world.add_machine(id, restored.clone(), server);
            world.start(id);
        }
        world.after(UPKEEP_MS, Event::Upkeep { again: true });
        world.after(200, Event::Client);
        world
    }

    pub fn add_machine(&mut self, id: NodeId, restored: Restored, server: Server) {
        let rate = if self.setup.skew { self.rng.random_range(950..=1050) } else { 1000 };
        let offset = self.rng.random_range(1000..100_000);
        self.machines.insert(id, Machine::new(id, Disk::new(restored), server, rate, offset));
        let phase = self.rng.random_range(1..OBSERVE_MS);
        self.after(phase, Event::Observe { node: id, again: true });
    }

    /// Starts a node's sidecar.
    pub fn start(&mut self, id: NodeId) {
        let seed = self.rng.random();
        let now = self.now;
        let Some(m) = self.machines.get_mut(&id) else { return };
        if m.agent.is_some() || m.retired || m.disk.lost || m.disk.state.superseded {
            return;
        }
        m.life += 1;
        m.frozen = false;
        m.reachable = true;
        m.inbox.clear();
        m.links.clear();
        m.checked = 0;
        m.agent = Some(Node::new(id, &m.disk.state, m.clock(now), seed));
        let life = m.life;
        self.note(id, "sidecar starts");
        self.after(1, Event::Tick { node: id, life });
        self.after(2, Event::Observe { node: id, again: false });
        let soon = self.rng.random_range(5..25);
        self.after(soon, Event::Upkeep { again: false });
    }

    pub fn after(&mut self, delay: Time, event: Event) {
        self.next_event += 1;
        self.queue.insert((self.now + delay, self.next_event), event);
    }

    pub fn script(&mut self, delay: Time, script: impl FnOnce(&mut World) + 'static) {
        self.after(delay, Event::Script(Box::new(script)));
    }

    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub fn note(&mut self, node: NodeId, text: impl AsRef<str>) {
        if self.setup.verbose {
            let line = format!("{:>6} node {node}: {}", self.now, text.as_ref());
            if std::env::var("SEED").is_ok() {
                println!("{line}");
            }
            self.log.push(line);
        }
    }

    /// Runs for `ms`, or until an invariant is broken.
    pub fn run(&mut self, ms: Time) -> &mut World {
        let end = self.now + ms;
        self.run_until(end, |_| false);
        self.now = self.now.max(if self.check.broken.is_none() { end } else { self.now });
        self
    }

    /// Runs until the condition holds (looked at every 20 ms), at the latest until `end`. Whether it held.
    pub fn run_until(&mut self, end: Time, mut condition: impl FnMut(&World) -> bool) -> bool {
        let mut next_look = self.now;
        while self.check.broken.is_none() {
            if self.now >= next_look {
                next_look = self.now + 20;
                if condition(self) {
                    return true;
                }
            }
            match self.queue.first_key_value() {
                Some((&(at, _), _)) if at <= end => {
                    let ((at, _), event) = self.queue.pop_first().expect("it was just seen");
                    self.now = self.now.max(at);
                    self.happen(event);
                }
                _ => {
                    self.now = end;
                    return condition(self);
                }
            }
        }
        false
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.after(TICK_MS, Event::Tick { node, life });
                    if !self.machines[&node].frozen {
                        self.input(node, Input::Tick);
                    }
                }
            }
            Event::Deliver { from, to, life, wire } => {
                if self.machines.get(&to).is_some_and(|m| m.life == life) {
                    self.deliver(from, to, *wire);
                }
            }
            Event::Written { node, life } => {
                let m = self.machines.get_mut(&node).expect("machines stay");
                if m.life != life || !m.alive() {
                    return;
                }
                if m.frozen || m.state_hangs() {
                    self.after(10, Event::Written { node, life });
                } else if let Some(output) = m.disk.written() {
                    self.carry_out(node, *output);
                    self.work(node);
                }
            }
            Event::Observe { node, again } => {
                if again {
                    let next = OBSERVE_MS + self.rng.random_range(0..5);
                    self.after(next, Event::Observe { node, again: true });
                }
                self.observe(node);
            }
            Event::Observed { node, life, observation } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.input(node, Input::Postgres(observation));
                }
            }
            Event::Operation { node, token } => self.operation(node, token),
            Event::OperationEnds { node, life, id, result } => {
                if self.machines[&node].life == life && self.machines[&node].alive() {
                    self.input(node, Input::PostgresDone { id, result });
                }
            }
            Event::Wal { to, generation, first, records } => self.wal_arrives(to, generation, first, records),
            Event::Confirm { from, to, generation, flush } => self.confirmed(from, to, generation, flush),
            Event::Upkeep { again } => {
                if again {
                    self.after(UPKEEP_MS, Event::Upkeep { again: true });
                }
                self.upkeep();
            }
            Event::Client => {
                let next = self.client_ms;
                self.after(next, Event::Client);
                self.clients_write();
            }
            Event::Script(script) => script(self),
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, wire: Wire) {
        if self.handshake(from, to) {
            self.input(to, Input::Message { from, wire });
        }
    }

    /// Whether two sidecars accept each other. Who has no part in the cluster any more is told.
    pub fn handshake(&mut self, from: NodeId, to: NodeId) -> bool {
        let (Some(m), Some(sender)) = (self.machines.get(&to), self.machines.get(&from)) else {
            return false;
        };
        let Some(agent) = &m.agent else { return false };
        let identity = sender.disk.state.identity;
        let caller = Caller { cluster: &sender.cluster, node: from, identity };
        let standing = agent.cluster().standing(&m.cluster, &caller);
        let expected = sender.agent.as_ref().and_then(|a| a.cluster().identity_of(to));
        match standing {
            Standing::Out(why) => {
                if !sender.retired && sender.alive() && !self.net.is_blocked(to, from) {
                    self.input(from, Input::Outcast(why));
                }
                false
            }
            Standing::Stranger => false,
            Standing::Accepted if is_other(expected, m.disk.state.identity) => {
                self.input(to, Input::Outcast(Outcast::Forgotten));
                false
            }
            Standing::Accepted => true,
        }
    }

    /// Puts an input before a node's sidecar and lets it work.
    pub fn input(&mut self, node: NodeId, input: Input) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        m.inbox.push_back(input);
        self.work(node);
    }

    /// A sidecar takes its inputs one after the other; while it writes to its disk it takes none.
    pub fn work(&mut self, node: NodeId) {
        loop {
            let now = self.now;
            let m = self.machines.get_mut(&node).expect("machines stay");
            if m.frozen || m.disk.writing.is_some() || self.check.broken.is_some() {
                return;
            }
            let clock = m.clock(now);
            let Some(agent) = &mut m.agent else { return };
            let Some(input) = m.inbox.pop_front() else { return };
            let output = agent.step(clock, input);
            self.steps += 1;
            (now, node, output.messages.len(), output.actions.len()).hash(&mut self.digest);
            let delay = Disk::delay(&mut self.rng, &output);
            let (id, life) = (node, m.life);
            if delay == 0 {
                m.disk.write(&output.persist);
                self.carry_out(node, output);
            } else {
                m.disk.writing = Some(Box::new(output));
                self.after(delay, Event::Written { node: id, life });
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        for (kind, text) in output.traces {
            (kind, &text).hash(&mut self.digest);
            self.note(node, format!("[{kind}] {text}"));
            self.traces.push((self.now, node, kind, text));
        }
        self.check_raft(node, &output.messages);
        if self.setup.verbose {
            for (to, wire) in &output.messages {
                if let Wire::Raft(m) = wire
                    && !matches!(m.get_msg_type() as i32, 8 | 9)
                {
                    println!(
                        "{:>6} node {node} -> {to}: {:?} term {} index {} commit {} reject {}",
                        self.now,
                        m.get_msg_type(),
                        m.term,
                        m.index,
                        m.commit,
                        m.reject
                    );
                }
            }
        }
        for (to, wire) in output.messages {
            let times = self.net.arrivals(&mut self.rng, node, to);
            let Some(life) = self.machines.get(&to).map(|m| m.life) else { continue };
            let last = times.len().saturating_sub(1);
            let mut wire = Some(Box::new(wire));
            for (i, delay) in times.into_iter().enumerate() {
                let copy = if i == last { wire.take() } else { wire.clone() };
                let wire = copy.expect("the last copy is taken last");
                self.after(delay, Event::Deliver { from: node, to, life, wire });
            }
        }
        for (id, reply) in output.replies {
            self.note(node, format!("answers request {id}: {reply:?}"));
            self.replies.push((node, id, reply));
        }
        for action in output.actions {
            match action {
                Action::Postgres { id, op } => self.submit(node, id, op),
                Action::RenewLease { epoch, sent_at, ms } => self.renew_lease(node, epoch, sent_at + ms),
                Action::RevokeLease { epoch, .. } => {
                    let lease = &mut self.machines.get_mut(&node).expect("machines stay").server.lease;
                    lease.revoked = lease.revoked.max(epoch);
                }
                Action::LostReported { id } => self.note(node, format!("its report {id} is in the log")),
                Action::Exit => {
                    self.note(node, "exits");
                    self.kill_sidecar(node);
                }
            }
        }
        self.check_state(node);
    }

    /// Fails with the seed and everything that is known when an invariant was broken.
    pub fn assert_sound(&self) {
        if let Some(broken) = &self.check.broken {
            let tail = self.log.len().saturating_sub(60);
            for line in &self.log[tail..] {
                eprintln!("{line}");
            }
            panic!("seed {}: {broken}", self.setup.seed);
        }
    }

    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }
}
