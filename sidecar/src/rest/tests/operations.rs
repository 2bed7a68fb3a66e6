//! `POST /`: in its own words on every node, whatever is wrong; and passed on to the leader.

use super::*;
use crate::feed::Kind;
use serde_json::json;

fn error(answer: &Answer) -> String {
    let body = answer.json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{answer:?}");
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn refusals_are_in_the_words_of_the_interface() {
    let leader = serve(view(1), accept).await;
    for (body, status, text) in [
        ("", 400, "Invalid JSON."),
        ("{", 400, "Invalid JSON."),
        ("[]", 400, "Request body must include an 'operation' property."),
        ("{}", 400, "Request body must include an 'operation' property."),
        (r#"{"operation": "insert"}"#, 400, "Operation 'insert' not found"),
        (r#"{"operation": "add_node"}"#, 400, "'node_name' is required"),
        (r#"{"operation": "add_node", "node_name": "n1"}"#, 400, "'node_name' cannot be this nodes name"),
        (
            r#"{"operation": "update_node", "node_name": "n2"}"#,
            400,
            "Node 'n2' has not been added, perform add_node to proceed.",
        ),
    ] {
        let answer = leader.send("POST /", &[], body).await;
        assert_eq!((answer.status, error(&answer).as_str()), (status, text), "{body}");
    }
    // Nothing listens at the only route there is.
    let answer = leader.send("POST /", &[], r#"{"operation": "add_node", "node_name": "n2"}"#).await;
    assert!(
        answer.status == 404 && error(&answer).starts_with("Node 'n2' was not found: http://127.0.0.1:1"),
        "{answer:?}"
    );
    let status = r#"{"operation": "cluster_status"}"#;
    for (kind, expected) in [(Kind::Unavailable, 503), (Kind::Internal, 500)] {
        *leader.database.failure.lock().unwrap() = Some(kind);
        let answer = leader.send("POST /", &[], status).await;
        assert_eq!(answer.status, expected);
        let told = "There was an error processing your request. Check logs and try again.";
        assert_eq!(error(&answer) == told, expected == 500);
    }
    for (view, why) in [
        (leaderless(2), "the cluster has no leader now"),
        (stranger(), "this node has not heard of its cluster yet"),
        (removed(), "node 2 was removed from its cluster"),
        (stalled(1), "this node's sidecar has not run its loop for a while"),
    ] {
        let answer = serve(view, accept).await.send("POST /", &[], status).await;
        assert!(answer.status == 503 && error(&answer).starts_with(why), "{answer:?}");
    }
}

#[tokio::test]
async fn any_node_takes_an_operation() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    let leader = serve_with(&config, view(1), accept).await;
    let follower = serve_with(&config, view(2), accept).await;
    follower.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    let get = r#"{"operation": "cluster_get_routes"}"#;
    let set =
        r#"{"operation": "cluster_set_routes", "server": "leaf", "routes": [{"host": "a", "port": 1}]}"#;
    for node in [&leader, &follower] {
        let found = node.send("POST /", &[], get).await;
        assert_eq!(
            (found.status, found.json()),
            (200, json!({"hub": [{"host": "127.0.0.1", "port": 1}], "leaf": []}))
        );
        let done = node.send("POST /", &[], set).await;
        let expected = json!({"message": "cluster routes successfully set", "set": [{"host": "a", "port": 1}], "skipped": []});
        assert_eq!((done.status, done.json()), (200, expected));
    }
    assert!(follower.database.calls.lock().unwrap().is_empty());
    let functions: Vec<&str> =
        leader.database.calls.lock().unwrap().iter().map(|(_, call)| call.function).collect();
    assert_eq!(functions, ["neighbours", "set_neighbour_routes", "neighbours", "set_neighbour_routes"]);
    // Passed on once only: two nodes that take each other for the leader do not send it to and fro.
    let hop = ["x-pgquorum-forwarded-by: 3"];
    let hopped = follower.send("POST /", &hop, get).await;
    assert!(
        hopped.status == 503 && error(&hopped).starts_with("only the leader can do this, node 1"),
        "{hopped:?}"
    );
    // With something wrong in it, it goes nowhere.
    follower.change_view(|view| view.leader.as_mut().unwrap().api = SocketAddr::new(LOCAL, 1));
    assert_eq!(follower.send("POST /", &[], r#"{"operation": "x"}"#).await.status, 400);
    let dead = follower.send("POST /", &[], get).await;
    assert!(
        dead.status == 503 && error(&dead).starts_with("the leader at 127.0.0.1:1 could not be asked"),
        "{dead:?}"
    );
}

/// What a cluster knows of others, each with its address.
fn knows(name: &str, others: &[(&str, &str)]) -> Option<Value> {
    let node = |(name, address): &(&str, &str)| json!({"name": name, "remote": [address], "tables": []});
    Some(json!({"node_name": name, "login": null, "has_secret": false, "ca": null, "hub": [], "leaf": [],
        "nodes": others.iter().map(node).collect::<Vec<_>>()}))
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_told_from_who_is_not_there() {
    let (leader, other) = (serve(view(1), accept).await, serve(view(1), accept).await);
    *other.database.neighbours.lock().unwrap() = knows("n2", &[]);
    // Connections are taken, and nothing is said.
    let silent = tokio::net::TcpListener::bind((LOCAL, 0)).await.unwrap();
    let (quiet, open) =
        (format!("http://{}", silent.local_addr().unwrap()), format!("http://{}", other.address));
    let (quiet, open, closed) = (quiet.as_str(), open.as_str(), "http://127.0.0.1:1");
    let ask = async |operation: Value, others: &[(&str, &str)]| {
        *leader.database.neighbours.lock().unwrap() = knows("n1", others);
        let answer = leader.send("POST /", &[], &operation.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let network = |timeout: u64| json!({"operation": "cluster_network", "timeout": timeout});
    let found = ask(network(20_000), &[("n2", open), ("n4", closed)]).await;
    let (here, there) = (&found["nodes"][1], &found["nodes"][2]);
    assert_eq!((&here["name"], &here["status"]), (&json!("n2"), &json!("open")), "{found}");
    assert!(here["response_time"].is_u64() && here.get("error").is_none(), "{found}");
    assert_eq!((&there["name"], &there["status"]), (&json!("n4"), &json!("closed")), "{found}");
    let found = ask(network(50), &[("n3", quiet)]).await;
    let late = &found["nodes"][1];
    assert_eq!((&late["status"], &late["response_time"]), (&json!("timeout"), &Value::Null), "{found}");
    assert!(late["error"].as_str().unwrap().ends_with("did not answer within 50ms"), "{found}");
    assert_eq!((&late["connected_nodes"], &late["routes"]), (&json!([]), &json!([])), "{found}");

    let status = json!({"operation": "cluster_status"});
    let found = ask(status, &[("n2", open), ("n3", quiet), ("n4", closed), ("n5", open)]).await;
    let connections = found["connections"].as_array().unwrap();
    let shown = |at: usize| connections[at]["status"].as_str().unwrap();
    assert_eq!([shown(0), shown(1), shown(2), shown(3)], ["open", "timeout", "closed", "closed"], "{found}");
    assert!(connections[0]["latency_ms"].is_u64() && connections[1]["latency_ms"].is_null(), "{found}");
    let why = |at: usize| connections[at]["error"].as_str().unwrap();
    assert!(why(1).ends_with("did not answer within 2s"), "{found}");
    assert_eq!(why(3), "at its addresses is now 'n2'");
}

#[tokio::test]
async fn this_cluster_says_who_it_is() {
    let leader = serve(view(1), accept).await;
    let ask = async |operation: &str| {
        let body = json!({"operation": operation}).to_string();
        let answer = leader.send("POST /", &[], &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    assert_eq!(
        ask("cluster_status").await,
        json!({"node_name": "n1", "is_enabled": true, "connections": []})
    );
    let network = ask("cluster_network").await;
    assert_eq!(
        network["nodes"],
        json!([{"name": "n1", "response_time": 0, "status": "open", "connected_nodes": [],
            "routes": [{"host": "127.0.0.1", "port": 1}]}])
    );
    let info = ask("node_info").await;
    // The leader first, and nobody who holds no data.
    assert_eq!(
        info["addresses"],
        json!(["http://127.0.0.1:8001", "http://127.0.0.1:8002", "http://127.0.0.1:8003"])
    );
    assert_eq!(ask("get_configuration").await["clustering"]["nodeName"], "n1");
}
