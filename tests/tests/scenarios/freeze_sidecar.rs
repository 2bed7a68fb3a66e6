//! A sidecar stands still, with all its connections open: nobody sees it die.

use pgquorum_tests::Cluster;

#[test]
fn a_frozen_leader_is_fenced_and_replaced() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let probe = cluster.probe();
    cluster.freeze(old, Some("sidecar"));
    let new = cluster.await_leader(Some(old));
    assert_ne!(new, old);
    // Its server still runs, but the lease has run out.
    cluster.assert_one_writable();
    cluster.thaw(old, Some("sidecar"));
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}

#[test]
fn a_node_that_stands_still_as_a_whole_is_replaced() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let probe = cluster.probe();
    cluster.freeze(old, None);
    cluster.await_leader(Some(old));
    cluster.thaw(old, None);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
