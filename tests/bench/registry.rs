//! What 10,000 registered servers that renew once a minute cost the leader's sidecar, above what it costs anyway. Each
//! renewal comes over a connection of its own, as clients do it that hold none.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use crate::usage::{process_seconds, status_bytes};
use pgquorum_tests::{Cluster, request};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub const NAME: &str = "registry-renewals";

const SERVERS: usize = 10_000;
const TYPES: usize = 100;
/// How many clients register at the same time.
const CLIENTS: usize = 16;
const MUST_PERCENT: f64 = 5.0;
const SLICES: usize = 5;
const SLICE: Duration = Duration::from_secs(5);

pub fn run(_: &Options) -> bool {
    let cluster = Cluster::start(3);
    cluster.await_replicas(2);
    let node = cluster.node(cluster.leader());
    let (port, pid) = (node.api_port(), node.sidecar_pid);
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mine = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < SERVERS);
                while let Some(i) = mine() {
                    register(port, i, "");
                }
            });
        }
    });
    let registered = SERVERS as f64 / began.elapsed().as_secs_f64();
    let each = Duration::from_secs(60) / SERVERS as u32;
    let (mut idle, mut all, mut own) = (Samples::default(), Samples::default(), Samples::default());
    let mut turn = 0;
    for _ in 0..SLICES {
        idle.add(percent(pid, |_| {}, each));
        all.add(percent(pid, |i| register(port, (turn + i) % SERVERS, ""), each));
        turn += 1000;
        own.add(percent(pid, |i| register(port, (turn + i) % SERVERS, "?servers=own"), each));
        turn += 1000;
    }
    let cost = all.median() - idle.median();
    Line {
        bench: NAME,
        unit: "% of a core",
        samples: &all,
        ratio: all.median() / idle.median(),
        against: "the same sidecar while nobody renews",
        must: Must::AtMost(MUST_PERCENT),
        judged: cost,
        kept: true,
        more: json!({
            "cost": rounded(cost), "idle": rounded(idle.median()), "own_servers_only": rounded(own.median()),
            "servers": SERVERS, "types": TYPES, "registrations_per_s": rounded(registered),
            "sidecar_memory_mb": status_bytes(pid, "VmRSS").unwrap_or(0) >> 20,
        }),
    }
    .print()
}

fn register(port: u16, i: usize, query: &str) {
    let server = json!({"type": format!("type-{}", i % TYPES), "serverId": format!("server-{i}"),
        "publicBaseUrl": format!("https://service-{}.example.org/v1", i % TYPES),
        "clusterBaseUrl": format!("http://10.{}.{}.7:8080/v1", i / 256, i % 256)});
    let answer = request(port, "POST", &format!("/itResources{query}"), Some(&server.to_string()));
    let registered = |(status, _): &(u16, Value)| *status == 200;
    assert!(answer.as_ref().is_ok_and(registered), "{answer:?}");
}

/// How much of a core the process takes while this is done, once in each such time.
fn percent(pid: i32, mut act: impl FnMut(usize), each: Duration) -> f64 {
    let (began, before) = (Instant::now(), process_seconds(pid));
    let mut done = 0;
    while began.elapsed() < SLICE {
        act(done);
        done += 1;
        std::thread::sleep((each * done as u32).saturating_sub(began.elapsed()));
    }
    (process_seconds(pid) - before) / began.elapsed().as_secs_f64() * 100.0
}
