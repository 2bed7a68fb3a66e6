//! Tables are changed while they are followed, at the source or here: what fits goes on, what does not stops that table alone.

use pgquorum_tests::{PATIENCE, Pair, await_until};
use serde_json::json;

/// One table for each thing that happens.
const TABLES: &str = "CREATE TABLE fine (id int PRIMARY KEY, v text); CREATE TABLE added (id int PRIMARY KEY, v text);
    CREATE TABLE extra (id int PRIMARY KEY, v text); CREATE TABLE dropped (id int PRIMARY KEY, v text, w text);
    CREATE TABLE lost (id int PRIMARY KEY, v text, w text); CREATE TABLE wide (id int PRIMARY KEY, v int);
    CREATE TABLE named (id int PRIMARY KEY, v text)";
const ALL: [&str; 8] = ["fine", "added", "extra", "dropped", "lost", "wide", "named", "ordered"];

/// Some rows of some columns on both sides.
fn assert_columns(pair: &Pair, table: &str, columns: &str) {
    let sql = format!("SELECT string_agg(concat_ws(' ', {columns}), ', ' ORDER BY id) FROM {table}");
    assert_eq!(pair.target.ask(1, &sql), pair.source.ask(1, &sql), "{columns} of {table}");
}

fn await_all(pair: &Pair, tables: &[&str]) {
    tables.iter().for_each(|table| drop(pair.await_table(table, "following", None)));
}

#[test]
fn columns_come_go_move_and_change_their_types() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("CREATE TABLE ordered (id int PRIMARY KEY, a int, b text)");
    pair.target.sql("CREATE TABLE ordered (b text, id int PRIMARY KEY, a int)");
    for table in ALL {
        pair.source.sql(&format!("INSERT INTO {table} SELECT g, g FROM generate_series(1, 3) AS g"));
    }
    pair.source.sql("UPDATE dropped SET w = 'old'; UPDATE lost SET w = 'old'; UPDATE ordered SET b = 'old'");
    pair.track(&ALL);
    pair.subscribe(&json!({}));
    await_all(&pair, &ALL);
    assert_columns(&pair, "ordered", "a, b");

    pair.target.sql("ALTER TABLE extra ADD e text NOT NULL DEFAULT 'here'; ALTER TABLE lost DROP w");
    pair.source.sql(
        "ALTER TABLE added ADD w int DEFAULT 7; ALTER TABLE dropped DROP w; ALTER TABLE wide ALTER v TYPE bigint; \
         ALTER TABLE named RENAME v TO title",
    );
    pair.source.sql(
        "BEGIN; INSERT INTO fine VALUES (10, 'new'); INSERT INTO added VALUES (10, 'new'); INSERT INTO extra VALUES (10, 'new'); \
         INSERT INTO dropped VALUES (10, 'new'); INSERT INTO lost VALUES (10, 'new', 'new'); INSERT INTO wide VALUES (10, 10); \
         INSERT INTO named VALUES (10, 'new'); INSERT INTO ordered VALUES (10, 10, 'new'); COMMIT; \
         UPDATE extra SET v = 'changed' WHERE id = 1; UPDATE dropped SET v = 'changed' WHERE id = 1; \
         UPDATE ordered SET a = 11 WHERE id = 1; DELETE FROM ordered WHERE id = 2; UPDATE wide SET v = 11 WHERE id = 1",
    );
    for (table, column) in [("added", "w"), ("lost", "w"), ("named", "title")] {
        let message = pair.await_table(table, "stopped", Some("42703"));
        assert!(message.contains(column), "{table}: {message:?}");
    }
    pair.await_applied();
    await_all(&pair, &["fine", "extra", "dropped", "wide", "ordered"]);
    pair.assert_same("fine");
    pair.assert_same("wide");
    for (table, columns) in [("extra", "v"), ("dropped", "v"), ("ordered", "a, b")] {
        assert_columns(&pair, table, columns);
    }
    // What only this side has: the default of new rows, and what was there.
    assert_eq!(pair.target.ask(1, "SELECT string_agg(DISTINCT e, ',') FROM extra"), "here");
    let kept = "SELECT string_agg(coalesce(w, '-'), ',' ORDER BY id) FROM dropped";
    assert_eq!(pair.target.ask(1, kept), "old,old,old,-");

    // A value that does not fit the narrower type here.
    pair.source.sql("INSERT INTO wide VALUES (11, 5000000000); INSERT INTO fine VALUES (11, 'goes on')");
    let message = pair.await_table("wide", "stopped", Some("22003"));
    assert!(message.contains("5000000000"), "{message:?}");
    pair.await_applied();
    pair.assert_same("fine");
    // Mended, each goes on with what it has missed.
    pair.source.sql(
        "UPDATE added SET w = 8 WHERE id = 2; DELETE FROM named WHERE id = 3; UPDATE wide SET v = v + 1",
    );
    pair.target.sql(
        "ALTER TABLE added ADD w int DEFAULT 7; ALTER TABLE named RENAME v TO title; ALTER TABLE wide ALTER v TYPE bigint; \
         ALTER TABLE lost ADD w text",
    );
    ["added", "named", "wide", "lost"].iter().for_each(|table| pair.resume(table, false));
    await_all(&pair, &ALL);
    pair.await_applied();
    ["added", "named", "wide"].iter().for_each(|table| pair.assert_same(table));
    // What was in the column that was dropped here is gone; only a copy brings it back, and that wants the table empty.
    assert_eq!(pair.target.ask(1, "SELECT count(w)::text FROM lost"), "1");
    pair.resume("lost", true);
    let message = pair.await_table("lost", "stopped", Some("55000"));
    assert!(message.contains("holds rows"), "{message:?}");
    pair.target.sql("TRUNCATE lost");
    pair.resume("lost", true);
    await_all(&pair, &["lost"]);
    pair.assert_same("lost");

    // Told to stop at such a change, and told to make it here, too.
    pair.alter(&json!({"ddl": "stop"}));
    pair.source.sql(
        "ALTER TABLE fine ADD x int; INSERT INTO fine VALUES (12, 'x', 1); INSERT INTO wide VALUES (12, 12)",
    );
    let message = pair.await_table("fine", "stopped", Some("PQ017"));
    assert!(message.contains("ALTER TABLE"), "{message:?}");
    pair.await_applied();
    pair.assert_same("wide");
    pair.target.sql("ALTER TABLE fine ADD x int");
    pair.alter(&json!({"ddl": "apply"}));
    pair.resume("fine", false);
    await_all(&pair, &["fine"]);
    pair.source.sql(
        "ALTER TABLE fine ADD y text DEFAULT 'y', ALTER x TYPE bigint; INSERT INTO fine VALUES (13, 'z', 5000000000); \
         ALTER TABLE fine DROP v",
    );
    pair.await_applied();
    pair.assert_same("fine");
}

