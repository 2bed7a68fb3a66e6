//! Copies of a channel that several readers read at the same time: one snapshot, its place in the log, and what ends it.

use pgquorum_tests::{Cluster, LineStream, PATIENCE, await_until, request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ROWS: i64 = 20_000;
const COPY: &str = "application/x-postgresql-copy";

/// The rows of a table by their ids.
type Rows = BTreeMap<i64, i64>;

fn prepare(cluster: &Cluster) {
    cluster.sql(&format!(
        "CREATE TABLE giver (id bigint PRIMARY KEY, amount bigint NOT NULL, note text); CREATE TABLE taker (LIKE giver INCLUDING ALL); \
         INSERT INTO giver SELECT g, 1000, repeat('x', 1500) FROM generate_series(1, {ROWS}) AS g; \
         INSERT INTO taker SELECT g, 0, repeat('y', 1500) FROM generate_series(1, {ROWS}) AS g"
    ));
    for (path, body) in [
        ("/channels", json!({"name": "shop"})),
        ("/channels/shop/tables", json!({"table": "giver"})),
        ("/channels/shop/tables", json!({"table": "taker"})),
    ] {
        let (status, answer) = cluster.post(cluster.leader(), path, Some(&body));
        assert_eq!(status, 200, "{path} {body}: {answer}");
    }
}

fn begin(port: u16, query: &str) -> (u16, Value) {
    request(port, "POST", &format!("/channels/shop/copies{query}"), None).expect("an answer")
}

fn id(begun: &Value) -> String {
    begun["id"].as_str().unwrap_or_else(|| panic!("no copy: {begun}")).to_owned()
}

fn open(port: u16, id: &str, table: &str, query: &str) -> Result<LineStream, std::io::Error> {
    LineStream::open(port, &format!("/channels/shop/copies/{id}/public.{table}{query}"), COPY)
}

/// The lines of a copy, and whether it is whole.
fn lines(mut copy: LineStream) -> (Vec<String>, bool) {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    while copy.text(&mut line).unwrap_or(false) {
        let text = String::from_utf8(line.clone()).expect("UTF-8");
        if text == "\\.\n" {
            return (lines, !copy.text(&mut line).expect("the end"));
        }
        lines.push(text.trim_end_matches('\n').to_owned());
    }
    (lines, false)
}

fn rows(port: u16, id: &str, table: &str) -> Rows {
    let columns = "?columns=%5B%22id%22%2C%22amount%22%5D";
    let (lines, whole) = lines(open(port, id, table, columns).expect("the table"));
    assert!(whole, "{table} is not whole");
    let row = |line: &String| {
        let (id, amount) = line.split_once('\t').expect("two columns");
        (id.parse().expect("an id"), amount.parse().expect("an amount"))
    };
    lines.iter().map(row).collect()
}

/// The rows as they are after the changes that follow the position.
fn follow(port: u16, position: &str, tables: &mut BTreeMap<String, Rows>) {
    let mut after = position.to_owned();
    loop {
        let path = format!("/channels/shop/changes?after={after}&limit=10000");
        let (status, answer) = request(port, "GET", &path, None).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        for change in answer["changes"].as_array().expect("changes") {
            let rows = tables.get_mut(change["table"].as_str().expect("a table")).expect("one of ours");
            let number = |value: &Value| value.as_i64().expect("a number");
            match change["op"].as_str() {
                Some("delete") => drop(rows.remove(&number(&change["key"]["id"]))),
                _ => drop(rows.insert(number(&change["new"]["id"]), number(&change["new"]["amount"]))),
            }
        }
        after = answer["position"].as_str().expect("a position").to_owned();
        if answer["more"] == false {
            return;
        }
    }
}

fn real(cluster: &Cluster, table: &str) -> Rows {
    let mut client = cluster.connect(cluster.leader()).expect("a session");
    let rows = client.query(&format!("SELECT id, amount FROM {table}"), &[]).expect("the rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn readers_in_parallel_see_one_snapshot_and_the_log_goes_on_from_it() {
    let cluster = Arc::new(Cluster::start_steady(1));
    prepare(&cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2_i64)
        .map(|writer| {
            let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut client = cluster.connect(1).expect("a session");
                for round in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // What one loses the other gains, in the first half; in the second, rows go and come.
                    let row = (round * 7 + writer * 3) % (ROWS / 2) + 1;
                    let other = (round * 11 + writer) % (ROWS / 2) + ROWS / 2 + 1;
                    client
                        .batch_execute(&format!(
                            "BEGIN; UPDATE giver SET amount = amount - 1 WHERE id = {row}; \
                             UPDATE taker SET amount = amount + 1 WHERE id = {row}; \
                             WITH gone AS (DELETE FROM taker WHERE id = {other} RETURNING *) \
                             INSERT INTO taker SELECT id + {ROWS} * 2, amount, note FROM gone; COMMIT"
                        ))
                        .or_else(|error| match error.code().map(|code| code.code()) {
                            Some("40P01" | "23505") => client.batch_execute("ROLLBACK"),
                            _ => Err(error),
                        })
                        .expect("a transfer");
                }
            })
        })
        .collect();
    let port = cluster.node(1).api_port();
    for _ in 0..3 {
        let (status, begun) = begin(port, "?ttl=5m");
        assert_eq!(status, 201, "{begun}");
        assert_eq!(begun["origin"], cluster.get(1, "/channels/shop").1["origin"]);
        assert_eq!(begun["tables"][0]["columns"], json!(["id", "amount", "note"]), "{begun}");
        assert!(begun["tables"][1]["bytes_estimate"].as_u64().is_some_and(|n| n > 1_000_000), "{begun}");
        let copy = id(&begun);
        let readers = ["giver", "taker"].map(|table| {
            let copy = copy.clone();
            std::thread::spawn(move || (table.to_owned(), rows(port, &copy, table)))
        });
        let mut tables: BTreeMap<String, Rows> =
            readers.into_iter().map(|reader| reader.join().expect("a copy")).collect();
        // A row of one may stand in the other as it was before or after: money would be lost or made.
        let sum: i64 = tables.values().flat_map(Rows::values).sum();
        assert_eq!(sum, ROWS * 1000);
        let (status, ended) =
            request(port, "DELETE", &format!("/channels/shop/copies/{copy}"), None).expect("an answer");
        assert_eq!(status, 200, "{ended}");
        let position = begun["position"].as_str().expect("a position");
        await_until(PATIENCE, "changes after the copy", || {
            match cluster.ask(1, "SELECT quorum.cut('shop')") {
                end if end != position => Ok(()),
                end => Err(end),
            }
        });
        follow(port, position, &mut tables);
    }
    let (_, begun) = begin(port, "");
    let copy = id(&begun);
    let mut tables = BTreeMap::new();
    for table in ["giver", "taker"] {
        tables.insert(table.to_owned(), rows(port, &copy, table));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().expect("a writer");
    }
    cluster.ask(1, "SELECT quorum.cut('shop')");
    follow(port, begun["position"].as_str().expect("a position"), &mut tables);
    for table in ["giver", "taker"] {
        assert!(tables[table] == real(&cluster, table), "{table} is not what the log made of the copy");
    }
}

