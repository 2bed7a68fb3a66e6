//! A standby that was stopped had received, and confirmed, more than it had replayed.

use pgquorum_tests::{Cluster, PATIENCE, await_until};

#[test]
fn a_stopped_standby_pledges_all_that_it_confirmed() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "2s")]);
    let old = cluster.leader();
    let others: Vec<u64> = (1..=3).filter(|id| *id != old).collect();
    let (near, far) = (others[0], others[1]);
    cluster.sql("CREATE TABLE kept (n int)");
    cluster.await_replayed(near);
    // One standby replays nothing any more. The other has a little that the first one has not replayed, and no more than
    // that: the rest only the first one gets.
    cluster.connect(near).expect("a session").batch_execute("SELECT pg_wal_replay_pause()").expect("a pause");
    cluster.sql("INSERT INTO kept VALUES (0)");
    cluster.await_replayed(far);
    cluster.freeze(far, Some("postgres"));
    cluster.sql("INSERT INTO kept SELECT generate_series(1, 1000)");
    cluster.kill(old, None);
    // It pledges; the other, whose server stands still, cannot. So it is stopped and started with a pledge that nobody
    // has answered.
    await_until(PATIENCE, "the standby is cut off for a pledge", || {
        match cluster.try_ask(near, "SELECT current_setting('primary_conninfo')")?.as_str() {
            "" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    cluster.stop(near);
    cluster.start_node(near);
    cluster.thaw(far, Some("postgres"));
    let new = cluster.await_leader(Some(old));
    assert_eq!(cluster.ask(new, "SELECT count(*)::text FROM kept"), "1001", "acknowledged rows are gone");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
}
