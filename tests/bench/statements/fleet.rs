//! Servers that look at statements in different ways, or not at all, and pgbench on all of them in turns.

use crate::line::{Samples, rounded};
use crate::pgbench::pgbench;
use pgquorum_tests::{Plain, free_ports, server_directory_below};
use postgres::Client;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::capture::systems::memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL without any library.
    Plain,
    /// Another one. Its ratio to the first would be 1 if measuring were exact.
    Control,
    /// This extension, which learns.
    Learner,
    /// This extension, told not to learn.
    Asleep,
    /// PostgreSQL that computes query ids, and does nothing with them.
    QueryId,
    /// `pg_stat_statements`.
    StatStatements,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Plain => "plain",
            Kind::Control => "control",
            Kind::Learner => "learner",
            Kind::Asleep => "asleep",
            Kind::QueryId => "query_id",
            Kind::StatStatements => "pg_stat_statements",
        }
    }

    fn conf(self) -> &'static str {
        match self {
            Kind::Plain | Kind::Control => "",
            Kind::Learner => "shared_preload_libraries = 'pgquorum'\n",
            Kind::Asleep => "shared_preload_libraries = 'pgquorum'\npgquorum.learn_statements = off\n",
            Kind::QueryId => "compute_query_id = on\n",
            Kind::StatStatements => {
                "shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.max = 10000\n"
            }
        }
    }

    fn extension(self) -> Option<&'static str> {
        match self {
            Kind::Learner | Kind::Asleep => Some("pgquorum"),
            Kind::StatStatements => Some("pg_stat_statements"),
            Kind::Plain | Kind::Control | Kind::QueryId => None,
        }
    }
}

const CONF: &str = "shared_buffers = 512MB\nautovacuum = off\ncheckpoint_timeout = 1h\nmax_connections = 50\n\
                    synchronous_commit = off\n";

/// A server with pgbench's tables, all of them in memory.
pub struct System {
    pub kind: Kind,
    server: Plain,
}

impl System {
    pub fn dsn(&self) -> String {
        Plain::dsn(&[&self.server])
    }

    pub fn connect(&self) -> Client {
        self.server.connect().unwrap_or_else(|e| panic!("{}: {e:?}", self.kind.name()))
    }
}

/// One server of each kind, below one directory. The first is the plain one.
pub struct Fleet {
    root: PathBuf,
    pub systems: Vec<System>,
}

impl Fleet {
    pub fn start(kinds: &[Kind], scale: u32) -> Fleet {
        let root = server_directory_below(memory(), "pgquorum-statements-");
        let mut fleet = Fleet { root, systems: Vec::new() };
        for kind in kinds {
            eprintln!("setting up {}", kind.name());
            let (dir, [port]) = (fleet.root.join(kind.name()), free_ports());
            let server = Plain::init(&dir, port, &format!("{CONF}{}", kind.conf()));
            // Checking a password would cost as much as many statements.
            std::fs::write(dir.join("pg_hba.conf"), "host all all 127.0.0.1/32 trust\n")
                .expect("pg_hba.conf");
            server.sql("SELECT pg_reload_conf()");
            if let Some(name) = kind.extension() {
                server.sql(&format!("CREATE EXTENSION {name}"));
            }
            let system = System { kind: *kind, server };
            pgbench(&system.dsn(), &["-i", "-q", "-s", &scale.to_string()]);
            system.server.sql("CHECKPOINT");
            fleet.systems.push(system);
        }
        fleet
    }

    pub fn of(&self, kind: Kind) -> &System {
        let found = self.systems.iter().find(|system| system.kind == kind);
        found.unwrap_or_else(|| unreachable!("{} takes part", kind.name()))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.systems.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// How a run goes.
pub struct Plan<'a> {
    pub rounds: usize,
    /// Where the machine is slow, there are fewer rounds.
    pub within: Duration,
    pub clients: u32,
    /// Of a slice, all clients together.
    pub transactions: u32,
    /// Further arguments of pgbench.
    pub more: &'a [&'a str],
}

/// What was measured of one system: transactions a second, and their ratio to the plain server's in the same round.
#[derive(Default)]
pub struct Figures {
    pub tps: Samples,
    pub ratio: Samples,
}

impl Figures {
    /// Adds what is known of this system to the line.
    pub fn tell(&self, kind: Kind, more: &mut Map<String, Value>) {
        let name = kind.name();
        more.insert(format!("{name}_tps"), json!(self.tps.median().round()));
        if kind != Kind::Plain {
            let (low, high) = self.ratio.median_within();
            more.insert(format!("{name}_ratio"), json!(rounded(self.ratio.median())));
            more.insert(format!("{name}_ratio_within"), json!([rounded(low), rounded(high)]));
        }
    }
}

/// Figures in the order of the fleet's systems, and the rates of each round in the same order.
pub struct Measured {
    pub figures: Vec<Figures>,
    pub rounds: Vec<Vec<f64>>,
}

impl Measured {
    /// The median over all rounds of one system's rate to another's.
    pub fn ratio(&self, fleet: &Fleet, one: Kind, other: Kind) -> f64 {
        let place =
            |kind| fleet.systems.iter().position(|system| system.kind == kind).expect("it takes part");
        let (one, other) = (place(one), place(other));
        Samples::from(self.rounds.iter().map(|round| round[one] / round[other]).collect::<Vec<_>>()).median()
    }
}

/// Runs the plan. Connecting is not counted; what a session does at its beginning is, on all sides.
pub fn measure(name: &str, fleet: &Fleet, plan: &Plan) -> Measured {
    let count = fleet.systems.len();
    let mut figures: Vec<Figures> = (0..count).map(|_| Figures::default()).collect();
    let mut rounds = Vec::new();
    for system in &fleet.systems {
        rate(system, plan, 4);
    }
    let start = Instant::now();
    for number in 0..plan.rounds {
        if start.elapsed() > plan.within {
            break;
        }
        let mut round = vec![0.0; count];
        // Who goes first changes, and in which direction, so that what grows with time hits all.
        for step in 0..count {
            let at = if number % 2 == 0 {
                (step + number / 2) % count
            } else {
                (2 * count - 1 - step + number / 2) % count
            };
            round[at] = rate(&fleet.systems[at], plan, 1);
        }
        for (figures, tps) in figures.iter_mut().zip(&round) {
            figures.tps.add(*tps);
            figures.ratio.add(tps / round[0]);
        }
        rounds.push(round);
        if number % 20 == 19 {
            let say =
                |(system, f): (&System, &Figures)| format!("{} {:.3}", system.kind.name(), f.ratio.median());
            let said: Vec<String> = fleet.systems.iter().zip(&figures).map(say).collect();
            eprintln!("{name}, {} rounds: {}", number + 1, said.join(", "));
        }
    }
    Measured { figures, rounds }
}

/// Transactions a second of a slice, or of several as one.
fn rate(system: &System, plan: &Plan, slices: u32) -> f64 {
    let each = (slices * plan.transactions).div_ceil(plan.clients).to_string();
    let (clients, threads) = (plan.clients.to_string(), plan.clients.min(2).to_string());
    let mut args = vec!["-n", "-c", &clients, "-j", &threads, "-t", &each];
    args.extend(plan.more);
    crate::pgbench::tps(&pgbench(&system.dsn(), &args))
}
