//! What a request to all five nodes of a cluster takes longer than the slowest of them takes to answer it by itself.

use crate::Options;
use crate::line::{Line, Must, Samples, rounded};
use pgquorum_tests::{Cluster, request};
use serde_json::json;
use std::time::Instant;

pub const NAME: &str = "fan-out";

const NODES: usize = 5;
const MUST_MS: f64 = 10.0;
const ROUNDS: usize = 200;
const PATH: &str = "/db-config";

pub fn run(_: &Options) -> bool {
    let cluster = Cluster::start(NODES);
    cluster.await_replicas(NODES - 1);
    let leader = cluster.node(cluster.leader()).api_port();
    let ports: Vec<u16> = (1..=NODES as u64).map(|id| cluster.node(id).api_port()).collect();
    let body = json!({ "path": PATH }).to_string();
    let ms = |start: Instant| start.elapsed().as_secs_f64() * 1000.0;
    let (mut added, mut alone, mut all) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let mut slowest = 0.0_f64;
        for port in &ports {
            let start = Instant::now();
            let answer = request(*port, "GET", PATH, None);
            assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
            slowest = slowest.max(ms(start));
        }
        let start = Instant::now();
        let (status, answer) = request(leader, "POST", "/cluster/request", Some(&body)).expect("an answer");
        let took = ms(start);
        assert!(
            status == 200 && answer["results"].as_array().is_some_and(|all| all.len() == NODES),
            "{answer}"
        );
        added.add(took - slowest);
        alone.add(slowest);
        all.add(took);
    }
    Line {
        bench: NAME,
        unit: "ms",
        samples: &added,
        ratio: all.median() / alone.median(),
        against: "the slowest node's own answer",
        must: Must::AtMost(MUST_MS),
        judged: added.median(),
        kept: true,
        more: json!({"all": rounded(all.median()), "slowest": rounded(alone.median()), "nodes": NODES, "path": PATH}),
    }
    .print()
}
