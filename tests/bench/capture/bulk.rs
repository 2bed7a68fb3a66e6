//! A million rows in one statement: how much longer it takes where it is captured, and what processor time everything
//! together costs until a reader has all changes. Beside it a row trigger in PL/pgSQL, and a wal2json slot read by
//! `pg_recvlogical`. All in memory. Our reader takes JSON lines over HTTP, as wal2json's does in its way; reading the
//! binary form is measured too.

use super::systems::{Fleet, Kind, System, Table, memory, wal2json_refused};
use crate::Options;
use crate::feed::{capture, read_frames, read_lines};
use crate::line::{Line, Must, Samples, not_measured, rounded};
use crate::parameters;
use crate::usage::{Tree, own_thread_seconds, process_seconds};
use pgquorum_tests::{Cluster, Node};
use postgres::Client;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

pub const NAMES: [&str; 3] = ["capture-bulk-insert", "capture-bulk-copy", "capture-bulk-update"];

/// Time against plain, in the order of the names.
const MUST: [f64; 3] = [1.7, 2.2, 1.7];
/// Processor time until a reader has everything, against wal2json.
const MUST_CPU: f64 = 0.4;

const ROWS: u64 = 1_000_000;
const ROUNDS: usize = 7;
/// Where the machine is slow, there are fewer rounds.
const WITHIN: Duration = Duration::from_secs(330);
const KINDS: [Kind; 4] = [Kind::Plain, Kind::Control, Kind::Trigger, Kind::Wal2json];
const TABLES: [Table; 1] = [Table { name: "bulk", has_key: true }];
const MAKE: &str =
    "CREATE TABLE bulk (id bigint PRIMARY KEY, k integer NOT NULL, v text NOT NULL, t timestamptz NOT NULL)";
const SELECT: &str = "SELECT g, g % 1000, md5(g::text), '2026-01-01'::timestamptz + g * interval '1s' FROM generate_series(1, 1000000) g";

/// Seconds of a statement, and processor seconds.
#[derive(Default)]
struct Figures {
    seconds: Samples,
    cpu: Samples,
    seconds_ratio: Samples,
    /// To wal2json.
    cpu_ratio: Samples,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    seconds: f64,
    cpu: f64,
    /// With a reader of the binary form.
    cpu_binary: f64,
}

pub fn run(options: &Options) -> bool {
    if let Some(why) = wal2json_refused() {
        return NAMES
            .iter()
            .filter(|name| options.wants(name))
            .fold(false, |_, name| not_measured(name, &why));
    }
    let cluster = Cluster::start_below(memory(), 1);
    let mut ours = Ours::start(&cluster);
    let mut fleet =
        Fleet::start(memory(), &KINDS, &parameters::of_leader(&cluster), &TABLES, |system| system.sql(MAKE));
    let file = fleet.root().join("bulk.copy").display().to_string();
    fleet.systems[0].sql(&format!("COPY ({SELECT}) TO '{file}'"));
    let statements = [
        format!("INSERT INTO bulk {SELECT}"),
        format!("COPY bulk FROM '{file}'"),
        "UPDATE bulk SET k = k + 1".to_owned(),
    ];
    let before = ["TRUNCATE bulk", "TRUNCATE bulk", "VACUUM bulk"];
    // Plain, control, trigger, wal2json; captured, captured and read in the binary form.
    let mut all: [[Figures; 6]; 3] = Default::default();
    let start = Instant::now();
    for round in (0..ROUNDS.min(options.runs)).take_while(|_| start.elapsed() < WITHIN) {
        for op in 0..3 {
            let mut seen = [Seen::default(); 5];
            for side in (0..5).map(|i| (i + round) % 5) {
                seen[side] = match fleet.systems.get_mut(side) {
                    Some(system) => once(system, before[op], &statements[op]),
                    None => ours.once(before[op], &statements[op]),
                };
            }
            let (plain, peer) = (seen[0], seen[3]);
            for (figures, seen) in all[op].iter_mut().zip(seen.iter()) {
                figures.add(seen.seconds, seen.cpu, &plain, &peer);
            }
            all[op][5].add(seen[4].seconds, seen[4].cpu_binary, &plain, &peer);
            let say = |s: &Seen| format!("{:.2} s ({:.2} CPU)", s.seconds, s.cpu);
            eprintln!("{} {}: {}", NAMES[op], round + 1, seen.iter().map(say).collect::<Vec<_>>().join(", "));
        }
    }
    let mut good = true;
    for ((name, must), figures) in
        NAMES.iter().zip(MUST).zip(&all).filter(|((name, _), _)| options.wants(name))
    {
        good &= tell(name, must, figures);
    }
    good
}

