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
use pgquorum_agent::node::Node;
use pgquorum_agent::postgres::{PgFailure, PgObservation, PgOutcome};
use pgquorum_agent::request::{Rejection, Reply};
use pgquorum_agent::settings::Settings;
use pgquorum_agent::types::{Lsn, NodeId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

/// Milliseconds of true time, which no node knows.
pub type Time = u64;

/// How often a machine looks whether its agent wants to know the time; late, like all timers.
pub const TICK_MS: Time = 12;
pub const UPKEEP_MS: Time = 50;
pub const OBSERVE_MS: Time = 50;

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
        /// The store that its sender takes that process for.
        expected: Option<u64>,
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
    /// Of what this node asks for no server has the WAL any more, until it is copied. Its history is the others'.
    pub wal_gone_for: Option<NodeId>,
    /// A server that does not come up by itself ends when it gets an upstream.
    pub fed_servers_end: bool,
    /// How long a rewind writes.
    pub rewind_ms: Range<Time>,
    /// How long a copy takes at most.
    pub copy_ms: Time,
    pub client_ms: Time,
    pub replies: Vec<(NodeId, u64, Result<Reply, Rejection>)>,
    pub next_request: u64,
    /// Where each server, when its lease was revoked last, was told that the leader is.
    pub hints: BTreeMap<NodeId, String>,
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
            wal_gone_for: None,
            fed_servers_end: false,
            rewind_ms: 50..800,
            copy_ms: 1500,
            client_ms: 15,
            replies: Vec::new(),
            next_request: 1,
            hints: BTreeMap::new(),
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
        if let Some(still) = m.standstill_mut() {
            still.forget_sessions(now);
        }
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
