//! What the extension and its wait for the quorum cost writers: pgbench against a cluster and against PostgreSQL with the
//! same parameters and two synchronous standbys of its own, in turns. Both run all the time, so what they do when idle
//! weighs on both sides. Both are in memory: a disk's own ups and downs are many times what shall be measured, and where
//! a transaction costs less, the same cost of the extension weighs more.
//!
//! Two plain systems take turns with the cluster, which is compared with both. Their ratio to each other would be 1 if
//! measuring were exact: how far it is from 1 shows what a difference means. From one set of servers to the next all
//! of them differ by several percent, for as long as they live; so there are many sets.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::load::{Load, await_idle, number};
use crate::parameters;
use crate::pgbench::pgbench;
use crate::usage::{Tree, process_seconds};
use pgquorum_tests::{Cluster, Plain, free_ports, server_directory_below};
use postgres::Client;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// The lease fence at 1 and 8 clients, and the wait for the quorum at all of [`CLIENTS`]: the same runs, two marks.
pub const NAMES: [&str; 2] = ["tps-extension-loaded", "tps-quorum-wait"];

const MUST: [f64; 2] = [0.99, 0.98];
const CLIENTS: [u32; 3] = [1, 8, 32];
/// The first so many of [`CLIENTS`] count for each of [`NAMES`].
const COUNTED: [usize; 2] = [2, 3];
/// Short rounds, so that what else goes on in the machine weighs on all sides of a round alike. Not too short, because each
/// slice begins with caches that the others have filled, which weighs more where more code and data are used.
const ROUNDS: usize = 3;
const SLICE: Duration = Duration::from_secs(1);
/// Nothing is counted for so long on each side at the beginning.
const WARM_UP: Duration = Duration::from_secs(1);
/// Sets of servers, one after the other: they differ more than the rounds of one.
const SETS: usize = 18;

pub fn run(options: &Options) -> bool {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory } else { Path::new("/var/tmp") };
    let last = NAMES.iter().rposition(|name| options.wants(name)).map_or(0, |at| COUNTED[at]);
    let mut all: Vec<Rounds> = CLIENTS[..last].iter().map(|_| Rounds::default()).collect();
    for number in 1..=SETS {
        let set = Set::start(base);
        for (clients, rounds) in CLIENTS.iter().zip(&mut all) {
            set.measure(*clients, number, rounds);
            let (ratio, control) = (rounds.ratios.median(), rounds.control.median());
            let cpu = rounds.cpu.median();
            eprintln!(
                "{clients} clients, set {number}: so far {ratio:.3}, control {control:.3}, CPU {cpu:.3}"
            );
        }
    }
    let mut more = Map::new();
    CLIENTS.iter().zip(&all).for_each(|(clients, rounds)| rounds.tell(*clients, &mut more));
    let mut good = true;
    for ((name, counted), must) in NAMES.iter().zip(COUNTED).zip(MUST) {
        if !options.wants(name) {
            continue;
        }
        let counted = &all[..counted];
        let worst = counted.iter().map(|r| r.ratios.median()).fold(f64::INFINITY, f64::min);
        let samples =
            Samples::from(counted.iter().flat_map(|r| r.ratios.values().to_vec()).collect::<Vec<_>>());
        let line = Line {
            bench: name,
            unit: "ratio",
            samples: &samples,
            ratio: worst,
            against: "PostgreSQL with the same parameters and ANY 1 of two synchronous standbys; the median of rounds, the \
                      worst number of clients",
            must: Must::AtLeast(must),
            judged: worst,
            kept: true,
            more: Value::Object(more.clone()),
        };
        good &= line.print();
    }
    good
}

/// A cluster and two plain systems.
struct Set {
    cluster: Cluster,
    plain: [Trio; 2],
    targets: [String; 3],
}

impl Set {
    fn start(base: &Path) -> Set {
        let cluster = Cluster::start_below(base, 3);
        cluster.await_replicas(2);
        let plain = [Trio::like(&cluster, base), Trio::like(&cluster, base)];
        let targets = [cluster.status().dsn, plain[0].dsn(), plain[1].dsn()];
        let set = Set { cluster, plain, targets };
        for dsn in &set.targets {
            pgbench(dsn, &["-i", "-q", "-s", "10"]);
        }
        set.checkpoint();
        for dsn in &set.targets {
            pgbench(dsn, &["-n", "-N", "-M", "prepared", "-c", "8", "-j", "2", "-t", "1500"]);
        }
        set
    }

    fn checkpoint(&self) {
        self.cluster.sql("CHECKPOINT");
        self.plain.iter().for_each(|trio| trio.servers[0].sql("CHECKPOINT"));
    }

    /// Server processes of each side, and the cluster's sidecars.
    fn processes(&self) -> ([Vec<Tree>; 3], Vec<i32>) {
        let nodes = self.cluster.status().nodes;
        let plain = |at: usize| self.plain[at].servers.iter().map(|server| Tree::of(server.dir())).collect();
        let own = nodes.iter().map(|node| Tree::of(&node.data_dir)).collect();
        ([own, plain(0), plain(1)], nodes.iter().map(|node| node.sidecar_pid).collect())
    }

    /// A session on each side.
    fn sessions(&self) -> [Client; 3] {
        let plain = |at: usize| self.plain[at].servers[0].connect().expect("a session");
        [self.cluster.connect(self.cluster.leader()).expect("a session"), plain(0), plain(1)]
    }

