//! How fast a backlog goes from one cluster to another, sidecars and all: many transactions of one row, and one of many
//! rows. All is written at the source while nobody follows; what is measured begins with the word that it is to be
//! followed again and ends when the last row is committed at the target.

use super::{PATIENCE, Peers, until};
use crate::Options;
use crate::line::{Line, Must, Samples};
use crate::native;
use pgquorum_tests::{Cluster, Pair, run};
use postgres::Client;
use serde_json::{Value, json};
use std::time::Instant;

pub const NAMES: [&str; 2] = ["follow-small", "follow-bulk"];

const RUNS: usize = 3;
const MAKE: &str = "CREATE TABLE backlog (id integer PRIMARY KEY, n integer NOT NULL, v text)";

struct Load {
    name: &'static str,
    rows: u32,
    /// How many times as fast as logical replication it must be.
    must: f64,
    fill: fn(u32) -> String,
}

const LOADS: [Load; 2] = [
    Load {
        name: NAMES[0],
        rows: 200_000,
        must: 3.0,
        fill: |rows| {
            format!(
                "DO $$ BEGIN FOR i IN 1..{rows} LOOP INSERT INTO backlog VALUES (i, i, 'row number ' || i); COMMIT; END LOOP; END $$"
            )
        },
    },
    Load {
        name: NAMES[1],
        rows: 1_000_000,
        must: 1.5,
        fill: |rows| {
            format!(
                "INSERT INTO backlog SELECT i, i, 'row number ' || i FROM generate_series(1, {rows}) AS i"
            )
        },
    },
];

pub(super) fn measure(options: &Options, pair: &Pair, peers: &Peers) -> bool {
    pair.source.sql(MAKE);
    pair.target.sql(MAKE);
    pair.track(&["backlog"]);
    pair.subscribe(&json!({"tables": ["public.backlog"]}));
    pair.await_state("following", None);
    let [mut there, mut here] = peers.connect();
    run(&mut there, &format!("{MAKE}; DROP PUBLICATION IF EXISTS p; CREATE PUBLICATION p FOR TABLE backlog"));
    run(&mut here, MAKE);
    peers.subscribe(&mut here);
    until(&mut here, "SELECT count(*)::text FROM pg_subscription_rel WHERE srsubstate <> 'r'", "0");
    let mut sides = Sides {
        source: pair.source.connect(1).expect("a session"),
        target: pair.target.connect(1).expect("a session"),
        there,
        here,
        cluster: &pair.target,
    };
    // The same on both sides: nobody measures how fast the source's disk is.
    for client in [&mut sides.source, &mut sides.there] {
        run(client, "SET synchronous_commit = off");
    }
    let good = LOADS
        .iter()
        .filter(|load| options.wants(load.name))
        .map(|load| one(load, options, pair, &mut sides))
        .fold(true, |all, good| all & good);
    run(&mut sides.here, "DROP SUBSCRIPTION n");
    let (status, answer) = pair.target.send(1, "DELETE", "/subscriptions/mirror", None);
    assert_eq!(status, 200, "{answer}");
    good
}

struct Sides<'a> {
    source: Client,
    target: Client,
    there: Client,
    here: Client,
    cluster: &'a Cluster,
}

impl Sides<'_> {
    fn enable(&self, enabled: bool) {
        let change: Value = json!({"enabled": enabled});
        let (status, answer) = self.cluster.send(1, "PATCH", "/subscriptions/mirror", Some(&change));
        assert_eq!(status, 200, "{answer}");
    }
}

fn one(load: &Load, options: &Options, pair: &Pair, sides: &mut Sides) -> bool {
    let mut rates: [Samples; 2] = Default::default();
    for turn in 0..RUNS.min(options.runs) {
        for side in (0..2).map(|i| (i + turn) % 2) {
            let seconds = if side == 0 { ours(load, pair, sides) } else { native(load, sides) };
            let rate = f64::from(load.rows) / seconds;
            let name = ["pgquorum", "logical replication"][side];
            eprintln!("{} {}: {name} {rate:.0}/s", load.name, turn + 1);
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
        against: "PostgreSQL's logical replication between two servers with the same settings",
        must: Must::AtLeast(load.must),
        judged: ratio,
        kept: true,
        more: json!({ "native": native.median().round(), "rows": load.rows }),
    };
    line.print()
}

fn ours(load: &Load, pair: &Pair, sides: &mut Sides) -> f64 {
    sides.enable(false);
    pair.await_rest();
    run(&mut sides.source, &(load.fill)(load.rows));
    run(&mut sides.source, "CHECKPOINT");
    let start = Instant::now();
    sides.enable(true);
    until(&mut sides.target, &last(load), "1");
    let seconds = start.elapsed().as_secs_f64();
    run(&mut sides.source, "TRUNCATE backlog");
    until(&mut sides.target, "SELECT count(*)::text FROM backlog", "0");
    seconds
}

fn native(load: &Load, sides: &mut Sides) -> f64 {
    native::rest(&mut sides.here, &mut sides.there, PATIENCE);
    run(&mut sides.there, &(load.fill)(load.rows));
    run(&mut sides.there, "CHECKPOINT");
    let start = Instant::now();
    run(&mut sides.here, "ALTER SUBSCRIPTION n ENABLE");
    until(&mut sides.here, &last(load), "1");
    let seconds = start.elapsed().as_secs_f64();
    run(&mut sides.there, "TRUNCATE backlog");
    until(&mut sides.here, "SELECT count(*)::text FROM backlog", "0");
    seconds
}

fn last(load: &Load) -> String {
    format!("SELECT count(*)::text FROM backlog WHERE id = {}", load.rows)
}
