//! A sidecar dies while its PostgreSQL lives.

use pgquorum_tests::Cluster;

#[test]
fn a_primary_without_sidecar_takes_no_writes_and_is_replaced() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let server = cluster.node(old).postgres_pid;
    let probe = cluster.probe();
    cluster.kill(old, Some("sidecar"));
    let new = cluster.await_leader(Some(old));
    assert_ne!(new, old);
    cluster.assert_one_writable();
    cluster.start_node(old);
    cluster.await_replicas(2);
    assert_ne!(server, 0);
    probe.finish().assert_nothing_lost();
}

#[test]
fn a_new_sidecar_takes_over_the_running_server() {
    let cluster = Cluster::start(3);
    let follower = cluster.follower();
    let server = cluster.node(follower).postgres_pid;
    cluster.kill(follower, Some("sidecar"));
    cluster.start_node(follower);
    cluster.await_node(follower, "node", "replica");
    assert_eq!(cluster.node(follower).postgres_pid, server, "the same server as before");
}