    fn measure(&self, clients: u32, set: usize, rounds: &mut Rounds) {
        self.checkpoint();
        let (trees, sidecars) = self.processes();
        let used = |side: usize| {
            let servers: f64 = trees[side].iter().map(Tree::seconds).sum();
            let beside: f64 = sidecars.iter().map(|pid| process_seconds(*pid)).sum();
            servers + if side == 0 { beside } else { 0.0 }
        };
        let (each, threads) = (clients.to_string(), clients.min(2).to_string());
        let args = ["-n", "-N", "-M", "prepared", "-c", &each, "-j", &threads];
        let mut sides: Vec<(Load, Client)> = Vec::new();
        for (dsn, mut session) in self.targets.iter().zip(self.sessions()) {
            let load = Load::start(dsn, &args, &mut session);
            slice(&load, &mut session, WARM_UP);
            sides.push((load, session));
        }
        for number in 0..ROUNDS {
            // Who goes first, and in which direction, changes, so that what grows with time hits all.
            let mut order = [number % 3, (number + 1) % 3, (number + 2) % 3];
            if (set + number / 3) % 2 == 1 {
                order.reverse();
            }
            let (mut tps, mut cpu) = ([0.0; 3], [0.0; 3]);
            for side in order {
                let before = used(side);
                let (load, session) = &mut sides[side];
                tps[side] = slice(load, session, SLICE);
                cpu[side] = (used(side) - before) / tps[side];
                rounds.sides[side].add(tps[side]);
            }
            // Half-way between the two plain ones: neither of them stands for PostgreSQL more than the other.
            rounds.ratios.add(tps[0] / (tps[1] * tps[2]).sqrt());
            rounds.control.add(tps[2] / tps[1]);
            rounds.cpu.add(cpu[0] / (cpu[1] * cpu[2]).sqrt());
        }
    }
}

/// Transactions a second while the load goes on for so long.
fn slice(load: &Load, session: &mut Client, length: Duration) -> f64 {
    // Each transaction adds a row at the end of this table, which is known without reading all of it. Numbers of
    // transactions would not do: the cluster takes some itself.
    const PAGES: &str = "SELECT pg_relation_size('pgbench_history') / current_setting('block_size')::int8";
    // Each session fills a page of its own.
    let first = (number(session, PAGES) - 256).max(0);
    let rows = format!("SELECT count(*) FROM pgbench_history WHERE ctid >= '({first},0)'");
    let (before, start) = (number(session, &rows), Instant::now());
    load.go_on();
    thread::sleep(length);
    load.stop();
    let seconds = start.elapsed().as_secs_f64();
    await_idle(session);
    (number(session, &rows) - before) as f64 / seconds
}

/// What was measured with one number of clients.
#[derive(Default)]
struct Rounds {
    /// Transactions a second of the cluster, of a plain system and of another plain one.
    sides: [Samples; 3],
    /// Cluster to plain.
    ratios: Samples,
    /// Plain to plain.
    control: Samples,
    /// CPU of all servers and sidecars for a transaction, cluster to plain.
    cpu: Samples,
}

impl Rounds {
    fn tell(&self, clients: u32, more: &mut Map<String, Value>) {
        let within = |samples: &Samples| {
            let (low, high) = samples.median_within();
            json!([rounded(low), rounded(high)])
        };
        more.insert(format!("tps_{clients}"), json!(rounded(self.sides[0].median())));
        more.insert(format!("plain_tps_{clients}"), json!(rounded(self.sides[1].median())));
        more.insert(format!("ratio_{clients}"), json!(rounded(self.ratios.median())));
        more.insert(format!("ratio_{clients}_within"), within(&self.ratios));
        more.insert(format!("control_{clients}"), json!(rounded(self.control.median())));
        more.insert(format!("control_{clients}_within"), within(&self.control));
        more.insert(format!("cpu_ratio_{clients}"), json!(rounded(self.cpu.median())));
    }
}

/// A primary and two standbys without the extension.
struct Trio {
    root: PathBuf,
    servers: Vec<Plain>,
}

impl Trio {
    fn dsn(&self) -> String {
        Plain::dsn(&[&self.servers[0]])
    }

    /// With the parameters of the cluster's leader.
    fn like(cluster: &Cluster, base: &Path) -> Trio {
        let conf = parameters::of_leader(cluster);
        let mut trio = Trio { root: server_directory_below(base, "pgquorum-plain-"), servers: Vec::new() };
        let [one, two, three] = free_ports();
        let primary = Plain::init(&trio.root.join("primary"), one, &conf);
        let standbys = [("one", two), ("two", three)];
        let standbys = standbys.map(|(name, port)| {
            let standby = primary.standby(&trio.root.join(name), port, name);
            // The cluster's standbys have slots, which the primary writes to with each of their answers.
            primary.sql(&format!("SELECT pg_create_physical_replication_slot('{name}', true)"));
            standby.sql(&format!("ALTER SYSTEM SET primary_slot_name = '{name}'"));
            standby.sql("SELECT pg_reload_conf()");
            standby
        });
        primary.await_standbys(2);
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (one, two)'");
        primary.sql("SELECT pg_reload_conf()");
        trio.servers.push(primary);
        trio.servers.extend(standbys);
        trio
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
