//! What the log of channel `_logger` says of indexes, and where among the changes.

use pgquorum_tests::{LogServer, PATIENCE, await_answer, expect_log, run, take_log};

/// A server whose channel is the one that tells of indexes.
fn server() -> LogServer {
    let log = LogServer::start("");
    // It has one already, whose log the tests read.
    log.server.sql("UPDATE quorum.channel SET name = '_logger'");
    log
}

fn about(table: &str, tag: &str, id: u32, unique: bool, fields: &[&str]) -> String {
    let fields: Vec<String> = fields.iter().map(|field| format!(r#"\"{field}\""#)).collect();
    let fields = fields.join(", ");
    format!(
        r#"{{"op":"ddl","table":"{table}","tag":"{tag}","sql":"{{\"id\": {id}, \"fields\": [{fields}], \"method\": \"btree\", \"unique\": {unique}}}"}}"#
    )
}

fn statement(table: &str, sql: &str) -> String {
    format!(r#"{{"op":"ddl","table":"{table}","tag":"ALTER TABLE","sql":"{sql}"}}"#)
}

#[test]
fn indexes_that_come_and_go_are_told_of() {
    let log = server();
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, a int, b text, c text); CREATE INDEX first ON t (a);
            CREATE UNIQUE INDEX ON t (b, a); CREATE INDEX ON t (lower(b))",
    );
    let index = |id: u32, unique: bool, fields: &[&str]| about("t", "INDEX", id, unique, fields);
    let unindex = |id: u32, unique: bool, fields: &[&str]| about("t", "UNINDEX", id, unique, fields);
    expect_log(
        c,
        "SELECT quorum.track('t', '_logger')",
        &[
            r#"{"op":"ddl","table":"t","tag":"TRACK","sql":""}"#,
            &index(1000, false, &["a"]),
            &index(1001, true, &["b", "a"]),
        ],
    );
    // In its place among the changes; and what is rolled back was not there.
    expect_log(
        c,
        "BEGIN; INSERT INTO t VALUES (1, 1, 'x'); CREATE INDEX ON t (c); UPDATE t SET c = 'y';
         SAVEPOINT s; CREATE INDEX ON t (c, a); ROLLBACK TO s; DELETE FROM t; COMMIT",
        &[
            r#"{"op":"insert","table":"t","key":{"id":1},"new":{"id":1,"a":1,"b":"x","c":null}}"#,
            &index(1002, false, &["c"]),
            r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"a":1,"b":"x","c":"y"}}"#,
            r#"{"op":"delete","table":"t","key":{"id":1}}"#,
        ],
    );
    // Those that are made in several transactions, in the last one. Another id of PostgreSQL's, another name, or another one
    // beside it that is alike, is nothing new.
    expect_log(c, "CREATE INDEX CONCURRENTLY later ON t (id, a)", &[&index(1004, false, &["id", "a"])]);
    for nothing in [
        "REINDEX INDEX CONCURRENTLY later",
        "REINDEX TABLE CONCURRENTLY t",
        "ALTER INDEX later RENAME TO sooner",
        "CREATE INDEX CONCURRENTLY twin ON t (id, a DESC)",
        "DROP INDEX CONCURRENTLY sooner",
        "DROP INDEX t_lower_idx",
    ] {
        expect_log(c, nothing, &[]);
    }
    expect_log(c, "DROP INDEX CONCURRENTLY twin", &[&unindex(1004, false, &["id", "a"])]);
    let [rewritten, dropped, renamed] =
        ["ALTER COLUMN a TYPE bigint", "DROP COLUMN c", "RENAME COLUMN b TO d"]
            .map(|what| format!("ALTER TABLE t {what}"));
    expect_log(c, &rewritten, &[&statement("t", &rewritten)]);
    expect_log(c, &dropped, &[&unindex(1002, false, &["c"]), &statement("t", &dropped)]);
    expect_log(
        c,
        &renamed,
        &[&statement("t", &renamed), &unindex(1001, true, &["b", "a"]), &index(1005, true, &["d", "a"])],
    );
    expect_log(c, "DROP INDEX first", &[&unindex(1000, false, &["a"])]);
    // The rest goes with the table.
    expect_log(c, "SELECT quorum.untrack('t')", &[r#"{"op":"ddl","table":"t","tag":"UNTRACK","sql":""}"#]);
    expect_log(c, "DROP INDEX t_b_a_idx", &[]);
}

#[test]
fn of_two_that_are_alike_and_made_at_once_one_is_told_of() {
    let log = server();
    let (c, other) = (&mut log.connect(), &mut log.connect());
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, a int); SELECT quorum.track('t', '_logger'); SET lock_timeout = '2min'",
    );
    take_log(c);
    run(other, "BEGIN; CREATE INDEX one ON t (a)");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| run(c, "CREATE INDEX two ON t (a)"));
        let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^CREATE INDEX'";
        await_answer(&mut log.connect(), PATIENCE, waits, "1");
        run(other, "COMMIT");
        second.join().expect("the second one is made");
    });
    assert_eq!(take_log(other), [about("t", "INDEX", 1000, false, &["a"])]);
    // The second one is an index nevertheless.
    expect_log(other, "DROP INDEX one", &[]);
    expect_log(other, "DROP INDEX two", &[&about("t", "UNINDEX", 1000, false, &["a"])]);
}
