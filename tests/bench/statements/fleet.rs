//! Servers that look at statements in different ways, or not at all, and pgbench on two of them at a time. Each server has a
//! speed of its own for as long as it lives, which differs from another's that does the same, and from its own after a
//! restart. So all are restarted many times.

use crate::capture::systems::memory;
use crate::line::{Samples, rounded};
use crate::pgbench::{self, pgbench};
use crate::usage::{Tree, bind, main_thread_seconds};
use pgquorum_tests::{Plain, free_ports, server_directory_below};
use postgres::Client;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

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

/// Servers, one of each kind, below one directory.
pub struct Fleet {
    root: PathBuf,
    systems: Vec<System>,
}

impl Fleet {
    /// Sets up all servers and their tables.
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
            server.sql("CREATE EXTENSION pg_prewarm");
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

    /// Restarts all servers, on one processor; from one number to the next another one is the first, so that what comes of
    /// the order hits all.
    pub fn restart(&mut self, number: u32) {
        let count = self.systems.len();
        for step in 0..count {
            let system = &mut self.systems[(number as usize + step) % count];
            system.server.restart();
            Tree::of(system.server.dir()).all().into_iter().for_each(bind);
            // Whoever ran before has more of its pages in the server's memory.
            system.server.sql(
                "SELECT pg_prewarm(name) FROM (VALUES ('pgbench_accounts'), ('pgbench_accounts_pkey')) AS t(name)",
            );
            pgbench(&system.dsn(), &["-n", "-S", "-M", "prepared", "-c", "4", "-t", "5000"]);
        }
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

/// How often the servers of a benchmark are restarted.
pub const STARTS: u32 = 12;

/// How pgbench runs on two servers at once.
pub struct Plan<'a> {
    pub clients: u32,
    /// Further arguments of pgbench.
    pub more: &'a [&'a str],
}

/// What is counted of a race, and what comes before and behind that.
const COUNTED: Duration = Duration::from_millis(1500);
const LEAD: Duration = Duration::from_millis(400);
const RACE_SECONDS: &str = "2";

/// One race of two servers: transactions of the first for each of the second.
#[derive(Clone, Copy)]
struct Race {
    /// In the same CPU time of server and pgbench.
    per_cpu: f64,
    /// In the same time.
    tps: f64,
}

/// What was measured of pairs of servers.
///
/// Two servers run at once, on one processor: what the machine does besides, and how fast it is at the moment, then weighs on
/// both. One after the other they would differ by more than what is looked for, and on several processors as well, by who
/// happens to run beside whom. The processor never rests, so transactions for its time are what it can do. It is the
/// severe way: each finds its caches filled by the other, which weighs more where there is more code.
pub struct Measured {
    pairs: &'static [(Kind, Kind)],
    /// Of each pair.
    races: Vec<Vec<Race>>,
}

impl Measured {
    pub fn of(pairs: &'static [(Kind, Kind)]) -> Measured {
        Measured { pairs, races: pairs.iter().map(|_| Vec::new()).collect() }
    }

    /// A race of each pair. Connecting is not counted.
    pub fn add(&mut self, name: &str, fleet: &Fleet, plan: &Plan) {
        for (pair, races) in self.pairs.iter().zip(&mut self.races) {
            let systems = (fleet.of(pair.0), fleet.of(pair.1));
            if races.len().is_multiple_of(2) {
                races.push(race(systems.0, systems.1, plan));
            } else {
                let Race { per_cpu, tps } = race(systems.1, systems.0, plan);
                races.push(Race { per_cpu: 1.0 / per_cpu, tps: 1.0 / tps });
            }
        }
        let say = |pair: &(Kind, Kind)| format!("{} {:.3}", key(*pair), self.ratios(pair.0, pair.1).median());
        let said: Vec<String> = self.pairs.iter().map(say).collect();
        let starts = self.races.first().map_or(0, Vec::len);
        eprintln!("{name}, start {starts}: so far {}", said.join(", "));
    }

    /// One kind's transactions to another's, for the same CPU time.
    pub fn ratios(&self, one: Kind, other: Kind) -> Samples {
        let at = self.pairs.iter().position(|pair| *pair == (one, other));
        let at = at.unwrap_or_else(|| unreachable!("{} runs beside {}", one.name(), other.name()));
        Samples::from(self.races[at].iter().map(|race| race.per_cpu).collect::<Vec<_>>())
    }

    /// Adds what is known of all pairs to the line.
    pub fn tell(&self, more: &mut Map<String, Value>) {
        more.insert("starts".to_owned(), json!(STARTS));
        for (pair, races) in self.pairs.iter().zip(&self.races) {
            let (name, ratios) = (key(*pair), self.ratios(pair.0, pair.1));
            let (low, high) = ratios.median_within();
            let tps = Samples::from(races.iter().map(|race| race.tps).collect::<Vec<_>>());
            more.insert(format!("{name}_within"), json!([rounded(low), rounded(high)]));
            more.insert(format!("{name}_tps"), json!(rounded(tps.median())));
            more.insert(name, json!(rounded(ratios.median())));
        }
    }
}

fn key((one, other): (Kind, Kind)) -> String {
    format!("{}_to_{}", one.name(), other.name())
}

fn race(one: &System, other: &System, plan: &Plan) -> Race {
    let loads = [Load::start(one, plan), Load::start(other, plan)];
    thread::sleep(LEAD);
    let before = loads.each_ref().map(Load::cpu_seconds);
    thread::sleep(COUNTED);
    let after = loads.each_ref().map(Load::cpu_seconds);
    let tps = loads.map(Load::finish);
    let per_cpu = [0, 1].map(|at| tps[at] / (after[at] - before[at]));
    Race { per_cpu: per_cpu[0] / per_cpu[1], tps: tps[0] / tps[1] }
}

/// pgbench, and the server that it is for.
struct Load {
    pgbench: Child,
    tree: Tree,
}

impl Load {
    fn start(system: &System, plan: &Plan) -> Load {
        let tree = Tree::of(system.server.dir());
        let clients = plan.clients.to_string();
        let args = [&["-n", "-c", &clients, "-j", "1", "-T", RACE_SECONDS], plan.more].concat();
        let mut command = pgbench::command(&system.dsn(), &args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let pgbench = command.spawn().expect("pgbench");
        bind(pgbench.id() as i32);
        Load { pgbench, tree }
    }

    fn cpu_seconds(&self) -> f64 {
        self.tree.seconds() + main_thread_seconds(self.pgbench.id() as i32)
    }

    /// Transactions a second.
    fn finish(self) -> f64 {
        let out = self.pgbench.wait_with_output().expect("pgbench");
        assert!(out.status.success(), "pgbench failed");
        pgbench::tps(&String::from_utf8_lossy(&out.stdout))
    }
}
