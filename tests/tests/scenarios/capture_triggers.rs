//! The triggers that capture: where they are, and what is locked to take them away.

use std::collections::BTreeSet;

use pgquorum_tests::{LogServer, PATIENCE, await_until, expect_log, refused, run, take_log};
use postgres::Client;
use serde_json::Value;

/// Several event triggers fire where foreign keys name the table; whichever comes first takes all of ours off.
#[test]
fn a_detached_partition_keeps_no_trigger() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
         CREATE TABLE r (id int REFERENCES p); SELECT quorum.track('p', 'c');
         ALTER TABLE p DETACH PARTITION p1",
    );
    let of = |c: &mut Client, table: &str| -> i64 {
        let sql = "SELECT count(*) FROM quorum.capture_trigger WHERE relid = $1::text::regclass";
        c.query_one(sql, &[&table]).expect("a count").get(0)
    };
    assert_eq!((of(c, "p"), of(c, "p1"), of(c, "p2")), (2, 0, 2));
    take_log(c);
    run(c, "TRUNCATE p1; INSERT INTO p1 VALUES (1)");
    assert!(take_log(c).is_empty());
}

/// What track() has to lock for itself is not waited for in everybody's way.
#[test]
fn tracking_a_table_with_triggers_of_old_holds_up_no_reader() {
    let log = LogServer::start("");
    let (c, reader) = (&mut log.connect(), &mut log.connect());
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY);
         CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()",
    );
    run(reader, "BEGIN; SELECT FROM t");
    let mut admin = log.connect();
    let tracking = std::thread::spawn(move || run(&mut admin, "SELECT quorum.track('t', 'c')"));
    await_until(PATIENCE, "it is waiting", || {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')";
        c.query_one(sql, &[]).expect("an answer").get::<_, bool>(0).then_some(()).ok_or_else(String::new)
    });
    // Whoever queued behind it would wait until the reader ends, which it does after this.
    run(c, "SET lock_timeout = '30s'");
    for _ in 0..20 {
        run(c, "SELECT FROM t");
    }
    run(reader, "COMMIT");
    tracking.join().expect("it is tracked");
}

/// Between a TRUNCATE's entry and what it does, triggers of users write into the tables that it empties. Those rows go with
/// all the others; what is written into them when they are empty stays.
#[test]
fn what_triggers_write_into_a_table_that_is_being_emptied_goes_with_it() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
         SELECT quorum.track(n::regclass, 'c') FROM unnest(ARRAY['t', 'u', 'p']) n;
         CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             EXECUTE format('INSERT INTO %1$I VALUES (5); UPDATE %1$I SET id = id + 1 WHERE id IN (5, 11); DELETE FROM %1$I WHERE id = 6', TG_ARGV[0]);
             RETURN NULL; END $$;
         CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             EXECUTE format('INSERT INTO %I VALUES (7)', TG_ARGV[0]); RETURN NULL; END $$;
         CREATE TRIGGER zz BEFORE TRUNCATE ON t EXECUTE FUNCTION before('t');
         CREATE TRIGGER aa AFTER TRUNCATE ON t EXECUTE FUNCTION after('t');
         CREATE TRIGGER zz BEFORE TRUNCATE ON u EXECUTE FUNCTION before('t');
         CREATE TRIGGER zz BEFORE TRUNCATE ON p EXECUTE FUNCTION before('p');
         CREATE TRIGGER zz BEFORE TRUNCATE ON p1 EXECUTE FUNCTION before('p');
         CREATE TRIGGER aa AFTER TRUNCATE ON p1 EXECUTE FUNCTION after('p');
         INSERT INTO t VALUES (1); INSERT INTO u VALUES (1); INSERT INTO p VALUES (1), (11)",
    );
    take_log(c);
    let expect = |c: &mut Client, statements: &str, expected: &[String]| {
        expect_log(c, statements, &expected.iter().map(String::as_str).collect::<Vec<_>>());
    };
    expect(c, "TRUNCATE t", &[truncate("t"), insert("t", 7)]);
    // The other one's trigger comes when this one's entry is there.
    expect(c, "TRUNCATE t, u", &[truncate("t"), truncate("u"), insert("t", 7)]);
    // In another one's subtransaction, and after it.
    expect(
        c,
        "BEGIN; SAVEPOINT a; TRUNCATE t; RELEASE a; INSERT INTO t VALUES (8); COMMIT",
        &[truncate("t"), insert("t", 7), insert("t", 8)],
    );
    expect(
        c,
        "BEGIN; SAVEPOINT a; TRUNCATE t; ROLLBACK TO a; INSERT INTO t VALUES (9); COMMIT",
        &[insert("t", 9)],
    );
    // Broken off by a trigger that comes later: the table keeps its rows, and what is written next is listed.
    run(
        c,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER zzz BEFORE TRUNCATE ON u EXECUTE FUNCTION fail()",
    );
    expect(
        c,
        "DO $$ BEGIN TRUNCATE u; EXCEPTION WHEN raise_exception THEN INSERT INTO u VALUES (9); END $$",
        &[insert("u", 9)],
    );
    expect(c, "TRUNCATE p", &[truncate("p"), insert("p", 7)]);
    run(c, "INSERT INTO p VALUES (1), (11)");
    take_log(c);
    // One partition: its rows are deleted, and what its trigger does to the other partition's is not left out.
    let update = r#"{"op":"update","table":"p","key":{"id":11},"new":{"id":12}}"#.to_owned();
    expect(c, "TRUNCATE p1", &[delete("p", 7), delete("p", 1), update, insert("p", 7)]);
    let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM ";
    for (table, expected) in [("t", "7 8 9"), ("p", "7 12")] {
        let found = c.query_one(&format!("{rows} {table}"), &[]).expect("the rows");
        assert_eq!(found.get::<_, String>(0), expected);
    }
    what_is_emptied_in_place(c);
}

