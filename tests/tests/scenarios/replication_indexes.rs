//! The replication interface: what log and inventory say of indexes, byte for byte, and by the same ids.

use pgquorum_tests::{Cluster, PATIENCE, get_with, request};
use serde_json::{Value, json};

fn ok(port: u16, method: &str, path: &str) -> Value {
    let (status, answer) = request(port, method, path, None).expect("an answer");
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

/// What a request for lines gives: at least two, which no reader of JSON takes for one value.
fn lines(port: u16, path: &str) -> Vec<String> {
    let answer = get_with(PATIENCE, port, path, &[]).unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = answer.body.as_str().unwrap_or_else(|| panic!("{path}: {answer:?}"));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn log_and_inventory_tell_of_the_same_indexes() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    cluster.sql(
        "CREATE TABLE users (id int PRIMARY KEY, name text, \"_key\" text, age int); CREATE INDEX ON users (name); \
         INSERT INTO users VALUES (1, 'a', 'b', 2)",
    );
    ok(port, "PUT", "/_api/replication/logger-start");
    cluster.sql("SELECT quorum.track('users', channel => '_logger')");
    let inventory = || ok(port, "GET", "/_api/replication/inventory")["collections"][0].clone();
    let name = inventory()["indexes"][0].clone();
    // Each in transactions of its own, as PostgreSQL demands it.
    cluster.sql("CREATE UNIQUE INDEX CONCURRENTLY later ON users (\"_key\", age)");
    cluster.sql("REINDEX TABLE CONCURRENTLY users");
    cluster.sql("CREATE INDEX ON users USING hash (age)");
    let users = inventory();
    let listed = users["indexes"].as_array().expect("a list").clone();
    let described = |id: &Value, kind: &str, unique: bool, fields: &[&str]| json!({"id": id, "type": kind, "unique": unique, "sparse": unique, "fields": fields});
    assert_eq!(
        listed,
        [
            described(&name["id"], "persistent", false, &["name"]),
            described(&listed[1]["id"], "persistent", true, &["%5Fkey", "age"]),
            described(&listed[2]["id"], "hash", false, &["age"]),
        ]
    );
    cluster.sql("DROP INDEX CONCURRENTLY later");
    cluster.sql("BEGIN; UPDATE users SET age = 3; ALTER TABLE users DROP COLUMN age; COMMIT");
    assert_eq!(inventory()["indexes"], json!([name]));
    ok(port, "PUT", "/_admin/wal/flush");

    let id = |at: usize| listed[at]["id"].as_str().expect("an id");
    let (cid, cuid) = (&users["parameters"]["cid"], &users["parameters"]["globallyUniqueId"]);
    let database = cluster.ask(1, "SELECT oid::text FROM pg_database WHERE datname = current_database()");
    // The objects of what came, with where they stand in each line.
    let made = |at: usize, kind: &str, unique: bool, fields: &str| {
        let id = id(at);
        let object = format!(
            r#"{{"id":"{id}","type":"{kind}","unique":{unique},"sparse":{unique},"fields":[{fields}]}}"#
        );
        (2100, format!(r#""index":{object}"#), format!(r#""data":{object}"#))
    };
    let gone =
        |at: usize| (2101, format!(r#""id":"{}""#, id(at)), format!(r#""data":{{"id":"{}"}}"#, id(at)));
    let expected = [
        made(0, "persistent", false, r#""name""#),
        made(1, "persistent", true, r#""%5Fkey","age""#),
        made(2, "hash", false, r#""age""#),
        gone(1),
        gone(2),
    ];
    let follow = lines(port, "/_api/replication/logger-follow?from=0&chunkSize=4000000");
    let tail = lines(port, "/_api/wal/tail?from=0&chunkSize=4000000");
    let types = |lines: &[String]| -> Vec<u64> {
        let parsed = lines.iter().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        parsed.map(|line| line["type"].as_u64().expect("a type")).collect()
    };
    // The index of a column goes before what is said of the table without it, and after what the transaction did until then.
    let all = [2000, 2100, 2100, 2100, 2101, 2200, 2300, 2201, 2101, 2003];
    assert_eq!((types(&follow), types(&tail)), (all.to_vec(), all.to_vec()), "{follow:?}");
    let of_indexes = all.iter().enumerate().filter(|(_, kind)| matches!(kind, 2100 | 2101));
    for ((at, _), (kind, logger, wal)) in of_indexes.zip(expected) {
        let line: Value = serde_json::from_str(&follow[at]).expect("a line of JSON");
        let head = format!(r#"{{"tick":{},"type":{kind},"tid":"0""#, line["tick"]);
        assert_eq!(
            follow[at],
            format!(r#"{head},"database":"{database}","cid":{cid},"cname":"users",{logger}}}"#)
        );
        assert_eq!(tail[at], format!(r#"{head},"db":"postgres","cuid":{cuid},"cname":"users",{wal}}}"#));
    }
}
