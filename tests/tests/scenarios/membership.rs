//! Nodes come and go.

use pgquorum_tests::{Cluster, PATIENCE, await_until, pgquorum};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_cluster_grows_under_load() {
    let cluster = Cluster::start_steady(1);
    let probe = cluster.probe();
    cluster.up(3);
    cluster.await_replicas(2);
    await_until(PATIENCE, "commits wait for one of them", || {
        let rule = cluster.try_ask(cluster.leader(), "SHOW synchronous_standby_names")?;
        if rule.starts_with("ANY 1") { Ok(()) } else { Err(rule) }
    });
    probe.finish().assert_nothing_lost();
}

#[test]
fn a_removed_node_leaves_and_its_number_is_not_given_again() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    let gone = cluster.follower();
    let probe = cluster.probe();
    let (code, answer) = cluster.send(leader, "DELETE", &format!("/node/{gone}"), None);
    assert_eq!(code, 200, "{answer}");
    await_until(PATIENCE, "the node is out of the map", || {
        let (_, map) = cluster.get(leader, "/map");
        let still = map["nodes"].as_array().into_iter().flatten().any(|n| n["id"] == gone);
        if still { Err(map.to_string()) } else { Ok(()) }
    });
    let (code, again) = cluster.send(leader, "DELETE", &format!("/node/{gone}"), None);
    assert_eq!(code, 410, "{again}");
    await_until(PATIENCE, "the node knows, and its server stops", || {
        let (code, answer) = cluster.get(gone, "/map");
        let runs = cluster.node(gone).postgres_pid != 0;
        if code == 412 && answer["code"] == "removed" && !runs { Ok(()) } else { Err(answer.to_string()) }
    });
    cluster.stop(gone);
    let path = "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2";
    // What the cluster does by itself about the one that has left comes first.
    let added = await_until(PATIENCE, "another node", || match cluster.post(leader, path, None) {
        (420, answer) => Err(answer.to_string()),
        (code, added) => {
            assert_eq!(code, 200, "{added}");
            Ok(added)
        }
    });
    assert_eq!(added["id"], json!(4));
    assert_eq!(added["role"], json!("listener"));
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}

#[test]
fn a_listener_that_has_not_caught_up_is_not_upgraded() {
    let cluster = Cluster::start_steady(1);
    let (code, added) = cluster.post(1, "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2", None);
    assert_eq!(code, 200, "{added}");
    let (code, answer) = cluster.send(1, "PATCH", "/node/2?db-port=1&api-port=2", None);
    assert_eq!(code, 412, "{answer}");
    assert_eq!(cluster.get(1, "/node/2").1["role"], json!("listener"));
    let (code, answer) = cluster.send(1, "DELETE", "/node/2", None);
    assert_eq!(code, 200, "{answer}");
    let (code, answer) = cluster.send(1, "DELETE", "/node/1", None);
    assert_eq!(code, 412, "the last node stays: {answer}");
    cluster.assert_one_writable();
}

#[test]
fn a_join_that_fails_leaves_nothing_behind() {
    let cluster = Cluster::start_steady(1);
    let node = cluster.node(1);
    let dir = tempfile::tempdir().expect("a directory");
    let secrets = dir.path().join("wrong.toml");
    std::fs::write(
        &secrets,
        "cluster-secret = \"a\"\nsuperuser-password = \"b\"\nreplication-password = \"c\"\n",
    )
    .expect("secrets");
    let target = dir.path().join("node");
    let (secrets, target) = (secrets.display().to_string(), target.display().to_string());
    let args = [
        "join",
        "--leader",
        &node.api,
        "--secrets",
        &secrets,
        "--dir",
        &target,
        "--api-port",
        "3",
        "--db-port",
        "4",
    ];
    let refused = pgquorum(args);
    assert_eq!(refused.code, 1, "{}", refused.said);
    assert!(!std::path::Path::new(&target).exists(), "{target} was left behind");
    let (_, map) = cluster.get(1, "/map");
    assert_eq!(map["nodes"].as_array().map(Vec::len), Some(1), "{map}");
}

#[test]
fn a_node_that_is_marked_down_neither_votes_nor_acknowledges() {
    let cluster = Cluster::start_steady(3);
    let (leader, down) = (cluster.leader(), cluster.follower());
    cluster.stop(down);
    let (code, answer) = cluster.post(leader, &format!("/node-down/{down}"), None);
    assert_eq!(code, 200, "{answer}");
    cluster.sql("CREATE TABLE one_left (n int); INSERT INTO one_left VALUES (1)");
    cluster.start_node(down);
    cluster.await_replicas(2);
    await_until(PATIENCE, "the mark goes away when the node is well", || {
        let (_, node) = cluster.get(leader, &format!("/node/{down}"));
        if node["down"] == json!(false) { Ok(()) } else { Err(node.to_string()) }
    });
}

/// For work on its machine, say.
#[test]
fn a_well_node_that_is_marked_down_is_left_out_until_it_is_brought_back() {
    let cluster = Cluster::start(3);
    let (leader, down) = (cluster.leader(), cluster.follower());
    let rule = || cluster.ask(leader, "SHOW synchronous_standby_names");
    let name = format!("pgquorum_{down}");
    let await_replica = |status: u16| {
        await_until(Duration::from_secs(20), &format!("{status} from /replica"), || {
            match cluster.get(down, "/replica") {
                (code, _) if code == status => Ok(()),
                (_, answer) => Err(answer.to_string()),
            }
        });
    };
    await_replica(200);
    let (code, answer) = cluster.post(leader, &format!("/node-down/{down}?reason=a+new+disk"), None);
    assert_eq!(code, 200, "{answer}");
    await_replica(503);
    assert!(!rule().contains(&name), "commits wait for it: {}", rule());
    let (_, events) = cluster.get(leader, "/events");
    let told =
        |event: &Value| event["kind"] == "node-down" && event["message"].to_string().contains("a new disk");
    assert!(events.as_array().into_iter().flatten().any(told), "{events}");
    let node = cluster.node(down);
    let back = format!("/node/{down}?db-port={}&api-port={}", node.db_port, node.api_port());
    let (code, answer) = cluster.send(leader, "PATCH", &back, None);
    assert_eq!(code, 200, "{answer}");
    await_replica(200);
    assert!(rule().contains(&name), "commits do not wait for it: {}", rule());
}