/// Whether a copy is over. Asking for a table that it has not does not keep it.
fn is_gone(port: u16, copy: &str) -> Result<(), String> {
    match request(port, "GET", &format!("/channels/shop/copies/{copy}/public.none"), None).expect("an answer")
    {
        (410, answer) if answer["code"] == "copy_gone" => Ok(()),
        (status, answer) => Err(format!("{status} {answer}")),
    }
}

#[test]
fn a_copy_holds_its_tables_and_lets_them_go() {
    let cluster = Cluster::start_steady(1);
    prepare(&cluster);
    let port = cluster.node(1).api_port();
    let mut other = cluster.connect(1).expect("a session");
    // Vacuum may be in the way for a moment, too.
    let mut blocked_for = |patience: &str, statement: &str| {
        let refused = other.batch_execute(&format!("SET lock_timeout = '{patience}'; {statement}"));
        let code = refused.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
        code.as_deref() == Some("55P03")
    };
    // While it is held its tables are neither emptied nor changed; one that is not in it may be.
    let (_, begun) = begin(port, "?tables=giver&ttl=5m");
    let copy = id(&begun);
    assert!(blocked_for("300ms", "TRUNCATE giver"));
    assert!(blocked_for("300ms", "ALTER TABLE giver ADD COLUMN more int"));
    assert!(!blocked_for("60s", "ALTER TABLE taker ADD COLUMN more int"));
    // A reader that takes nothing for longer than that keeps it: another one, that nobody reads, ends meanwhile.
    let reading = open(port, &copy, "giver", "").expect("the table");
    let renewed =
        request(port, "PUT", &format!("/channels/shop/copies/{copy}?ttl=1s"), None).expect("an answer");
    assert_eq!((renewed.0, &renewed.1["ttl"]), (200, &json!("1s")), "{}", renewed.1);
    let (_, unread) = begin(port, "?tables=taker&ttl=4s");
    let unread = id(&unread);
    await_until(PATIENCE, "the end of the copy that nobody reads", || is_gone(port, &unread));
    assert!(blocked_for("300ms", "TRUNCATE giver"));
    // Whoever ends it breaks off what is read, and that is seen.
    let ended = request(port, "DELETE", &format!("/channels/shop/copies/{copy}"), None).expect("an answer");
    assert_eq!(ended.0, 200, "{}", ended.1);
    let (found, whole) = lines(reading);
    assert!(!whole && found.len() < ROWS as usize, "{} rows, whole: {whole}", found.len());
    // One that nobody reads or renews ends by itself.
    let (_, begun) = begin(port, "?ttl=1s");
    let copy = id(&begun);
    await_until(PATIENCE, "the copy's end", || is_gone(port, &copy));
    assert!(!blocked_for("60s", "TRUNCATE giver"));
    await_until(PATIENCE, "no session in a transaction", || {
        let held = "SELECT count(*)::text FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        match cluster.try_ask(1, held)?.as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
}

#[test]
fn what_cannot_be_copied_is_refused_in_words() {
    let cluster = Cluster::start_steady(1);
    prepare(&cluster);
    let port = cluster.node(1).api_port();
    for (query, status, code) in [
        ("?ttl=0s", 400, "bad_parameter"),
        ("?ttl=11m", 400, "bad_parameter"),
        ("?ttl=soon", 400, "bad_parameter"),
        ("?tables=", 400, "bad_parameter"),
        ("?table=giver", 400, "unknown_parameter"),
        ("?tables=none", 404, "unknown_table"),
        ("?database=none", 404, "unknown_database"),
    ] {
        let (got, answer) = begin(port, query);
        assert_eq!((got, answer["code"].as_str()), (status, Some(code)), "{query}: {answer}");
    }
    let copies: Vec<String> = (0..4).map(|_| id(&begin(port, "?ttl=5m").1)).collect();
    let (status, busy) = begin(port, "");
    assert_eq!((status, busy["code"].as_str()), (503, Some("busy")), "{busy}");
    let copy = &copies[0];
    for (rest, status, code) in [
        (format!("{copy}/giver"), 404, "unknown_table"),
        (format!("{copy}/public.none"), 404, "unknown_table"),
        (format!("{copy}/public.giver?columns=id"), 400, "bad_parameter"),
        (format!("{copy}/public.giver?columns=%5B%5D"), 400, "bad_parameter"),
        (format!("{copy}/public.giver?columns=%5B%22x%22%5D"), 400, "unknown_column"),
        ("0000/public.giver".to_owned(), 410, "copy_gone"),
        (format!("{copy}/public.giver?database=template1"), 410, "copy_gone"),
    ] {
        let (got, answer) =
            request(port, "GET", &format!("/channels/shop/copies/{rest}"), None).expect("an answer");
        assert_eq!((got, answer["code"].as_str()), (status, Some(code)), "{rest}: {answer}");
    }
    for copy in &copies {
        let path = format!("/channels/shop/copies/{copy}");
        assert_eq!(request(port, "DELETE", &path, None).expect("an answer").0, 200);
    }
    await_until(PATIENCE, "room for a copy", || match begin(port, "?ttl=1s") {
        (201, _) => Ok(()),
        (status, answer) => Err(format!("{status} {answer}")),
    });
}

#[test]
fn a_copy_ends_with_its_leader() {
    let cluster = Cluster::start_steady(3);
    prepare(&cluster);
    let leader = cluster.leader();
    let port = cluster.node(leader).api_port();
    let (_, begun) = begin(port, "");
    let copy = id(&begun);
    let reading = open(port, &copy, "giver", "").expect("the table");
    let other = (leader % 3) + 1;
    let (status, _) = request(
        cluster.node(other).api_port(),
        "GET",
        &format!("/channels/shop/copies/{copy}/public.giver"),
        None,
    )
    .expect("an answer");
    assert_eq!(status, 417);
    let (status, answer) = cluster.hand_over(other);
    assert_eq!(status, 200, "{answer}");
    let (found, whole) = lines(reading);
    assert!(!whole && found.len() < ROWS as usize, "{} rows, whole: {whole}", found.len());
    await_until(PATIENCE, "the new leader does not know it", || {
        is_gone(cluster.node(other).api_port(), &copy)
    });
    // The position is as good as before: the log is the cluster's.
    let again = await_until(PATIENCE, "a copy of the new leader", || {
        match begin(cluster.node(other).api_port(), "?ttl=5m") {
            (201, begun) => Ok(begun),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    });
    let mut tables: BTreeMap<String, Rows> = BTreeMap::new();
    for table in ["giver", "taker"] {
        tables.insert(table.to_owned(), rows(cluster.node(other).api_port(), &id(&again), table));
    }
    cluster.sql("UPDATE giver SET amount = 7 WHERE id <= 10");
    cluster.ask(other, "SELECT quorum.cut('shop')");
    follow(cluster.node(other).api_port(), again["position"].as_str().expect("a position"), &mut tables);
    assert!(tables["giver"] == real(&cluster, "giver"));
}
