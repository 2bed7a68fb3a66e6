//! Every way of changing rows is in the log, once, in order, and only if it was committed.

use pgquorum_tests::{LogServer, expect_log, run, take_log};

/// An insert, as the log shows it.
fn inserted(table: &str, row: &str) -> String {
    let key = row.split(',').next().unwrap_or("").trim_end_matches('}');
    format!(r#"{{"op":"insert","table":"{table}","key":{key}}},"new":{row}}}"#)
}

#[test]
fn all_statements_are_captured() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE late (id int PRIMARY KEY, other int REFERENCES late DEFERRABLE INITIALLY DEFERRED);
         SELECT quorum.track(x, 'c') FROM unnest('{t,child,late}'::regclass[]) AS x",
    );
    take_log(c);
    expect_log(
        c,
        "INSERT INTO t VALUES (1, 'a'), (2, NULL)",
        &[&inserted("t", r#"{"id":1,"v":"a"}"#), &inserted("t", r#"{"id":2,"v":null}"#)],
    );
    expect_log(
        c,
        "INSERT INTO t VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        &[r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"v":"b"}}"#],
    );
    expect_log(c, "INSERT INTO t VALUES (1, 'b') ON CONFLICT DO NOTHING", &[]);
    expect_log(
        c,
        "INSERT INTO child VALUES (10, 1), (11, 2)",
        &[&inserted("child", r#"{"id":10,"parent":1}"#), &inserted("child", r#"{"id":11,"parent":2}"#)],
    );
    // The key changes, and the cascade follows.
    expect_log(
        c,
        "UPDATE t SET id = 5 WHERE id = 1",
        &[
            r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":5,"v":"b"}}"#,
            r#"{"op":"update","table":"child","key":{"id":10},"new":{"id":10,"parent":5}}"#,
        ],
    );
    expect_log(
        c,
        "DELETE FROM t WHERE id = 2",
        &[
            r#"{"op":"delete","table":"t","key":{"id":2}}"#,
            r#"{"op":"delete","table":"child","key":{"id":11}}"#,
        ],
    );
    expect_log(
        c,
        "MERGE INTO t USING (VALUES (5, 'm'), (6, 'n')) AS s (id, v) ON t.id = s.id
         WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)",
        &[
            r#"{"op":"update","table":"t","key":{"id":5},"new":{"id":5,"v":"m"}}"#,
            &inserted("t", r#"{"id":6,"v":"n"}"#),
        ],
    );
    expect_log(
        c,
        "TRUNCATE t CASCADE",
        &[r#"{"op":"truncate","table":"t"}"#, r#"{"op":"truncate","table":"child"}"#],
    );
    let mut copy = c.copy_in("COPY t FROM STDIN").expect("COPY begins");
    std::io::Write::write_all(&mut copy, b"1\tx\n2\ty\n").expect("rows are sent");
    copy.finish().expect("COPY ends");
    assert_eq!(take_log(c), [inserted("t", r#"{"id":1,"v":"x"}"#), inserted("t", r#"{"id":2,"v":"y"}"#)]);
    expect_log(
        c,
        "INSERT INTO late VALUES (1, 2); INSERT INTO late VALUES (2, 1)",
        &[&inserted("late", r#"{"id":1,"other":2}"#), &inserted("late", r#"{"id":2,"other":1}"#)],
    );
    // Also where ordinary triggers do not fire.
    expect_log(
        c,
        "SET session_replication_role = replica; DELETE FROM t WHERE id = 1; RESET session_replication_role",
        &[r#"{"op":"delete","table":"t","key":{"id":1}}"#],
    );
    // A trigger that waits for the commit writes into the same transaction.
    run(
        c,
        "CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO child VALUES (NEW.id + 100, NULL); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER more AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION more()",
    );
    expect_log(
        c,
        "BEGIN; INSERT INTO t VALUES (7, 'd'); INSERT INTO late VALUES (3, NULL); COMMIT",
        &[
            &inserted("t", r#"{"id":7,"v":"d"}"#),
            &inserted("late", r#"{"id":3,"other":null}"#),
            &inserted("child", r#"{"id":107,"parent":null}"#),
        ],
    );
}

#[test]
fn only_what_is_committed_is_captured() {
    // With so little memory that changes wait in a file, and without.
    for memory in ["64kB", "8MB"] {
        let log = LogServer::start(&format!("pgquorum.capture_memory = {memory}"));
        let c = &mut log.connect();
        run(c, "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c')");
        take_log(c);
        expect_log(c, "BEGIN; INSERT INTO t VALUES (1); ROLLBACK", &[]);
        let ids = |lines: Vec<String>| -> Vec<i64> {
            let id = |line: &String| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                line["key"]["id"].as_i64().expect("an id")
            };
            lines.iter().map(id).collect()
        };
        let rows = |from: i64, to: i64| {
            format!("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series({from}, {to}) AS i;")
        };
        let sql = format!(
            "BEGIN; {} SAVEPOINT a; {} SAVEPOINT b; {} RELEASE b; ROLLBACK TO a; {} SAVEPOINT c; {} RELEASE c;
             SAVEPOINT d; {} SAVEPOINT e; {} ROLLBACK TO d; {} COMMIT",
            rows(1, 1000),
            rows(1001, 2000),
            rows(2001, 3000),
            rows(3001, 3100),
            rows(3101, 4000),
            rows(4001, 4300),
            rows(4301, 5000),
            rows(5001, 5001),
        );
        run(c, &sql);
        let expected: Vec<i64> = (1..=1000).chain(3001..=4000).chain([5001]).collect();
        assert_eq!(ids(take_log(c)), expected);
        let stored: i64 = c.query_one("SELECT count(*) FROM t", &[]).expect("a count").get(0);
        assert_eq!(stored as usize, expected.len());

        // Savepoints that a function makes, and an error in the middle of a statement.
        run(
            c,
            "DO $$ BEGIN FOR i IN 6001..6010 LOOP
                 BEGIN INSERT INTO t VALUES (i), (CASE WHEN i % 2 = 0 THEN i ELSE i + 10000 END);
                 EXCEPTION WHEN unique_violation THEN NULL; END;
             END LOOP; END $$",
        );
        let odd: Vec<i64> = (6001..=6010).step_by(2).flat_map(|i| [i, i + 10000]).collect();
        assert_eq!(ids(take_log(c)), odd);

        for (end, seen) in [("COMMIT", vec![7001, 7002]), ("ROLLBACK", vec![])] {
            run(c, "DELETE FROM t; ");
            take_log(c);
            run(c, "BEGIN; INSERT INTO t VALUES (7001), (7002); PREPARE TRANSACTION 'p'");
            assert_eq!(take_log(&mut log.connect()), Vec::<String>::new(), "nothing is seen before");
            run(c, &format!("{end} PREPARED 'p'"));
            assert_eq!(ids(take_log(c)), seen, "{end}");
        }
    }
}

#[test]
fn rows_that_do_not_fit_a_page_and_values_that_did_not_change() {
    let log = LogServer::start("pgquorum.capture_memory = 64kB");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, v int, doc text, small text);
         ALTER TABLE t ALTER doc SET STORAGE EXTERNAL;
         SELECT quorum.track('t', 'c')",
    );
    take_log(c);
    run(c, "INSERT INTO t VALUES (1, 1, repeat('0123456789', 50000), 's')");
    let lines = take_log(c);
    assert_eq!(
        lines,
        [inserted("t", &format!(r#"{{"id":1,"v":1,"doc":"{}","small":"s"}}"#, "0123456789".repeat(50_000)))]
    );
    expect_log(
        c,
        "UPDATE t SET v = 2",
        &[
            r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"v":2,"small":"s"},"unchanged":["doc"]}"#,
        ],
    );
    run(c, "UPDATE t SET doc = doc || '!'");
    assert!(take_log(c)[0].ends_with(r#"9!","small":"s"}}"#));
    expect_log(
        c,
        "UPDATE t SET doc = 'short'",
        &[r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"v":2,"doc":"short","small":"s"}}"#],
    );
    // Whole old rows hold old large values, too.
    run(c, "SELECT quorum.untrack('t'); SELECT quorum.track('t', 'c', old_image => 'full')");
    run(c, "UPDATE t SET doc = repeat('ab', 5000)");
    take_log(c);
    run(c, "DELETE FROM t");
    assert_eq!(
        take_log(c),
        [format!(
            r#"{{"op":"delete","table":"t","key":{{"id":1}},"old":{{"id":1,"v":2,"doc":"{}","small":"s"}}}}"#,
            "ab".repeat(5000)
        )]
    );
}

#[test]
fn origin_and_times_are_recorded() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'c')");
    take_log(c);
    run(c, "SET pgquorum.origin = 'berlin'; SET pgquorum.origin_commit_time = '2001-02-03 04:05:06+00'");
    run(c, "INSERT INTO t VALUES (1)");
    let data: Vec<u8> = c.query_one("SELECT data FROM quorum_log.log_1_1", &[]).expect("a row").get(0);
    let header = pgquorum_change::header(&data).expect("a chunk").expect("its header");
    assert_eq!((header.origin, header.origin_commit_us), (Some("berlin"), Some(981_173_106_000_000)));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_micros() as i64;
    assert!((now - header.commit_us).abs() < 60_000_000);
    let error = c
        .batch_execute("SET pgquorum.origin_commit_time = 'yesterday noon, perhaps'")
        .expect_err("that is no time");
    assert_eq!(error.code(), Some(&postgres::error::SqlState::INVALID_DATETIME_FORMAT));
}
