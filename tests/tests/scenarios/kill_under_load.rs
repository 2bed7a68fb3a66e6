//! Clients that write as fast as they can lose nothing, however often the leader dies.

use pgquorum_tests::{Cluster, ProbeOptions};

#[test]
fn three_kills_under_eight_busy_clients_lose_nothing() {
    let cluster = Cluster::start(3);
    let probe = cluster.probe_with(&ProbeOptions { clients: 8, interval_ms: 0, ..ProbeOptions::default() });
    let mut epoch = 0;
    for _ in 0..3 {
        let old = cluster.leader();
        cluster.kill(old, None);
        let new = cluster.await_leader(Some(old));
        let now = cluster.node(new).epoch;
        assert!(now > epoch, "a new leader, a new epoch");
        epoch = now;
        // Under load the node that comes back has to catch up with writers that do not wait for it.
        cluster.start_node(old);
        cluster.await_replicas(2);
    }
    cluster.assert_one_writable();
    let report = probe.finish();
    report.assert_nothing_lost();
    assert!(report.longest_gap_ms < 30_000.0, "writes stood still for {} ms", report.longest_gap_ms);
}
