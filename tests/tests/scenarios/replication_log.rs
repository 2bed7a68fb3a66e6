//! The replication interface over plain HTTP: copies and changes as documents, against what the tables hold.

use pgquorum_tests::{Answer, Cluster, PATIENCE, await_until, get_with, request};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Documents by collection and key.
type Documents = BTreeMap<String, BTreeMap<String, Value>>;

fn get(port: u16, path: &str) -> Answer {
    get_with(PATIENCE, port, path, &[]).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn ok(port: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
    let text = body.map(ToString::to_string);
    let (status, answer) = request(port, method, path, text.as_deref()).expect("an answer");
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.field(&format!("x-arango-replication-{name}")).unwrap_or_else(|| panic!("no {name}: {answer:?}"))
}

fn tick(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no tick"))
}

/// The lines of an answer. One alone is JSON by itself.
fn lines(answer: &Answer) -> Vec<Value> {
    match &answer.body {
        Value::String(text) => {
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
        }
        one => vec![one.clone()],
    }
}

/// Makes readable what was committed.
fn flush(port: u16) {
    ok(port, "PUT", "/_admin/wal/flush", None);
}

/// All lines behind a tick, and where they end.
fn follow(port: u16, from: &str, chunk: usize) -> (Vec<Value>, String) {
    let (mut all, mut from) = (Vec::new(), from.to_owned());
    loop {
        let answer =
            get(port, &format!("/_api/replication/logger-follow?from={from}&chunkSize={chunk}&serverId=42"));
        assert_eq!((field(&answer, "active"), field(&answer, "frompresent")), ("true", "true"), "{answer:?}");
        if answer.status == 204 {
            assert_eq!((field(&answer, "lastincluded"), field(&answer, "checkmore")), ("0", "false"));
            return (all, from);
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        let some = lines(&answer);
        assert_eq!(some.last().expect("a line")["tick"], field(&answer, "lastincluded"));
        assert!(tick(field(&answer, "lasttick")) >= tick(field(&answer, "lastincluded")));
        all.extend(some);
        field(&answer, "lastincluded").clone_into(&mut from);
        if field(&answer, "checkmore") == "false" {
            return (all, from);
        }
    }
}

/// Brings documents to where the lines end, and looks at the lines' order on the way.
fn apply(documents: &mut Documents, lines: &[Value]) {
    let (mut last, mut open) = (0, None);
    for line in lines {
        let (at, tid) =
            (tick(line["tick"].as_str().expect("a tick")), line["tid"].as_str().expect("a tid").to_owned());
        assert!(at > last, "{line} comes after {last}");
        last = at;
        let collection = line["cname"].as_str().unwrap_or_default().to_owned();
        match line["type"].as_u64() {
            Some(2200) => assert_eq!(open.replace(tid), None, "{line}"),
            Some(2201) => assert_eq!(open.take().as_deref(), Some(tid.as_str()), "{line}"),
            Some(kind @ (2300 | 2302)) => {
                assert_eq!(open.as_deref().unwrap_or("0"), tid, "{line}");
                let rows = documents.entry(collection.clone()).or_default();
                let key = line["key"].as_str().expect("a key").to_owned();
                assert_eq!((&line["data"]["_key"], &line["data"]["_rev"]), (&line["key"], &line["tick"]));
                if kind == 2302 {
                    assert!(rows.remove(&key).is_some(), "{line} removes what is not there");
                } else {
                    assert_eq!(line["data"]["_id"], format!("{collection}/{key}"));
                    rows.insert(key, plain(&line["data"]));
                }
            }
            Some(2004) => drop(documents.insert(collection, BTreeMap::new())),
            Some(2000..=2003) => assert_eq!(open, None, "{line} is inside a transaction"),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(open, None, "a transaction does not end");
}

/// A document without what is not a column.
fn plain(data: &Value) -> Value {
    let mut data = data.clone();
    let map = data.as_object_mut().expect("an object");
    map.retain(|name, _| !["_id", "_key", "_rev"].contains(&name.as_str()));
    data
}

/// Dumps a collection by answers of a size, with or without saying where the last one ended.
fn dump(port: u16, batch: &str, collection: &str, chunk: usize, by_tick: bool) -> BTreeMap<String, Value> {
    let (mut rows, mut from) = (BTreeMap::new(), "0".to_owned());
    let collection = collection.replace('%', "%25");
    loop {
        let place = if by_tick { format!("&from={from}") } else { String::new() };
        let path = format!(
            "/_api/replication/dump?collection={collection}&batchId={batch}&chunkSize={chunk}{place}"
        );
        let answer = get(port, &path);
        if answer.status == 204 {
            assert!(rows.is_empty(), "{answer:?}");
            return rows;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        for line in lines(&answer) {
            assert_eq!((&line["type"], &line["data"]["_key"]), (&json!(2300), &line["key"]), "{line}");
            let before = rows.insert(line["key"].as_str().expect("a key").to_owned(), plain(&line["data"]));
            assert_eq!(before, None, "{line} comes twice");
        }
        field(&answer, "lastincluded").clone_into(&mut from);
        assert_eq!(rows.len() as u64, tick(&from), "rows are numbered");
        if field(&answer, "checkmore") == "false" {
            return rows;
        }
    }
}

/// What a table holds, as documents should show it.
fn real(cluster: &Cluster, key: &str, object: &str, table: &str) -> BTreeMap<String, Value> {
    let mut client = cluster.connect(cluster.leader()).expect("a session");
    let rows = client.query(&format!("SELECT {key}, {object} FROM {table}"), &[]).expect("the rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The tables of the scenario as they are now.
fn tables(cluster: &Cluster) -> Documents {
    let kinds = "jsonb_build_object('id', id, 'big', CASE WHEN abs(big) <= 9007199254740992 THEN to_jsonb(big) ELSE to_jsonb(big::text) END, \
                 'num', num::text, 't', t, 'b', b, 'd', d::text, 'j', j, 'by', by::text, 'arr', arr::text, 'f', f)";
    let [kinds, places, escaped] = [
        ("id::text", kinds, "kinds"),
        ("replace(replace(country, ' ', '%20'), ',', '%2C') || ',' || code", "to_jsonb(p)", "places AS p"),
        ("id::text", "jsonb_build_object('id', id, '%5Fkey', \"_key\")", "shop.\"Or.ders\""),
    ]
    .map(|(key, object, table)| real(cluster, key, object, table));
    [("kinds", kinds), ("places", places), ("shop.Or%2Eders", escaped)]
        .into_iter()
        .map(|(name, rows)| (name.to_owned(), rows))
        .collect()
}

fn prepare(cluster: &Cluster) {
    cluster.sql(
        "CREATE TABLE kinds (id int PRIMARY KEY, big bigint, num numeric(20,4), t text, b boolean, d timestamp, j jsonb, \
             by bytea, arr int[], f float8); \
         CREATE UNIQUE INDEX kinds_n ON kinds (num, b) INCLUDE (f); CREATE INDEX kinds_e ON kinds (abs(big)); \
         CREATE TABLE places (country text, code int, note text, PRIMARY KEY (country, code)); \
         CREATE SCHEMA shop; CREATE TABLE shop.\"Or.ders\" (id uuid PRIMARY KEY, \"_key\" text); \
         CREATE TABLE keyless (a int); \
         INSERT INTO kinds SELECT g, 9007199254740990 + g, g / 3.0, 'text ' || g, g % 2 = 0, timestamp '2026-01-02' + g * interval '1 h', \
             jsonb_build_object('g', g, 'n', NULL), decode(md5(g::text), 'hex'), ARRAY[g, NULL], g * 1.5 FROM generate_series(1, 500) AS g; \
         INSERT INTO kinds (id) VALUES (1000); \
         INSERT INTO places SELECT (ARRAY['de', 'a b', 'x,y'])[g % 3 + 1], g, repeat('n', g) FROM generate_series(1, 50) AS g; \
         INSERT INTO shop.\"Or.ders\" SELECT md5(g::text)::uuid, 'k' || g FROM generate_series(1, 20) AS g",
    );
}

fn track(cluster: &Cluster) {
    cluster.sql(
        "SELECT quorum.track(t, channel => '_logger') \
         FROM unnest(ARRAY['kinds', 'places', 'shop.\"Or.ders\"', 'keyless']::regclass[]) AS t",
    );
}

/// Changes of all kinds; the keyless table is not seen.
const CHANGES: &[&str] = &[
    "UPDATE kinds SET t = 'changed' WHERE id = 7",
    "BEGIN; INSERT INTO places VALUES ('new', 1, 'a'); SAVEPOINT s; INSERT INTO places VALUES ('never', 1, 'a'); \
     ROLLBACK TO s; UPDATE places SET code = 2 WHERE country = 'new'; DELETE FROM kinds WHERE id BETWEEN 10 AND 20; \
     INSERT INTO keyless VALUES (1); COMMIT",
    "INSERT INTO kinds (id, t) VALUES (7, 'again') ON CONFLICT (id) DO UPDATE SET t = EXCLUDED.t || '!'",
    // A large value that later updates leave alone.
    "INSERT INTO kinds (id, t) SELECT 2000, string_agg(md5(g::text), '') FROM generate_series(1, 2000) AS g",
    "UPDATE kinds SET b = true WHERE id = 2000",
    "UPDATE kinds SET id = 2001 WHERE id = 2000",
    "UPDATE kinds SET f = f + 1 WHERE id <= 300",
];

/// What a batch holds up.
const EMPTYING: &str = "BEGIN; DELETE FROM shop.\"Or.ders\" WHERE \"_key\" = 'k1'; TRUNCATE places; \
                        INSERT INTO places VALUES ('after', 1, 'b'), ('x,y', 2, 'c'); COMMIT";

fn end_batch(port: u16, id: &str) {
    let (status, answer) =
        request(port, "DELETE", &format!("/_api/replication/batch/{id}"), None).expect("an answer");
    assert_eq!(status, 204, "{answer}");
}

#[test]
fn copies_and_changes_make_what_the_tables_hold() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    prepare(&cluster);
    assert_eq!(ok(port, "GET", "/_api/replication/logger-state", None)["state"]["running"], false);
    assert_eq!(ok(port, "GET", "/_api/replication/logger-first-tick", None)["firstTick"], Value::Null);
    for _ in 0..2 {
        assert_eq!(ok(port, "PUT", "/_api/replication/logger-start", None), json!({"running": true}));
    }
    track(&cluster);
    flush(port);

    let batch = ok(port, "POST", "/_api/replication/batch", Some(&json!({"ttl": 60})));
    let (id, start) = (batch["id"].as_str().expect("an id"), batch["lastTick"].as_str().expect("a tick"));
    let before = tables(&cluster);
    // What comes now is in no dump.
    for change in CHANGES {
        cluster.sql(change);
    }
    let inventory = ok(port, "GET", &format!("/_api/replication/inventory?batchId={id}"), None);
    let listed: Vec<&Value> = inventory["collections"].as_array().expect("a list").iter().collect();
    let names: Vec<&Value> = listed.iter().map(|one| &one["parameters"]["name"]).collect();
    assert_eq!(
        names,
        ["kinds", "places", "shop.Or%2Eders"],
        "by name, and without the table that has no key"
    );
    let index = &listed[0]["indexes"][0];
    assert_eq!((&index["fields"], &index["unique"]), (&json!(["num", "b"]), &json!(true)));
    assert_eq!(listed[0]["indexes"].as_array().map(Vec::len), Some(1), "neither the key nor an expression");
    let mut documents = Documents::new();
    for (collection, rows) in &before {
        let [small, large] = [1, 1 << 20].map(|chunk| dump(port, id, collection, chunk, true));
        assert!(small == large, "{collection} by small answers is something else");
        assert!(&small == rows, "{collection} is not what the table was");
        documents.insert(collection.clone(), small);
    }
    end_batch(port, id);
    cluster.sql(EMPTYING);
    // Another batch, and by answers that go on by themselves.
    let again = ok(port, "POST", "/_api/replication/batch", Some(&json!({"ttl": 60})));
    let again = again["id"].as_str().expect("an id");
    let now = tables(&cluster);
    for (collection, rows) in &now {
        assert!(&dump(port, again, collection, 500, false) == rows, "{collection}");
    }
    end_batch(port, again);
    flush(port);
    let (whole, end) = follow(port, start, 1 << 20);
    let (parts, same_end) = follow(port, start, 1);
    assert_eq!((whole.len(), &end), (parts.len(), &same_end), "by small answers it is something else");
    if let Some((one, other)) = whole.iter().zip(&parts).find(|(one, other)| one != other) {
        panic!("by small answers it is something else: {one} and {other}");
    }
    apply(&mut documents, &whole);
    for (collection, rows) in &now {
        assert!(&documents[collection] == rows, "{collection} is not what the table is");
    }
    let state = ok(port, "GET", "/_api/replication/logger-state", None);
    assert_eq!(
        (&state["state"]["lastLogTick"], &state["clients"][0]["lastServedTick"]),
        (&json!(end), &json!(end))
    );
    let begin = whole.iter().find(|line| line["type"] == 2200).expect("a transaction");
    let operations = &begin["collections"];
    assert_eq!(
        (&operations[0]["name"], &operations[1]["operations"]),
        (&json!("places"), &json!(11)),
        "{begin}"
    );
    // The same through the other door.
    let tail = get(port, &format!("/_api/wal/tail?from={start}&chunkSize=4000000"));
    assert_eq!((lines(&tail).len(), field(&tail, "lastscanned")), (whole.len(), end.as_str()));
    let range = ok(port, "GET", "/_api/wal/range", None);
    assert_eq!(range["tickMax"], end);

    // What becomes of tables.
    cluster.sql(
        "ALTER TABLE places ADD COLUMN extra int; ALTER TABLE places RENAME TO spots; \
         SELECT quorum.untrack('shop.\"Or.ders\"'); DROP TABLE kinds",
    );
    flush(port);
    let (about, _) = follow(port, &end, 0);
    let seen: Vec<(u64, &str)> = about
        .iter()
        .map(|line| (line["type"].as_u64().unwrap_or(0), line["cname"].as_str().unwrap_or("-")))
        .collect();
    assert_eq!(seen, [(2003, "places"), (2002, "spots"), (2001, "shop.Or%2Eders"), (2001, "kinds")]);

    // What was purged is admitted, and what is kept can be read.
    cluster.sql("SELECT quorum.purge('_logger', keep => 1)");
    let rest = get(port, &format!("/_api/replication/logger-follow?from={start}"));
    assert_eq!((field(&rest, "frompresent"), lines(&rest).len()), ("false", 1), "{rest:?}");
    let first = ok(port, "GET", "/_api/replication/logger-first-tick", None);
    assert!(tick(first["firstTick"].as_str().expect("a tick")) > tick(&end));
    let ranges = ok(port, "GET", "/_api/replication/logger-tick-ranges", None);
    assert_eq!(ranges[0]["status"], "open", "{ranges}");
    let gone = get(port, &format!("/_api/replication/dump?collection=spots&batchId={id}"));
    assert_eq!((gone.status, &gone.body["errorNum"]), (404, &json!(1600)));
}

#[test]
fn who_begins_no_batch_copies_and_follows_all_the_same() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    prepare(&cluster);
    ok(port, "PUT", "/_api/replication/logger-start", None);
    track(&cluster);
    flush(port);
    let inventory = ok(port, "GET", "/_api/replication/inventory", None);
    let start = inventory["state"]["lastLogTick"].as_str().expect("a tick");
    // It is in the dump, and in the log behind the inventory, too.
    cluster.sql("UPDATE kinds SET t = 'early' WHERE id = 8");
    let mut documents = Documents::new();
    for entry in inventory["collections"].as_array().expect("a list") {
        let of = |name: &str| entry["parameters"][name].as_str().expect("a text").to_owned();
        let (cid, name) = (of("cid"), of("name"));
        let dump = format!("/_api/replication/dump?collection={cid}&chunkSize=20000&to={start}&serverId=77");
        let (mut rows, mut from) = (BTreeMap::new(), "0".to_owned());
        loop {
            let answer = get(port, &format!("{dump}&from={from}"));
            assert_eq!(answer.status, 200, "{answer:?}");
            for line in lines(&answer) {
                let key = line["key"].as_str().expect("a key").to_owned();
                assert_eq!(rows.insert(key, plain(&line["data"])), None, "{line} comes twice");
            }
            field(&answer, "lastincluded").clone_into(&mut from);
            if field(&answer, "checkmore") == "false" {
                break;
            }
            // In front of the place where the dump is, rows go and come.
            cluster.sql(
                "DELETE FROM kinds WHERE id = (SELECT min(id) FROM kinds WHERE id > 0); \
                 INSERT INTO kinds (id) SELECT least(min(id), 0) - n FROM kinds, generate_series(1, 2) AS n GROUP BY n",
            );
        }
        documents.insert(name, rows);
    }
    assert_eq!(documents["kinds"].len(), 501, "all rows, and none that came later");
    flush(port);
    let (changes, _) = follow(port, start, 1 << 20);
    assert!(changes.len() > 4, "the dump has answered all at once");
    apply(&mut documents, &changes);
    for (collection, rows) in &tables(&cluster) {
        assert!(&documents[collection] == rows, "{collection} is not what the table is");
    }
    // Nothing is held any more, which would keep the log from being stopped.
    assert_eq!(ok(port, "PUT", "/_api/replication/logger-stop", None), json!({"running": false}));
    let stopped = get(port, "/_api/replication/dump?collection=kinds");
    assert_eq!((stopped.status, &stopped.body["errorNum"]), (400, &json!(1412)));
}

#[test]
fn readers_go_on_at_another_node_and_batches_end() {
    let cluster = Cluster::start_steady(3);
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE INDEX ON t USING hash (id); INSERT INTO t SELECT generate_series(1, 10)");
    let (leader, other) = (cluster.leader(), cluster.follower());
    let (port, other_port) = (cluster.node(leader).api_port(), cluster.node(other).api_port());
    ok(port, "PUT", "/_api/replication/logger-start", None);
    cluster.sql("SELECT quorum.track('t', channel => '_logger'); INSERT INTO t VALUES (11)");
    flush(port);
    let (_, end) = follow(port, "0", 0);
    let server = ok(port, "GET", "/_api/replication/server-id", None);
    assert_eq!(ok(other_port, "GET", "/_api/replication/server-id", None), server, "nodes are one server");
    // A batch that nobody asks for ends; one that was begun elsewhere is not known.
    let batch = ok(port, "POST", "/_api/replication/batch", Some(&json!({"ttl": 1})));
    let dump =
        format!("/_api/replication/dump?collection=t&batchId={}", batch["id"].as_str().expect("an id"));
    let refused = get(other_port, &dump);
    assert_eq!(
        (refused.status, &refused.body["errorNum"]),
        (503, &json!(503)),
        "only the leader has batches"
    );
    await_until(PATIENCE, "the batch ends", || {
        let answer = get(port, &dump.replace("dump?collection=t&", "inventory?"));
        if answer.body["errorNum"] == 1600 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    // The log is the same everywhere, and goes on over a change of leaders with higher ticks.
    cluster.await_replayed(other);
    await_until(PATIENCE, "a standby shows the same log", || {
        let (lines, there) = follow(other_port, "0", 0);
        if there == end { Ok(()) } else { Err(format!("{there} is not {end}: {lines:?}")) }
    });
    let inventories = [port, other_port].map(|port| ok(port, "GET", "/_api/replication/inventory", None));
    assert_eq!(inventories[0]["collections"], inventories[1]["collections"], "indexes have the same ids");
    let (status, answer) = cluster.hand_over(other);
    assert_eq!(status, 200, "{answer}");
    cluster.await_leader(Some(leader));
    cluster.sql("INSERT INTO t VALUES (12)");
    flush(cluster.node(cluster.leader()).api_port());
    let (lines, new_end) = follow(cluster.node(cluster.leader()).api_port(), &end, 0);
    assert_eq!((lines.len(), &lines[0]["key"]), (1, &json!("12")), "{lines:?}");
    assert!(tick(&new_end) >> 44 > tick(&end) >> 44, "another epoch");
}
