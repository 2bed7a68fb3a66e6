//! Servers register through any node, none is lost, leases outlive a failover; and one request goes to all nodes.

use pgquorum_tests::{Cluster, Login, PATIENCE, await_until, pgquorum, poll_until, request, request_as};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What servers are told. A lease lasts two and a half times as long.
const LEASE: Duration = Duration::from_secs(4);
const LASTS: Duration = Duration::from_secs(10);

/// Ends those who renew, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn server(name: &str) -> Value {
    json!({"type": "shop", "serverId": name, "location": "eu", "publicBaseUrl": "https://shop.example.org",
        "clusterBaseUrl": format!("http://{name}.example.org:8080")})
}

fn register(port: u16, server: &Value) -> Result<Value, String> {
    match request(port, "POST", "/itResources", Some(&server.to_string())).map_err(|e| e.to_string())? {
        (200, answer) => Ok(answer),
        (status, answer) => Err(format!("{status} {answer}")),
    }
}

fn names(resource: &Value) -> BTreeSet<String> {
    let servers = resource["servers"].as_array().into_iter().flatten();
    servers.filter_map(|server| server["serverId"].as_str()).map(str::to_owned).collect()
}

fn shops(port: u16) -> Result<Value, String> {
    match request(port, "GET", "/itResources?type=shop", None).map_err(|e| e.to_string())? {
        (200, answer) => Ok(answer["data"][0].clone()),
        (status, answer) => Err(format!("{status} {answer}")),
    }
}

fn await_shops(port: u16, expected: &BTreeSet<String>) -> Value {
    await_until(PATIENCE, &format!("{expected:?} at port {port}"), || {
        let shops = shops(port)?;
        if names(&shops) == *expected { Ok(shops) } else { Err(shops.to_string()) }
    })
}

