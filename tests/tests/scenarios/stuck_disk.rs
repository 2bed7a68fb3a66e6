//! The leader's disk takes no writes, while its server answers what it has in memory.

use pgquorum_tests::{Cluster, PATIENCE, StalledDisk, await_until, request, skipped};
use std::path::PathBuf;
use std::time::Duration;

/// Room for a database, its WAL and what a rewind keeps.
const MIB: u64 = 320;
/// Three times the node timeout, and an election on a busy machine.
const BOUND_MS: f64 = 60_000.0;
/// How long a server may take to say what it has in memory, and a server that hangs to say nothing.
const PATIENT: Duration = Duration::from_secs(30);
const IMPATIENT: Duration = Duration::from_secs(5);

/// A cluster whose leader has this of its directories on a disk of its own. `None`: there can be no such disk here.
#[track_caller]
fn leader_on_a_disk(part: impl Fn(&Cluster, u64) -> PathBuf) -> Option<(Cluster, StalledDisk, u64)> {
    if let Some(why) = StalledDisk::refused() {
        skipped(&why);
        return None;
    }
    let cluster = Cluster::start(3);
    let id = cluster.follower();
    let directory = part(&cluster, id);
    cluster.stop(id);
    let disk = StalledDisk::of_size(&directory, MIB);
    cluster.start_node(id);
    cluster.await_replicas(2);
    assert_eq!(cluster.hand_over(id).0, 200);
    cluster.await_replicas(2);
    Some((cluster, disk, id))
}

fn data(cluster: &Cluster, id: u64) -> PathBuf {
    cluster.node(id).data_dir
}

/// What a server says that may hang in the middle of it.
fn answer(cluster: &Cluster, id: u64, within: Duration, query: &'static str) -> Option<String> {
    let (dir, (tell, told)) = (cluster.dir().to_owned(), std::sync::mpsc::channel());
    std::thread::spawn(move || tell.send(Cluster::at(&dir).try_ask(id, query)));
    told.recv_timeout(within).ok().and_then(Result::ok)
}

/// Breaks the leader's disk under load, waits for another leader, mends the disk.
fn replaced(cluster: &Cluster, old: u64, breaks: impl FnOnce(), mends: impl FnOnce()) {
    let probe = cluster.probe();
    breaks();
    assert_eq!(answer(cluster, old, PATIENT, "SELECT 1::text").as_deref(), Some("1"), "only writes can tell");
    let new = cluster.await_leader(Some(old));
    cluster.sql("CREATE TABLE written_elsewhere (n int)");
    let takes_writes = answer(cluster, old, IMPATIENT, "SELECT quorum.is_leader()::text");
    assert_ne!(takes_writes.as_deref(), Some("true"), "two nodes take writes");
    mends();
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    cluster.await_replayed(old);
    assert_eq!(cluster.ask(old, "SELECT to_regclass('written_elsewhere')::text"), "written_elsewhere");
    let report = probe.finish();
    report.assert_nothing_lost();
    let gap = report.longest_gap_ms;
    eprintln!("node {new} took over; longest time without an acknowledged write: {gap:.0} ms");
    assert!(gap < BOUND_MS, "writes stood still for {gap} ms");
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced() {
    let Some((cluster, disk, old)) = leader_on_a_disk(data) else { return };
    replaced(&cluster, old, || disk.freeze(), || disk.thaw());
    cluster.kill(old, None);
    drop(disk);
}

/// What a node needs is all on one disk, as `pgquorum init --dir` puts it.
#[test]
fn a_leader_whose_disk_hangs_with_the_state_on_it_is_replaced() {
    let node = |cluster: &Cluster, id| data(cluster, id).parent().expect("the node's directory").to_owned();
    let Some((cluster, disk, old)) = leader_on_a_disk(node) else { return };
    replaced(&cluster, old, || disk.freeze(), || disk.thaw());
    cluster.kill(old, None);
    drop(disk);
}

#[test]
fn a_leader_whose_disk_is_full_is_replaced() {
    let Some((cluster, disk, old)) = leader_on_a_disk(data) else { return };
    let port = cluster.node(old).api_port();
    let seen = || {
        await_until(PATIENCE, "the node says why it leads no more", || {
            let (_, rpc) = request(port, "GET", "/rpc", None).map_err(|e| e.to_string())?;
            let text = rpc.to_string();
            if text.contains("No space left") { Ok(()) } else { Err(text) }
        });
        disk.empty();
    };
    replaced(&cluster, old, || disk.fill(), seen);
    cluster.kill(old, None);
    drop(disk);
}

/// It acknowledges nothing, and is no candidate; the others go on.
#[test]
fn a_follower_whose_disk_hangs_costs_no_election() {
    if let Some(why) = StalledDisk::refused() {
        skipped(&why);
        return;
    }
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let directory = data(&cluster, follower);
    cluster.stop(follower);
    let disk = StalledDisk::of_size(&directory, MIB);
    cluster.start_node(follower);
    cluster.await_replicas(2);
    let probe = cluster.probe();
    disk.freeze();
    await_until(PATIENCE, "the leader knows that the follower is stuck", || {
        let (_, map) = cluster.get(leader, "/map");
        let mut nodes = map["nodes"].as_array().into_iter().flatten();
        let trouble = |n: &serde_json::Value| n["trouble"].as_str().is_some_and(|t| t.contains("hangs"));
        if nodes.any(|n| n["id"] == follower && trouble(n)) { Ok(()) } else { Err(map.to_string()) }
    });
    assert_eq!(cluster.leader(), leader);
    disk.thaw();
    cluster.await_replicas(2);
    assert_eq!(cluster.leader(), leader, "a follower's disk costs no election");
    probe.finish().assert_nothing_lost();
    cluster.kill(follower, None);
    drop(disk);
}
