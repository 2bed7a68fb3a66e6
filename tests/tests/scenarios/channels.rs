//! A channel made over REST, and read on a node that does not lead.

use pgquorum_tests::{Cluster, LineStream, PATIENCE, await_until, pgquorum};
use serde_json::{Value, json};

const NDJSON: &str = "application/x-ndjson";

/// A change on the leader that must succeed.
fn change(cluster: &Cluster, path: &str, body: Value) -> Value {
    let (status, answer) = cluster.post(cluster.leader(), path, Some(&body));
    assert_eq!(status, 200, "POST {path} {body}: {answer}");
    answer
}

#[test]
fn a_follower_serves_what_the_leader_writes() {
    let cluster = Cluster::start_steady(3);
    let follower = cluster.follower();
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    let (status, refused) = cluster.post(follower, "/channels", Some(&json!({"name": "shop"})));
    assert_eq!((status, &refused["leader"]["id"]), (417, &json!(cluster.leader())), "{refused}");
    change(&cluster, "/channels", json!({"name": "shop", "retain_age": "7 days"}));
    let state = change(&cluster, "/channels/shop/tables", json!({"table": "orders", "old_image": "full"}));
    assert_eq!(state["tables"][0]["table"], "orders", "{state}");

    cluster.sql("BEGIN; INSERT INTO orders VALUES (1, 'a'), (2, 'b'); UPDATE orders SET note = 'c' WHERE id = 1; COMMIT");
    cluster.sql("DELETE FROM orders WHERE id = 2");
    let mut after = "start".to_owned();
    let mut changes: Vec<Value> = Vec::new();
    await_until(PATIENCE, "four changes on the follower", || {
        let (status, found) =
            cluster.get(follower, &format!("/channels/shop/changes?wait=1s&tables=orders&after={after}"));
        if status != 200 {
            return Err(found.to_string());
        }
        after = found["position"].as_str().expect("a position").to_owned();
        changes
            .extend(found["changes"].as_array().into_iter().flatten().filter(|c| c["op"] != "ddl").cloned());
        if changes.len() < 4 { Err(format!("{changes:?}")) } else { Ok(()) }
    });
    let ops: Vec<&str> = changes.iter().filter_map(|change| change["op"].as_str()).collect();
    assert_eq!(ops, ["insert", "insert", "update", "delete"]);
    assert_eq!(changes[2]["old"], json!({"id": 1, "note": "a"}));
    assert_eq!(changes[3]["key"], json!({"id": 2}));
    assert_eq!(changes[0]["transaction"], changes[2]["transaction"]);

    // The same as a stream, and then what comes.
    let port = cluster.node(follower).api_port();
    let mut stream =
        LineStream::open(port, &format!("/channels/shop/stream?after={after}"), NDJSON).expect("a stream");
    cluster.sql("INSERT INTO orders VALUES (3, 'd')");
    let lines: Vec<Value> = (0..3).map(|_| stream.next_change()).collect();
    assert_eq!(
        lines.iter().map(|line| line["type"].clone()).collect::<Vec<_>>(),
        ["begin", "change", "commit"]
    );
    assert_eq!(lines[1]["new"], json!({"id": 3, "note": "d"}));

    // A copy and what follows it are the whole table.
    let port = cluster.node(cluster.leader()).api_port();
    let mut copy = LineStream::open(port, "/channels/shop/dump?table=orders", NDJSON).expect("a copy");
    let first = copy.next_change();
    cluster.sql("INSERT INTO orders VALUES (4, 'e')");
    let mut rows = Vec::new();
    let last = loop {
        let line = copy.next_change();
        match line["type"].as_str() {
            Some("row") => rows.push(line["new"]["id"].clone()),
            Some("end" | "error") => break line,
            _ => {}
        }
    };
    assert_eq!((&last["type"], &last["position"]), (&json!("end"), &first["position"]), "{last}");
    assert_eq!(rows, [json!(1), json!(3)]);
    let position = first["position"].as_str().expect("a position");
    let mut stream =
        LineStream::open(port, &format!("/channels/shop/stream?after={position}"), NDJSON).expect("a stream");
    stream.next_change();
    assert_eq!(stream.next_change()["new"]["id"], 4);
}

#[test]
fn the_command_line_does_all_of_it() {
    let cluster = Cluster::start_steady(3);
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY, note text)");
    let follower = cluster.follower();
    let url = cluster.node(follower).api;
    let run = |args: &[&str]| pgquorum(args.iter().copied().chain(["--url", &url]));
    // What the leader did is seen on a follower a moment later.
    let seen = || cluster.await_replayed(follower);
    run(&["channel", "create", "shop", "--old-image", "key", "--cap-bytes", "1000000000"]).expect("create");
    let tracked = run(&["channel", "track", "shop", "orders", "--columns", "id,note", "--where", "id > 0"])
        .expect("track");
    assert_eq!(tracked["tables"][0]["where"], "id > 0", "{tracked}");
    seen();
    let list = run(&["channel", "list"]).expect("list");
    assert_eq!(list[0]["channel"], "shop");
    cluster.sql("INSERT INTO orders VALUES (-1, 'not this one'), (1, 'a')");
    let followed = run(&["follow", "shop", "--from", "start", "--tables", "orders", "--count", "2"]);
    assert_eq!(followed.code, 0, "{}", followed.said);
    run(&["channel", "purge", "shop", "--keep", "1"]).expect("purge");
    let before = run(&["channel", "list", "shop"]).expect("list")["database_version"].clone();
    let pruned = run(&["channel", "prune", "shop"]).expect("prune");
    assert_eq!(pruned["database_version"].as_i64(), before.as_i64().map(|version| version + 1), "{pruned}");
    run(&["channel", "untrack", "shop", "orders"]).expect("untrack");
    run(&["channel", "drop", "shop"]).expect("drop");
    seen();
    assert_eq!(run(&["channel", "list"]).expect("list"), json!([]));
    assert_eq!(run(&["channel", "drop", "shop"]).code, 4);
    assert_eq!(run(&["follow", "shop"]).code, 4);
}

#[test]
fn followers_register_move_and_go() {
    let cluster = Cluster::start_steady(1);
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY)");
    change(&cluster, "/channels", json!({"name": "shop"}));
    change(&cluster, "/channels/shop/tables", json!({"table": "orders"}));
    cluster.sql("INSERT INTO orders SELECT generate_series(1, 10)");
    let follower =
        change(&cluster, "/channels/shop/followers", json!({"name": "cache", "after": "start", "ttl": "1h"}));
    assert_eq!(follower["name"], "cache", "{follower}");
    let (_, found) = cluster.get(1, "/channels/shop/changes?after=start&wait=5s");
    let position = found["position"].clone();
    let (status, moved) =
        cluster.send(1, "PUT", "/channels/shop/followers/cache", Some(&json!({"position": position})));
    assert_eq!(status, 200, "{moved}");
    assert!(position.as_str().expect("a position").ends_with(&format!(":{}", moved["tick"])), "{moved}");
    let (_, state) = cluster.get(1, "/channels/shop");
    assert_eq!(state["followers"][0]["name"], "cache", "{state}");
    assert_eq!(cluster.send(1, "DELETE", "/channels/shop/followers/cache", None).0, 200);
    assert_eq!(cluster.send(1, "DELETE", "/channels/shop/followers/cache", None).0, 404);
}
