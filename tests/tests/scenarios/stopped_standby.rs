//! A standby that was stopped had received, and confirmed, more than it had replayed.

use pgquorum_tests::Cluster;

#[test]
fn a_stopped_standby_pledges_all_that_it_confirmed() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let (near, far) = (others[0], others[1]);
    cluster.sql("CREATE TABLE kept (n int)");
    cluster.await_replayed(near);
    // From here on only one standby gets anything, and replays nothing of it.
    cluster.connect(near).expect("a session").batch_execute("SELECT pg_wal_replay_pause()").expect("a pause");
    cluster.freeze(far, Some("postgres"));
    cluster.sql("INSERT INTO kept SELECT generate_series(1, 1000)");
    cluster.stop(near);
    cluster.kill(old, None);
    cluster.thaw(far, Some("postgres"));
    cluster.start_node(near);
    let new = cluster.await_leader(Some(old));
    assert_eq!(cluster.ask(new, "SELECT count(*)::text FROM kept"), "1000", "acknowledged rows are gone");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
}
