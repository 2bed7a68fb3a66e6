//! Servers that look at statements in different ways, or not at all, and pgbench on all of them in turns. Each server has a
//! speed of its own for as long as it lives, which differs by several percent from another's that does the same. So what
//! is measured is measured with several sets of servers, one after the other.

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

/// A set of servers, one of each kind, below one directory.
pub struct Fleet {
    root: PathBuf,
    systems: Vec<System>,
}

impl Fleet {
    /// Starts a set; from one number of a set to the next another kind is the first, so that what comes of the order hits all.
    pub fn start(kinds: &[Kind], scale: u32, number: u32) -> Fleet {
        let root = server_directory_below(memory(), "pgquorum-statements-");
        let mut fleet = Fleet { root, systems: Vec::new() };
        let first = number as usize % kinds.len();
        for kind in kinds.iter().cycle().skip(first).take(kinds.len()) {
            eprintln!("set {} of {SETS}: setting up {}", number + 1, kind.name());
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

/// How many sets of servers a benchmark takes.
pub const SETS: u32 = 6;

/// How pgbench runs with each set of servers.
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

/// What was measured with sets of servers of the same kinds.
pub struct Measured {
    kinds: &'static [Kind],
    /// Each set's rounds: transactions a second of each kind.
    sets: Vec<Vec<Vec<f64>>>,
}

impl Measured {
    pub fn of(kinds: &'static [Kind]) -> Measured {
        Measured { kinds, sets: Vec::new() }
    }

    /// Runs the plan with one more set of servers. Connecting is not counted; what a session does at its beginning is, on
    /// all sides.
    pub fn add(&mut self, name: &str, fleet: &Fleet, plan: &Plan) {
        let systems: Vec<&System> = self.kinds.iter().map(|kind| fleet.of(*kind)).collect();
        for system in &systems {
            rate(system, plan, 4);
        }
        let count = systems.len();
        let before: usize = self.sets.iter().map(Vec::len).sum();
        let mut rounds = Vec::new();
        let start = Instant::now();
        for number in before..before + plan.rounds {
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
                round[at] = rate(systems[at], plan, 1);
            }
            rounds.push(round);
        }
        self.sets.push(rounds);
        let say = |kind: &Kind| format!("{} {:.3}", kind.name(), self.ratios(*kind, Kind::Plain).median());
        let said: Vec<String> = self.kinds.iter().map(say).collect();
        eprintln!("{name}, set {}: so far {}", self.sets.len(), said.join(", "));
    }

    /// One kind's rate to another's in the same round, of all rounds of all sets.
    pub fn ratios(&self, one: Kind, other: Kind) -> Samples {
        ratios(self.sets.iter().flatten(), self.place(one), self.place(other))
    }

    /// The smallest and the largest median that one of the sets has.
    fn sets_between(&self, one: Kind, other: Kind) -> (f64, f64) {
        let (one, other) = (self.place(one), self.place(other));
        let medians: Vec<f64> = self.sets.iter().map(|set| ratios(set, one, other).median()).collect();
        let medians = Samples::from(medians);
        (medians.min(), medians.max())
    }

    /// Adds what is known of all kinds to the line.
    pub fn tell(&self, more: &mut Map<String, Value>) {
        more.insert("sets".to_owned(), json!(self.sets.len()));
        for (at, kind) in self.kinds.iter().enumerate() {
            let name = kind.name();
            let tps: Vec<f64> = self.sets.iter().flatten().map(|round| round[at]).collect();
            more.insert(format!("{name}_tps"), json!(Samples::from(tps).median().round()));
            if *kind != Kind::Plain {
                self.tell_ratio(&format!("{name}_ratio"), *kind, Kind::Plain, more);
            }
        }
    }

    /// Adds the median of a ratio under this name, how exact it is, and how far the sets are from each other.
    pub fn tell_ratio(&self, name: &str, one: Kind, other: Kind, more: &mut Map<String, Value>) {
        let ratios = self.ratios(one, other);
        let pair = |(low, high): (f64, f64)| json!([rounded(low), rounded(high)]);
        more.insert(name.to_owned(), json!(rounded(ratios.median())));
        more.insert(format!("{name}_within"), pair(ratios.median_within()));
        more.insert(format!("{name}_sets"), pair(self.sets_between(one, other)));
    }

    fn place(&self, kind: Kind) -> usize {
        let found = self.kinds.iter().position(|k| *k == kind);
        found.unwrap_or_else(|| unreachable!("{} takes part", kind.name()))
    }
}

/// The ratio of two of the rates in each of these rounds.
fn ratios<'a>(rounds: impl IntoIterator<Item = &'a Vec<f64>>, one: usize, other: usize) -> Samples {
    let ratios: Vec<f64> = rounds.into_iter().map(|round| round[one] / round[other]).collect();
    Samples::from(ratios)
}

/// Transactions a second of a slice, or of several as one.
fn rate(system: &System, plan: &Plan, slices: u32) -> f64 {
    let each = (slices * plan.transactions).div_ceil(plan.clients).to_string();
    let (clients, threads) = (plan.clients.to_string(), plan.clients.min(2).to_string());
    let mut args = vec!["-n", "-c", &clients, "-j", &threads, "-t", &each];
    args.extend(plan.more);
    crate::pgbench::tps(&pgbench(&system.dsn(), &args))
}
