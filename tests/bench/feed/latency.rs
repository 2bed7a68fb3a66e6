//! How long after its commit has returned a change is with a reader over HTTP, at 1,000 transactions a second: three nodes
//! on the disk, quorum replication, one reader at the leader and one at a replica. Beside it `pg_recvlogical` with a
//! wal2json slot on a single server without standbys.

use super::stream::{CHANGE, Lines, NDJSON, Stream, member};
use super::{Peer, capture, drop_slot};
use crate::Options;
use crate::capture::systems::{CHANNEL, Fleet, Kind, Table, disk, wal2json_refused};
use crate::line::{Line, Must, Samples, not_measured, rounded};
use crate::parameters;
use pgquorum_tests::Cluster;
use postgres::Client;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

pub const NAME: &str = "feed-latency";

const MUST_P50_MS: f64 = 20.0;
const MUST_P99_MS: f64 = 60.0;

const TABLES: [Table; 1] = [Table { name: "line", has_key: true }];
const MAKE: &str = "CREATE TABLE line (id bigint PRIMARY KEY, label text NOT NULL)";
const WRITERS: usize = 10;
const PER_SECOND: usize = 1000;
const SECONDS: usize = 5;
const SLICES: usize = 6;
/// Rows of a slice. The first second of each is not counted.
const ROWS: usize = PER_SECOND * SECONDS;
/// With less it was no measurement at 1,000 transactions a second.
const RATE_MIN: f64 = 0.95 * PER_SECOND as f64;

/// When each row's commit had returned, and when its line came; nanoseconds since the beginning, 0: not yet.
struct Times {
    begin: Instant,
    committed: Vec<AtomicU64>,
    received: Vec<Vec<AtomicU64>>,
}

