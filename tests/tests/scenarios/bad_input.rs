//! What is wrong is refused with a stable code and a sentence, and changes nothing.

use pgquorum_tests::{Cluster, request};
use serde_json::Value;

struct Case {
    method: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    status: u16,
    code: &'static str,
}

const fn case(
    method: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    status: u16,
    code: &'static str,
) -> Case {
    Case { method, path, body, status, code }
}

const CASES: &[Case] = &[
    case("POST", "/config", Some("{"), 400, "malformed_json"),
    case("POST", "/config", Some("[]"), 400, "not_an_object"),
    case("POST", "/config", Some(r#"{"node-timeot": "1s"}"#), 400, "unknown_setting"),
    case("POST", "/config", Some(r#"{"node-timeout": "soon"}"#), 400, "bad_setting"),
    case("POST", "/config", Some(r#"{"node-timeout": "1h"}"#), 400, "invalid_settings"),
    case("POST", "/config", Some(r#"{"heartbeat-interval": "30m"}"#), 400, "invalid_settings"),
    case("POST", "/leader", None, 400, "missing_parameter"),
    case("POST", "/leader?node=99", None, 412, "unknown_node"),
    case("POST", "/leader?node=two", None, 400, "bad_parameter"),
    case("POST", "/leader?node=1&nodes=1", None, 400, "unknown_parameter"),
    case("POST", "/node?ip=nowhere&role=listener", None, 400, "bad_parameter"),
    case("POST", "/node?ip=127.0.0.1&role=king", None, 400, "bad_parameter"),
    case("POST", "/node?role=listener", None, 400, "missing_parameter"),
    case("POST", "/node?ip=127.0.0.1&role=listener&db-port=0", None, 400, "bad_parameter"),
    case("POST", "/node?ip=127.0.0.1&role=listener&api-port=70000", None, 400, "bad_parameter"),
    case("PATCH", "/node/99?db-port=1&api-port=2", None, 410, "unknown_node"),
    case("PATCH", "/node/1", None, 400, "missing_parameter"),
    case("PATCH", "/node/1?db-port=1&api-port=2", None, 412, "already_a_node"),
    case("PATCH", "/node/x?db-port=1&api-port=2", None, 400, "bad_parameter"),
    case("DELETE", "/node/99", None, 410, "unknown_node"),
    case("DELETE", "/node/1", None, 412, "last_node"),
    case("POST", "/node-down/99", None, 410, "unknown_node"),
    case("POST", "/node-down/1", None, 412, "is_leader"),
    case("PATCH", "/db-config", Some(r#"{"work_mem": []}"#), 400, "bad_parameter_value"),
    case("PATCH", "/db-config", Some(r#"{"wal_keep_size": "1GB"}"#), 400, "reserved_parameter"),
    case("PATCH", "/db-config", Some(r#"{"recovery_target_xid": null}"#), 400, "reserved_parameter"),
    case("GET", "/no-such-route", None, 404, "no_such_route"),
    case("PUT", "/config", Some("{}"), 405, "method_not_allowed"),
    case("GET", "/node/99", None, 410, "unknown_node"),
];

#[test]
fn every_refusal_has_a_code_and_changes_nothing() {
    let cluster = Cluster::start_steady(1);
    let before = cluster.get(1, "/info").1;
    let port = cluster.node(1).api_port();
    for case in CASES {
        let (status, answer) = request(port, case.method, case.path, case.body).expect("an answer");
        let asked = format!("{} {} {:?}", case.method, case.path, case.body);
        assert_eq!(status, case.status, "{asked}: {answer}");
        assert_eq!(answer["code"], case.code, "{asked}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{asked}: {answer}");
    }
    let after = cluster.get(1, "/info").1;
    for unchanged in ["config", "nodes", "durability", "appointment"] {
        assert_eq!(before[unchanged], after[unchanged], "{unchanged}");
    }
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let cluster = Cluster::start_steady(1);
    let body = Value::String("x".repeat(8 * 1024 * 1024)).to_string();
    // The server may close the connection while the body is still on its way.
    if let Ok((status, answer)) = request(cluster.node(1).api_port(), "POST", "/config", Some(&body)) {
        assert_eq!(status, 413, "{answer}");
    }
    assert_eq!(cluster.get(1, "/health").0, 200);
}

#[test]
fn writes_on_a_follower_name_the_leader() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.node(cluster.leader());
    let (status, answer) =
        cluster.post(cluster.follower(), "/config", Some(&serde_json::json!({"node-timeout": "1s"})));
    assert_eq!(status, 417, "{answer}");
    assert_eq!(answer["leader"]["id"], serde_json::json!(leader.id));
    assert!(leader.api.ends_with(answer["leader"]["api"].as_str().unwrap_or("nothing")), "{answer}");
}
