//! The replication interface of several databases, and everything that can be asked of it wrongly, on a real server.

use pgquorum_tests::{Cluster, PATIENCE, get_with, request};
use serde_json::{Value, json};

fn send(port: u16, line: &str, body: &str) -> (u16, Value) {
    let (method, path) = line.split_once(' ').expect("method and path");
    request(port, method, path, (!body.is_empty()).then_some(body))
        .unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn ok(port: u16, line: &str, body: &str) -> Value {
    let (status, answer) = send(port, line, body);
    assert_eq!(status, 200, "{line}: {answer}");
    answer
}

#[test]
fn each_database_has_a_log_and_each_mistake_its_number() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    cluster.sql("CREATE TABLE here (id int PRIMARY KEY); CREATE TABLE unseen (id int PRIMARY KEY)");
    cluster.sql("CREATE DATABASE shop");
    cluster.sql("CREATE DATABASE bare");
    let mut shop = cluster.connect_to(1, "shop").expect("a session");
    shop.batch_execute("CREATE EXTENSION pgquorum; CREATE TABLE there (id int PRIMARY KEY)")
        .expect("a table");
    assert_eq!(
        send(port, "POST /_db/shop/_api/replication/batch", "{}").1["errorNum"],
        1412,
        "there is no log yet"
    );
    for prefix in ["", "/_db/shop"] {
        ok(port, &format!("PUT {prefix}/_api/replication/logger-start"), "");
    }
    cluster.sql("SELECT quorum.track('here', channel => '_logger'); INSERT INTO here VALUES (1)");
    shop.batch_execute("SELECT quorum.track('there', channel => '_logger'); INSERT INTO there VALUES (2)")
        .expect("rows");
    for (prefix, table, key) in
        [("", "here", "1"), ("/_db/_system", "here", "1"), ("/_db/shop", "there", "2")]
    {
        let collections = ok(port, &format!("GET {prefix}/_api/collection"), "");
        let names: Vec<&Value> =
            collections["result"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
        assert_eq!(names, [table], "{prefix}");
        ok(port, &format!("PUT {prefix}/_admin/wal/flush"), "");
        let batch = ok(port, &format!("POST {prefix}/_api/replication/batch"), r#"{"ttl": 30}"#);
        let id = batch["id"].as_str().expect("an id");
        let row =
            ok(port, &format!("GET {prefix}/_api/replication/dump?collection={table}&batchId={id}"), "");
        assert_eq!(row["data"]["_id"], format!("{table}/{key}"));
        let elsewhere = if prefix == "/_db/shop" { "" } else { "/_db/shop" };
        let wrong =
            send(port, &format!("GET {elsewhere}/_api/replication/dump?collection={table}&batchId={id}"), "");
        assert_eq!((wrong.0, &wrong.1["errorNum"]), (404, &json!(1600)), "{}", wrong.1);
        // A table that is not tracked, and a number that is no oid of one.
        for nothing in ["unseen", "99", "public.here"] {
            let path = format!("GET {prefix}/_api/replication/dump?collection={nothing}&batchId={id}");
            assert_eq!(send(port, &path, "").1["errorNum"], 1203, "{path}");
        }
        assert_eq!(send(port, &format!("DELETE {prefix}/_api/replication/batch/{id}"), "").0, 204);
        let path = format!("{prefix}/_api/wal/tail?from=0&chunkSize=99999999999999999999");
        let tail = get_with(PATIENCE, port, &path, &[]).expect("an answer");
        let text = tail.body.as_str().expect("lines");
        assert_eq!(text.lines().count(), 4, "the collection, and a transaction with a row: {text}");
        assert!(
            text.contains(&format!("\"db\":\"{}\"", if table == "here" { "postgres" } else { "shop" })),
            "{text}"
        );
    }
    for (line, body, status, number) in [
        ("GET /_db/nothing/_api/collection", "", 404, 1228),
        ("GET /_db/bare/_api/replication/logger-state", "", 404, 1228),
        ("POST /_db/nothing/_api/replication/batch", "{\"ttl\": 5}", 404, 1228),
        ("PUT /_db/bare/_api/replication/logger-start", "", 404, 1228),
        ("GET /_db/bare/_api/version", "", 404, 1228),
        ("PUT /_db/nothing/_api/replication/batch/1", "{\"ttl\": 5}", 404, 1228),
        ("GET /_db/nothing/_api/replication/dump?collection=here&batchId=1", "", 404, 1228),
        (
            "PUT /_db/nothing/_api/replication/make-follower",
            "{\"endpoint\": \"tcp://127.0.0.1:1\"}",
            404,
            1228,
        ),
        ("POST /_api/replication/batch", "{\"ttl\": ", 400, 600),
        ("POST /_api/replication/batch", "7", 400, 600),
        ("POST /_api/replication/batch", "{\"ttl\": -1}", 400, 400),
        ("POST /_api/replication/batch", "{\"ttl\": [1]}", 400, 400),
        ("PUT /_api/replication/batch/1", "{\"ttl\": 5}", 404, 1600),
        ("DELETE /_api/replication/batch/18446744073709551616", "", 404, 1600),
        ("GET /_api/replication/logger-follow?from=2&to=1", "", 400, 400),
        ("GET /_api/replication/logger-follow?to=0", "", 400, 400),
        ("GET /_api/replication/logger-follow?from=1e3", "", 400, 400),
        ("GET /_api/replication/logger-follow?chunkSize=many", "", 400, 400),
        ("GET /_api/replication/applier-nothing", "", 400, 400),
        ("GET /_api/replication/dump/here", "", 400, 601),
        ("PUT /_api/replication/dump", "", 405, 405),
        ("GET /_api/nothing", "", 404, 404),
        ("GET /_api/replication/revisions/tree?collection=here", "", 501, 501),
        ("GET /_db/shop/_api/replication/inventory?global=true", "", 403, 11),
        ("GET /_api/wal/tail?global=true", "", 501, 501),
    ] {
        let (got, answer) = send(port, line, body);
        assert_eq!(
            (got, &answer["errorNum"], &answer["error"]),
            (status, &json!(number), &json!(true)),
            "{line}: {answer}"
        );
    }
}
