//! What the extension and its wait for the quorum cost writers: pgbench against a cluster and against PostgreSQL with the
//! same parameters and two synchronous standbys of its own, in turns. Both run all the time, so what they do when idle
//! weighs on both sides. Both are in memory: a disk's own ups and downs are many times what shall be measured, and where
//! a transaction costs less, the same cost of the extension weighs more.
//!
//! A third, plain system takes turns with the two. Its ratio to the other plain one would be 1 if measuring were exact:
//! how far it is from 1 shows what a difference means.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::parameters;
use crate::pgbench::{pgbench, rate};
use pgquorum_tests::{Cluster, Plain, free_ports, server_directory_below};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The lease fence at 1 and 8 clients, and the wait for the quorum at all of [`CLIENTS`]: the same runs, two marks.
pub const NAMES: [&str; 2] = ["tps-extension-loaded", "tps-quorum-wait"];

const MUST: [f64; 2] = [0.99, 0.98];
const CLIENTS: [u32; 3] = [1, 8, 32];
/// The first so many of [`CLIENTS`] count for each of [`NAMES`].
const COUNTED: [usize; 2] = [2, 3];
/// Many short rounds: what else goes on in the machine then weighs on all sides of a round alike. Slices of a second, a
/// hundred of them, still moved by 3 % from run to run; slices of a quarter of a second do not.
const ROUNDS: usize = 400;
/// Transactions of a slice, all clients together.
const SLICE: u32 = 400;
const SLICE_BUSY: u32 = 1200;

pub fn run(options: &Options) -> bool {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory } else { Path::new("/var/tmp") };
    let cluster = Cluster::start_below(base, 3);
    cluster.await_replicas(2);
    let plain = [Trio::like(&cluster, base), Trio::like(&cluster, base)];
    let targets = [cluster.status().dsn, plain[0].dsn(), plain[1].dsn()];
    for dsn in &targets {
        pgbench(dsn, &["-i", "-q", "-s", "10"]);
    }
    let checkpoint = || {
        cluster.sql("CHECKPOINT");
        plain.iter().for_each(|trio| trio.servers[0].sql("CHECKPOINT"));
    };
    checkpoint();
    for dsn in &targets {
        rate(dsn, 8, 10 * SLICE_BUSY);
    }
    let last = NAMES.iter().rposition(|name| options.wants(name)).map_or(0, |at| COUNTED[at]);
    let mut all = Vec::new();
    let mut more = Map::new();
    for clients in &CLIENTS[..last] {
        checkpoint();
        let measured = Rounds::measure(&targets, *clients);
        measured.tell(*clients, &mut more);
        all.push(measured);
    }
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

/// What was measured with one number of clients.
#[derive(Default)]
struct Rounds {
    /// Transactions a second of the cluster, of a plain system and of another plain one.
    sides: [Samples; 3],
    /// Cluster to plain.
    ratios: Samples,
    /// Plain to plain.
    control: Samples,
}

impl Rounds {
    fn measure(targets: &[String; 3], clients: u32) -> Rounds {
        let mut rounds = Rounds::default();
        let slice = if clients == 1 { SLICE } else { SLICE_BUSY };
        for number in 0..ROUNDS {
            // Who goes first, and in which direction, changes, so that what grows with time hits all.
            let mut order = [number % 3, (number + 1) % 3, (number + 2) % 3];
            if number / 3 % 2 == 1 {
                order.reverse();
            }
            let mut round = [0.0; 3];
            for side in order {
                round[side] = rate(&targets[side], clients, slice);
                rounds.sides[side].add(round[side]);
            }
            // Between the two plain ones the same rule as between the cluster and one of them.
            rounds.ratios.add(round[0] / round[1]);
            rounds.control.add(round[2] / round[1]);
            if number % 50 == 49 {
                let (ratio, control) = (rounds.ratios.median(), rounds.control.median());
                eprintln!(
                    "{}, {clients} clients, {} rounds: {ratio:.3}, control {control:.3}",
                    NAMES[0],
                    number + 1
                );
            }
        }
        rounds
    }

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
