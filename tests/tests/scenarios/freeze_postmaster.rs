//! The first process of a server stands still, its sessions run on: whoever is connected writes, nobody else gets in. Or
//! all of its processes stand still.

use pgquorum_tests::{Cluster, PATIENCE, await_until, poll_until, request};
use postgres::error::SqlState;
use std::time::Duration;

#[test]
fn a_leader_that_takes_no_new_sessions_is_replaced() {
    let cluster = Cluster::start(3);
    cluster.sql("CREATE TABLE written_elsewhere (n int)");
    let old = cluster.leader();
    let port = cluster.node(old).api_port();
    let probe = cluster.probe();
    cluster.freeze(old, Some("postmaster"));
    let new = await_until(PATIENCE, "another leader takes writes from new sessions", || {
        let leader = cluster.status().leader.filter(|l| *l != old).ok_or("no other leader")?;
        let mut client = cluster.connect(leader).map_err(|e| format!("{e:?}"))?;
        client.batch_execute("INSERT INTO written_elsewhere VALUES (1)").map_err(|e| format!("{e:?}"))?;
        Ok(leader)
    });
    let (_, rpc) = request(port, "GET", "/rpc", None).expect("the old leader's sidecar answers");
    assert!(rpc.to_string().contains("takes no new sessions"), "the node says why it leads no more: {rpc}");
    cluster.thaw(old, Some("postmaster"));
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    cluster.await_replayed(old);
    assert_ne!(cluster.ask(old, "SELECT count(*)::text FROM written_elsewhere"), "0");
    let report = probe.finish();
    report.assert_nothing_lost();
    let gap = report.longest_gap_ms;
    eprintln!("node {new} took over; longest time without an acknowledged write: {gap:.0} ms");
}

/// Nobody is served and nothing is refused, and nobody thaws it: the sidecar ends it, and it comes back as a standby.
#[test]
fn a_leader_whose_whole_server_stands_still_is_replaced_and_comes_back() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let probe = cluster.probe();
    cluster.freeze(old, Some("postgres"));
    cluster.await_leader(Some(old));
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}

/// The sidecar that promoted it is gone, and the next one finds a server that says nothing.
#[test]
fn a_sidecar_that_comes_beside_a_replaced_server_that_stands_still_ends_it() {
    let cluster = Cluster::start(3);
    let old = cluster.leader();
    let server = cluster.node(old).postgres_pid;
    let probe = cluster.probe();
    cluster.freeze(old, Some("postgres"));
    cluster.kill(old, Some("sidecar"));
    cluster.await_leader(Some(old));
    cluster.start_node(old);
    cluster.await_replicas(2);
    assert_ne!(cluster.node(old).postgres_pid, server);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}

/// It streams on and acknowledges. But it says that nobody can log in there, and is not chosen to lead.
#[test]
fn a_follower_that_takes_no_new_sessions_costs_no_election() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let probe = cluster.probe();
    cluster.freeze(follower, Some("postmaster"));
    await_until(PATIENCE, "the follower is no replica for new sessions", || {
        let codes = ["/replica", "/read-only", "/health", "/readiness"].map(|p| cluster.get(follower, p).0);
        if codes == [503; 4] { Ok(()) } else { Err(format!("{codes:?}")) }
    });
    await_until(PATIENCE, "the leader knows", || {
        let (_, map) = cluster.get(leader, "/map");
        let mut nodes = map["nodes"].as_array().into_iter().flatten();
        let told = |n: &serde_json::Value| n["trouble"].as_str().is_some_and(|t| t.contains("new sessions"));
        if nodes.any(|n| n["id"] == follower && told(n)) { Ok(()) } else { Err(map.to_string()) }
    });
    assert_eq!(cluster.leader(), leader);
    cluster.thaw(follower, Some("postmaster"));
    await_until(PATIENCE, "the follower is a replica again", || match cluster.get(follower, "/replica").0 {
        200 => Ok(()),
        code => Err(code.to_string()),
    });
    cluster.await_replicas(2);
    assert_eq!(cluster.leader(), leader, "a follower's postmaster costs no election");
    probe.finish().assert_nothing_lost();
}

/// A server that is full refuses new sessions, and that is an answer.
#[test]
fn a_leader_without_free_connections_stays() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "2s")]);
    let leader = cluster.leader();
    let epoch = cluster.node(leader).epoch;
    let mut sessions = Vec::new();
    let refused = loop {
        match cluster.connect(leader) {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{refused:?}");
    // Twice as long as it takes to find a server stuck.
    let moved = poll_until(Duration::from_secs(12), || {
        cluster.status().leader.filter(|now| *now != leader).ok_or("nobody else leads".to_owned())
    });
    assert!(moved.is_err(), "a server that is full lost its leadership to node {moved:?}");
    drop(sessions);
    cluster.sql("CREATE TABLE t (n int)");
    assert_eq!((cluster.leader(), cluster.node(leader).epoch), (leader, epoch));
}
