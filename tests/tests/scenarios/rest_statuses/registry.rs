//! The routes of the registry, in the same states of the same nodes. Refusals there are in the words of its clients.

use super::Seen;
use pgquorum_tests::{Login, request, request_as};
use serde_json::{Value, json};

const SERVER: &str = r#"{"type": "shop", "serverId": "s1", "publicBaseUrl": "http://10.0.0.5", "clusterBaseUrl": "http://10.0.0.5"}"#;
const WHOLE: &str = r#"{"type": "shop", "id": "none", "servers": []}"#;
const ONE: &str = "/itResources/{id}";
const SERVERS: &str = "/itResources/{id}/servers/{server}";

fn want(seen: &mut Seen, status: u16, port: u16, method: &str, path: &str, asked: &str, body: &str) -> Value {
    let body = (!body.is_empty()).then_some(body);
    note(seen, status, request(port, method, asked, body).expect("an answer"), method, path, asked)
}

fn note(seen: &mut Seen, status: u16, answer: (u16, Value), method: &str, path: &str, asked: &str) -> Value {
    let (got, answer) = answer;
    assert_eq!(got, status, "{method} {asked}: {answer}");
    if got >= 400 {
        assert_eq!(answer["statusCode"], got, "{method} {asked}: {answer}");
        assert!(answer["title"].is_string() && answer["message"].is_string(), "{method} {asked}: {answer}");
    }
    seen.answers.insert((method.to_owned(), path.to_owned(), got));
    answer
}

pub(super) fn want_reads(seen: &mut Seen, status: u16, port: u16) {
    want(seen, status, port, "GET", "/itResources", "/itResources", "");
    want(seen, status, port, "GET", ONE, "/itResources/none", "");
    want(seen, status, port, "POST", "/cluster/request", "/cluster/request", r#"{"path": "/map"}"#);
}

pub(super) fn want_changes(seen: &mut Seen, status: u16, port: u16) {
    want(seen, status, port, "POST", "/itResources", "/itResources", SERVER);
    want(seen, status, port, "DELETE", SERVERS, "/itResources/none/servers/s1", "");
}

/// Every request once as it should be, at a node that does not lead.
pub(super) fn healthy(seen: &mut Seen) {
    let (_, follower, _) = seen.roles();
    let port = seen.port(follower);
    let registered = want(seen, 200, port, "POST", "/itResources", "/itResources", SERVER);
    let id = registered["itResource"]["id"].as_str().expect("an id").to_owned();
    let all = want(seen, 200, port, "GET", "/itResources", "/itResources", "");
    let own = all["data"][0]["id"].as_str().expect("an id").to_owned();
    want(seen, 200, port, "GET", ONE, &format!("/itResources/{own}"), "");
    let removed = want(seen, 200, port, "DELETE", SERVERS, &format!("/itResources/{id}/servers/s1"), "");
    assert_eq!(removed, json!({"data": "s1"}));
    want(seen, 200, port, "GET", "/cluster/status", "/cluster/status", "");
    want(seen, 200, port, "POST", "/cluster/request", "/cluster/request", r#"{"path": "/map"}"#);
}

pub(super) fn wrong(seen: &mut Seen) {
    let port = seen.port(seen.cluster.leader());
    want(seen, 400, port, "POST", "/itResources", "/itResources", "{}");
    want(seen, 404, port, "POST", "/itResources", "/itResources", WHOLE);
    want(seen, 400, port, "GET", "/itResources", "/itResources?x=1", "");
    want(seen, 400, port, "GET", ONE, "/itResources/%ff", "");
    want(seen, 404, port, "GET", ONE, "/itResources/none", "");
    want(seen, 400, port, "DELETE", SERVERS, "/itResources/none/servers/%ff", "");
    want(seen, 404, port, "DELETE", SERVERS, "/itResources/none/servers/s1", "");
    want(seen, 400, port, "GET", "/cluster/status", "/cluster/status?x=1", "");
    want(seen, 400, port, "POST", "/cluster/request", "/cluster/request", r#"{"path": "//map"}"#);
    tokens(seen, port);
}

fn tokens(seen: &mut Seen, port: u16) {
    let root = Login::basic("root", "correct horse");
    let as_root = |method: &str, path: &str, body: &str| {
        let (status, answer) = request_as(&root, port, method, path, Some(body)).expect("an answer");
        assert_eq!(status, 200, "{method} {path}: {answer}");
    };
    for user in ["root", "shop", "bob"] {
        let role = match user {
            "root" => "admin",
            "shop" => "cluster",
            _ => "reader",
        };
        as_root(
            "POST",
            "/users",
            &format!(r#"{{"name": "{user}", "roles": ["{role}"], "password": "correct horse"}}"#),
        );
    }
    let ask = |user: &str, password: &str| {
        json!({"grant_type": "client_credentials", "client_id": user, "client_secret": password}).to_string()
    };
    let path = "/cluster/token";
    want(seen, 200, port, "POST", path, path, &ask("shop", "correct horse"));
    want(seen, 401, port, "POST", path, path, &ask("shop", "another horse"));
    want(seen, 403, port, "POST", path, path, &ask("bob", "correct horse"));
    want(seen, 400, port, "POST", path, path, "{}");
    for user in ["shop", "bob"] {
        as_root("DELETE", &format!("/users/{user}"), "");
    }
    as_root("DELETE", "/users/root?last=true", "");
}

pub(super) fn stalled(seen: &mut Seen, port: u16) {
    want_reads(seen, 503, port);
    want_changes(seen, 503, port);
    want(seen, 503, port, "POST", "/cluster/token", "/cluster/token", "{}");
}
