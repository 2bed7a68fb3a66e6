//! A node whose data cannot be used any more gets a new copy.

use super::rejoin_by_rewind::diverge;
use pgquorum_tests::Cluster;

#[test]
fn a_rewind_that_cannot_work_ends_in_a_new_copy() {
    let cluster = Cluster::start(3);
    let old = diverge(&cluster);
    cluster.await_leader(Some(old));
    cluster.sql("INSERT INTO kept VALUES (2)");
    // Without its own log, where it left the history cannot be found.
    let wal = cluster.node(old).data_dir.join("pg_wal");
    for entry in std::fs::read_dir(&wal).expect("pg_wal").flatten().filter(|e| e.path().is_file()) {
        std::fs::remove_file(entry.path()).expect("removing a segment");
    }
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    assert_eq!(cluster.ask(old, "SELECT count(*)::text FROM kept"), "2");
    cluster.assert_one_writable();
}

#[test]
fn an_empty_data_directory_is_filled_again() {
    let cluster = Cluster::start(3);
    let node = cluster.follower();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    cluster.stop(node);
    std::fs::remove_dir_all(cluster.node(node).data_dir).expect("removing the data");
    cluster.start_node(node);
    cluster.await_replicas(2);
    cluster.await_replayed(node);
    assert_eq!(cluster.ask(node, "SELECT count(*)::text FROM kept"), "1");
}

/// PostgreSQL waits for WAL that is gone, and says nothing. Another node has it.
#[test]
fn a_standby_without_its_wal_gets_it_from_the_primary() {
    let cluster = Cluster::start(3);
    let node = cluster.follower();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    cluster.await_replayed(node);
    cluster.stop(node);
    let data = cluster.node(node).data_dir;
    for entry in std::fs::read_dir(data.join("pg_wal")).expect("pg_wal").flatten() {
        if entry.path().is_file() {
            std::fs::remove_file(entry.path()).expect("removing a segment");
        }
    }
    // A copy would not have it.
    let mark = data.join("as_it_was");
    std::fs::write(&mark, "").expect("a mark");
    cluster.sql("INSERT INTO kept VALUES (2)");
    cluster.start_node(node);
    cluster.await_replicas(2);
    cluster.await_replayed(node);
    assert_eq!(cluster.ask(node, "SELECT count(*)::text FROM kept"), "2");
    assert!(mark.exists(), "its data were copied");
    let names = "SELECT string_agg(application_name, ' ') FROM pg_stat_replication";
    let names = cluster.ask(cluster.leader(), names);
    assert!(!names.contains("rejoining"), "it does not acknowledge: {names}");
    cluster.assert_one_writable();
}
