//! A standby that knows of a timeline which its upstream's history does not have: a primary was promoted and died before
//! anything of its epoch reached anybody, and another one leads now. PostgreSQL takes the newest timeline that it finds as
//! its target, and with that one it follows nobody.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{Cluster, PATIENCE, await_until};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A standby of a steady cluster, where its WAL lies, and the timeline.
fn standby(cluster: &Cluster) -> (u64, PathBuf, u64) {
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)");
    let id = cluster.follower();
    let timeline = "SELECT timeline_id::text FROM pg_control_checkpoint()";
    let timeline = cluster.ask(cluster.leader(), timeline).parse().expect("a number");
    (id, cluster.node(id).data_dir.join("pg_wal"), timeline)
}

/// A file beside `like`, of the same owner.
fn write_beside(like: &Path, name: &str, content: &[u8]) {
    let (file, new) = (like.with_file_name(name), like.with_file_name("new"));
    std::fs::write(&new, content).expect("a file");
    let owner = std::fs::metadata(like).expect("an owner");
    chown(&new, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    std::fs::rename(new, file).expect("its name");
}

/// Writes the history of a timeline that left `timeline` at `left`.
fn branch_off(wal_dir: &Path, like: &Path, timeline: u64, left: &str) {
    let before = std::fs::read_to_string(wal_dir.join(format!("{timeline:08X}.history"))).unwrap_or_default();
    let text = format!("{before}{timeline}\t{left}\tno recovery target specified\n");
    write_beside(like, &format!("{:08X}.history", timeline + 1), text.as_bytes());
}

fn process(cluster: &Cluster, node: u64, sql: &str) -> Pid {
    Pid::from_raw(cluster.ask(node, sql).parse().expect("a process"))
}

fn await_streams(cluster: &Cluster, id: u64) {
    await_until(PATIENCE, "the standby streams again", || {
        match cluster.try_ask(id, "SELECT status FROM pg_stat_wal_receiver")?.as_str() {
            "streaming" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    cluster.await_replayed(id);
}

fn log(cluster: &Cluster, id: u64) -> String {
    let file = cluster.node(id).data_dir.with_file_name("sidecar.log");
    std::fs::read_to_string(file).expect("the sidecar's log")
}

#[test]
fn the_beginning_of_a_timeline_that_came_to_nothing_is_forgotten_at_the_start() {
    let cluster = Cluster::start_steady(3);
    let (id, wal_dir, timeline) = standby(&cluster);
    // Where a record ends; what comes after it goes on along this timeline.
    let left = cluster.ask(cluster.leader(), "SELECT pg_logical_emit_message(false, 'test', 'here')::text");
    let name =
        format!("SELECT pg_walfile_name('{left}') || ' ' || (pg_walfile_name_offset('{left}')).file_offset");
    let name = cluster.ask(cluster.leader(), &name);
    let (segment, offset) = name.split_once(' ').expect("a segment and an offset");
    let offset: u64 = offset.parse().expect("a number");
    cluster.sql("INSERT INTO kept VALUES (0)");
    cluster.await_replayed(id);
    cluster.kill(id, None);

    let segment = wal_dir.join(segment);
    let mut content = std::fs::read(&segment).expect("the segment");
    content[offset as usize..].fill(0);
    let rest = segment.file_name().expect("a name").to_string_lossy()[8..].to_owned();
    let copy = format!("{:08X}{rest}", timeline + 1);
    write_beside(&segment, &copy, &content);
    branch_off(&wal_dir, &segment, timeline, &left);

    cluster.start_node(id);
    await_streams(&cluster, id);
    assert_eq!(cluster.ask(id, "SELECT count(*)::text FROM kept"), "1001");
    let log = log(&cluster, id);
    let said = log.lines().find(|line| line.contains("have nothing of their own"));
    assert!(said.is_some_and(|line| line.contains(&copy)), "{log}");
    assert!(
        !log.contains("kind=\"rewind\"") && !log.contains("kind=\"clone\""),
        "that repairs nothing: {log}"
    );
    cluster.assert_one_writable();
}

/// With a record of its own in it, it is history: what a standby has acknowledged is never taken for nothing.
#[test]
fn a_timeline_with_a_record_of_its_own_stays() {
    let cluster = Cluster::start_steady(3);
    let (to, ..) = standby(&cluster);
    let (code, answer) = cluster.hand_over(to);
    assert_eq!(code, 200, "{answer}");
    cluster.await_leader(None);
    cluster.await_replicas(2);
    let id = cluster.follower();
    cluster.await_replayed(id);
    // Its last checkpoint is of the timeline before.
    cluster.kill(id, None);
    cluster.start_node(id);
    await_streams(&cluster, id);
    assert_eq!(cluster.ask(id, "SELECT count(*)::text FROM kept"), "1000");
    let log = log(&cluster, id);
    assert!(!log.contains("have nothing of their own"), "{log}");
}

#[test]
fn a_standby_that_aims_at_such_a_timeline_while_it_runs_is_restarted() {
    let cluster = Cluster::start_steady(3);
    let (id, wal_dir, timeline) = standby(&cluster);
    let leader = cluster.leader();
    let server_log = cluster.node(id).data_dir.with_file_name("state").join("postgres.log");
    cluster.await_replayed(id);
    let aimed = format!("new target timeline is {}", timeline + 1);
    // Nothing comes any more, so its end stays where it is; the others do not notice.
    let sender =
        format!("SELECT pid::text FROM pg_stat_replication WHERE application_name = 'pgquorum_{id}'");
    let sender = process(&cluster, leader, &sender);
    kill(sender, Signal::SIGSTOP).expect("a signal to it");
    let end = || cluster.ask(id, "SELECT pg_last_wal_replay_lsn()::text");
    let end = await_until(PATIENCE, "the end of what comes", || {
        let before = end();
        std::thread::sleep(Duration::from_millis(300));
        if end() == before { Ok(before) } else { Err(before) }
    });
    branch_off(&wal_dir, &wal_dir.join("archive_status"), timeline, &end);
    let receiver = "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
    kill(process(&cluster, id, receiver), Signal::SIGTERM).expect("a signal to it");
    await_until(PATIENCE, "it aims at the other timeline", || {
        let log = std::fs::read_to_string(&server_log).map_err(|e| e.to_string())?;
        if log.contains(&aimed) { Ok(()) } else { Err(format!("{aimed:?} is not in the log")) }
    });
    kill(sender, Signal::SIGCONT).expect("a signal to it");
    await_streams(&cluster, id);
    assert_eq!(cluster.ask(id, "SELECT count(*)::text FROM kept"), "1000");
    let log = log(&cluster, id);
    assert!(log.contains("timelines beside the upstream's are known here"), "{log}");
    assert!(
        !log.contains("kind=\"rewind\"") && !log.contains("kind=\"clone\""),
        "that repairs nothing: {log}"
    );
}