/// What is changed at the source while a table is not tracked is not in the log: that is said, not passed over.
#[test]
fn a_table_that_is_untracked_stops_until_it_is_copied_again() {
    let pair = Pair::start(
        (1, 1),
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)",
    );
    pair.track(&["t", "u"]);
    pair.subscribe(&json!({"copy": "truncate"}));
    await_all(&pair, &["t", "u"]);
    pair.source.sql("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    pair.source.sql("SELECT quorum.untrack('t')");
    pair.source.sql("UPDATE t SET v = 'unseen' WHERE id = 1; INSERT INTO u VALUES (1)");
    let message = pair.await_table("t", "stopped", Some("PQ016"));
    assert!(message.contains("does not track"), "{message:?}");
    pair.await_applied();
    pair.assert_same("u");
    // Up to there everything was applied.
    assert_eq!(pair.target.ask(1, "SELECT string_agg(v, ',' ORDER BY id) FROM t"), "a,b");
    pair.track(&["t"]);
    await_all(&pair, &["t"]);
    pair.await_applied();
    pair.assert_same("t");
    // Also where that is noticed late: it rests while both happen.
    pair.alter(&json!({"enabled": false}));
    pair.await_rest();
    pair.source.sql("INSERT INTO t VALUES (3, 'c'); SELECT quorum.untrack('t')");
    pair.source.sql("UPDATE t SET v = 'unseen again'; SELECT quorum.track('t', 'shop')");
    pair.source.sql("INSERT INTO t VALUES (4, 'd')");
    pair.alter(&json!({"enabled": true}));
    // It is copied when what was before is applied.
    await_until(PATIENCE, "the rows that were not seen", || {
        let seen = pair.target.try_ask(1, "SELECT string_agg(v, ',' ORDER BY id) FROM t")?;
        if seen == "unseen again,unseen again,unseen again,d" {
            Ok(())
        } else {
            Err(format!("{seen} {:?}", pair.tables()))
        }
    });
    await_all(&pair, &["t"]);
    pair.await_applied();
    pair.assert_same("t");
    // And where another table takes the place of one.
    pair.source.sql("DROP TABLE u; CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (7)");
    pair.track(&["u"]);
    pair.source.sql("INSERT INTO u VALUES (8)");
    await_until(PATIENCE, "the rows of the new one", || {
        let seen = pair.target.try_ask(1, "SELECT string_agg(id::text, ',' ORDER BY id) FROM u")?;
        if seen == "7,8" { Ok(()) } else { Err(format!("{seen} {:?}", pair.tables())) }
    });
}
