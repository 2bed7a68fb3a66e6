//! How many rows a second are applied, by `quorum.apply` and by PostgreSQL's logical replication, between the same two
//! servers: many transactions of one row, and one of many rows. All is written at the source before; what is measured
//! begins with the first byte that is read there and ends when the last row is committed at the target.

use crate::Options;
use crate::line::{Line, Must, Samples};
use crate::native;
use pgquorum_tests::{Applier, LogServer, Plain, await_until, text};
use postgres::Client;
use serde_json::json;
use std::time::{Duration, Instant};

pub const NAMES: [&str; 2] = ["apply-small", "apply-bulk"];

/// How many times as fast as logical replication it must be.
const MUST_SMALL: f64 = 3.0;
const MUST_BULK: f64 = 1.5;
const RUNS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);

const CONF: &str = "wal_level = logical\nsynchronous_commit = off\nshared_buffers = 512MB\nmax_wal_size = 8GB\nautovacuum = off";
const MAKE: &str = "CREATE TABLE ours (id integer PRIMARY KEY, n integer NOT NULL, v text); CREATE TABLE native (LIKE ours INCLUDING ALL)";

struct Load {
    name: &'static str,
    rows: u32,
    must: f64,
    /// Fills a table.
    fill: fn(&str, u32) -> String,
}

const LOADS: [Load; 2] = [
    Load {
        name: NAMES[0],
        rows: 200_000,
        must: MUST_SMALL,
        fill: |table, rows| {
            format!(
                "DO $$ BEGIN FOR i IN 1..{rows} LOOP INSERT INTO {table} VALUES (i, i, 'row number ' || i); COMMIT; END LOOP; END $$"
            )
        },
    },
    Load {
        name: NAMES[1],
        rows: 1_000_000,
        must: MUST_BULK,
        fill: |table, rows| {
            format!(
                "INSERT INTO {table} SELECT i, i, 'row number ' || i FROM generate_series(1, {rows}) AS i"
            )
        },
    },
];

pub fn run(options: &Options) -> bool {
    let (source, target) = (LogServer::start(CONF), LogServer::start(CONF));
    let mut there = source.connect();
    for client in [&mut there, &mut target.connect()] {
        pgquorum_tests::run(client, MAKE);
    }
    pgquorum_tests::run(
        &mut there,
        "SELECT quorum.track('ours', 'c'); CREATE PUBLICATION p FOR TABLE native",
    );
    let mut applier = Applier::new(&source, &target, "");
    applier.batch_bytes = 1 << 20;
    applier.add_schemas();
    pgquorum_tests::run(
        &mut applier.target,
        &format!("CREATE SUBSCRIPTION n CONNECTION '{}' PUBLICATION p", Plain::dsn(&[&source.server])),
    );
    LOADS
        .iter()
        .filter(|load| options.wants(load.name))
        .all(|load| measure(load, options, &mut there, &mut applier))
}

fn measure(load: &Load, options: &Options, there: &mut Client, applier: &mut Applier) -> bool {
    let mut rates: [Samples; 2] = Default::default();
    for turn in 0..RUNS.min(options.runs) {
        for side in (0..2).map(|i| (i + turn) % 2) {
            let seconds = if side == 0 { ours(load, there, applier) } else { native(load, there, applier) };
            let rate = f64::from(load.rows) / seconds;
            eprintln!(
                "{} {}: {} {rate:.0}/s",
                load.name,
                turn + 1,
                ["quorum.apply", "logical replication"][side]
            );
            rates[side].add(rate);
        }
    }
    let [ours, native] = &rates;
    let ratio = ours.median() / native.median();
    let line = Line {
        bench: load.name,
        unit: "rows/s",
        samples: ours,
        ratio,
        against: "PostgreSQL's logical replication between the same servers",
        must: Must::AtLeast(load.must),
        judged: ratio,
        kept: true,
        more: json!({ "native": native.median().round(), "rows": load.rows }),
    };
    line.print()
}

fn ours(load: &Load, there: &mut Client, applier: &mut Applier) -> f64 {
    pgquorum_tests::run(there, &(load.fill)("ours", load.rows));
    pgquorum_tests::run(there, "SELECT quorum.cut('c')");
    let start = Instant::now();
    let applied = applier.pull();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!((applied.changes, applied.conflicts), (i64::from(load.rows), 0));
    pgquorum_tests::run(there, "TRUNCATE ours");
    applier.pull();
    seconds
}

fn native(load: &Load, there: &mut Client, applier: &mut Applier) -> f64 {
    let here = &mut applier.target;
    native::rest(here, there, PATIENCE);
    pgquorum_tests::run(there, &(load.fill)("native", load.rows));
    let start = Instant::now();
    pgquorum_tests::run(here, "ALTER SUBSCRIPTION n ENABLE");
    let last = format!("SELECT count(*)::text FROM native WHERE id = {}", load.rows);
    await_until(PATIENCE, "the last row", || match text(here, &last).as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    });
    let seconds = start.elapsed().as_secs_f64();
    pgquorum_tests::run(there, "TRUNCATE native");
    await_until(PATIENCE, "an empty table", || {
        match text(here, "SELECT count(*)::text FROM native").as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    seconds
}
