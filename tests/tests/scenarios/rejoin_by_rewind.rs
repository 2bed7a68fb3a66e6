//! A former leader whose log went its own way comes back without a new copy.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use std::ffi::OsStr;

/// Lets the leader write what no standby has, then cuts its power. Returns the former leader. What little it writes may
/// still reach a standby, out of the buffers of a connection.
pub fn diverge(cluster: &Cluster) -> u64 {
    diverge_by(cluster, 1000)
}

/// Buffers hold some 30 MB, half a million rows.
fn diverge_by(cluster: &Cluster, rows: u32) -> u64 {
    let old = cluster.leader();
    cluster.sql("CREATE TABLE mine (n int); CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    // Only the servers stand still: their sidecars go on answering, so the leader keeps its lease.
    for other in (1..=3).filter(|id| *id != old) {
        cluster.freeze(other, Some("postgres"));
    }
    // Nobody can acknowledge this: it stays in the old leader's log and is never called committed.
    let mut client = cluster.connect(old).expect("a session on the leader");
    let insert = format!("INSERT INTO mine SELECT generate_series(1, {rows})");
    let writer = std::thread::spawn(move || client.batch_execute(&insert));
    await_until(PATIENCE, "the rows are in the leader's log", || {
        let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT INTO mine%'";
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
    let cluster = Cluster::start_steady(3);
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

/// The first number behind these words in the newest line of the log that has them.
fn number_after(log: &str, words: &str) -> u64 {
    let line =
        log.lines().rev().find_map(|line| line.split_once(words)).unwrap_or_else(|| panic!("{words}: {log}"));
    let digits: String =
        line.1.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|e| panic!("{words}: {}: {e}", line.1))
}

#[test]
fn a_rewind_does_not_copy_the_wal_that_both_have() {
    let cluster = Cluster::start_steady(3);
    for _ in 0..24 {
        cluster.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 15000000))");
    }
    let old = diverge_by(&cluster, 1_500_000);
    let new = cluster.await_leader(Some(old));
    cluster.sql("INSERT INTO kept VALUES (2)");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    let node = cluster.node(old);
    let log =
        std::fs::read_to_string(node.data_dir.with_file_name("sidecar.log")).expect("the sidecar's log");
    let (copied, put_back) = (number_after(&log, "need to copy"), number_after(&log, "segments="));
    assert!(put_back >= 3 && copied < 100, "{put_back} segments were kept, {copied} MB copied");
    // What it has kept is what the primary has.
    let wal = |id: u64| cluster.node(id).data_dir.join("pg_wal");
    let names = std::fs::read_dir(wal(old)).expect("WAL").map(|entry| entry.expect("an entry").file_name());
    let both = names.filter(|name| {
        let name = name.to_string_lossy();
        name.len() == 24 && name.starts_with("00000002") && wal(new).join(name.as_ref()).exists()
    });
    let read = |id: u64, name: &OsStr| std::fs::read(wal(id).join(name)).expect("a segment");
    let same = both.map(|name| assert!(read(old, &name) == read(new, &name), "{}", name.display())).count();
    assert!(same >= 3, "{same} segments are on both");
    assert!(!node.data_dir.with_file_name("data.rewind-wal").exists(), "what was kept beside is gone");
    cluster.assert_one_writable();
}
