//! The replication interface: how many lines of the log one reader gets a second, and how many rows of a dump, by answers of
//! the largest size that there is; and how much memory the sidecar has while ten times as much is read. Servers in memory; the
//! reader only counts.

use crate::Options;
use crate::capture::systems::memory;
use crate::feed::stream::{CHANGE, Lines, NDJSON, Stream};
use crate::line::{Line, Must, Samples, rounded};
use crate::usage::status_bytes;
use pgquorum_tests::{Cluster, Node, request};
use postgres::Client;
use serde_json::json;
use std::io::{Error, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub const NAMES: [&str; 2] = ["replication-follow", "replication-dump"];

const MUST_LINES: f64 = 100_000.0;
const MUST_ROWS: f64 = 200_000.0;
const MUST_MB: f64 = 100.0;
const MB: f64 = (1 << 20) as f64;

const MAKE: &str = "CREATE TABLE small (id integer PRIMARY KEY, n integer NOT NULL, note text)";
/// Small transactions, as applications have them.
const TRANSACTIONS: u64 = 20_000;
const EACH: u64 = 50;
const CHANGES: u64 = TRANSACTIONS * EACH;
/// What is read once to look at the memory: ten million changes, and as many rows.
const MANY_TRANSACTIONS: u64 = 10 * TRANSACTIONS;
const MANY_CHANGES: u64 = MANY_TRANSACTIONS * EACH;
/// So that all of them are kept.
const KEEP: &str = "{\"maxEvents\": 100000000, \"maxEventsSize\": 0}";
const READINGS: usize = 5;
const SILENCE: Duration = Duration::from_secs(60);

pub fn run(options: &Options) -> bool {
    let cluster = Cluster::start_below(memory(), 1);
    let node = cluster.node(1);
    let mut session = cluster.connect(1).expect("a session");
    put(&node, "/_api/replication/logger-start", None);
    put(&node, "/_api/replication/logger-config", Some(KEEP));
    for sql in [MAKE, "SELECT quorum.track('small', channel => '_logger')", "SET synchronous_commit = off"] {
        session.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    fill(&node, &mut session, 0, TRANSACTIONS);
    let followed = options.wants(NAMES[0]).then(|| follow(options, &node));
    let dumped = options.wants(NAMES[1]).then(|| dump(options, &node, &mut session));
    fill(&node, &mut session, TRANSACTIONS, MANY_TRANSACTIONS);
    let mut good = true;
    if let Some((lines, own)) = followed {
        let (seen, most) = read_log(&node).unwrap_or_else(|e| panic!("{}: {e}", NAMES[0]));
        assert!(seen > MANY_CHANGES, "{}: {seen} lines came of {MANY_CHANGES} changes", NAMES[0]);
        good &= print_follow(&lines, &own, most);
    }
    if let Some((rates, copies)) = dumped {
        let most = read_dump(&node, MANY_CHANGES).unwrap_or_else(|e| panic!("{}: {e}", NAMES[1]));
        good &= print_dump(&rates, &copies, most);
    }
    good
}

/// Brings the table from so many transactions to so many.
fn fill(node: &Node, session: &mut Client, from: u64, to: u64) {
    let fill = format!(
        "DO $$ BEGIN FOR i IN {from}..{} LOOP INSERT INTO small SELECT i * {EACH} + g, g, 'what was booked' FROM generate_series(1, {EACH}) g; \
         COMMIT; END LOOP; END $$",
        to - 1
    );
    for sql in [fill.as_str(), "VACUUM ANALYZE small"] {
        session.batch_execute(sql).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    put(node, "/_admin/wal/flush", None);
}

fn put(node: &Node, path: &str, body: Option<&str>) {
    let answer = request(node.api_port(), "PUT", path, body);
    assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{path}: {answer:?}");
}

/// Lines a second of the log, and changes a second of the channel's own stream.
fn follow(options: &Options, node: &Node) -> (Samples, Samples) {
    let (mut lines, mut own) = (Samples::default(), Samples::default());
    for reading in 0..READINGS.min(options.runs) {
        let rate = |count: u64, start: Instant| count as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (seen, _) = read_log(node).unwrap_or_else(|e| panic!("{}: {e}", NAMES[0]));
        lines.add(rate(seen, start));
        let start = Instant::now();
        read_stream(node).unwrap_or_else(|e| panic!("{}: {e}", NAMES[0]));
        own.add(rate(CHANGES, start));
        eprintln!("{} {}: {seen} lines", NAMES[0], reading + 1);
    }
    (lines, own)
}

fn print_follow(lines: &Samples, own: &Samples, most: u64) -> bool {
    let memory = most as f64 / MB;
    Line {
        bench: NAMES[0],
        unit: "lines/s",
        samples: lines,
        ratio: lines.median() / own.median(),
        against: "changes/s of the channel's own stream of JSON",
        must: Must::AtLeast(MUST_LINES),
        judged: lines.median(),
        kept: memory < MUST_MB,
        more: json!({"stream": own.median().round(), "changes": CHANGES, "transactions": TRANSACTIONS, "memory_of_changes": MANY_CHANGES,
            "sidecar_memory_mb": rounded(memory), "must_memory_mb": MUST_MB}),
    }
    .print()
}

/// How many lines the log has, and how much memory the sidecar had at most while they were read.
fn read_log(node: &Node) -> Result<(u64, u64), Error> {
    let (mut asker, mut lines, mut most, mut from) = (Asker::open(node)?, 0, 0, "0".to_owned());
    loop {
        let answer = asker.get(&format!("/_api/replication/logger-follow?from={from}&chunkSize=4194304"))?;
        lines += newlines(answer.body);
        from = answer.field("x-arango-replication-lastincluded")?.to_owned();
        let more = answer.field("x-arango-replication-checkmore")? == "true";
        most = most.max(sidecar_memory(node));
        if !more {
            return Ok((lines, most));
        }
    }
}

fn read_stream(node: &Node) -> Result<(), Error> {
    let mut stream = Stream::open(node.api_port(), "_logger", NDJSON, "start")?;
    let (mut lines, mut seen) = (Lines::default(), 0);
    while seen < CHANGES {
        let bytes = stream.read()?;
        if bytes.is_empty() {
            return Err(Error::other("the stream ended"));
        }
        lines.push(bytes, |line| seen += u64::from(line.starts_with(CHANGE)));
    }
    Ok(())
}

/// Rows a second of a dump, and of COPY.
fn dump(options: &Options, node: &Node, session: &mut Client) -> (Samples, Samples) {
    let (mut rates, mut copies) = (Samples::default(), Samples::default());
    for reading in 0..READINGS.min(options.runs) {
        let start = Instant::now();
        let most = read_dump(node, CHANGES).unwrap_or_else(|e| panic!("{}: {e}", NAMES[1]));
        rates.add(CHANGES as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        let mut copy = session.copy_out("COPY (SELECT * FROM small ORDER BY id) TO STDOUT").expect("a copy");
        std::io::copy(&mut copy, &mut std::io::sink()).expect("all rows");
        drop(copy);
        copies.add(CHANGES as f64 / start.elapsed().as_secs_f64());
        eprintln!("{} {}: {:.0} MB", NAMES[1], reading + 1, most as f64 / MB);
    }
    (rates, copies)
}

fn print_dump(rates: &Samples, copies: &Samples, most: u64) -> bool {
    let memory = most as f64 / MB;
    Line {
        bench: NAMES[1],
        unit: "rows/s",
        samples: rates,
        ratio: rates.median() / copies.median(),
        against: "COPY of the same rows in the same order",
        must: Must::AtLeast(MUST_ROWS),
        judged: rates.median(),
        kept: memory < MUST_MB,
        more: json!({"copy": copies.median().round(), "rows": CHANGES, "memory_of_rows": MANY_CHANGES,
            "sidecar_memory_mb": rounded(memory), "must_memory_mb": MUST_MB}),
    }
    .print()
}

/// Dumps the table of so many rows, and returns how much memory the sidecar had at most.
fn read_dump(node: &Node, all: u64) -> Result<u64, Error> {
    let batch = request(node.api_port(), "POST", "/_api/replication/batch", Some("{\"ttl\": 600}"))?.1;
    let batch = batch["id"].as_str().ok_or_else(|| Error::other(batch.to_string()))?;
    let (mut asker, mut rows, mut most) = (Asker::open(node)?, 0, 0);
    loop {
        let answer = asker
            .get(&format!("/_api/replication/dump?collection=small&batchId={batch}&chunkSize=4194304"))?;
        rows += newlines(answer.body);
        let more = answer.field("x-arango-replication-checkmore")? == "true";
        most = most.max(sidecar_memory(node));
        if !more {
            break;
        }
    }
    request(node.api_port(), "DELETE", &format!("/_api/replication/batch/{batch}"), None)?;
    if rows == all { Ok(most) } else { Err(Error::other(format!("{rows} rows came"))) }
}

/// An unknown one is too much.
fn sidecar_memory(node: &Node) -> u64 {
    status_bytes(node.sidecar_pid, "VmRSS").unwrap_or(u64::MAX)
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// One connection that stays.
struct Asker {
    connection: TcpStream,
    bytes: Vec<u8>,
}

struct Answered<'a> {
    head: String,
    body: &'a [u8],
}

impl Answered<'_> {
    fn field(&self, name: &str) -> Result<&str, Error> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value).ok_or_else(|| Error::other(format!("no {name}: {}", self.head)))
    }
}

impl Asker {
    fn open(node: &Node) -> Result<Asker, Error> {
        let connection = TcpStream::connect(("127.0.0.1", node.api_port()))?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(SILENCE))?;
        Ok(Asker { connection, bytes: Vec::new() })
    }

    fn get(&mut self, path: &str) -> Result<Answered<'_>, Error> {
        self.connection.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())?;
        self.bytes.clear();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            if let Some(at) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.bytes[..at]).into_owned();
                let answered = Answered { head: head.clone(), body: &[] };
                let length = answered.field("content-length").unwrap_or("0").parse::<usize>();
                let whole = at + 4 + length.map_err(Error::other)?;
                while self.bytes.len() < whole {
                    self.fill(&mut buffer)?;
                }
                if !head.starts_with("HTTP/1.1 20") {
                    return Err(Error::other(String::from_utf8_lossy(&self.bytes).into_owned()));
                }
                return Ok(Answered { head, body: &self.bytes[at + 4..whole] });
            }
            self.fill(&mut buffer)?;
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let n = self.connection.read(buffer)?;
        if n == 0 {
            return Err(Error::other("the server closed the connection"));
        }
        self.bytes.extend_from_slice(&buffer[..n]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_lines_counted() {
        let answered = Answered { head: "HTTP/1.1 200 OK\r\nContent-Length: 7".to_owned(), body: b"" };
        assert_eq!(answered.field("content-length").unwrap(), "7");
        assert!(answered.field("x").is_err());
        assert_eq!(newlines(b"a\nb\n"), 2);
    }
}
