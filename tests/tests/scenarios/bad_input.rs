//! What is wrong is refused with a stable code and a sentence, and changes nothing.

use pgquorum_tests::{Cluster, request};
use serde_json::Value;

struct Case {
    method: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    status: &'static [u16],
}

const fn case(
    method: &'static str,
    path: &'static str,
    body: Option<&'static str>,
    status: &'static [u16],
) -> Case {
    Case { method, path, body, status }
}

const CASES: [Case; 24] = [
    case("POST", "/config", Some("{"), &[400]),
    case("POST", "/config", Some("[]"), &[400]),
    case("POST", "/config", Some(r#"{"node-timeot": "1s"}"#), &[400]),
    case("POST", "/config", Some(r#"{"node-timeout": "soon"}"#), &[400]),
    case("POST", "/config", Some(r#"{"node-timeout": "1h"}"#), &[400]),
    case("POST", "/config", Some(r#"{"heartbeat-interval": "900ms"}"#), &[400]),
    case("POST", "/leader", None, &[400]),
    case("POST", "/leader?node=99", None, &[412]),
    case("POST", "/leader?node=two", None, &[400]),
    case("POST", "/node?ip=nowhere&role=listener", None, &[400]),
    case("POST", "/node?ip=127.0.0.1&role=king", None, &[400]),
    case("POST", "/node?role=listener", None, &[400]),
    case("POST", "/node?ip=127.0.0.1&role=listener&db-port=0", None, &[400]),
    case("POST", "/node?ip=127.0.0.1&role=listener&api-port=70000", None, &[400]),
    case("PATCH", "/node/99?db-port=1&api-port=2", None, &[410]),
    case("PATCH", "/node/1", None, &[400]),
    case("PATCH", "/node/x?db-port=1&api-port=2", None, &[400]),
    case("DELETE", "/node/99", None, &[410]),
    case("DELETE", "/node/1", None, &[412]),
    case("POST", "/node-down/99", None, &[410]),
    case("PATCH", "/db-config", Some(r#"{"work_mem": []}"#), &[400]),
    case("GET", "/no-such-route", None, &[404]),
    case("PUT", "/config", Some("{}"), &[405]),
    case("GET", "/node/99", None, &[410]),
];

#[test]
fn every_refusal_has_a_code_and_changes_nothing() {
    let cluster = Cluster::start(1);
    let before = cluster.get(1, "/info").1;
    let port = cluster.node(1).api_port();
    for case in CASES {
        let (status, answer) = request(port, case.method, case.path, case.body).expect("an answer");
        let asked = format!("{} {} {:?}", case.method, case.path, case.body);
        assert!(case.status.contains(&status), "{asked}: {status} {answer}");
        let word = answer["code"].as_str().unwrap_or_default();
        assert!(
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{asked}: {answer}"
        );
        assert!(answer["message"].as_str().is_some_and(|m| !m.is_empty()), "{asked}: {answer}");
    }
    let after = cluster.get(1, "/info").1;
    for unchanged in ["config", "nodes", "durability", "appointment"] {
        assert_eq!(before[unchanged], after[unchanged], "{unchanged}");
    }
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let cluster = Cluster::start(1);
    let body = Value::String("x".repeat(8 * 1024 * 1024)).to_string();
    // The server may close the connection while the body is still on its way.
    if let Ok((status, answer)) = request(cluster.node(1).api_port(), "POST", "/config", Some(&body)) {
        assert_eq!(status, 413, "{answer}");
    }
    assert_eq!(cluster.get(1, "/health").0, 200);
}

#[test]
fn writes_on_a_follower_name_the_leader() {
    let cluster = Cluster::start(3);
    let leader = cluster.node(cluster.leader());
    let (status, answer) =
        cluster.post(cluster.follower(), "/config", Some(&serde_json::json!({"node-timeout": "1s"})));
    assert_eq!(status, 417, "{answer}");
    assert_eq!(answer["leader"]["id"], serde_json::json!(leader.id));
    assert!(leader.api.ends_with(answer["leader"]["api"].as_str().unwrap_or("nothing")), "{answer}");
}
