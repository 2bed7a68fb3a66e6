//! Two data nodes and a witness: whichever data node is lost, nothing is, and going on with one copy is a decision.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use serde_json::json;

fn state(cluster: &Cluster, asked: u64, node: u64) -> serde_json::Value {
    let (_, map) = cluster.get(asked, "/map");
    map["nodes"].as_array().into_iter().flatten().find(|n| n["id"] == node).cloned().unwrap_or_default()
}

#[test]
fn the_survivor_opens_when_it_is_told_not_to_wait_and_takes_the_lost_leader_back() {
    let cluster = Cluster::start_with_witness(3);
    let leader = cluster.leader();
    let survivor = 3 - leader;
    let probe = cluster.probe();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 100)");
    cluster.kill(leader, None);
    // It is elected and promoted, and says whom it waits for: one copy is not enough to acknowledge anything.
    await_until(PATIENCE, "the survivor says whom it waits for", || {
        let node = state(&cluster, survivor, survivor);
        let told = node["trouble"].as_str().is_some_and(|t| t.contains("must have its first row"));
        if told && node["state"] == "electing" { Ok(()) } else { Err(node.to_string()) }
    });
    assert_eq!(cluster.get(survivor, "/primary").0, 503, "it takes no writes yet");
    // Asked of the witness: the request finds its way to the one that can say it.
    let dir = cluster.dir().join("node3/node.toml").display().to_string();
    let down = pgquorum_tests::pgquorum(["node", "down", &leader.to_string(), "--config", &dir]);
    assert_eq!(down.code, 0, "{}", down.said);
    assert_eq!(cluster.await_leader(Some(leader)), survivor);
    assert_eq!(cluster.ask(survivor, "SELECT count(*)::text FROM kept"), "100");
    assert_eq!(cluster.ask(survivor, "SHOW synchronous_standby_names"), "");
    cluster.sql("INSERT INTO kept VALUES (101)");
    // What comes back is a standby without a vote; it counts again when it is told to.
    cluster.start_node(leader);
    cluster.await_node(leader, "node", "replica");
    cluster.await_replayed(leader);
    assert_eq!(cluster.ask(leader, "SELECT count(*)::text FROM kept"), "101");
    await_until(PATIENCE, "the node counts again", || {
        let node = state(&cluster, survivor, leader);
        if node["down"] == json!(false) {
            return Ok(());
        }
        let (db, api) = (cluster.node(leader).db_port, cluster.node(leader).api_port());
        let path = format!("/node/{leader}?db-port={db}&api-port={api}");
        Err(cluster.send(survivor, "PATCH", &path, None).1.to_string())
    });
    await_until(PATIENCE, "commits wait for it again", || {
        let rule = cluster.ask(survivor, "SHOW synchronous_standby_names");
        if rule.starts_with("ANY 1") { Ok(()) } else { Err(rule) }
    });
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
