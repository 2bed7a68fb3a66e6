//! The routes of channels, in the same states of the same nodes.

use super::{Seen, subscriptions};
use pgquorum_tests::{LineStream, PATIENCE, await_until, request, request_raw};

const CHANNEL: &str = "/channels/{channel}";

/// What every node answers from its data.
const READS: [&str; 7] = ["", "/tables", "/followers", "/schemas", "/changes", "/stream", "(all)"];

/// What the leader alone does: method, what follows the channel, body.
const CHANGES: [(&str, &str, &str); 14] = [
    ("POST", "(all)", r#"{"name": "shop"}"#),
    ("POST", "/tables", r#"{"table": "orders"}"#),
    ("POST", "/followers", r#"{"name": "cache", "after": "start"}"#),
    ("PUT", "/followers/{follower}", r#"{"position": "start"}"#),
    ("GET", "/dump", ""),
    ("GET", "/sequences", ""),
    ("POST", "/purge", r#"{"keep": 1}"#),
    ("POST", "/prune", ""),
    ("POST", "/flush", ""),
    ("POST", "/imports", r#"{"kind": "GEO"}"#),
    ("POST", "/cut", ""),
    ("DELETE", "/followers/{follower}", ""),
    ("DELETE", "/tables/{table}", ""),
    ("DELETE", "", ""),
];

/// The same of a copy, whose name the answer gives that began it.
const COPIES: [(&str, &str); 4] = [
    ("POST", "/copies"),
    ("GET", "/copies/{copy}/{table}"),
    ("PUT", "/copies/{copy}"),
    ("DELETE", "/copies/{copy}"),
];

fn path(rest: &str) -> String {
    if rest == "(all)" { "/channels".to_owned() } else { format!("{CHANNEL}{rest}") }
}

/// Asks for it of channel `shop`.
fn want(seen: &mut Seen, status: u16, port: u16, method: &str, rest: &str, query: &str, body: &str) {
    let path = path(rest);
    let asked = path.replace("{channel}", "shop").replace("{table}", "orders").replace("{follower}", "cache");
    let asked = asked.replace("{copy}", "0a1b");
    seen.want_at(status, port, method, &path, &format!("{asked}{query}"), body);
}

pub(super) fn want_reads(seen: &mut Seen, status: u16, port: u16) {
    for rest in READS {
        want(seen, status, port, "GET", rest, "", "");
    }
    subscriptions::want_reads(seen, status, port);
}

pub(super) fn want_changes(seen: &mut Seen, status: u16, port: u16) {
    for (method, rest, body) in CHANGES {
        want(seen, status, port, method, rest, "", body);
    }
    for (method, rest) in COPIES {
        want(seen, status, port, method, rest, "", "");
    }
    subscriptions::want_changes(seen, status, port);
}

fn copy(seen: &mut Seen, port: u16) {
    let (status, begun) = request(port, "POST", "/channels/shop/copies", None).expect("an answer");
    assert_eq!(status, 201, "{begun}");
    seen.answers.insert(("POST".to_owned(), path("/copies"), 201));
    let id = begun["id"].as_str().expect("its name").to_owned();
    for (method, rest) in &COPIES[1..] {
        let asked = path(rest).replace("{channel}", "shop").replace("{copy}", &id);
        for (status, table) in [(404, "public.other"), (200, "public.orders")] {
            if status == 200 || rest.contains("{table}") {
                seen.want_at(status, port, method, &path(rest), &asked.replace("{table}", table), "");
            }
        }
    }
}

/// Every request once as it should be, and the channel is there again at the end.
pub(super) fn healthy(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (at_leader, at_follower) = (seen.port(leader), seen.port(follower));
    seen.cluster.sql("CREATE TABLE orders (id int PRIMARY KEY)");
    want_changes(seen, 417, at_follower);
    for (method, rest, body) in CHANGES {
        want(seen, 200, at_leader, method, rest, "", body);
    }
    for (method, rest, body) in CHANGES.into_iter().take(2) {
        want(seen, 200, at_leader, method, rest, "", body);
    }
    seen.cluster.sql("INSERT INTO orders SELECT generate_series(1, 20)");
    for port in [at_leader, at_follower] {
        await_until(PATIENCE, "the changes can be read", || {
            match request(port, "GET", "/channels/shop/changes?wait=1s", None).expect("an answer") {
                (200, found) if found["changes"].as_array().is_some_and(|all| all.len() >= 20) => Ok(()),
                (_, answer) => Err(answer.to_string()),
            }
        });
        for rest in READS.into_iter().filter(|rest| *rest != "/stream") {
            want(seen, 200, port, "GET", rest, "", "");
        }
        LineStream::open(port, "/channels/shop/stream", "*/*").expect("a stream");
        seen.answers.insert(("GET".to_owned(), path("/stream"), 200));
    }
    copy(seen, at_leader);
    subscriptions::healthy(seen);
    // Another node takes this one for the leader.
    let hop = "GET /channels/shop/stream?changes=false HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
               x-pgquorum-forwarded-by: 9\r\n\r\n";
    assert_eq!(request_raw(at_follower, hop).expect("an answer").0, 417);
    seen.answers.insert(("GET".to_owned(), path("/stream"), 417));
}

pub(super) fn wrong(seen: &mut Seen) {
    let port = seen.port(seen.cluster.leader());
    for rest in READS {
        want(seen, 400, port, "GET", rest, "?unknown=1", "");
        want(seen, 404, port, "GET", rest, "?database=none", "");
    }
    for (method, rest, body) in CHANGES {
        want(seen, 400, port, method, rest, "?unknown=1", body);
        want(seen, 404, port, method, rest, "?database=none", body);
    }
    want(seen, 404, port, "POST", "/copies", "?database=none", "");
    for (method, rest) in COPIES {
        want(seen, 400, port, method, rest, "?unknown=1", "");
        // There cannot be a channel of that name, and there is no copy of this one.
        let asked = path(rest)
            .replace("{channel}", "%20")
            .replace("{copy}", "0a1b")
            .replace("{table}", "public.orders");
        seen.want_at(404, port, method, &path(rest), &asked, "");
        if rest.contains("{copy}") {
            want(seen, 410, port, method, rest, "", "");
        }
    }
    for (method, rest, body) in [
        ("POST", "(all)", r#"{"name": "shop"}"#),
        ("POST", "/tables", r#"{"table": "orders"}"#),
        ("POST", "/followers", r#"{"name": "cache", "after": "99999:1"}"#),
        ("PUT", "/followers/{follower}", r#"{"position": "99999:1"}"#),
        ("POST", "/purge", r#"{"before": "99999:1"}"#),
    ] {
        want(seen, 409, port, method, rest, "", body);
    }
    want(seen, 200, port, "POST", "/purge", "", r#"{"keep": 5}"#);
    for rest in ["/changes", "/stream"] {
        want(seen, 409, port, "GET", rest, "?after=99999:1", "");
        want(seen, 410, port, "GET", rest, "?after=1", "");
    }
}
