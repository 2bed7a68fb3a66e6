//! The segment that a standby gets again, because the timelines part in it, is not whole when it is killed: what it has of
//! the timeline before is, and it comes back.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: u64 = 8192;

/// The name of the segment in which the newest timeline begins, as the one before and as this one have it, and how many bytes
/// of it are of the one before.
fn parting(wal_dir: &Path, segment_bytes: u64) -> (String, String, u64) {
    let mut histories: Vec<String> = std::fs::read_dir(wal_dir)
        .expect("the WAL")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".history"))
        .collect();
    histories.sort();
    let newest = histories.last().expect("a history");
    let text = std::fs::read_to_string(wal_dir.join(newest)).expect("the history");
    let line = text.lines().rfind(|line| !line.trim().is_empty()).expect("a line");
    let mut words = line.split_whitespace();
    let old: u64 = words.next().and_then(|word| word.parse().ok()).expect("a timeline");
    let (high, low) = words.next().and_then(|word| word.split_once('/')).expect("a position");
    let number = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal digits");
    let left = (number(high) << 32) + number(low);
    let new = number(newest.trim_end_matches(".history"));
    let segment = left / segment_bytes;
    let per_id = (1 << 32) / segment_bytes;
    let name = |timeline: u64| format!("{timeline:08X}{:08X}{:08X}", segment / per_id, segment % per_id);
    (name(old), name(new), left % segment_bytes)
}

#[test]
fn a_standby_comes_back_whatever_it_has_of_the_segment_that_begins_a_timeline() {
    let cluster = Cluster::start_steady(3);
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)");
    let to = cluster.follower();
    let standby = (1..=3).find(|id| *id != to && *id != cluster.leader()).expect("a third node");
    // In good order: what the old leader has, its followers have.
    let (code, answer) = cluster.hand_over(to);
    assert_eq!(code, 200, "{answer}");
    cluster.await_leader(None);
    let wal_dir = cluster.node(standby).data_dir.join("pg_wal");
    let size = "SELECT pg_size_bytes(current_setting('wal_segment_size'))::text";
    let size: u64 = cluster.ask(to, size).parse().expect("a number");
    // It breaks off within the last record, and long before; and pages are missing while those after them are there, as after
    // a power cut.
    let harm = |number: u64, left: u64| match number {
        0 => (left - 32, PAGE),
        1 => (left / 2, size),
        _ => ((left / PAGE - 1) * PAGE, PAGE),
    };
    for number in 0..3 {
        cluster.sql(&format!("INSERT INTO kept VALUES ({number})"));
        cluster.await_replicas(2);
        cluster.await_replayed(standby);
        cluster.kill(standby, None);
        let (old, new, left) = parting(&wal_dir, size);
        let (from, length) = harm(number, left);
        let file = OpenOptions::new().read(true).write(true).open(wal_dir.join(&new)).expect("the segment");
        let zeroes = vec![0; length.min(size - from) as usize];
        let mut before = vec![0; (left.min(from + length) - from) as usize];
        file.read_exact_at(&mut before, from).expect("reading it");
        assert!(before.iter().any(|byte| *byte != 0), "nothing would be missing");
        file.write_all_at(&zeroes, from).expect("writing to it");
        assert!(wal_dir.join(&old).exists(), "{old} is gone");
        cluster.start_node(standby);
        await_until(PATIENCE, "the standby streams again", || {
            match cluster.try_ask(standby, "SELECT status FROM pg_stat_wal_receiver")?.as_str() {
                "streaming" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
        cluster.await_replayed(standby);
        let rows = format!("{}", 1001 + number);
        assert_eq!(cluster.ask(standby, "SELECT count(*)::text FROM kept"), rows);
        let log = std::fs::read_to_string(cluster.node(standby).data_dir.with_file_name("sidecar.log"));
        let said = log.expect("the sidecar's log").matches("removed WAL segments that break off").count();
        assert_eq!(said as u64, number + 1, "that segment is removed, and no other is");
    }
    cluster.assert_one_writable();
}
