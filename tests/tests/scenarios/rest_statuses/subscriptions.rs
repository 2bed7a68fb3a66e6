//! The routes of subscriptions and publications, in the same states of the same nodes.

use super::Seen;
use pgquorum_tests::{Cluster, PATIENCE, await_until, request};
use serde_json::json;

/// What every node answers from its data.
const READS: [&str; 7] = [
    "/publications",
    "/publications/{name}",
    "/subscriptions",
    "/subscriptions/{name}",
    "/subscriptions/{name}/tables",
    "/subscriptions/{name}/conflicts",
    "/subscriptions/{name}/rejected",
];

/// What the leader alone does: method, path, body. Whoever is to be followed does not answer.
const CHANGES: [(&str, &str, &str); 11] = [
    ("POST", "/publications", r#"{"name": "mirror", "remote": ["http://127.0.0.1:1"], "channel": "shop"}"#),
    ("POST", "/subscriptions", r#"{"name": "mirror", "remote": ["http://127.0.0.1:1"], "channel": "shop"}"#),
    ("PATCH", "/subscriptions/{name}", r#"{"jobs": 3}"#),
    ("POST", "/subscriptions/{name}/tables/{table}/resume", r#"{"copy": true}"#),
    ("POST", "/subscriptions/{name}/sequences", r#"{"from": "rows"}"#),
    ("PATCH", "/subscriptions/{name}/tables/{table}", r#"{"policy": "skip"}"#),
    ("POST", "/subscriptions/{name}/rejected/{change}/retry", ""),
    ("DELETE", "/subscriptions/{name}/rejected/{change}", ""),
    ("DELETE", "/subscriptions/{name}", ""),
    ("PATCH", "/publications/{name}", r#"{"own_login": "you"}"#),
    ("DELETE", "/publications/{name}", ""),
];

fn want(seen: &mut Seen, status: u16, port: u16, (method, path): (&str, &str), query: &str, body: &str) {
    let asked = path.replace("{name}", "mirror").replace("{table}", "public.mine").replace("{change}", "7");
    seen.want_at(status, port, method, path, &format!("{asked}{query}"), body);
}

pub(super) fn want_reads(seen: &mut Seen, status: u16, port: u16) {
    for path in READS {
        want(seen, status, port, ("GET", path), "", "");
    }
}

pub(super) fn want_changes(seen: &mut Seen, status: u16, port: u16) {
    for (method, path, body) in CHANGES {
        want(seen, status, port, (method, path), "", body);
    }
}

/// Every request once as it should be, and once about what there is not.
pub(super) fn healthy(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (at_leader, at_follower) = (seen.port(leader), seen.port(follower));
    left_out(seen, at_leader);
    for (method, path, body) in CHANGES.into_iter().filter(|(_, path, _)| !path.contains("{change}")) {
        want(seen, 200, at_leader, (method, path), "", body);
        if !path.contains('{') {
            want(seen, 409, at_leader, (method, path), "", body);
        }
        if path == "/subscriptions" {
            seen.cluster.sql(
                "INSERT INTO quorum.subscription_table (subscription, schema_name, table_name, state) \
                 SELECT id, 'public', 'mine', 'stopped' FROM quorum.subscription",
            );
            await_until(PATIENCE, "the subscription on another node", || {
                match request(at_follower, "GET", "/subscriptions/mirror", None).expect("an answer") {
                    (200, _) => Ok(()),
                    (_, answer) => Err(answer.to_string()),
                }
            });
            for port in [at_leader, at_follower] {
                want_reads(seen, 200, port);
            }
        }
    }
    for path in READS {
        want(seen, 400, at_leader, ("GET", path), "?unknown=1", "");
        want(seen, 404, at_leader, ("GET", path), "?database=none", "");
    }
    for (method, path, body) in CHANGES {
        want(seen, 400, at_leader, (method, path), "?unknown=1", body);
        want(seen, 404, at_leader, (method, path), "?database=none", body);
    }
}

/// What is done with changes that were left out: there must be some, so another cluster is followed.
fn left_out(seen: &mut Seen, at_leader: u16) {
    let source = Cluster::start_steady(1);
    source.sql("CREATE TABLE strict (id int PRIMARY KEY)");
    for (path, body) in
        [("/channels", json!({"name": "shop"})), ("/channels/shop/tables", json!({"table": "strict"}))]
    {
        assert_eq!(source.post(1, path, Some(&body)).0, 200, "{path}");
    }
    seen.cluster.sql("CREATE TABLE strict (id int PRIMARY KEY); INSERT INTO strict VALUES (1), (2)");
    let remote = format!("http://127.0.0.1:{}", source.node(1).api_port());
    let body =
        json!({"name": "strict", "remote": [remote], "channel": "shop", "copy": "none", "policy": "skip"});
    let made = request(at_leader, "POST", "/subscriptions", Some(&body.to_string())).expect("an answer");
    assert_eq!(made.0, 200, "{}", made.1);
    await_until(PATIENCE, "it follows", || {
        match request(at_leader, "GET", "/subscriptions/strict", None).map_err(|error| error.to_string())? {
            (200, state) if state["state"] == "following" => Ok(()),
            (_, state) => Err(state.to_string()),
        }
    });
    source.sql("INSERT INTO strict VALUES (1), (2)");
    let ids = await_until(PATIENCE, "changes are left out", || {
        let (_, all) = request(at_leader, "GET", "/subscriptions/strict/rejected", None)
            .map_err(|error| error.to_string())?;
        let ids: Vec<i64> =
            all.as_array().into_iter().flatten().filter_map(|one| one["id"].as_i64()).collect();
        if ids.len() == 2 { Ok(ids) } else { Err(all.to_string()) }
    });
    for (method, rest, id) in [("POST", "/retry", ids[0]), ("DELETE", "", ids[1])] {
        let path = format!("/subscriptions/{{name}}/rejected/{{change}}{rest}");
        let asked = format!("/subscriptions/strict/rejected/{id}{rest}");
        seen.want_at(200, at_leader, method, &path, &asked, "");
    }
    let ended = request(at_leader, "DELETE", "/subscriptions/strict", None).expect("an answer");
    assert_eq!(ended.0, 200, "{}", ended.1);
}
