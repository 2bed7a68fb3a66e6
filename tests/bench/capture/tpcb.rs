//! What capturing costs pgbench's TPC-B, all four tables captured, beside a row trigger in PL/pgSQL and a wal2json slot.
//! Durable commits are measured on the disk; asynchronous ones in memory, where what the processor does shows, and there
//! PostgreSQL's logical replication with its subscriber is a peer, too.

use super::slices::{self, Plan};
use super::systems::{Fleet, Kind, Table, disk, memory, wal2json_refused};
use crate::Options;
use crate::line::{Line, Must, not_measured, rounded};
use crate::pgbench::pgbench;
use serde_json::{Map, Value, json};
use std::time::Duration;

pub const NAMES: [&str; 2] = ["capture-tpcb-durable", "capture-tpcb-async"];

const MUST: [f64; 2] = [0.97, 0.95];
const MUST_CPU: [f64; 2] = [1.06, 1.10];
const MUST_WAL: f64 = 2.0;

const KINDS: [Kind; 8] = [
    Kind::Plain,
    Kind::Control,
    Kind::Captured,
    Kind::Default,
    Kind::Idle,
    Kind::Trigger,
    Kind::Wal2json,
    Kind::Pgoutput,
];
const SCALE: &str = "20";
const CLIENTS: usize = 4;
const CONF: &str = "shared_buffers = 512MB\nmax_wal_size = 4GB\ncheckpoint_timeout = 1h\nautovacuum = off\n\
                    max_connections = 50\n";
const TABLES: [Table; 4] = [
    Table { name: "pgbench_accounts", has_key: true },
    Table { name: "pgbench_branches", has_key: true },
    Table { name: "pgbench_tellers", has_key: true },
    Table { name: "pgbench_history", has_key: false },
];

pub fn run(options: &Options) -> bool {
    let mut good = true;
    for (at, name) in NAMES.iter().enumerate().filter(|(_, name)| options.wants(name)) {
        good &= match wal2json_refused() {
            None => one(name, at),
            Some(why) => not_measured(name, &why),
        };
    }
    good
}

fn one(name: &str, at: usize) -> bool {
    let durable = at == 0;
    let (base, commit) = if durable { (disk(), "on") } else { (memory(), "off") };
    let conf = format!("{CONF}synchronous_commit = {commit}\n");
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| !durable || *kind != Kind::Pgoutput).collect();
    let mut fleet = Fleet::start(base, &kinds, &conf, &TABLES, |system| {
        pgbench(&system.dsn(), &["-i", "-q", "-s", SCALE]);
    });
    let plan = Plan {
        rounds: 160,
        within: Duration::from_secs(200),
        peers_every: 6,
        others_every: 2,
        slice: Duration::from_millis(300),
        clients: CLIENTS,
        more: Vec::new(),
        wal_rounds: if durable { 12 } else { 0 },
    };
    let figures = slices::measure(name, &mut fleet, &plan);
    let mut more = Map::new();
    fleet.systems.iter().zip(&figures).for_each(|(system, f)| f.tell(system.kind, &mut more));
    let Some(ours) = slices::of(Kind::Captured, &fleet, &figures) else { unreachable!("one of KINDS") };
    let ratio = ours.tps_ratio.median();
    let cheap = ours.cpu_ratio.median() <= MUST_CPU[at];
    let short = !durable || ours.wal_ratio.median() <= MUST_WAL;
    more.insert("must_cpu_ratio".to_owned(), json!(MUST_CPU[at]));
    if durable {
        more.insert("must_wal_ratio".to_owned(), json!(MUST_WAL));
    }
    let line = Line {
        bench: name,
        unit: "ratio",
        samples: &ours.tps_ratio,
        ratio: rounded(ratio),
        against: "TPS of PostgreSQL that captures nothing; CPU of all server processes and WAL bytes without full-page \
                  images likewise; medians of rounds",
        must: Must::AtLeast(MUST[at]),
        judged: ratio,
        kept: cheap && short,
        more: Value::Object(more),
    };
    line.print()
}
