//! Everything stops, everything starts.

use pgquorum_tests::Cluster;

#[test]
fn in_good_order() {
    let cluster = Cluster::start(3);
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)");
    cluster.down();
    let status = cluster.status();
    assert_eq!(status.leader, None);
    assert!(status.nodes.iter().all(|n| n.state == "down" && n.sidecar_pid == 0 && n.postgres_pid == 0));
    cluster.up(3);
    cluster.await_replicas(2);
    assert_eq!(cluster.ask(cluster.leader(), "SELECT count(*)::text FROM kept"), "1000");
    cluster.assert_one_writable();
}

#[test]
fn after_a_power_cut_of_all() {
    let cluster = Cluster::start(3);
    let probe = cluster.probe();
    let leader = cluster.leader();
    for id in [leader].into_iter().chain((1..=3).filter(|id| *id != leader)) {
        cluster.kill(id, None);
    }
    cluster.up(3);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
