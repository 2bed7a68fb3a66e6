//! A node whose data cannot be used any more gets a new copy.

use super::rejoin_by_rewind::diverge;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{Cluster, PATIENCE, await_until, kill_tree, postgres_program, server_command};
use std::path::Path;

#[test]
fn a_rewind_that_cannot_work_ends_in_a_new_copy() {
    let cluster = Cluster::start_steady(3);
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

/// The process of a server that has this in its title.
fn process_of(postmaster: i32, title: &str) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let parent =
            read("stat").rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(postmaster) && read("cmdline").contains(title)
    })
}

/// Promotes a server whose sidecar does not run, and kills it before its first checkpoint: its control file does not name
/// its timeline.
fn promote_and_kill(data: &Path) {
    let pg_ctl = |args: &[&str]| {
        let mut command = server_command(&postgres_program("pg_ctl"));
        command.current_dir("/");
        command.arg("-D").arg(data).args(["-w", "-l", "/dev/null"]).args(args);
        assert!(command.status().expect("pg_ctl").success(), "pg_ctl {args:?}");
    };
    pg_ctl(&["start"]);
    let file = std::fs::read_to_string(data.join("postmaster.pid")).expect("postmaster.pid");
    let postmaster: i32 = file.lines().next().and_then(|line| line.parse().ok()).expect("a process");
    let checkpointer = process_of(postmaster, "checkpointer").expect("a checkpointer");
    kill(Pid::from_raw(checkpointer), Signal::SIGSTOP).expect("the checkpointer stands still");
    pg_ctl(&["promote", "-W"]);
    await_until(PATIENCE, "it is a primary", || {
        let out = server_command(&postgres_program("pg_controldata"))
            .arg("-D")
            .arg(data)
            .env("LC_ALL", "C")
            .output();
        let said = String::from_utf8_lossy(&out.expect("pg_controldata").stdout).into_owned();
        if said.contains("in production") {
            Ok(())
        } else {
            Err(said.lines().nth(3).unwrap_or_default().to_owned())
        }
    });
    kill_tree(postmaster);
}

#[test]
fn a_server_that_died_before_its_first_checkpoint_comes_back() {
    let cluster = Cluster::start_steady(3);
    let node = cluster.follower();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    cluster.await_replayed(node);
    cluster.stop(node);
    promote_and_kill(&cluster.node(node).data_dir);
    cluster.sql("INSERT INTO kept VALUES (2)");
    cluster.start_node(node);
    cluster.await_replicas(2);
    cluster.await_replayed(node);
    assert_eq!(cluster.ask(node, "SELECT count(*)::text FROM kept"), "2");
    cluster.assert_one_writable();
}

#[test]
fn an_empty_data_directory_is_filled_again() {
    let cluster = Cluster::start_steady(3);
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
    let cluster = Cluster::start_steady(3);
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
    await_until(PATIENCE, "it acknowledges", || {
        let names = cluster.try_ask(cluster.leader(), names)?;
        if names.contains("rejoining") { Err(names) } else { Ok(()) }
    });
    cluster.assert_one_writable();
}
