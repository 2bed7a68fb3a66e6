//! Nothing that a user may do ends capture without a word.

use pgquorum_tests::{
    LogServer, PATIENCE, Plain, await_answer, await_until, expect_log, refused, run, take_log, text,
};
use postgres::{Client, NoTls};

#[test]
fn its_triggers_cannot_be_changed_or_doubled() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c');
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); SELECT quorum.track('p', 'c')",
    );
    take_log(c);
    let on_rows = "AFTER INSERT OR UPDATE OR DELETE";
    for sql in [
        format!("CREATE OR REPLACE TRIGGER pgquorum_row {on_rows} ON t FOR EACH ROW EXECUTE FUNCTION nothing()"),
        "CREATE OR REPLACE TRIGGER pgquorum_row AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()".into(),
        format!("CREATE OR REPLACE TRIGGER pgquorum_row {on_rows} ON t FOR EACH ROW WHEN (false) EXECUTE FUNCTION quorum.capture_row()"),
        "CREATE OR REPLACE TRIGGER pgquorum_row AFTER INSERT OR UPDATE OF v OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()".into(),
        format!("CREATE TRIGGER twice {on_rows} ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()"),
        format!("CREATE TRIGGER twice {on_rows} ON p1 FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()"),
        "CREATE OR REPLACE TRIGGER pgquorum_truncate BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION nothing()".into(),
        "ALTER TRIGGER pgquorum_row ON t RENAME TO mine".into(),
        "ALTER TRIGGER pgquorum_row ON p RENAME TO mine".into(),
        "ALTER TRIGGER pgquorum_truncate ON p1 RENAME TO mine".into(),
        "DROP TRIGGER pgquorum_row ON t".into(),
        "DROP TRIGGER pgquorum_truncate ON p1".into(),
    ] {
        refused(c, &sql, "55006", "trigger");
    }
    // Other triggers are its owner's affair, and no news for followers.
    let other = format!("CREATE TRIGGER other {on_rows} ON t FOR EACH ROW EXECUTE FUNCTION nothing()");
    expect_log(c, &format!("{other}; ALTER TRIGGER other ON t RENAME TO o; DROP TRIGGER o ON t"), &[]);
    run(
        c,
        &format!(
            "CREATE OR REPLACE TRIGGER pgquorum_row {on_rows} ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()"
        ),
    );
    let insert = r#"{"op":"insert","table":"t","key":{"id":1},"new":{"id":1,"v":null}}"#;
    expect_log(
        c,
        "SET session_replication_role = replica; INSERT INTO t VALUES (1); RESET session_replication_role",
        &[insert],
    );
    // A statement that looks like one of ours.
    run(c, "ALTER TABLE t DISABLE TRIGGER pgquorum_row, ENABLE ALWAYS TRIGGER pgquorum_truncate");
    take_log(c);
    expect_log(c, "DELETE FROM t", &[r#"{"op":"delete","table":"t","key":{"id":1}}"#]);
    refused(c, "ALTER TABLE t DROP CONSTRAINT t_pkey, ENABLE ALWAYS TRIGGER pgquorum_row", "55006", "no key");
    // Whatever they are called by now: tracking takes them up, and its end takes them away.
    run(
        c,
        "SELECT quorum.untrack('t');
         CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row();
         CREATE TRIGGER b BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION quorum.capture_truncate();
         SELECT quorum.track('t', 'c')",
    );
    take_log(c);
    expect_log(c, "INSERT INTO t VALUES (1)", &[insert]);
    expect_log(c, "DELETE FROM t", &[r#"{"op":"delete","table":"t","key":{"id":1}}"#]);
    run(c, "SELECT quorum.untrack('t'); SELECT quorum.untrack('p')");
    let left: i64 = c
        .query_one(
            "SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('t'::regclass, 'p'::regclass, 'p1'::regclass)",
            &[],
        )
        .expect("a count")
        .get(0);
    assert_eq!(left, 0);
}

#[test]
fn the_log_itself_is_not_rewritten() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'c'); INSERT INTO t VALUES (1)");
    for sql in [
        "VACUUM FULL quorum_log.log_1_1",
        "VACUUM (FREEZE, FULL on) t, quorum_log.log_1_1",
        "VACUUM FULL",
        "VACUUM (TRUNCATE) quorum_log.log_1_1",
        "VACUUM (TRUNCATE true)",
        "TRUNCATE t, quorum_log.log_1_1",
        "ALTER TABLE quorum_log.log_1_1 SET (vacuum_truncate = on)",
        "ALTER TABLE quorum_log.log_1_1 ALTER COLUMN part TYPE bigint",
        "CREATE INDEX ON quorum_log.log_1_1 (order_lsn)",
        "CLUSTER quorum_log.log_1_1 USING an_index",
        "ALTER TABLE quorum_log.log_1_1 RENAME TO mine",
        "ALTER TABLE quorum_log.log_1_1 RENAME COLUMN part TO parts",
        "ALTER TABLE quorum_log.log_1_1 SET SCHEMA public",
        "SET search_path = quorum_log; TRUNCATE log_1_1",
    ] {
        refused(c, sql, "55006", "log_1_1");
        run(c, "RESET search_path");
    }
    refused(c, "ALTER SCHEMA quorum_log RENAME TO mine", "55006", "quorum_log cannot be renamed");
    refused(c, "ALTER SCHEMA quorum RENAME TO mine", "55006", "quorum cannot be renamed");
    run(c, "CREATE SCHEMA mine; ALTER SCHEMA mine RENAME TO yours; DROP SCHEMA yours");
    for sql in [
        "VACUUM",
        "VACUUM FULL t",
        "VACUUM (FREEZE) quorum_log.log_1_1",
        "VACUUM (TRUNCATE off)",
        "VACUUM (FULL off)",
    ] {
        run(c, sql);
    }
    run(c, "ANALYZE; TRUNCATE t; CREATE TABLE log_1_1 (x int); TRUNCATE log_1_1");
    run(c, "VACUUM FULL log_1_1");
    run(c, "SELECT quorum.drop_channel('c')");
    run(c, "VACUUM FULL");
}

#[test]
fn a_truncate_rolled_back_leaves_nothing() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); SELECT quorum.track('p', 'c');
         INSERT INTO p VALUES (1)",
    );
    take_log(c);
    // Rolled back before anything was changed, so the next statement has the same number.
    run(
        c,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER zz BEFORE TRUNCATE ON p EXECUTE FUNCTION fail()",
    );
    expect_log(
        c,
        "DO $$ BEGIN
             BEGIN TRUNCATE p; EXCEPTION WHEN raise_exception THEN NULL; END;
             TRUNCATE p1;
         END $$; DROP TRIGGER zz ON p",
        &[r#"{"op":"delete","table":"p","key":{"id":1}}"#],
    );
    run(c, "INSERT INTO p VALUES (1)");
    take_log(c);
    expect_log(
        c,
        "BEGIN; SAVEPOINT a; TRUNCATE p; ROLLBACK TO a; TRUNCATE p1; COMMIT",
        &[r#"{"op":"delete","table":"p","key":{"id":1}}"#],
    );
}

/// Triggers of users are commands of their own in the middle of it.
#[test]
fn a_truncate_with_triggers_of_users_is_one_entry() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE said (t text);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2, 3);
         SELECT quorum.track('p', 'c'); INSERT INTO p VALUES (1), (2);
         CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN INSERT INTO said VALUES (TG_RELID::regclass::text); RETURN NULL; END $$;
         CREATE TRIGGER aa BEFORE TRUNCATE ON p EXECUTE FUNCTION say();
         CREATE TRIGGER aa BEFORE TRUNCATE ON p1 EXECUTE FUNCTION say();
         CREATE TRIGGER zz BEFORE TRUNCATE ON p2 EXECUTE FUNCTION say()",
    );
    take_log(c);
    expect_log(c, "TRUNCATE p", &[r#"{"op":"truncate","table":"p"}"#]);
    assert_eq!(c.query_one("SELECT count(*) FROM said", &[]).expect("a number").get::<_, i64>(0), 3);
    // One after the other in a transaction: rows that came in between are said to be gone.
    expect_log(
        c,
        "BEGIN; TRUNCATE p; INSERT INTO p VALUES (3); TRUNCATE p2; COMMIT",
        &[
            r#"{"op":"truncate","table":"p"}"#,
            r#"{"op":"insert","table":"p","key":{"id":3},"new":{"id":3}}"#,
            r#"{"op":"delete","table":"p","key":{"id":3}}"#,
        ],
    );
}

#[test]
fn large_keys_are_never_left_out() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (id text PRIMARY KEY, v int); ALTER TABLE t ALTER COLUMN id SET STORAGE EXTERNAL;
         SELECT quorum.track('t', 'c', old_image => 'none'); INSERT INTO t VALUES (repeat('k', 2400), 1)",
    );
    take_log(c);
    let key = "k".repeat(2400);
    expect_log(
        c,
        "UPDATE t SET v = 2",
        &[&format!(r#"{{"op":"update","table":"t","key":{{"id":"{key}"}},"new":{{"id":"{key}","v":2}}}}"#)],
    );
}

/// Others notice at once that a schema or a type has got another name.
#[test]
fn renamed_schemas_and_types_are_noticed() {
    let log = LogServer::start("");
    let (c, other) = (&mut log.connect(), &mut log.connect());
    run(
        c,
        "CREATE SCHEMA s; CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE s.t (id int PRIMARY KEY, m mood);
         SELECT quorum.track('s.t', 'c')",
    );
    run(other, "INSERT INTO s.t VALUES (1, 'sad')");
    run(c, "ALTER SCHEMA s RENAME TO s2");
    take_log(c);
    expect_log(other, "DELETE FROM s2.t", &[r#"{"op":"delete","schema":"s2","table":"t","key":{"id":1}}"#]);
    run(c, "ALTER TYPE mood RENAME TO temper");
    run(other, "INSERT INTO s2.t VALUES (1, 'sad')");
    let data: Vec<u8> = c
        .query_one("SELECT data FROM quorum_log.log_1_1 ORDER BY order_lsn DESC LIMIT 1", &[])
        .expect("a row")
        .get(0);
    let mut decoder = pgquorum_change::Decoder::new();
    let mut found = decoder.feed(&data).expect("a chunk");
    let version = found.next().expect("good").expect("a change").schema_version as i64;
    let newest: i64 = c.query_one("SELECT max(id) FROM quorum.schema_version", &[]).expect("it").get(0);
    assert_eq!(version, newest, "the change names the version with the type's new name");
}

#[test]
fn a_key_is_captured_whole_or_not_at_all() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE t (a int CONSTRAINT k PRIMARY KEY, b int NOT NULL);
         SELECT quorum.track('t', 'c', columns => '{a}');
         CREATE TABLE u (a int NOT NULL, b int); CREATE UNIQUE INDEX u_a ON u (a);
         ALTER TABLE u REPLICA IDENTITY USING INDEX u_a; SELECT quorum.track('u', 'c');
         CREATE TABLE i (a int, b int, PRIMARY KEY (a) INCLUDE (b)); SELECT quorum.track('i', 'c')",
    );
    refused(c, "ALTER TABLE t DROP CONSTRAINT k, ADD PRIMARY KEY (a, b)", "55006", "no key");
    run(c, "INSERT INTO t VALUES (1, 1)");
    // What comes behind the key with INCLUDE does not tell rows apart.
    take_log(c);
    expect_log(
        c,
        "INSERT INTO i VALUES (1, 2)",
        &[r#"{"op":"insert","table":"i","key":{"a":1},"new":{"a":1,"b":2}}"#],
    );
    refused(c, "DROP INDEX u_a", "55006", "no key");
    // It commits before anybody is asked.
    let _ = c.batch_execute("DROP INDEX CONCURRENTLY u_a");
    refused(c, "INSERT INTO u VALUES (1, 1)", "55000", "key");
    run(c, "CREATE UNIQUE INDEX u_b ON u (a); ALTER TABLE u REPLICA IDENTITY USING INDEX u_b");
    take_log(c);
    expect_log(
        c,
        "INSERT INTO u VALUES (1, 2)",
        &[r#"{"op":"insert","table":"u","key":{"a":1},"new":{"a":1,"b":2}}"#],
    );
}

#[test]
fn names_in_other_encodings() {
    let log = LogServer::start("");
    run(&mut log.connect(), "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let dsn = Plain::dsn(&[&log.server]).replace("/postgres?", "/latin?");
    let c = &mut Client::connect(&dsn, NoTls).expect("a session");
    run(c, "CREATE EXTENSION pgquorum; SELECT quorum.create_channel('c')");
    run(
        c,
        r#"CREATE TABLE "maße" (id int PRIMARY KEY, "größe" text);
           SELECT quorum.track('"maße"', 'c', "where" => '"größe" <> ''gemäß''')"#,
    );
    run(c, r#"ALTER TABLE "maße" ALTER COLUMN "größe" SET NOT NULL"#);
    let filter = "SELECT quorum.filter_text(filter, relid) FROM quorum.tracked_table";
    let filter: String = c.query_one(filter, &[]).expect("the filter").get(0);
    assert_eq!(filter, r#"("größe" <> 'gemäß'::text)"#);
    run(c, r#"INSERT INTO "maße" VALUES (1, 'für'), (2, 'gemäß')"#);
    assert_eq!(
        take_log(c),
        [
            r#"{"op":"ddl","table":"maße","tag":"TRACK","sql":""}"#,
            r#"{"op":"ddl","table":"maße","tag":"ALTER TABLE","sql":"ALTER TABLE \"maße\" ALTER COLUMN \"größe\" SET NOT NULL"}"#,
            r#"{"op":"insert","table":"maße","key":{"id":1},"new":{"id":1,"größe":"für"}}"#,
        ]
    );
}

#[test]
fn origins_are_checked_when_they_are_set() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    let long = format!("SET pgquorum.origin = '{}'", "x".repeat(256));
    refused(c, &long, "22023", "origin");
    refused(c, "SET pgquorum.origin_commit_time = 'yesterday noon, perhaps'", "22007", "time zone");
    refused(c, "SET pgquorum.origin_commit_time = 'infinity'", "22023", "origin_commit_time");
    refused(c, "SET pgquorum.origin_commit_time = '294276-12-31 00:00:00+00'", "22023", "origin_commit_time");
    run(
        c,
        "SET pgquorum.origin_commit_time = '2001-02-03 04:05:06+00'; SET pgquorum.origin_commit_time = ''",
    );
    run(c, &format!("SET pgquorum.origin = '{}'", "x".repeat(255)));
}

/// The rows of a partition that is emptied are written one by one; their texts are not kept until the statement ends.
#[test]
fn a_large_partition_is_truncated_in_little_memory() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY, doc jsonb) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100000);
         SELECT quorum.track('p', 'c', old_image => 'full');
         INSERT INTO p SELECT i, '{\"a\": 1}' FROM generate_series(1, 20000) AS i;
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE used bigint; BEGIN
             SELECT sum(total_bytes) INTO used FROM pg_backend_memory_contexts;
             IF used > 12 * 1024 * 1024 THEN RAISE EXCEPTION 'it uses % bytes', used; END IF;
             RETURN NULL;
         END $$;
         CREATE TRIGGER zz BEFORE TRUNCATE ON p1 EXECUTE FUNCTION look()",
    );
    take_log(c);
    run(c, "TRUNCATE p1");
    assert_eq!(take_log(c).len(), 20_000);
}

/// Should something shorten the log all the same, writers must not go where nobody looks any more.
#[test]
fn a_log_that_became_shorter_is_not_written() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c')");
    run(c, "SET client_min_messages = error");
    await_until(PATIENCE, "a writer that finds the log shorter", || {
        run(c, "DELETE FROM t");
        run(c, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 400) AS i");
        // What was read is no longer read the next time.
        run(c, "SELECT quorum.cut('c')");
        run(c, "SELECT quorum.cut('c')");
        run(
            c,
            "ALTER EXTENSION pgquorum DROP TABLE quorum_log.log_1_1;
             TRUNCATE quorum_log.log_1_1;
             ALTER EXTENSION pgquorum ADD TABLE quorum_log.log_1_1",
        );
        // Not if the worker, which looks about once a second, has found it before.
        let Err(error) = c.batch_execute("INSERT INTO t VALUES (0)") else { return Err("none".to_owned()) };
        let error = error.as_db_error().unwrap_or_else(|| panic!("no answer of the server: {error:?}"));
        assert_eq!(error.code().code(), "XX001", "{error:?}");
        assert!(error.message().contains("part of the change log"), "{error:?}");
        Ok(())
    });
    run(c, "SELECT quorum.open_segment(1); INSERT INTO t VALUES (0)");
    let rows: i64 = c.query_one("SELECT count(*) FROM quorum_log.log_1_2", &[]).expect("a count").get(0);
    assert_eq!(rows, 1);
}

/// The lease may end while the log is written.
#[test]
fn the_lease_must_still_hold_when_the_log_is_written() {
    let mut log = LogServer::start("");
    log.server.sql(
        "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'c');
         SELECT quorum.open_epoch(1, 1, 1, '0/1', 1, '{1}')",
    );
    let conf = log.server.dir().join("postgresql.conf");
    let mut lines = std::fs::read_to_string(&conf).expect("the settings");
    lines.push_str("pgquorum.fence = on\npgquorum.fence_grace = 10min\npgquorum.acknowledgement_rule = ''\n");
    std::fs::write(&conf, lines).expect("the settings");
    log.server.crash();

    let holder = &mut log.connect();
    run(
        holder,
        "SELECT quorum.lease_renew(1, 600000); BEGIN; LOCK TABLE quorum_log.log_1_1 IN EXCLUSIVE MODE",
    );
    let mut writer = log.connect();
    let process = text(&mut writer, "SELECT pg_backend_pid()::text");
    let writing =
        std::thread::spawn(move || refused(&mut writer, "INSERT INTO t VALUES (1)", "25006", "lease"));
    let waits = format!("SELECT count(*)::text FROM pg_locks WHERE NOT granted AND pid = {process}");
    await_answer(holder, PATIENCE, &waits, "1");
    // It was valid when the commit began: how much time that takes is nobody's business here.
    run(holder, "SELECT quorum.lease_revoke(1)");
    run(holder, "ROLLBACK");
    writing.join().expect("the writer is refused");
    let rows: i64 = holder.query_one("SELECT count(*) FROM t", &[]).expect("a count").get(0);
    assert_eq!(rows, 0);
}
