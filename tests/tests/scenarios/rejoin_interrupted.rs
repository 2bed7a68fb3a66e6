//! A rewind or a copy that is broken off costs nothing but time.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{Cluster, PATIENCE, await_until};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The process of this program that works on this directory.
fn program_on(program: &str, directory: &Path) -> Option<Pid> {
    let directory = directory.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|b| *b == 0);
        let ours = words.next()?.ends_with(program.as_bytes()) && words.any(|w| w == directory);
        ours.then(|| Pid::from_raw(pid))
    })
}

/// Names beside the data directory that begin like it.
fn beside(data: &Path) -> Vec<String> {
    let name = data.file_name().expect("a name").to_string_lossy().into_owned();
    let entries =
        std::fs::read_dir(data.parent().expect("a parent")).expect("the node's directory").flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with(&name)).collect()
}

/// Lets the leader write so much that standbys whose servers stand still cannot get, then cuts its power.
fn diverge(cluster: &Cluster) -> u64 {
    let old = cluster.leader();
    for other in (1..=3).filter(|id| *id != old) {
        cluster.freeze(other, Some("postgres"));
    }
    let fill =
        "BEGIN; INSERT INTO filler SELECT g, repeat('x', 1000) FROM generate_series(1, 60000) g; ROLLBACK";
    cluster.sql(fill);
    cluster.kill(old, None);
    for other in (1..=3).filter(|id| *id != old) {
        cluster.thaw(other, Some("postgres"));
    }
    old
}

/// Lets a former leader be rewound, and has `pg_rewind` stand still while it writes. It may be over before anybody looks.
fn stopped_rewind(cluster: &Cluster) -> Option<(u64, Pid)> {
    let old = diverge(cluster);
    cluster.await_leader(Some(old));
    cluster.sql("INSERT INTO kept VALUES (2)");
    let data = cluster.node(old).data_dir;
    let log = data.with_file_name("sidecar.log");
    let ended = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("pg_rewind has ended").count()
    };
    let before = ended();
    cluster.start_node(old);
    await_until(PATIENCE, "pg_rewind runs", || match program_on("pg_rewind", &data) {
        Some(pid) if kill(pid, Signal::SIGSTOP).is_ok() => Ok(Some((old, pid))),
        _ if ended() > before => Ok(None),
        _ => Err("not yet".to_owned()),
    })
}

fn rewind_is_interrupted(rewind_dies: bool) {
    let cluster = Cluster::start_steady(3);
    cluster
        .sql("CREATE TABLE filler (n int, t text); CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    let mut tries = 0;
    let (old, rewind) = loop {
        if let Some(found) = stopped_rewind(&cluster) {
            break found;
        }
        tries += 1;
        assert!(tries < 10, "pg_rewind was over {tries} times before anybody looked");
        cluster.await_replicas(2);
    };
    let data = cluster.node(old).data_dir;
    let mark = data.with_extension("rewinding");
    assert_eq!(std::fs::read_to_string(&mark).expect("the mark"), "writing\n");
    cluster.kill(old, None);
    if rewind_dies {
        kill(rewind, Signal::SIGKILL).expect("ending pg_rewind");
    }
    assert!(mark.exists(), "nothing tells that the data are unusable");
    cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    assert_eq!(cluster.ask(old, "SELECT count(*)::text FROM kept"), (2 + tries).to_string());
    assert_eq!(program_on("pg_rewind", &data), None, "the orphan is still there");
    await_until(PATIENCE, "only the copy is left", || {
        let left = beside(&data);
        let rubbish = |n: &&String| n.contains(".clone") || n.contains(".old") || n.contains(".rewinding");
        if left.iter().any(|n| rubbish(&n)) { Err(format!("{left:?}")) } else { Ok(()) }
    });
    cluster.assert_one_writable();
}

#[test]
fn a_rewind_whose_sidecar_was_killed_ends_in_a_copy() {
    rewind_is_interrupted(true);
}

/// Nobody tells `pg_rewind` that its sidecar is gone.
#[test]
fn a_rewind_that_outlives_its_sidecar_disturbs_no_copy() {
    rewind_is_interrupted(false);
}

#[test]
fn a_copy_that_is_denied_leaves_the_old_data_and_is_tried_again() {
    let cluster = Cluster::start_steady(3);
    let node = cluster.leader();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    let data = cluster.node(node).data_dir;
    let home = data.parent().expect("the node's directory");
    cluster.kill(node, None);
    cluster.await_leader(Some(node));
    // PostgreSQL cannot use what is left, so it has to be copied; and there is no place for a copy.
    for entry in std::fs::read_dir(data.join("pg_wal")).expect("pg_wal").flatten() {
        if entry.path().is_file() {
            std::fs::remove_file(entry.path()).expect("removing a segment");
        }
    }
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o555)).expect("permissions");
    cluster.start_node(node);
    await_until(PATIENCE * 2, "the copy's trouble is shown", || {
        let (_, map) = cluster.try_get(cluster.leader(), "/map")?;
        let mut nodes = map["nodes"].as_array().into_iter().flatten();
        let trouble = nodes.find(|n| n["id"] == node).map(|n| n["trouble"].to_string()).unwrap_or_default();
        if trouble.contains("Permission denied") { Ok(()) } else { Err(map.to_string()) }
    });
    assert!(data.join("PG_VERSION").exists(), "the old data are gone before there are new ones");
    cluster.sql("INSERT INTO kept VALUES (2)");
    std::fs::set_permissions(home, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    cluster.await_replicas(2);
    cluster.await_replayed(node);
    assert_eq!(cluster.ask(node, "SELECT count(*)::text FROM kept"), "2");
    cluster.assert_one_writable();
}
