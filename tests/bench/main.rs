//! `make bench`: one JSON line a benchmark. Longest gap between acknowledged writes as a client sees it, three nodes,
//! quorum replication, one client that writes every 10 ms. `PGQUORUM_BENCH_RUNS` sets how often each is repeated.

use pgquorum_tests::{Cluster, Report};
use serde_json::json;

/// What is done to the leader; returns when another node leads.
type Disturb = fn(&Cluster, u64);

const CASES: [(&str, Disturb); 3] = [
    ("kill_leader_node", |cluster, leader| {
        cluster.kill(leader, None);
        cluster.await_leader(Some(leader));
        cluster.start_node(leader);
    }),
    ("kill_postmaster", |cluster, leader| {
        cluster.kill(leader, Some("postmaster"));
    }),
    ("planned_change", |cluster, _| {
        let to = cluster.follower();
        let (status, answer) = cluster.hand_over(to);
        assert_eq!(status, 200, "{answer}");
        cluster.await_leader(None);
    }),
];

fn main() {
    let runs = std::env::var("PGQUORUM_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let cluster = Cluster::start(3);
    for (name, disturb) in CASES {
        let reports: Vec<Report> = (0..runs).map(|_| once(&cluster, disturb)).collect();
        let mut gaps: Vec<f64> = reports.iter().map(|r| r.longest_gap_ms).collect();
        gaps.sort_by(f64::total_cmp);
        let line = json!({
            "benchmark": name,
            "runs": runs,
            "median_gap_ms": gaps.get(gaps.len() / 2),
            "min_gap_ms": gaps.first(),
            "max_gap_ms": gaps.last(),
            "acked": reports.iter().map(|r| r.acked).sum::<u64>(),
            "lost": reports.iter().map(|r| r.lost).sum::<u64>(),
        });
        println!("{line}");
    }
}

fn once(cluster: &Cluster, disturb: Disturb) -> Report {
    cluster.await_replicas(2);
    let leader = cluster.leader();
    let probe = cluster.probe();
    disturb(cluster, leader);
    cluster.await_replicas(2);
    probe.finish()
}
