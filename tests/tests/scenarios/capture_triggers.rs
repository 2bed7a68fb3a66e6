//! The triggers that capture: where they are, and what is locked to take them away.

use pgquorum_tests::{LogServer, PATIENCE, await_until, expect_log, run, take_log};
use postgres::Client;

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
    let truncate = |table: &str| format!(r#"{{"op":"truncate","table":"{table}"}}"#);
    let insert = |table: &str, id: i32| {
        format!(r#"{{"op":"insert","table":"{table}","key":{{"id":{id}}},"new":{{"id":{id}}}}}"#)
    };
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
    let delete = |id: i32| format!(r#"{{"op":"delete","table":"p","key":{{"id":{id}}}}}"#);
    let update = r#"{"op":"update","table":"p","key":{"id":11},"new":{"id":12}}"#.to_owned();
    expect(c, "TRUNCATE p1", &[delete(7), delete(1), update, insert("p", 7)]);
    let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM ";
    for (table, expected) in [("t", "7 8 9"), ("p", "7 12")] {
        let found = c.query_one(&format!("{rows} {table}"), &[]).expect("the rows");
        assert_eq!(found.get::<_, String>(0), expected);
    }
}