impl Figures {
    fn add(&mut self, seconds: f64, cpu: f64, plain: &Seen, peer: &Seen) {
        self.seconds.add(seconds);
        self.cpu.add(cpu);
        self.seconds_ratio.add(seconds / plain.seconds);
        self.cpu_ratio.add(cpu / peer.cpu);
    }
}

fn tell(name: &str, must: f64, figures: &[Figures; 6]) -> bool {
    let mut more = Map::new();
    for (name, f) in
        ["plain", "control", "trigger", "wal2json", "captured", "captured_binary"].iter().zip(figures)
    {
        more.insert(format!("{name}_s"), json!(rounded(f.seconds.median())));
        more.insert(format!("{name}_ratio"), json!(rounded(f.seconds_ratio.median())));
        more.insert(format!("{name}_cpu_s"), json!(rounded(f.cpu.median())));
        more.insert(format!("{name}_cpu_to_wal2json"), json!(rounded(f.cpu_ratio.median())));
    }
    more.insert("must_cpu_to_wal2json".to_owned(), json!(MUST_CPU));
    let ours = &figures[4];
    let line = Line {
        bench: name,
        unit: "ratio",
        samples: &ours.seconds_ratio,
        ratio: ours.seconds_ratio.median(),
        against: "seconds of PostgreSQL that captures nothing; CPU until a reader has all, against wal2json's; medians of rounds",
        must: Must::AtMost(must),
        judged: ours.seconds_ratio.median(),
        kept: ours.cpu_ratio.median() <= MUST_CPU,
        more: Value::Object(more),
    };
    line.print()
}

fn once(system: &mut System, before: &str, statement: &str) -> Seen {
    system.sql(before);
    if system.kind == Kind::Trigger {
        system.sql("TRUNCATE audit_log");
    }
    system.drain();
    system.sql("CHECKPOINT");
    let (tree, reader) = (system.tree(), system.reader());
    let used = || tree.seconds() + reader.seconds();
    let (cpu, start) = (used(), Instant::now());
    system.sql(statement);
    let seconds = start.elapsed().as_secs_f64();
    system.drain();
    Seen { seconds, cpu: used() - cpu, cpu_binary: 0.0 }
}

/// A cluster of one node: the server, the sidecar, and a reader in this process.
struct Ours {
    node: Node,
    tree: Tree,
    session: Client,
}

impl Ours {
    fn start(cluster: &Cluster) -> Ours {
        let session = capture(cluster, MAKE, &TABLES);
        let node = cluster.node(cluster.leader());
        Ours { tree: Tree::of(&node.data_dir), node, session }
    }

    fn sql(&mut self, statement: &str) {
        self.session.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e:?}"));
    }

    fn once(&mut self, before: &str, statement: &str) -> Seen {
        self.sql(before);
        let row = self.session.query_one("SELECT quorum.cut('bench')::text", &[]);
        let after: String = row.unwrap_or_else(|e| panic!("quorum.cut: {e:?}")).get(0);
        self.sql("CHECKPOINT");
        let (cpu, start) = (self.used(), Instant::now());
        self.sql(statement);
        let seconds = start.elapsed().as_secs_f64();
        // The end of a statement that wrote this much is followed by a cut, which belongs to both readings.
        self.sql("SELECT quorum.cut('bench')");
        let written = self.used();
        read_lines(&self.node, &after, ROWS).unwrap_or_else(|e| panic!("reading lines: {e}"));
        let lines = self.used();
        read_frames(&self.node, &after, ROWS).unwrap_or_else(|e| panic!("reading frames: {e}"));
        let frames = self.used();
        Seen { seconds, cpu: lines - cpu, cpu_binary: written - cpu + frames - lines }
    }

    /// Server, sidecar and the reader, which is this thread.
    fn used(&self) -> f64 {
        self.tree.seconds() + process_seconds(self.node.sidecar_pid) + own_thread_seconds()
    }
}
