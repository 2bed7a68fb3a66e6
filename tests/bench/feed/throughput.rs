//! How many changes a second one reader gets from the log's beginning, as lines of JSON and in the binary form, beside
//! `pg_recvlogical` with a wal2json slot on the same data. Servers in memory; the readers only count.

use super::{Peer, capture, drop_slot, read_frames, read_lines};
use crate::Options;
use crate::capture::systems::{Fleet, Kind, System, Table, memory, wal2json_refused};
use crate::line::{Line, Must, Samples, not_measured, rounded};
use crate::parameters;
use pgquorum_tests::Cluster;
use serde_json::json;
use std::time::Instant;

pub const NAME: &str = "feed-throughput";

const MUST: f64 = 150_000.0;
const MUST_BINARY: f64 = 400_000.0;

const TABLES: [Table; 1] = [Table { name: "small", has_key: true }];
const MAKE: &str = "CREATE TABLE small (id integer PRIMARY KEY, n integer NOT NULL)";
/// Small transactions, as applications have them.
const FILL: &str = "DO $$ BEGIN FOR i IN 0..19999 LOOP INSERT INTO small SELECT i * 50 + g, g FROM generate_series(1, 50) g; \
                    COMMIT; END LOOP; END $$";
const CHANGES: u64 = 1_000_000;
const READINGS: usize = 5;

pub fn run(options: &Options) -> bool {
    if let Some(why) = wal2json_refused() {
        return not_measured(NAME, &why);
    }
    let cluster = Cluster::start_below(memory(), 1);
    let mut session = capture(&cluster, MAKE, &TABLES);
    let mut fill = |sql: &str| session.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    fill("SET synchronous_commit = off");
    fill(FILL);
    fill("SELECT quorum.cut('bench')");
    let mut fleet =
        Fleet::start(memory(), &[Kind::Wal2json], &parameters::of_leader(&cluster), &[], |system| {
            system.sql(MAKE);
            system.sql("SELECT pg_create_logical_replication_slot('beginning', 'wal2json')");
            system.sql("SET synchronous_commit = off");
            system.sql(FILL);
        });
    let node = cluster.node(cluster.leader());
    let mut rates: [Samples; 3] = Default::default();
    for reading in 0..READINGS.min(options.runs) {
        for side in (0..3).map(|i| (i + reading) % 3) {
            let start = Instant::now();
            let done = match side {
                0 => read_lines(&node, "start", CHANGES),
                1 => read_frames(&node, "start", CHANGES),
                _ => read_peer(&mut fleet.systems[0]),
            };
            done.unwrap_or_else(|e| panic!("{NAME}: {e}"));
            let rate = CHANGES as f64 / start.elapsed().as_secs_f64();
            eprintln!("{NAME} {}: {} {rate:.0}/s", reading + 1, ["NDJSON", "binary", "wal2json"][side]);
            rates[side].add(rate);
        }
    }
    let [lines, binary, peer] = &rates;
    let line = Line {
        bench: NAME,
        unit: "changes/s",
        samples: lines,
        ratio: lines.median() / peer.median(),
        against: "pg_recvlogical with wal2json, format 2",
        must: Must::AtLeast(MUST),
        judged: lines.median(),
        kept: binary.median() >= MUST_BINARY,
        more: json!({
            "binary": binary.median().round(), "must_binary": MUST_BINARY, "wal2json": peer.median().round(),
            "binary_ratio": rounded(binary.median() / peer.median()), "changes": CHANGES,
        }),
    };
    line.print()
}

/// A copy of the slot that stands before all changes: reading it moves only the copy.
fn read_peer(system: &mut System) -> Result<(), std::io::Error> {
    system.sql("SELECT pg_copy_logical_replication_slot('beginning', 'reading')");
    let mut seen = 0;
    let mut peer = Peer::start(system, "reading");
    let done = peer.lines(|line| {
        seen += u64::from(line.starts_with(b"{\"action\":\"I\""));
        seen == CHANGES
    });
    drop(peer);
    drop_slot(system, "reading");
    done
}