fn truncate(table: &str) -> String {
    format!(r#"{{"op":"truncate","table":"{table}"}}"#)
}

fn insert(table: &str, id: i32) -> String {
    format!(r#"{{"op":"insert","table":"{table}","key":{{"id":{id}}},"new":{{"id":{id}}}}}"#)
}

fn delete(table: &str, id: i32) -> String {
    format!(r#"{{"op":"delete","table":"{table}","key":{{"id":{id}}}}}"#)
}

/// The same where the table keeps its file, since this transaction or savepoint has made it: PostgreSQL empties it where it is.
fn what_is_emptied_in_place(c: &mut Client) {
    run(
        c,
        "CREATE TABLE s (id int PRIMARY KEY); CREATE TABLE r (id int PRIMARY KEY, v int);
         SELECT quorum.track(n::regclass, 'c') FROM unnest(ARRAY['s', 'r']) n;
         CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             EXECUTE format('INSERT INTO %I VALUES (100)', TG_ARGV[0]); RETURN NULL; END $$;
         CREATE TRIGGER zz BEFORE TRUNCATE ON s EXECUTE FUNCTION leave('s');
         CREATE TRIGGER aa AFTER TRUNCATE ON s EXECUTE FUNCTION after('s');
         CREATE TRIGGER zz BEFORE TRUNCATE ON r EXECUTE FUNCTION leave('r');
         INSERT INTO s VALUES (1); INSERT INTO r VALUES (1, 1)",
    );
    take_log(c);
    let (all, seven) = (|| truncate("s"), || insert("s", 7));
    let s = &mut BTreeSet::from([1]);
    keeps_up(
        c,
        "s",
        s,
        "BEGIN; TRUNCATE s; INSERT INTO s VALUES (1); TRUNCATE s; INSERT INTO s VALUES (2); COMMIT",
        &[all(), seven(), insert("s", 1), all(), seven(), insert("s", 2)],
    );
    // What a savepoint has made is its surroundings' own when it is released, and is not there if it is rolled back.
    keeps_up(
        c,
        "s",
        s,
        "BEGIN; SAVEPOINT a; TRUNCATE s; TRUNCATE s; RELEASE a; TRUNCATE s;
         SAVEPOINT b; TRUNCATE s; TRUNCATE s; ROLLBACK TO b; INSERT INTO s VALUES (3); COMMIT",
        &[all(), seven(), all(), seven(), all(), seven(), insert("s", 3)],
    );
    keeps_up(
        c,
        "s",
        s,
        "DO $$ BEGIN TRUNCATE s; TRUNCATE s;
         BEGIN TRUNCATE s; TRUNCATE s; EXCEPTION WHEN raise_exception THEN NULL; END; END $$",
        &[all(), seven(), all(), seven(), all(), seven(), all(), seven()],
    );
    // Another table's trigger comes when this one's entry is there.
    run(c, "CREATE TRIGGER zzz BEFORE TRUNCATE ON r EXECUTE FUNCTION before('s')");
    keeps_up(
        c,
        "s",
        s,
        "BEGIN; TRUNCATE s; TRUNCATE s, r; COMMIT",
        &[all(), seven(), all(), truncate("r"), seven()],
    );
    // Broken off, in a savepoint and without one (`u` has a trigger that fails).
    run(c, "BEGIN; SAVEPOINT a; TRUNCATE s");
    refused(c, "TRUNCATE s, u", "P0001", "no");
    keeps_up(c, "s", s, "ROLLBACK TO a; INSERT INTO s VALUES (4); COMMIT", &[insert("s", 4)]);
    run(c, "BEGIN; TRUNCATE s");
    refused(c, "TRUNCATE s, u", "P0001", "no");
    refused(c, "TRUNCATE s", "25P02", "aborted");
    keeps_up(c, "s", s, "ROLLBACK; INSERT INTO s VALUES (5)", &[insert("s", 5)]);
    // A table that is written anew, and one that is made and tracked.
    run(c, "DROP TRIGGER zzz ON r; INSERT INTO r VALUES (1, 1)");
    take_log(c);
    let rewrite = "ALTER TABLE r ALTER v TYPE bigint";
    keeps_up(
        c,
        "r",
        &mut BTreeSet::from([1]),
        &format!("BEGIN; {rewrite}; TRUNCATE r; INSERT INTO r VALUES (2, 2); COMMIT"),
        &[
            format!(r#"{{"op":"ddl","table":"r","tag":"ALTER TABLE","sql":"{rewrite}"}}"#),
            truncate("r"),
            r#"{"op":"insert","table":"r","key":{"id":2},"new":{"id":2,"v":2}}"#.to_owned(),
        ],
    );
    keeps_up(
        c,
        "n",
        &mut BTreeSet::new(),
        "BEGIN; CREATE TABLE n (id int PRIMARY KEY); SELECT quorum.track('n', 'c');
         CREATE TRIGGER zz BEFORE TRUNCATE ON n EXECUTE FUNCTION leave('n');
         CREATE TRIGGER aa AFTER TRUNCATE ON n EXECUTE FUNCTION after('n');
         INSERT INTO n VALUES (1); TRUNCATE n; INSERT INTO n VALUES (2); COMMIT",
        &[
            r#"{"op":"ddl","table":"n","tag":"TRACK","sql":""}"#.to_owned(),
            insert("n", 1),
            truncate("n"),
            insert("n", 7),
            insert("n", 2),
        ],
    );
    // Partitions, all of them and one.
    let p = &mut BTreeSet::from([7, 12]);
    let (all, seven) = (|| truncate("p"), || insert("p", 7));
    keeps_up(c, "p", p, "BEGIN; TRUNCATE p; TRUNCATE p; COMMIT", &[all(), seven(), all(), seven()]);
    keeps_up(
        c,
        "p",
        p,
        "BEGIN; TRUNCATE p1; TRUNCATE p1; COMMIT",
        &[delete("p", 7), seven(), delete("p", 7), seven()],
    );
}

/// The statements leave these lines in the log, and a copy of the table that follows it is what the table is.
fn keeps_up(c: &mut Client, table: &str, copy: &mut BTreeSet<i64>, sql: &str, expected: &[String]) {
    run(c, sql);
    let lines = take_log(c);
    assert_eq!(lines, expected, "{sql}");
    for line in &lines {
        let change: Value = serde_json::from_str(line).expect("JSON");
        if change["table"] != table {
            continue;
        }
        let id = |row: &str| change[row]["id"].as_i64().expect("an id");
        match change["op"].as_str().expect("an operation") {
            "truncate" => copy.clear(),
            "insert" => assert!(copy.insert(id("new")), "{line}"),
            "delete" => assert!(copy.remove(&id("key")), "{line}"),
            "ddl" => {}
            other => panic!("{other}"),
        }
    }
    let rows = c.query(&format!("SELECT id::bigint FROM {table}"), &[]).expect("the rows");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<BTreeSet<i64>>(), *copy, "{sql}");
}
