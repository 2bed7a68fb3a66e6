//! What a cluster in good health answers, to right and to wrong questions.

use super::{CHANGES, Seen};
use pgquorum_tests::{PATIENCE, await_until, request, request_raw};
use serde_json::json;

pub(super) fn healthy(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (at_leader, at_follower) = (seen.port(leader), seen.port(follower));
    await_until(PATIENCE, "the follower knows that it acknowledges", || {
        match request(at_follower, "GET", "/quorum", None).map_err(|e| e.to_string())? {
            (200, _) => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for port in [at_leader, at_follower] {
        seen.want_reads(200, port);
        for path in ["/leader", "/events", "/rpc", "/metrics", "/openapi.yaml", "/dashboard"] {
            seen.want(200, port, "GET", path, "", "");
        }
        let known =
            "GET /sql/readonly?wait=1s HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-none-match: *\r\n\r\n";
        assert_eq!(request_raw(port, known).expect("an answer").0, 304);
        seen.answers.insert(("GET".to_owned(), "/sql/readonly".to_owned(), 304));
    }
    seen.want(200, at_leader, "GET", "/is-leader", "", "");
    seen.want(417, at_follower, "GET", "/is-leader", "", "");
    for (method, path, query, body) in CHANGES.into_iter().filter(|(_, path, ..)| *path != "/leader") {
        let answer = seen.want(417, at_follower, method, path, query, body);
        let named = (&answer["code"], &answer["leader"]["id"]);
        assert_eq!(named, (&json!("not_leader"), &json!(leader)), "{method} {path}: {answer}");
    }
    for path in ["/", "/primary", "/master", "/read-write", "/leader-check"] {
        seen.want(200, at_leader, "GET", path, "", "");
        seen.want(503, at_follower, "GET", path, "", "");
    }
    for path in ["/replica", "/synchronous", "/sync", "/quorum"] {
        seen.want(200, at_follower, "GET", path, "", "");
        seen.want(503, at_leader, "GET", path, "", "");
    }
    for path in ["/asynchronous", "/async"] {
        seen.want(503, at_follower, "GET", path, "", "");
    }
    for path in ["/read-only", "/health", "/liveness", "/readiness"] {
        seen.want(200, at_follower, "GET", path, "", "");
        seen.want(200, at_leader, "GET", path, "", "");
    }
    let weak = r#"{"quorum-replication": false, "replication-factor": 0}"#;
    seen.want(200, at_leader, "POST", "/config", "", weak);
    await_until(PATIENCE, "commits wait for nobody", || {
        match request(at_follower, "GET", "/async", None).expect("an answer") {
            (200, _) => Ok(()),
            (_, body) => Err(body.to_string()),
        }
    });
    for path in ["/asynchronous", "/async"] {
        seen.want(200, at_follower, "GET", path, "", "");
    }
    seen.want(200, at_leader, "POST", "/config", "", r#"{"quorum-replication": true}"#);
}

/// What is asked wrongly, and what is not there.
pub(super) fn wrong(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (port, at_follower) = (seen.port(leader), seen.port(follower));
    for (method, path, query, body) in [
        ("POST", "/config", "", "{"),
        ("PATCH", "/db-config", "", r#"{"work_mem": []}"#),
        ("POST", "/db-config", "", r#"{"work_mem": "much"}"#),
        ("POST", "/leader", "?node=two", ""),
        ("POST", "/node", "?ip=nowhere&role=listener", ""),
        ("PATCH", "/node/{node}", "?db-port=1", ""),
        ("DELETE", "/node/{node}", "?force=1", ""),
        ("POST", "/node-down/{node}", "?reason=%0a", ""),
        ("GET", "/events", "?after=x", ""),
        ("GET", "/rpc", "?limit=-1", ""),
        ("GET", "/sql/readonly", "?wait=5", ""),
    ] {
        seen.want(400, port, method, path, query, body);
    }
    seen.want_at(400, port, "GET", "/node/{node}", "/node/x", "");
    for path in [
        "/replica",
        "/read-only",
        "/synchronous",
        "/sync",
        "/quorum",
        "/asynchronous",
        "/async",
        "/readiness",
    ] {
        seen.want(400, at_follower, "GET", path, "?lag=far", "");
    }
    seen.want(404, port, "GET", "/sql/readonly", "?database=none", "");
    seen.want_at(410, port, "GET", "/node/{node}", "/node/99", "");
    seen.want_at(410, port, "PATCH", "/node/{node}", "/node/99?db-port=1&api-port=2", "");
    seen.want_at(410, port, "DELETE", "/node/{node}", "/node/99", "");
    seen.want_at(410, port, "POST", "/node-down/{node}", "/node-down/99", "");
    seen.want_at(412, port, "POST", "/leader", "/leader?node=99", "");
    seen.want_at(412, port, "POST", "/node-down/{node}", &format!("/node-down/{leader}"), "");
}

/// Each change once, and back again.
pub(super) fn done(seen: &mut Seen) {
    let (leader, follower, other) = seen.roles();
    let port = seen.port(leader);
    for (method, path, query, body) in &CHANGES[..3] {
        seen.want(200, port, method, path, query, body);
    }
    let added = seen.want(200, port, "POST", "/node", "?ip=127.0.0.1&role=listener&db-port=1&api-port=2", "");
    let id = &added["id"];
    seen.want_at(412, port, "PATCH", "/node/{node}", &format!("/node/{id}?db-port=1&api-port=2"), "");
    seen.want_at(200, port, "DELETE", "/node/{node}", &format!("/node/{id}"), "");
    seen.want_at(200, port, "POST", "/node-down/{node}", &format!("/node-down/{other}"), "");
    let node = seen.cluster.node(other);
    let back = format!("/node/{other}?db-port={}&api-port={}", node.db_port, node.api_port());
    seen.want_at(200, port, "PATCH", "/node/{node}", &back, "");
    // Asked of a follower, which passes it on.
    let at_follower = seen.port(follower);
    seen.want_at(200, at_follower, "POST", "/leader", &format!("/leader?node={follower}"), "");
    seen.cluster.await_replicas(2);
}
