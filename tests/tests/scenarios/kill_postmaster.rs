//! PostgreSQL of the leader dies while its sidecar lives.

use pgquorum_tests::Cluster;

#[test]
fn the_leader_gives_up_its_place_and_becomes_a_standby() {
    for part in ["postmaster", "postgres"] {
        let cluster = Cluster::start(3);
        let old = cluster.leader();
        let probe = cluster.probe();
        cluster.kill(old, Some(part));
        cluster.await_replicas(2);
        cluster.assert_one_writable();
        let report = probe.finish();
        report.assert_nothing_lost();
        assert!(
            report.longest_gap_ms < 30_000.0,
            "{part}: writes stood still for {} ms",
            report.longest_gap_ms
        );
    }
}
