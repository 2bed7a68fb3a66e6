//! Changes of members that are refused, by the words that programs go by, and those that are taken though another waits.

use pgquorum_tests::{Cluster, PATIENCE, await_until, request};
use serde_json::{Value, json};
use std::time::Duration;

/// What is refused with this status and word, and with a sentence; returns the sentence.
fn refused(port: u16, status: u16, code: &str, method: &str, path: &str) -> String {
    let (got, answer) = request(port, method, path, None).expect("an answer");
    assert_eq!((got, answer["code"].as_str()), (status, Some(code)), "{method} {path}: {answer}");
    answer["message"].as_str().filter(|text| !text.is_empty()).expect("a sentence").to_owned()
}

fn entry(map: &Value, id: u64) -> Value {
    map["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == id).cloned().unwrap_or_default()
}

#[test]
fn what_a_members_state_does_not_allow_is_refused() {
    let cluster = Cluster::start_with_witness(3);
    let leader = cluster.leader();
    let (other, witness) = (3 - leader, 3);
    let node = cluster.node(leader);
    let port = node.api_port();
    let taken = format!("/node?ip=127.0.0.1&role=listener&db-port={}&api-port=1", node.db_port);
    refused(port, 400, "address_in_use", "POST", &taken);
    let ports = "db-port=1&api-port=2";
    refused(port, 412, "wrong_role", "PATCH", &format!("/node/{witness}?{ports}"));
    refused(port, 412, "wrong_role", "POST", &format!("/node-down/{witness}"));
    refused(port, 412, "cannot_lead", "POST", &format!("/leader?node={witness}"));
    refused(port, 412, "already_a_node", "PATCH", &format!("/node/{other}?{ports}"));
    refused(port, 412, "is_leader", "DELETE", &format!("/node/{leader}"));
    refused(port, 412, "is_leader", "POST", &format!("/node-down/{leader}"));

    // Without the witness the leader would be alone of two.
    cluster.stop(other);
    await_until(PATIENCE, "the leader misses it", || {
        let (_, map) = request(port, "GET", "/map", None).map_err(|error| error.to_string())?;
        if entry(&map, other)["state"] == "unknown" { Ok(()) } else { Err(map.to_string()) }
    });
    let said = refused(port, 412, "no_majority_left", "DELETE", &format!("/node/{witness}"));
    assert!(said.contains(&format!("not connected: {other}.")), "{said}");
    let (_, map) = cluster.get(leader, "/map");
    assert_eq!(map["nodes"].as_array().map(Vec::len), Some(3), "{map}");

    // A number that was taken out is gone for good, whatever is asked of it.
    let (code, answer) = cluster.send(leader, "DELETE", &format!("/node/{other}"), None);
    assert_eq!((code, answer), (200, json!({"id": other, "removed": true})));
    refused(port, 410, "unknown_node", "GET", &format!("/node/{other}"));
    refused(port, 410, "node_removed", "PATCH", &format!("/node/{other}?{ports}"));
    refused(port, 410, "node_removed", "DELETE", &format!("/node/{other}"));
    refused(port, 410, "node_removed", "POST", &format!("/node-down/{other}"));
    refused(port, 412, "node_removed", "POST", &format!("/leader?node={other}"));
    cluster.sql("CREATE TABLE alone (n int)");
}

#[test]
fn a_node_is_said_to_be_lost_though_a_change_waits_for_it() {
    let cluster = Cluster::start(3);
    let (leader, lost) = (cluster.leader(), cluster.follower());
    let port = cluster.node(leader).api_port();
    cluster.kill(lost, None);
    // Commits shall wait for both standbys, and one is not there to show that it knows.
    let grow = r#"{"quorum-replication": false, "replication-factor": 2}"#;
    let waiting =
        std::thread::spawn(move || request(port, "POST", "/config", Some(grow)).expect("an answer"));
    await_until(PATIENCE, "the change is on its way", || {
        let (_, map) = request(port, "GET", "/map", None).map_err(|error| error.to_string())?;
        if map["change-in-flight"] == json!(true) { Ok(()) } else { Err(map.to_string()) }
    });
    refused(port, 420, "change_in_flight", "POST", "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2");
    let down = format!("/node-down/{lost}?reason=it+burns");
    await_until(PATIENCE, "it is marked", || match request(port, "POST", &down, None) {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (status, answer) = waiting.join().expect("the thread");
    assert_eq!((status, &answer["code"]), (531, &json!("overtaken")), "{answer}");
    cluster.sql("CREATE TABLE without_it (n int); INSERT INTO without_it VALUES (1)");

    // It comes back, and what was asked for is complete at last.
    cluster.start_node(lost);
    await_until(Duration::from_secs(60), "commits wait for both", || {
        let (_, config) = request(port, "GET", "/config", None).map_err(|error| error.to_string())?;
        let effective = &config["effective"];
        let both = effective["acknowledging-standbys"] == 2 && effective["data-nodes"] == 3;
        if both { Ok(()) } else { Err(config.to_string()) }
    });
    cluster.await_replicas(2);
    assert_eq!(cluster.leader(), leader);
}
