//! A copy of a channel while its tables are changed underneath it, and with filters whose words mean something else by now.

use pgquorum_tests::{Cluster, LineStream};
use serde_json::{Value, json};

const ROWS: usize = 40_000;

fn channel(cluster: &Cluster, tables: &[Value]) {
    let bodies = tables.iter().map(|table| ("/channels/shop/tables", table.clone()));
    for (path, body) in std::iter::once(("/channels", json!({"name": "shop"}))).chain(bodies) {
        let (status, answer) = cluster.post(1, path, Some(&body));
        assert_eq!(status, 200, "{path} {body}: {answer}");
    }
}

/// The rest of a copy: the rows' ids by table, and the last line.
fn rest(copy: &mut LineStream) -> (Vec<(String, i64)>, Value) {
    let mut rows = Vec::new();
    loop {
        let line = copy.next_change();
        match line["type"].as_str() {
            Some("row") => {
                let table = line["table"].as_str().expect("a table").to_owned();
                rows.push((table, line["new"]["id"].as_i64().expect("an id")));
            }
            Some("end" | "error") => return (rows, line),
            _ => {}
        }
    }
}

#[test]
fn a_copy_holds_its_tables_until_it_is_whole() {
    let cluster = Cluster::start_steady(1);
    cluster.sql(&format!(
        "CREATE TABLE large (id int PRIMARY KEY, note text); CREATE TABLE small (id int PRIMARY KEY); \
         INSERT INTO large SELECT g, repeat('x', 1000) FROM generate_series(1, {ROWS}) AS g; \
         INSERT INTO small SELECT generate_series(1, 10)"
    ));
    channel(&cluster, &[json!({"table": "large"}), json!({"table": "small"})]);
    let port = cluster.node(1).api_port();
    let mut copy = LineStream::open(port, "/channels/shop/dump", "application/x-ndjson").expect("a copy");
    copy.next_change();
    // The client takes nothing now; `small` was not opened yet. Its rows must not go before they are copied.
    let mut other = cluster.connect(1).expect("a session");
    let refused =
        other.batch_execute("SET lock_timeout = '500ms'; TRUNCATE small").expect_err("TRUNCATE went through");
    assert_eq!(refused.code().map(|code| code.code()), Some("55P03"), "{refused:?}");
    let (rows, last) = rest(&mut copy);
    assert_eq!((&last["type"], &last["rows"]), (&json!("end"), &json!(ROWS + 10)), "{last}");
    assert_eq!(rows.iter().filter(|(table, _)| table == "small").count(), 10);
    // Whoever goes away lets them go.
    let mut copy = LineStream::open(port, "/channels/shop/dump", "application/x-ndjson").expect("a copy");
    copy.next_change();
    drop(copy);
    other.batch_execute("SET lock_timeout = '60s'; TRUNCATE small").expect("the tables are still held");
}

#[test]
fn a_copy_filters_by_what_was_meant_though_columns_were_renamed() {
    let cluster = Cluster::start_steady(1);
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, region int, zone int); \
         INSERT INTO orders VALUES (1, 1, 2), (2, 2, 1), (3, 1, 1)",
    );
    channel(&cluster, &[json!({"table": "orders", "where": "region = 1 -- only ours"})]);
    let port = cluster.node(1).api_port();
    let mut copy = LineStream::open(port, "/channels/shop/dump", "application/x-ndjson").expect("a copy");
    let (rows, last) = rest(&mut copy);
    assert_eq!(last["type"], "end", "{last}");
    assert_eq!(rows.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1, 3]);
    // The names change places: what is captured goes by the column that was meant, the words mean the other one.
    cluster.sql(
        "ALTER TABLE orders RENAME region TO old_region; ALTER TABLE orders RENAME zone TO region; \
         ALTER TABLE orders RENAME old_region TO zone",
    );
    let mut copy = LineStream::open(port, "/channels/shop/dump", "application/x-ndjson").expect("a copy");
    let (rows, last) = rest(&mut copy);
    assert_eq!(last["type"], "end", "{last}");
    assert_eq!(rows.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1, 3]);
}
