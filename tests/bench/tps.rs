//! What the extension and its wait for the quorum cost writers: pgbench against a cluster and against PostgreSQL with the
//! same parameters and two synchronous standbys of its own. All are in memory: a disk's own ups and downs are many times
//! what shall be measured, and where a transaction costs less, the same cost of the extension weighs more.
//!
//! Two systems work at once, on one processor, and what they get done in the same CPU time is compared: one after the other,
//! two equal systems differ by more than that from one second to the next, and on several processors as well, by who happens to
//! run beside whom. The processor never rests, so this is what it can do. What the cluster's nodes do when
//! nobody writes is measured by itself and left out: where each node has a machine, it is on others.
//!
//! There are two plain systems. Their ratio to each other would be 1 if measuring were exact: how far it is from 1 shows what a
//! difference means. From one set of servers to the next all of them differ, for as long as they live; so there are many
//! sets.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::load::{Load, await_idle, number};
use crate::parameters;
use crate::pgbench::pgbench;
use crate::usage::{Tree, bind, main_thread_seconds, threads_seconds};
use pgquorum_tests::{Cluster, PATIENCE, Plain, await_until, free_ports, server_directory_below};
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
/// Of each pair, with each number of clients, in each set.
const SLICE: Duration = Duration::from_secs(3);
/// Each slice begins with caches that others have filled; so long nothing is counted.
const SETTLE: Duration = Duration::from_millis(500);
/// Nothing is counted for so long on each side at the beginning.
const WARM_UP: Duration = Duration::from_secs(1);
/// So long nobody writes, to see what the nodes do then: with all that they do once in a second, since they do that in a slice
/// too.
const IDLE: Duration = Duration::from_secs(3);
/// One side has starved if the other did so many times its transactions.
const STARVED: f64 = 2.0;
const ATTEMPTS: u32 = 4;
/// Sets of servers, one after the other: they differ more than the rounds of one.
const SETS: usize = 10;
/// Of the sides: the cluster and a plain system, twice, and both plain ones.
const PAIRS: [[usize; 2]; 3] = [[0, 1], [0, 2], [1, 2]];

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
            eprintln!("{clients} clients, set {number}: so far {ratio:.3}, control {control:.3}");
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
            against: "transactions of PostgreSQL with the same parameters and ANY 1 of two synchronous standbys, at once \
                      with it, for the same CPU time; the median of rounds, the worst number of clients",
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
        // It would come to each system at another moment, and write so much WAL that standbys on the same processor take
        // a second to have it.
        let (status, answer) = cluster.settled("PATCH", "/db-config", Some(&json!({"autovacuum": "off"})));
        assert_eq!(status, 200, "{answer}");
        await_until(PATIENCE, "no vacuum", || {
            match cluster.ask(cluster.leader(), "SHOW autovacuum").as_str() {
                "off" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
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

    /// A side's server processes, and the sidecars beside them. On one processor from now on, but for the sidecars.
    fn processes(&self, side: usize) -> Processes {
        let (trees, sidecars): (Vec<Tree>, Vec<i32>) = match side.checked_sub(1) {
            None => {
                let nodes = self.cluster.status().nodes;
                (
                    nodes.iter().map(|node| Tree::of(&node.data_dir)).collect(),
                    nodes.iter().map(|node| node.sidecar_pid).collect(),
                )
            }
            Some(at) => {
                (self.plain[at].servers.iter().map(|server| Tree::of(server.dir())).collect(), Vec::new())
            }
        };
        trees.iter().flat_map(Tree::all).for_each(bind);
        Processes { trees, sidecars }
    }

    /// A session on a side.
    fn session(&self, side: usize) -> Client {
        match side.checked_sub(1) {
            None => self.cluster.connect(self.cluster.leader()),
            Some(at) => self.plain[at].servers[0].connect(),
        }
        .expect("a session")
    }

    fn measure(&self, clients: u32, set: usize, rounds: &mut Rounds) {
        self.checkpoint();
        let clients = clients.to_string();
        let args = ["-n", "-N", "-M", "prepared", "-c", &clients, "-j", "1"];
        let mut sides = [0, 1, 2].map(|side| {
            let (processes, mut session) = (self.processes(side), self.session(side));
            let load = Load::start(&self.targets[side], &args, &mut session);
            bind(load.pid());
            load.go_on();
            thread::sleep(WARM_UP);
            load.stop();
            await_idle(&mut session);
            Side { load, session, processes, idle: 0.0 }
        });
        let before = sides.each_ref().map(|side| (side.processes.seconds(), Instant::now()));
        thread::sleep(IDLE);
        for (side, (cpu, at)) in sides.iter_mut().zip(before) {
            side.idle = (side.processes.seconds() - cpu) / at.elapsed().as_secs_f64();
        }
        rounds.idle.add(sides[0].idle);
        for pair in PAIRS {
            // Who goes first changes.
            let swapped = set % 2 == 1;
            let order = if swapped { [pair[1], pair[0]] } else { pair };
            let Some(done) = fair_race(&mut sides, order, &mut rounds.starved) else { continue };
            let [one, other] = if swapped { [done[1], done[0]] } else { done };
            let (per_cpu, tps) = (one.per_cpu / other.per_cpu, one.tps / other.tps);
            if pair[0] == 0 {
                rounds.ratios.add(per_cpu);
                rounds.tps.add(tps);
            } else {
                rounds.control.add(per_cpu);
            }
        }
    }
}

struct Processes {
    trees: Vec<Tree>,
    sidecars: Vec<i32>,
}

impl Processes {
    /// CPU seconds so far.
    fn seconds(&self) -> f64 {
        let servers: f64 = self.trees.iter().map(Tree::seconds).sum();
        servers + self.sidecars.iter().map(|pid| threads_seconds(*pid)).sum::<f64>()
    }
}

/// A system at work.
struct Side {
    load: Load,
    session: Client,
    processes: Processes,
    /// CPU seconds a second while nobody writes.
    idle: f64,
}

impl Side {
    /// A query for the number of transactions. Each adds a row at the end of this table, which is known without reading all
    /// of it. Numbers of transactions would not do: the cluster takes some itself.
    fn counting(&mut self) -> String {
        const PAGES: &str =
            "SELECT pg_relation_size('pgbench_history') / current_setting('block_size')::int8";
        // Each session fills a page of its own.
        let first = (number(&mut self.session, PAGES) - 256).max(0);
        format!("SELECT count(*) FROM pgbench_history WHERE ctid >= '({first},0)'")
    }

    fn now(&mut self, counting: &str) -> Point {
        let transactions = number(&mut self.session, counting) as f64;
        let cpu = self.processes.seconds() + main_thread_seconds(self.load.pid());
        Point { transactions, cpu, at: Instant::now() }
    }
}

/// How far a side is.
struct Point {
    transactions: f64,
    cpu: f64,
    at: Instant,
}

/// What a side has done.
#[derive(Clone, Copy)]
struct Done {
    /// Transactions for a CPU second of servers, sidecars and pgbench, without what they take when idle.
    per_cpu: f64,
    tps: f64,
}

/// A race in which both sides got on. A processor goes to those who want it: the side of which most processes wait for their
/// standbys, which wait for the processor, may get next to nothing for a second, and what little it does says nothing of what a
/// transaction costs. Whose side that is does not matter here. `None` if it was so time and again.
fn fair_race(sides: &mut [Side; 3], order: [usize; 2], starved: &mut u32) -> Option<[Done; 2]> {
    for _ in 0..ATTEMPTS {
        let done = race(sides, order);
        let [one, other] = done.map(|done| done.tps);
        if one < STARVED * other && other < STARVED * one {
            return Some(done);
        }
        *starved += 1;
    }
    None
}

/// Two sides at once.
fn race(sides: &mut [Side; 3], order: [usize; 2]) -> [Done; 2] {
    let counting = order.map(|at| sides[at].counting());
    order.iter().for_each(|at| sides[*at].load.go_on());
    thread::sleep(SETTLE);
    let before = [0, 1].map(|n| sides[order[n]].now(&counting[n]));
    thread::sleep(SLICE);
    let after = [0, 1].map(|n| sides[order[n]].now(&counting[n]));
    let done = [0, 1].map(|n| after[n].transactions - before[n].transactions);
    order.iter().for_each(|at| sides[*at].load.stop());
    order.iter().for_each(|at| await_idle(&mut sides[*at].session));
    [0, 1].map(|n| {
        let seconds = (after[n].at - before[n].at).as_secs_f64();
        let transactions = done[n];
        let cpu = after[n].cpu - before[n].cpu - sides[order[n]].idle * seconds;
        Done { per_cpu: transactions / cpu, tps: transactions / seconds }
    })
}

/// What was measured with one number of clients.
#[derive(Default)]
struct Rounds {
    /// Transactions for the same CPU time, cluster to plain.
    ratios: Samples,
    /// Plain to plain.
    control: Samples,
    /// Transactions in the same time, cluster to plain, however the system has shared out the processor.
    tps: Samples,
    /// CPU seconds a second of an idle cluster.
    idle: Samples,
    /// Races that do not count, because one side starved.
    starved: u32,
}

impl Rounds {
    fn tell(&self, clients: u32, more: &mut Map<String, Value>) {
        let within = |samples: &Samples| {
            let (low, high) = samples.median_within();
            json!([rounded(low), rounded(high)])
        };
        more.insert(format!("ratio_{clients}"), json!(rounded(self.ratios.median())));
        more.insert(format!("ratio_{clients}_within"), within(&self.ratios));
        more.insert(format!("control_{clients}"), json!(rounded(self.control.median())));
        more.insert(format!("control_{clients}_within"), within(&self.control));
        more.insert(format!("tps_ratio_{clients}"), json!(rounded(self.tps.median())));
        more.insert(format!("starved_{clients}"), json!(self.starved));
        more.insert(format!("idle_cores_{clients}"), json!(rounded(self.idle.median())));
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
