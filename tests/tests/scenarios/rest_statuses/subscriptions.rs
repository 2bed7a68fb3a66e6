//! The routes of subscriptions, in the same states of the same nodes.

use super::Seen;
use pgquorum_tests::{PATIENCE, await_until, request};

/// What every node answers from its data.
const READS: [&str; 3] = ["/subscriptions", "/subscriptions/{name}", "/subscriptions/{name}/tables"];

/// What the leader alone does: method, path, body. Whoever is to be followed does not answer.
const CHANGES: [(&str, &str, &str); 4] = [
    ("POST", "/subscriptions", r#"{"name": "mirror", "remote": ["http://127.0.0.1:1"], "channel": "shop"}"#),
    ("PATCH", "/subscriptions/{name}", r#"{"jobs": 3}"#),
    ("POST", "/subscriptions/{name}/tables/{table}/resume", r#"{"copy": true}"#),
    ("DELETE", "/subscriptions/{name}", ""),
];

fn want(seen: &mut Seen, status: u16, port: u16, (method, path): (&str, &str), query: &str, body: &str) {
    let asked = path.replace("{name}", "mirror").replace("{table}", "public.mine");
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
    for (method, path, body) in CHANGES {
        want(seen, 200, at_leader, (method, path), "", body);
        if path == "/subscriptions" {
            want(seen, 409, at_leader, (method, path), "", body);
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
