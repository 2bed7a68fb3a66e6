//! The replication interface: the logger is stopped and goes on, and readers are told of the gap; what was dumped is
//! restored in another database.

use pgquorum_tests::{Answer, Cluster, PATIENCE, get_with, request};
use serde_json::{Value, json};

fn get(port: u16, path: &str) -> Answer {
    get_with(PATIENCE, port, path, &[]).unwrap_or_else(|error| panic!("{path}: {error}"))
}

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

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.field(&format!("x-arango-replication-{name}")).unwrap_or_else(|| panic!("no {name}: {answer:?}"))
}

/// The lines of an answer, as text. One alone was read as JSON.
fn text(answer: &Answer) -> String {
    assert!(matches!(answer.status, 200 | 204), "{answer:?}");
    match &answer.body {
        Value::String(text) => text.clone(),
        one => format!("{one}\n"),
    }
}

fn lines(answer: &Answer) -> Vec<Value> {
    text(answer).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Everything behind a tick in one answer.
fn follow(port: u16, from: &str) -> Answer {
    get(port, &format!("/_api/replication/logger-follow?from={from}&chunkSize=4000000"))
}

fn types(answer: &Answer) -> Vec<u64> {
    lines(answer).iter().filter_map(|line| line["type"].as_u64()).collect()
}

#[test]
fn a_gap_of_a_stopped_logger_is_told_to_every_reader() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    let put = |command: &str| ok(port, &format!("PUT /_api/replication/{command}"), "");
    let flush = || ok(port, "PUT /_admin/wal/flush", "");
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE u (id int PRIMARY KEY)");
    assert_eq!(put("logger-stop"), json!({"running": false}), "there is none");
    put("logger-start");
    cluster.sql(
        "SELECT quorum.track('t', channel => '_logger', \"where\" => 'id < 100'), quorum.track('u', channel => '_logger'); \
         INSERT INTO t VALUES (1, 'a'); INSERT INTO u VALUES (1)",
    );
    // How much is kept can be set; what cannot be, is refused or of no interest.
    let config = ok(
        port,
        "PUT /_api/replication/logger-config",
        r#"{"maxEvents": 1000, "maxEventsSize": 0, "autoStart": false, "logRemoteChanges": 7}"#,
    );
    assert_eq!((&config["maxEvents"], &config["maxEventsSize"]), (&json!(1000), &json!(0)), "{config}");
    assert_eq!(ok(port, "GET /_api/replication/logger-config", ""), config);
    flush();
    let before = follow(port, "0");
    let before_stop = field(&before, "lastincluded").to_owned();

    // A copy holds its tables.
    let batch = ok(port, "POST /_api/replication/batch", r#"{"ttl": 60}"#);
    assert_eq!(send(port, "PUT /_api/replication/logger-stop", "").0, 503);
    let batch = format!("/_api/replication/batch/{}", batch["id"].as_str().expect("an id"));
    assert_eq!(send(port, &format!("DELETE {batch}"), "").0, 204);

    for _ in 0..2 {
        assert_eq!(put("logger-stop"), json!({"running": false}));
    }
    assert_eq!(ok(port, "GET /_api/replication/logger-state", "")["state"]["running"], false);
    cluster.sql("INSERT INTO t VALUES (2, 'in the gap'); UPDATE u SET id = 2");
    let refused = cluster.connect(1).expect("a session").batch_execute("SELECT quorum.track('u', '_logger')");
    assert!(refused.is_err_and(|error| error.code().is_some_and(|code| code.code() == "55000")));
    assert_eq!(send(port, "POST /_api/replication/batch", "{}").1["errorNum"], 1412);
    flush();
    // What was recorded can be read to its end, which says that the tables are not tracked any more, and the logger rests.
    let rest = follow(port, &before_stop);
    assert_eq!(types(&rest), [2001, 2001, 1000], "{rest:?}");
    let said = lines(&rest);
    assert_eq!(said[2]["lastTick"], said[1]["tick"], "{rest:?}");
    assert_eq!((field(&rest, "active"), field(&rest, "frompresent")), ("false", "true"));
    let at_stop = field(&rest, "lastincluded").to_owned();
    let end = follow(port, &at_stop);
    assert_eq!((end.status, field(&end, "frompresent"), field(&end, "checkmore")), (204, "true", "false"));
    let state = ok(port, "GET /channels/_logger", "");
    let own_position = state["end_position"].as_str().expect("a position").to_owned();

    for _ in 0..2 {
        assert_eq!(put("logger-start"), json!({"running": true}));
    }
    cluster.sql("INSERT INTO t VALUES (3, 'after it'), (200, 'not wanted')");
    flush();
    // Whoever had all of it misses something, too.
    for from in ["0", before_stop.as_str(), at_stop.as_str()] {
        let gap = follow(port, from);
        assert_eq!((field(&gap, "active"), field(&gap, "frompresent")), ("true", "false"), "{from}: {gap:?}");
        assert_eq!(types(&gap), [1001, 2000, 2000, 2300], "{from}: {gap:?}");
        assert_eq!(lines(&gap)[3]["key"], "3", "the row filter is there again");
    }
    let (status, refusal) = send(port, &format!("GET /channels/_logger/changes?after={own_position}"), "");
    assert_eq!((status, &refusal["code"]), (410, &json!("position_purged")), "{refusal}");
    let version = ok(port, "GET /channels/_logger", "")["database_version"].clone();
    assert_eq!(version, json!(state["database_version"].as_u64().expect("a version") + 1));
    // Who has copied since goes on as always.
    let batch = ok(port, "POST /_api/replication/batch", r#"{"ttl": 60}"#);
    cluster.sql("DELETE FROM t WHERE id = 1");
    flush();
    let fresh = follow(port, batch["lastTick"].as_str().expect("a tick"));
    assert_eq!((types(&fresh), field(&fresh, "frompresent")), (vec![2302], "true"), "{fresh:?}");
}

/// Tables of all kinds in the first database.
const SOURCE: &str = "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE SCHEMA shop; \
    CREATE TABLE kinds (id int PRIMARY KEY, big bigint, num numeric(20,4), t varchar(3000), b boolean, d timestamptz, j jsonb, \
        by bytea, arr int[], f float8, m mood, i interval); \
    CREATE INDEX ON kinds USING hash (t); CREATE UNIQUE INDEX ON kinds (num, b); \
    CREATE TABLE shop.\"Or.ders\" (country text, code int, \"_key\" text, PRIMARY KEY (country, code)); \
    CREATE TABLE likes (\"_key\" text PRIMARY KEY, \"_from\" text, \"_to\" text, since int); \
    INSERT INTO kinds SELECT g, 9007199254740990 + g, g / 3.0, 'text ' || g, g % 2 = 0, timestamptz '2026-01-02 03:04:05+00' + g * interval '1 h', \
        jsonb_build_object('g', g, 'n', NULL, 'x', 'a\\\"b'), decode(md5(g::text), 'hex'), ARRAY[g, NULL], g * 1.5, 'bad', g * interval '1 day' \
        FROM generate_series(1, 500) AS g; \
    INSERT INTO kinds (id, f) VALUES (1000, 'NaN'); \
    INSERT INTO shop.\"Or.ders\" SELECT (ARRAY['de', 'a b', 'x,y', ''])[g % 4 + 1], g, 'k%' || g FROM generate_series(1, 50) AS g; \
    INSERT INTO likes SELECT 'l' || g, 'kinds/' || g, 'kinds/' || (g + 1), g FROM generate_series(1, 20) AS g";
const TABLES: [&str; 3] = ["kinds", "shop.\"Or.ders\"", "likes"];
const COLLECTIONS: [&str; 3] = ["kinds", "shop.Or%2Eders", "likes"];

fn content(client: &mut postgres::Client, table: &str) -> String {
    let query = format!(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '') FROM {table} AS t"
    );
    client.query_one(&query, &[]).unwrap_or_else(|error| panic!("{query}: {error}")).get(0)
}

#[test]
fn what_was_dumped_is_restored_in_another_database() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    cluster.sql(SOURCE);
    cluster.sql("CREATE DATABASE copy");
    let mut source = cluster.connect(1).expect("a session");
    let mut copy = cluster.connect_to(1, "copy").expect("a session");
    copy.batch_execute("CREATE EXTENSION pgquorum; CREATE TYPE mood AS ENUM ('good', 'bad')")
        .expect("a type");
    for prefix in ["", "/_db/copy"] {
        ok(port, &format!("PUT {prefix}/_api/replication/logger-start"), "");
    }
    cluster.sql("SELECT quorum.track(t, channel => '_logger') FROM unnest(ARRAY['kinds', 'shop.\"Or.ders\"', 'likes']::regclass[]) AS t");
    let batch = ok(port, "POST /_api/replication/batch", r#"{"ttl": 120}"#);
    let batch = batch["id"].as_str().expect("an id");
    let inventory = ok(port, &format!("GET /_api/replication/inventory?batchId={batch}"), "");
    let listed = inventory["collections"].as_array().expect("a list");
    let kinds: Vec<_> =
        listed.iter().map(|one| (&one["parameters"]["name"], &one["parameters"]["type"])).collect();
    assert_eq!(
        kinds,
        [(&json!("kinds"), &json!(2)), (&json!("shop.Or%2Eders"), &json!(2)), (&json!("likes"), &json!(3))],
        "edges come last"
    );
    let base = "/_db/copy/_api/replication";
    let restore = |overwrite: &str| {
        for (entry, collection) in listed.iter().zip([COLLECTIONS[0], COLLECTIONS[1], COLLECTIONS[2]]) {
            let entry = entry.to_string();
            let made = ok(
                port,
                &format!("PUT {base}/restore-collection?overwrite={overwrite}&recycleIds=true&force=false"),
                &entry,
            );
            assert_eq!(made, json!({"result": true}));
            let name = collection.replace('%', "%25");
            let dump = get(
                port,
                &format!("/_api/replication/dump?collection={name}&batchId={batch}&from=0&chunkSize=4000000"),
            );
            assert_eq!(field(&dump, "checkmore"), "false");
            let kind = if collection == "likes" { 2301 } else { 2300 };
            assert_eq!(lines(&dump)[0]["type"], kind);
            assert_eq!(
                ok(port, &format!("PUT {base}/restore-data?collection={name}"), &text(&dump)),
                json!({"result": true})
            );
            assert_eq!(ok(port, &format!("PUT {base}/restore-indexes"), &entry), json!({"result": true}));
        }
    };
    restore("false");
    for table in TABLES {
        assert_eq!(content(&mut copy, table), content(&mut source, table), "{table}");
    }
    let indexes = "SELECT count(*)::text FROM pg_index WHERE indrelid = 'kinds'::regclass";
    let count: String = copy.query_one(indexes, &[]).expect("a number").get(0);
    assert_eq!(count, "3");
    // What is there stays, unless it is to be overwritten; something else is put in order by that.
    let (status, answer) = send(port, &format!("PUT {base}/restore-collection"), &listed[0].to_string());
    assert_eq!((status, &answer["errorNum"]), (409, &json!(1207)), "{answer}");
    copy.batch_execute(
        "DELETE FROM kinds; INSERT INTO kinds (id) VALUES (7777); ALTER TABLE likes ADD COLUMN more int",
    )
    .expect("changes");
    restore("true");
    for table in TABLES {
        assert_eq!(content(&mut copy, table), content(&mut source, table), "{table}, again");
    }

    // Documents of which nothing is known.
    for (name, kind) in [("people", 2), ("knows", 3)] {
        let entry = json!({"parameters": {"name": name, "type": kind, "isSystem": false}, "indexes": [
            {"id": "0", "type": "primary", "fields": ["_key"]}, {"id": "7", "type": "hash", "unique": false, "fields": ["name"]}]});
        ok(port, &format!("PUT {base}/restore-collection"), &entry.to_string());
        ok(port, &format!("PUT {base}/restore-indexes"), &entry.to_string());
    }
    let people = "{\"type\":2300,\"key\":\"ann\",\"rev\":\"1\",\"data\":{\"_key\":\"ann\",\"_id\":\"people/ann\",\"_rev\":\"1\",\"name\":\"Ann\",\"tags\":[1,{\"x\":null}]}}\n\
                  {\"type\":2300,\"key\":\"bob\",\"data\":{\"_key\":\"bob\",\"name\":\"Bob\"}}\n{\"type\":2302,\"key\":\"bob\"}\n\
                  {\"type\":2300,\"key\":\"eve\",\"data\":{\"_key\":\"eve\"}}\n";
    ok(port, &format!("PUT {base}/restore-data?collection=people"), people);
    let knows = "{\"type\":2301,\"key\":\"1\",\"data\":{\"_key\":\"1\",\"_from\":\"people/ann\",\"_to\":\"people/eve\",\"since\":2020}}\n";
    ok(port, &format!("PUT {base}/restore-data?collection=knows"), knows);
    ok(port, &format!("PUT {base}/restore-data?collection=people"), "{\"type\":2302,\"key\":\"eve\"}\n");
    let found: String =
        copy.query_one("SELECT string_agg(data ->> 'name', ' ') FROM people", &[]).expect("names").get(0);
    assert_eq!(found, "Ann");
    ok(port, "PUT /_db/copy/_admin/wal/flush", "");
    let log = lines(&get(port, "/_db/copy/_api/wal/tail?from=0&chunkSize=4000000"));
    let last = |collection: &str, kind: u64| {
        log.iter()
            .rev()
            .find(|line| line["cname"] == collection && line["type"] == kind)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(last("people", 2302)["key"], "eve");
    let edge = &last("knows", 2301)["data"];
    assert_eq!(
        (&edge["_to"], &edge["since"], &edge["_id"]),
        (&json!("people/eve"), &json!(2020), &json!("knows/1"))
    );
    let ann = log.iter().find(|line| line["key"] == "ann").expect("Ann");
    assert_eq!((&ann["data"]["name"], &ann["data"]["tags"][0]), (&json!("Ann"), &json!(1)));

    // What cannot be restored is refused as a whole.
    for (line, body, expected) in [
        (
            "restore-data?collection=kinds",
            "{\"type\":2300,\"key\":\"1\",\"data\":{\"id\":1,\"nothing\":2}}",
            (400, 400),
        ),
        (
            "restore-data?collection=kinds",
            "{\"type\":2300,\"key\":\"1\",\"data\":{\"id\":1,\"m\":\"worse\"}}",
            (400, 400),
        ),
        (
            "restore-data?collection=kinds",
            "{\"type\":2302,\"key\":\"1\"}\n{\"type\":2300,\"key\":\"x\",\"data\":{}}",
            (400, 400),
        ),
        ("restore-data?collection=none", "{\"type\":2302,\"key\":\"1\"}", (404, 1203)),
        ("restore-data?collection=quorum.channel", "{\"type\":2302,\"key\":\"1\"}", (404, 1203)),
        ("restore-collection", "{\"parameters\":{\"name\":\"pg_catalog.x\"}}", (400, 400)),
        (
            "restore-collection",
            "{\"parameters\":{\"name\":\"x\",\"pgquorum\":{\"columns\":[{\"name\":\"a\",\"type\":\"none\"}],\"key\":[\"a\"]}}}",
            (400, 400),
        ),
    ] {
        let (status, answer) = send(port, &format!("PUT {base}/{line}"), body);
        assert_eq!((status, answer["errorNum"].as_u64().unwrap_or(0)), expected, "{line} {body}: {answer}");
    }
    assert_eq!(
        content(&mut copy, "kinds"),
        content(&mut source, "kinds"),
        "nothing of a refused request is there"
    );

    // All databases at once.
    let global = ok(port, "GET /_api/replication/inventory?global=true", "");
    let databases = global["databases"].as_object().expect("an object");
    assert_eq!(databases.keys().collect::<Vec<_>>(), ["_system", "copy"]);
    assert_eq!(databases["copy"]["collections"].as_array().map(Vec::len), Some(5), "{global}");
    copy.batch_execute("SELECT quorum.drop_channel('_logger')").expect("no channel");
    let tail = get(port, "/_api/wal/tail?global=true&from=0");
    assert_eq!(lines(&tail)[0]["db"], "postgres");
}
