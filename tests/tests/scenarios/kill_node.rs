//! The leader's machine loses its power.

use pgquorum_tests::{Cluster, ProbeOptions};

#[test]
fn another_node_takes_over_and_the_killed_one_comes_back() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let probe = cluster.probe_with(&ProbeOptions { clients: 4, interval_ms: 2, ..ProbeOptions::default() });
    let epoch = cluster.node(old).epoch;
    cluster.kill(old, None);
    let new = cluster.await_leader(Some(old));
    assert!(cluster.node(new).epoch > epoch, "a new leader, a new epoch");
    let killed = cluster.node(old);
    assert_eq!(killed.state, "down", "{killed:?}");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    let report = probe.finish();
    report.assert_nothing_lost();
    assert!(report.longest_gap_ms < 10_000.0, "writes stood still for {} ms", report.longest_gap_ms);
}

#[test]
fn a_follower_that_dies_costs_nothing() {
    let cluster = Cluster::start(3);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let probe = cluster.probe();
    cluster.kill(follower, None);
    cluster.start_node(follower);
    cluster.await_replicas(2);
    assert_eq!(cluster.leader(), leader, "no election because of a follower");
    probe.finish().assert_nothing_lost();
}

#[test]
fn without_a_majority_there_are_no_writes() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let probe = cluster.probe();
    for other in &others {
        cluster.kill(*other, None);
    }
    pgquorum_tests::await_until(std::time::Duration::from_secs(30), "the lone node stops leading", || {
        match cluster.get(leader, "/is-leader") {
            (200, body) => Err(body.to_string()),
            _ => Ok(()),
        }
    });
    cluster.connect(leader).expect("reads go on").query_one("SELECT 1", &[]).expect("reads go on");
    for other in &others {
        cluster.start_node(*other);
    }
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