fn refused(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, answer) = request(port, method, path, Some(body)).expect("an answer");
    assert!(answer["title"].is_string() && answer["message"].is_string(), "{method} {path}: {answer}");
    (status, answer["info"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn servers_register_anywhere_and_their_leases_outlive_a_failover() {
    let lease = format!("{}s", LEASE.as_secs());
    let cluster = Cluster::start_with(3, &[("registry-lease", &lease), ("node-timeout", "3s")]);
    let leader = cluster.leader();
    let ports: Vec<u16> = (1..=3).map(|id| cluster.node(id).api_port()).collect();
    let others: Vec<u16> = (1..=3).filter(|id| *id != leader).map(|id| ports[id as usize - 1]).collect();

    // Many at the same time, through all nodes: each finds itself, and all of them are there.
    let all: BTreeSet<String> = (0..12).map(|i| format!("s{i}")).collect();
    let registering = all.iter().enumerate().map(|(i, name)| {
        let (port, name) = (ports[i % 3], name.clone());
        std::thread::spawn(move || (register(port, &server(&name)).expect("registered"), name))
    });
    let threads: Vec<_> = registering.collect();
    let mut union = BTreeSet::new();
    for thread in threads {
        let (answer, name) = thread.join().expect("the thread");
        assert_eq!(answer["leaseTime"], json!(LEASE.as_millis() as u64));
        let seen = names(&answer["itResource"]);
        assert!(seen.contains(&name), "{name}: {answer}");
        union.extend(seen);
    }
    assert_eq!(union, all);
    for &port in &ports {
        await_shops(port, &all);
    }
    assert_eq!(
        pgquorum(["registry", "list", "--type", "shop", "--url", &cluster.node(leader).api])
            .expect("registry list")[0]["servers"]
            .as_array()
            .map(Vec::len),
        Some(12)
    );

    // Some go on renewing, through whichever node answers; the rest is never heard of again.
    let stop = AtomicBool::new(false);
    let kept: BTreeSet<String> = ["s1", "s2"].map(str::to_owned).into();
    std::thread::scope(|scope| {
        for name in &kept {
            let (stop, others) = (&stop, &others);
            scope.spawn(move || {
                let mut turn = 0;
                // Again and again, so that a leader that is missing for some seconds costs nothing.
                let _ = poll_until(PATIENCE * 3, || {
                    turn += 1;
                    let _ = register(others[turn % 2], &server(name));
                    if stop.load(Ordering::Relaxed) { Ok(()) } else { Err(String::new()) }
                });
            });
        }
        let stop = Stop(&stop);
        conditionally_removed(&cluster, others[0]);
        let rest: BTreeSet<String> = all.iter().filter(|name| *name != "s0").cloned().collect();
        // However long that took, none of their leases is over when the leader dies.
        for name in &rest {
            await_until(PATIENCE, "a renewal", || register(others[0], &server(name)));
        }
        let killed = Instant::now();
        cluster.kill(leader, None);
        let new = cluster.await_leader(Some(leader));
        let port = cluster.node(new).api_port();
        let there = await_until(PATIENCE, "the new leader answers", || shops(port));
        assert_eq!(names(&there), rest, "a new leader gives all a whole lease");
        await_shops(port, &kept);
        assert!(killed.elapsed() > LASTS, "they were gone after {:?}", killed.elapsed());
        await_shops(others[0], &kept);
        await_shops(others[1], &kept);
        drop(stop);
        refusals(port);
        all_are_asked(&cluster, leader, new, port);
    });
}

fn conditionally_removed(cluster: &Cluster, port: u16) {
    let all = shops(port).expect("an answer");
    let id = all["id"].as_str().expect("an id");
    let of = |resource: &Value, name: &str| {
        let mut servers = resource["servers"].as_array().into_iter().flatten();
        servers.find(|server| server["serverId"] == name).cloned().expect("the server")
    };
    let old = of(&all, "s0")["updatedAt"].as_str().expect("a time").to_owned();
    // It is somewhere else now, and whoever found it dead at its old address is told so.
    let mut moved = server("s0");
    moved["clusterBaseUrl"] = json!("http://elsewhere:1");
    let answer = register(port, &moved).expect("registered");
    let now = of(&answer["itResource"], "s0");
    let remove = |at: &str| {
        let path = format!("/itResources/{id}/servers/s0{at}");
        let (status, answer) = request(port, "DELETE", &path, None).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        answer
    };
    assert_eq!(remove(&format!("@{old}"))["server"], now);
    let updated = now["updatedAt"].as_str().expect("a time");
    assert_eq!(remove(&format!("@{}", updated.replace(':', "%3A"))), json!({"data": "s0"}));
    assert_eq!(remove(""), json!({"data": "s0"}), "it is out already");
    let leader = cluster.node(cluster.leader()).api_port();
    assert!(!names(&shops(leader).expect("an answer")).contains("s0"));
    // A server that knows of it puts it back, and out it goes again.
    let whole = json!({"id": id, "type": "shop", "servers": [now]}).to_string();
    let (status, answer) = request(port, "POST", "/itResources", Some(&whole)).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    assert!(names(&answer["data"]).contains("s0") && answer["server"]["serverId"].is_string(), "{answer}");
    remove("");
}

fn refusals(port: u16) {
    let own = server("s").to_string().replace("\"shop\"", "\"pgquorum\"");
    for (method, path, body, expected) in [
        ("POST", "/itResources", "{}", (400, "bad_server")),
        ("POST", "/itResources", "{", (400, "malformed_json")),
        ("POST", "/itResources", own.as_str(), (400, "own_type")),
        ("GET", "/itResources/none", "", (404, "no_such_resource")),
        ("DELETE", "/itResources/none/servers/x", "", (404, "no_such_resource")),
        ("POST", "/cluster/token", "{}", (400, "missing_field")),
        ("POST", "/cluster/request", r#"{"path": "http://127.0.0.1:1/map"}"#, (400, "bad_path")),
        ("POST", "/cluster/request", r#"{"path": "/cluster/request"}"#, (400, "bad_path")),
        ("POST", "/cluster/request", r#"{"path": "/node/../map"}"#, (400, "bad_path")),
        (
            "POST",
            "/cluster/request",
            r#"{"path": "/map", "headers": {"host": "x"}}"#,
            (400, "header_not_allowed"),
        ),
    ] {
        let (status, code) = refused(port, method, path, body);
        assert_eq!((status, code.as_str()), expected, "{method} {path} {body}");
    }
    let huge = format!("{{\"type\": \"{}\"}}", "x".repeat(1 << 20));
    assert_eq!(refused(port, "POST", "/itResources", &huge).0, 413);
}

/// `dead` does not run, `alive` leads; `port` is its.
fn all_are_asked(cluster: &Cluster, dead: u64, alive: u64, port: u16) {
    let root = Login::basic("root", "correct horse");
    let ask = |login: &Login, body: Value| {
        let text = body.to_string();
        let (status, answer) =
            request_as(login, port, "POST", "/cluster/request", Some(&text)).expect("an answer");
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    };
    let nodes = |part: &Value| -> Vec<u64> {
        part.as_array().into_iter().flatten().filter_map(|one| one["server"]["node"].as_u64()).collect()
    };
    let all = ask(&root, json!({"path": "/info"}));
    let alive_ones: Vec<u64> = (1..=3).filter(|id| *id != dead).collect();
    assert_eq!(nodes(&all["results"]), alive_ones, "{all}");
    assert_eq!(all["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(nodes(&all["failures"]), [dead]);
    assert_eq!(all["failures"][0]["error"]["info"]["code"], "unreachable", "{all}");
    let url = cluster.node(alive).api;
    let each = |args: &[&str]| pgquorum(["each", "--url", &url].iter().chain(args).copied());
    assert_eq!(each(&["--", "GET", "/map"]).code, 1, "one does not answer");
    let chosen = alive_ones.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let some = each(&["--node", &chosen, "--", "GET", "/leader"]).expect("each");
    assert!(
        some["results"].as_array().into_iter().flatten().all(|one| one["result"]["id"] == alive),
        "{some}"
    );
    assert_eq!(each(&["--", "GET", "//map"]).code, 1);

    // With the rights of whoever asks, and no more.
    for (user, role) in [("root", "admin"), ("bob", "reader"), ("shop", "cluster")] {
        let body = json!({"name": user, "roles": [role], "password": "correct horse"}).to_string();
        let (status, answer) = request_as(&root, port, "POST", "/users", Some(&body)).expect("an answer");
        assert_eq!(status, 200, "{answer}");
    }
    await_until(PATIENCE, "all nodes know the users", || {
        let answer = ask(&root, json!({"path": "/users/shop", "targets": alive_ones}));
        if nodes(&answer["results"]) == alive_ones { Ok(()) } else { Err(answer.to_string()) }
    });
    let bob = Login::basic("bob", "correct horse");
    let map = ask(&bob, json!({"path": "/map", "targets": alive_ones}));
    assert_eq!(nodes(&map["results"]), alive_ones, "{map}");
    let config = ask(&bob, json!({"method": "POST", "path": "/config", "body": {}, "targets": alive_ones}));
    let forbidden: Vec<&Value> =
        config["failures"].as_array().into_iter().flatten().map(|f| &f["error"]["statusCode"]).collect();
    assert_eq!(forbidden, [403, 403], "{config}");
    let text = server("s1").to_string();
    let posted =
        |login: &Login| request_as(login, port, "POST", "/itResources", Some(&text)).expect("an answer");
    assert_eq!(posted(&bob).0, 403);
    let wish =
        json!({"grant_type": "client_credentials", "client_id": "shop", "client_secret": "correct horse"});
    let (status, pair) = request(port, "POST", "/cluster/token", Some(&wish.to_string())).expect("an answer");
    assert_eq!(status, 200, "{pair}");
    // Made by one node, good at every other.
    let token = Login::bearer(pair["data"]["access_token"].as_str().expect("a token"));
    for id in alive_ones {
        let port = cluster.node(id).api_port();
        let (status, answer) =
            request_as(&token, port, "POST", "/itResources", Some(&text)).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        assert_eq!(request_as(&token, port, "GET", "/map", None).expect("an answer").0, 403);
        let status = request_as(&token, port, "GET", "/cluster/status?type=shop", None).expect("an answer").1;
        assert_eq!(status["REGISTRATION_STATUS"], "registered", "{status}");
    }
}
