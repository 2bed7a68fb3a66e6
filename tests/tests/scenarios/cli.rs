//! The commands as scripts use them: documents and exit codes.

use pgquorum_tests::{Cluster, pgquorum};
use serde_json::json;

#[test]
fn commands_follow_the_leader_and_return_their_codes() {
    let cluster = Cluster::start(3);
    let url = cluster.node(cluster.follower()).api;
    let leader = cluster.leader();
    let run = |args: &[&str]| pgquorum(args.iter().copied().chain(["--url", &url]));

    let map = run(&["status"]).expect("status");
    assert_eq!(map["leader"], json!(leader));
    assert_eq!(run(&["leader"]).expect("leader")["id"], json!(leader));
    // Asked of a follower, carried out by the leader.
    assert_eq!(
        run(&["config", "set", "node-timeout=1500ms"]).expect("config set")["node-timeout"],
        json!("1s 500ms")
    );
    assert_eq!(run(&["config", "get", "heartbeat-interval"]).expect("config get"), json!("100ms"));
    run(&["db-config", "set", "work_mem=5MB"]).expect("db-config set");
    assert_eq!(run(&["db-config", "get", "work_mem"]).expect("db-config get"), json!("5MB"));
    assert!(run(&["events"]).expect("events").as_array().is_some_and(|events| !events.is_empty()));

    assert_eq!(run(&["config", "set", "node-timeout=soon"]).code, 1);
    assert_eq!(run(&["node", "remove", "99"]).code, 4);
    assert_eq!(run(&["leader", "set", "99"]).code, 4);
    assert_eq!(run(&["config", "get", "no-such-setting"]).code, 4);
    assert_eq!(run(&["node", "remove"]).code, 2);
    assert_eq!(pgquorum(["status", "--url", "http://127.0.0.1:1"]).code, 3);
    assert_eq!(pgquorum(["local", "status", "--dir", "/no/such/dir"]).code, 4);
    assert_eq!(pgquorum(["local", "destroy", "--dir", "/tmp"]).code, 4);
}

#[test]
fn doctor_finds_nothing_on_a_healthy_node_and_something_on_a_sick_one() {
    let cluster = Cluster::start(1);
    let config = cluster.dir().join("node1/node.toml").display().to_string();
    let well = pgquorum(["doctor", "--config", &config]);
    assert_eq!(well.code, 0, "{} {}", well.said, well.json);
    cluster.stop(1);
    let sick = pgquorum(["doctor", "--config", &config]);
    assert_eq!(sick.code, 1);
    let failed =
        sick.json.as_array().into_iter().flatten().any(|c| c["check"] == "sidecar" && c["verdict"] == "fail");
    assert!(failed, "{}", sick.json);
    assert_eq!(pgquorum(["doctor", "--config", "/no/such/file"]).code, 1);
}
