//! A former leader whose log went its own way comes back without a new copy.

use pgquorum_tests::{Cluster, await_until};
use std::time::Duration;

/// Lets the leader write what no standby gets, then cuts its power. Returns the former leader.
pub fn diverge(cluster: &Cluster) -> u64 {
    let old = cluster.leader();
    cluster.sql("CREATE TABLE mine (n int); CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    // Only the servers stand still: their sidecars go on answering, so the leader keeps its lease.
    for other in (1..=3).filter(|id| *id != old) {
        cluster.freeze(other, Some("postgres"));
    }
    // Nobody can acknowledge this: it stays in the old leader's log and is never called committed.
    let mut client = cluster.connect(old).expect("a session on the leader");
    let writer =
        std::thread::spawn(move || client.batch_execute("INSERT INTO mine SELECT generate_series(1, 1000)"));
    await_until(Duration::from_secs(20), "the rows are in the leader's log", || {
        let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        match cluster.try_ask(old, waits)?.as_str() {
            "0" => Err("nobody waits for a standby".to_owned()),
            _ => Ok(()),
        }
    });
    cluster.kill(old, None);
    assert!(writer.join().expect("the writer").is_err(), "a commit without a standby was called a success");
    for other in (1..=3).filter(|id| *id != old) {
        cluster.thaw(other, Some("postgres"));
    }
    old
}

#[test]
fn what_was_never_acknowledged_is_rewound() {
    let cluster = Cluster::start(3);
    let old = diverge(&cluster);
    let new = cluster.await_leader(Some(old));
    cluster.sql("INSERT INTO kept VALUES (2)");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    assert_eq!(cluster.ask(old, "SELECT count(*)::text FROM kept"), "2");
    assert_eq!(
        cluster.ask(old, "SELECT count(*)::text FROM mine"),
        cluster.ask(new, "SELECT count(*)::text FROM mine")
    );
    cluster.assert_one_writable();
}
