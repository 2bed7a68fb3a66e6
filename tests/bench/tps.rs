//! What the extension costs writers: pgbench against a cluster and against PostgreSQL with the same parameters and two
//! synchronous standbys of its own, in turns. Both run all the time, so what they do when idle weighs on both sides. Both
//! are in memory: a disk's own ups and downs are many times what shall be measured, and where a transaction costs less,
//! the same cost of the extension weighs more.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::pgbench::{pgbench, rate};
use pgquorum_tests::{Cluster, Plain, free_ports, server_directory_below};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub const NAME: &str = "tps-extension-loaded";

const MUST: f64 = 0.99;
const CLIENTS: [u32; 2] = [1, 8];
/// Many short pairs: what else goes on in the machine then weighs on both sides of a pair alike.
const PAIRS: usize = 100;
const SLICE_SECONDS: u32 = 1;

/// What belongs to the one server, or is what shall be measured.
const OWN: &str = "'port', 'listen_addresses', 'unix_socket_directories', 'cluster_name', 'primary_conninfo', \
                   'primary_slot_name', 'shared_preload_libraries', 'synchronous_standby_names', 'lc_messages', \
                   'lc_monetary', 'lc_numeric', 'lc_time', 'default_text_search_config', 'restore_command'";

pub fn run(_: &Options) -> bool {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory } else { Path::new("/var/tmp") };
    let cluster = Cluster::start_below(base, 3);
    cluster.await_replicas(2);
    let plain = Trio::like(&cluster, base);
    let targets = [cluster.status().dsn, Plain::dsn(&[&plain.servers[0]])];
    for dsn in &targets {
        pgbench(dsn, &["-i", "-q", "-s", "10"]);
    }
    let checkpoint = || {
        cluster.sql("CHECKPOINT");
        plain.servers[0].sql("CHECKPOINT");
    };
    checkpoint();
    for dsn in &targets {
        rate(dsn, 8, 2);
    }
    let mut all = Samples::default();
    let mut worst = f64::INFINITY;
    let mut more = Map::new();
    for clients in CLIENTS {
        checkpoint();
        let mut sides: [Samples; 2] = Default::default();
        let mut ratios = Samples::default();
        for number in 1..=PAIRS {
            // Who goes first changes, so that what grows with time hits both.
            let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut pair = [0.0; 2];
            for side in order {
                pair[side] = rate(&targets[side], clients, SLICE_SECONDS);
                sides[side].add(pair[side]);
            }
            ratios.add(pair[0] / pair[1]);
            all.add(pair[0] / pair[1]);
            eprintln!("{NAME}, {clients} clients, pair {number}: {:.0} and {:.0} a second", pair[0], pair[1]);
        }
        let ratio = ratios.median();
        worst = worst.min(ratio);
        let (low, high) = ratios.median_within();
        more.insert(format!("tps_{clients}"), json!(rounded(sides[0].median())));
        more.insert(format!("plain_tps_{clients}"), json!(rounded(sides[1].median())));
        more.insert(format!("ratio_{clients}"), json!(rounded(ratio)));
        more.insert(format!("ratio_{clients}_within"), json!([rounded(low), rounded(high)]));
        let medians = sides[0].median() / sides[1].median();
        more.insert(format!("ratio_{clients}_of_medians"), json!(rounded(medians)));
    }
    let line = Line {
        bench: NAME,
        unit: "ratio",
        samples: &all,
        ratio: worst,
        against: "PostgreSQL with the same parameters and ANY 1 of two synchronous standbys; median of pairs, the worse of 1 \
                  and 8 clients",
        must: Must::AtLeast(MUST),
        judged: worst,
        kept: true,
        more: Value::Object(more),
    };
    line.print()
}

/// A primary and two standbys without the extension.
struct Trio {
    root: PathBuf,
    servers: Vec<Plain>,
}

impl Trio {
    /// With the parameters of the cluster's leader.
    fn like(cluster: &Cluster, base: &Path) -> Trio {
        let sql = format!(
            "SELECT string_agg(format('%s = ''%s''', name, replace(setting, '''', '''''')), E'\\n') FROM pg_settings \
             WHERE source = 'configuration file' AND name NOT LIKE 'pgquorum.%' AND name NOT IN ({OWN})"
        );
        let conf = cluster.ask(cluster.leader(), &sql);
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