impl Times {
    fn new(readers: usize) -> Arc<Times> {
        let column = || (0..ROWS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let received = (0..readers).map(|_| column()).collect();
        Arc::new(Times { begin: Instant::now(), committed: column(), received })
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// Milliseconds of the rows that count. A line may come before the writer has noticed its commit.
    fn latencies(&self, reader: usize) -> Vec<f64> {
        let rows = self.committed.iter().zip(&self.received[reader]).skip(PER_SECOND);
        rows.map(|(c, r)| r.load(Relaxed).saturating_sub(c.load(Relaxed)) as f64 / 1e6).collect()
    }

    /// Transactions a second of the rows that count.
    fn rate(&self) -> f64 {
        let times = self.committed[PER_SECOND..].iter().map(|t| t.load(Relaxed));
        let (first, last) = (times.clone().min().unwrap_or(0), times.max().unwrap_or(0));
        (ROWS - PER_SECOND) as f64 / ((last - first) as f64 / 1e9)
    }
}

pub fn run(options: &Options) -> bool {
    if let Some(why) = wal2json_refused() {
        return not_measured(NAME, &why);
    }
    let cluster = Cluster::start_below(disk(), 3);
    cluster.await_replicas(2);
    drop(capture(&cluster, MAKE, &TABLES));
    let conf = parameters::of_leader(&cluster);
    let mut fleet = Fleet::start(disk(), &[Kind::Wal2json], &conf, &[], |system| system.sql(MAKE));
    let nodes = [cluster.node(cluster.leader()), cluster.node(cluster.follower())];
    cluster.await_replayed(nodes[1].id);
    let [mut at_leader, mut at_replica, mut peer]: [Vec<f64>; 3] = Default::default();
    let (mut rates, mut peer_rates) = (Samples::default(), Samples::default());
    for slice in 0..SLICES.min(options.runs) {
        let first = slice * ROWS;
        let times = Times::new(2);
        let readers: Vec<_> = (0..2)
            .map(|i| {
                // Open before anything is written. A replica may begin a little earlier; that is passed over.
                let stream = Stream::open(nodes[i].api_port(), CHANNEL, NDJSON, "now");
                let stream = stream.unwrap_or_else(|e| panic!("{NAME}, node {}: {e}", nodes[i].id));
                let times = Arc::clone(&times);
                thread::spawn(move || follow(stream, &times, i, first))
            })
            .collect();
        write(&times, first, || cluster.connect(nodes[0].id).expect("a session on the leader"));
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        at_leader.extend(times.latencies(0));
        at_replica.extend(times.latencies(1));
        rates.add(times.rate());

        let times = Times::new(1);
        let system = &mut fleet.systems[0];
        system.sql("SELECT pg_create_logical_replication_slot('slice', 'wal2json')");
        let mut receiver = Peer::start(system, "slice");
        let taken = Arc::clone(&times);
        let reader = thread::spawn(move || {
            let mut left = ROWS;
            let done = receiver.lines(|line| {
                // Columns are a list of names and values; the first value is the id.
                left -= usize::from(
                    line.starts_with(b"{\"action\":\"I\"") && note(&taken, 0, first, member(line, "value")),
                );
                left == 0
            });
            done.unwrap_or_else(|e| panic!("{NAME}: {e}"));
        });
        write(&times, first, || system.connect());
        reader.join().expect("the peer's reader");
        peer.extend(times.latencies(0));
        peer_rates.add(times.rate());
        drop_slot(system, "slice");
        eprintln!("{NAME} {}: {:.0} and {:.0} a second", slice + 1, times.rate(), rates.median());
    }
    let (ours, replica, peer) = (Samples::from(at_leader), Samples::from(at_replica), Samples::from(peer));
    let ms = |samples: &Samples, part| rounded(samples.quantile(part));
    let line = Line {
        bench: NAME,
        unit: "ms",
        samples: &ours,
        ratio: ours.median() / peer.median(),
        against: "pg_recvlogical with wal2json, a server without standbys",
        must: Must::AtMost(MUST_P50_MS),
        judged: ours.median(),
        kept: ours.quantile(0.99) <= MUST_P99_MS && rates.median() >= RATE_MIN,
        more: json!({
            "p99": ms(&ours, 0.99), "must_p99": MUST_P99_MS, "tps": rates.median().round(),
            "replica_p50": ms(&replica, 0.5), "replica_p99": ms(&replica, 0.99),
            "wal2json_p50": ms(&peer, 0.5), "wal2json_p99": ms(&peer, 0.99), "wal2json_tps": peer_rates.median().round(),
        }),
    };
    line.print()
}

/// Writers that keep to their times as well as the server lets them.
fn write(times: &Arc<Times>, first: usize, connect: impl Fn() -> Client) {
    let period = Duration::from_secs_f64(WRITERS as f64 / PER_SECOND as f64);
    let start = Instant::now() + Duration::from_millis(200);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (mut session, times) = (connect(), Arc::clone(times));
            thread::spawn(move || {
                let insert = session.prepare("INSERT INTO line VALUES ($1, $2)").expect("the statement");
                let mut due = start + period.mul_f64(writer as f64 / WRITERS as f64);
                for row in (writer..ROWS).step_by(WRITERS) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let id = (first + row) as i64;
                    session.execute(&insert, &[&id, &"0123456789abcdef"]).expect("a row");
                    times.committed[row].store(times.now(), Relaxed);
                    due += period;
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
}

/// Reads until all rows of this slice have come.
fn follow(mut stream: Stream, times: &Times, reader: usize, first: usize) {
    let (mut lines, mut left) = (Lines::default(), ROWS);
    while left > 0 {
        let bytes = stream.read().unwrap_or_else(|e| panic!("{NAME}: {e}"));
        assert!(!bytes.is_empty(), "{NAME}: the stream ended before {left} rows");
        lines.push(bytes, |line| {
            left -= usize::from(line.starts_with(CHANGE) && note(times, reader, first, member(line, "id")));
        });
    }
}

/// Notes that a row has come; false: it is none of this slice.
fn note(times: &Times, reader: usize, first: usize, id: Option<&str>) -> bool {
    let row = id.and_then(|id| id.parse::<usize>().ok()).and_then(|id| id.checked_sub(first));
    let place = row.and_then(|row| times.received[reader].get(row));
    place.inspect(|place| place.store(times.now(), Relaxed)).is_some()
}
