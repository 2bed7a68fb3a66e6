//! A reader that takes nothing for a while, and one that takes all it can get: the sidecar's memory stays as it is.

use pgquorum_tests::{Cluster, LineStream};
use serde_json::json;
use std::time::Instant;

const ROWS: u64 = 500_000;
/// What the sidecar may grow by: buffers, and what the allocator keeps of them.
const GROWTH_KB_MAX: u64 = 48 * 1024;

/// The most memory that it has had.
fn most_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the sidecar's status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

#[test]
fn memory_does_not_grow_with_what_a_reader_leaves() {
    let cluster = Cluster::start_steady(1);
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    for (path, body) in
        [("/channels", json!({"name": "shop"})), ("/channels/shop/tables", json!({"table": "orders"}))]
    {
        let (status, answer) = cluster.post(1, path, Some(&body));
        assert_eq!(status, 200, "{answer}");
    }
    cluster.sql(&format!("INSERT INTO orders SELECT g, 'a note' FROM generate_series(1, {ROWS}) AS g"));
    let node = cluster.node(1);
    let before = most_kb(node.sidecar_pid);
    let open = |accept: &str| {
        LineStream::open(node.api_port(), "/channels/shop/stream?after=start", accept).expect("a stream")
    };
    let slow: Vec<LineStream> = (0..8).map(|_| open("application/x-ndjson")).collect();

    let mut fast = open("application/x-ndjson");
    let (begin, mut line, mut seen, mut last) = (Instant::now(), Vec::new(), 0, 0);
    while seen < ROWS {
        assert!(fast.text(&mut line).expect("the next line"), "the stream ended after {seen} rows");
        if line.starts_with(b"{\"type\":\"change\"") && line.windows(13).any(|w| w == b"\"op\":\"insert\"") {
            seen += 1;
            let tick = position(&line);
            assert!(tick == last + 1 || last == 0, "{last}, then {tick}");
            last = tick;
        }
    }
    let rate = seen as f64 / begin.elapsed().as_secs_f64();
    let most = most_kb(node.sidecar_pid);
    println!(
        "{rate:.0} changes/s as lines; memory {before} kB, at most {most} kB with 8 readers that take nothing"
    );
    assert!(most < before + GROWTH_KB_MAX, "{before} kB before, {most} kB with readers that take nothing");

    let mut binary = open("application/x-pgquorum-change");
    let (begin, mut head, mut body, mut end, mut bytes) = (Instant::now(), [0; 5], Vec::new(), 0, 0);
    while end < last {
        binary.bytes(&mut head).expect("a frame");
        let length = u32::from_le_bytes(head[1..].try_into().expect("four bytes"));
        body.resize(length as usize, 0);
        binary.bytes(&mut body).expect("a frame's body");
        bytes += body.len();
        if head[0] == b'R' {
            end = u64::from_le_bytes(body[16..24].try_into().expect("eight bytes"));
        }
    }
    println!("{:.0} changes/s as they are, {bytes} bytes", seen as f64 / begin.elapsed().as_secs_f64());
    drop(slow);
}

/// The tick in a line.
fn position(line: &[u8]) -> u64 {
    let text = std::str::from_utf8(line).expect("UTF-8");
    let rest = text.split("\"position\":\"").nth(1).expect("a position");
    rest.split('"').next().and_then(|p| p.split(':').nth(1)).and_then(|t| t.parse().ok()).expect("a tick")
}
