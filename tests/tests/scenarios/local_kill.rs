//! `pgquorum local` ends all of a node, in whatever state it is, and nothing else.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{
    Cluster, PATIENCE, await_until, free_ports, pgquorum, pgquorum_program, run_program, server_directory,
};
use std::collections::BTreeSet;
use std::path::Path;

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    state.is_some_and(|s| s != "Z" && s != "X")
}

/// Shared memory in `/dev/shm` that these processes use.
fn shared(pids: &[i32]) -> BTreeSet<String> {
    let maps = pids.iter().filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).ok());
    let lines: Vec<String> = maps.flat_map(|m| m.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let paths = lines.iter().filter_map(|l| l.find("/dev/shm/PostgreSQL.").map(|at| l[at..].to_owned()));
    paths.filter(|p| !p.ends_with(" (deleted)")).collect()
}

fn pids_of(done: &serde_json::Value) -> Vec<i32> {
    done["pids"].as_array().into_iter().flatten().filter_map(|p| p.as_i64()).map(|p| p as i32).collect()
}

#[test]
fn what_is_left_of_a_server_is_destroyed_with_its_cluster() {
    let cluster = Cluster::start(1);
    let (node, dir) = (cluster.node(1), cluster.dir().display().to_string());
    let mut writer = cluster.connect(1).expect("a session");
    writer.batch_execute("CREATE TABLE t (n int)").expect("a table");
    let only = |part| ["local", "freeze", "--dir", &dir, "--node", "1", "--only", part].map(str::to_owned);
    let pids = pids_of(&pgquorum(only("postgres")).expect("freeze"));
    let segments = shared(&pids);
    assert!(pids.len() > 3 && pids.iter().all(|p| lives(*p)), "{pids:?}");
    assert!(!segments.is_empty(), "the server has shared memory");
    // Nobody watches over them: they stand still, their parent is gone, their directory has another name.
    pgquorum(["local", "kill", "--dir", &dir, "--node", "1", "--only", "sidecar"]).expect("kill");
    kill(Pid::from_raw(node.postgres_pid), Signal::SIGKILL).expect("the postmaster");
    await_until(PATIENCE, "the postmaster is gone", || {
        if lives(node.postgres_pid) { Err("it lives".to_owned()) } else { Ok(()) }
    });
    std::fs::rename(&node.data_dir, node.data_dir.with_file_name("data.old-1")).expect("another name");

    pgquorum(["local", "destroy", "--dir", &dir]).expect("destroy");
    let left: Vec<i32> = pids.into_iter().filter(|pid| lives(*pid)).collect();
    assert!(left.is_empty(), "processes {left:?} of a destroyed cluster");
    let left: Vec<String> = segments.into_iter().filter(|s| Path::new(s).exists()).collect();
    assert!(left.is_empty(), "shared memory of a destroyed cluster: {left:?}");
    let root = cluster.dir().parent().map(Path::to_owned);
    // There is nothing left to destroy.
    std::mem::forget(cluster);
    let _ = root.map(std::fs::remove_dir);
}

#[test]
fn a_killed_node_leaves_its_neighbours_and_no_shared_memory() {
    let cluster = Cluster::start(3);
    let id = cluster.follower();
    let dir = cluster.dir().display().to_string();
    let frozen = pgquorum(["local", "freeze", "--dir", &dir, "--node", &id.to_string()]).expect("freeze");
    let pids = pids_of(&frozen);
    let segments = shared(&pids);
    assert!(!segments.is_empty(), "the server has shared memory");
    cluster.kill(id, None);
    assert!(pids.iter().all(|pid| !lives(*pid)), "{pids:?}");
    assert!(segments.iter().all(|s| !Path::new(s).exists()), "{segments:?}");
    for other in cluster.status().nodes.iter().filter(|n| n.id != id) {
        assert!(lives(other.sidecar_pid) && lives(other.postgres_pid), "{other:?}");
        assert_eq!(cluster.ask(other.id, "SELECT 1::text"), "1");
    }
    cluster.start_node(id);
    cluster.await_replicas(2);
}

#[test]
fn the_program_may_have_any_name() {
    let root = server_directory("pgquorum-renamed-");
    let program = root.join("pgq-1.2");
    std::fs::copy(pgquorum_program(), &program).expect("a copy of the program");
    let [first] = free_ports::<1>();
    let (dir, port) = (root.join("cluster").display().to_string(), (first - 1).to_string());
    let up = ["local", "up", "--nodes", "1", "--dir", &dir, "--base-port", &port];
    let sidecar = |status: &serde_json::Value| status["nodes"][0]["sidecar_pid"].as_i64().unwrap_or(0);
    let pid = sidecar(&run_program(&program, up).expect("local up"));
    assert!(pid > 0 && lives(pid as i32));
    assert_eq!(sidecar(&run_program(&program, up).expect("local up again")), pid, "one sidecar");
    run_program(&program, ["local", "destroy", "--dir", &dir]).expect("destroy");
    assert!(!lives(pid as i32));
    let _ = std::fs::remove_dir_all(root);
}
