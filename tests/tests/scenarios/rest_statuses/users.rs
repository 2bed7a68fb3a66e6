//! The routes of users, in the same states of the same nodes. Where there are users everybody must log in, so they are
//! gone again at the end of each part.

use super::Seen;
use pgquorum_tests::{Login, request_as};
use serde_json::Value;

const ROOT: &str = r#"{"name": "root", "roles": ["admin"], "password": "correct horse"}"#;

/// What the leader alone does: method, path, body.
const CHANGES: [(&str, &str, &str); 5] = [
    ("POST", "/users", ROOT),
    ("PATCH", "/users/{user}", r#"{"roles": ["admin", "reader"]}"#),
    ("POST", "/users/{user}/tokens", ""),
    ("DELETE", "/users/{user}/tokens/{token}", ""),
    ("DELETE", "/users/{user}", ""),
];

/// Asks as root; who is not there need not log in.
fn want(seen: &mut Seen, status: u16, port: u16, method: &str, path: &str, asked: &str, body: &str) -> Value {
    let login = Login::basic("root", "correct horse");
    let body = (!body.is_empty()).then_some(body);
    let (got, answer) = request_as(&login, port, method, asked, body).expect("an answer");
    assert_eq!(got, status, "{method} {asked} at port {port}: {answer}");
    if got >= 400 {
        assert!(answer["code"].is_string() && answer["message"].is_string(), "{method} {asked}: {answer}");
    }
    seen.answers.insert((method.to_owned(), path.to_owned(), got));
    answer
}

fn example(path: &str) -> String {
    path.replace("{user}", "root").replace("{token}", "t1")
}

pub(super) fn want_reads(seen: &mut Seen, status: u16, port: u16) {
    for path in ["/users", "/users/{user}"] {
        want(seen, status, port, "GET", path, &example(path), "");
    }
}

pub(super) fn want_changes(seen: &mut Seen, status: u16, port: u16) {
    for (method, path, body) in CHANGES {
        want(seen, status, port, method, path, &example(path), body);
    }
}

/// Every request once as it should be.
pub(super) fn healthy(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (at_leader, at_follower) = (seen.port(leader), seen.port(follower));
    want(seen, 200, at_follower, "GET", "/users", "/users", "");
    want_changes(seen, 417, at_follower);
    want(seen, 200, at_leader, CHANGES[0].0, CHANGES[0].1, "/users", ROOT);
    want_reads(seen, 200, at_leader);
    want(seen, 200, at_leader, CHANGES[1].0, CHANGES[1].1, "/users/root", CHANGES[1].2);
    let new = want(seen, 200, at_leader, CHANGES[2].0, CHANGES[2].1, "/users/root/tokens", "");
    let token = format!("/users/root/tokens/{}", new["id"].as_str().expect("an id"));
    want(seen, 200, at_leader, CHANGES[3].0, CHANGES[3].1, &token, "");
    want(seen, 200, at_leader, CHANGES[4].0, CHANGES[4].1, "/users/root?last=true", "");
}

pub(super) fn wrong(seen: &mut Seen) {
    let port = seen.port(seen.cluster.leader());
    let reader = r#"{"name": "bob", "roles": ["reader"], "password": "correct horse"}"#;
    want(seen, 412, port, "POST", "/users", "/users", reader);
    want(seen, 200, port, "POST", "/users", "/users", ROOT);
    want(seen, 409, port, "POST", "/users", "/users", ROOT);
    want(seen, 400, port, "GET", "/users/{user}", "/users/%ff", "");
    want(seen, 404, port, "GET", "/users/{user}", "/users/eve", "");
    for (method, path, body) in CHANGES {
        let asked = example(path);
        want(seen, 400, port, method, path, &format!("{asked}?unknown=1"), body);
        if path != "/users" {
            want(seen, 404, port, method, path, &asked.replace("root", "eve"), body);
        }
    }
    want(seen, 412, port, "PATCH", "/users/{user}", "/users/root", r#"{"roles": ["reader"]}"#);
    want(seen, 412, port, "DELETE", "/users/{user}", "/users/root", "");
    want(seen, 200, port, "DELETE", "/users/{user}", "/users/root?last=true", "");
}
