//! What is captured of which table: columns, filters, partitions, types, and what statements do to tracked tables.

use pgquorum_tests::{LogServer, expect_log, refused, run, take_log};

#[test]
fn columns_and_filters() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        r#"CREATE TABLE t (id int PRIMARY KEY, v int, secret text, twice int GENERATED ALWAYS AS (v * 2) STORED);
           SELECT quorum.track('t', 'c', columns => '{v,id}', "where" => 'v > 10 AND secret IS NOT NULL')"#,
    );
    take_log(c);
    expect_log(
        c,
        "INSERT INTO t VALUES (1, 5, 's'), (2, 20, 's'), (3, 20, NULL)",
        &[r#"{"op":"insert","table":"t","key":{"id":2},"new":{"id":2,"v":20}}"#],
    );
    // Across the filter's edge: rows appear and vanish.
    expect_log(
        c,
        "UPDATE t SET v = 11 WHERE id = 1",
        &[r#"{"op":"insert","table":"t","key":{"id":1},"new":{"id":1,"v":11}}"#],
    );
    expect_log(
        c,
        "UPDATE t SET v = 12 WHERE id = 1",
        &[r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"v":12}}"#],
    );
    expect_log(
        c,
        "UPDATE t SET secret = NULL WHERE id = 1",
        &[r#"{"op":"delete","table":"t","key":{"id":1}}"#],
    );
    expect_log(c, "UPDATE t SET v = 1 WHERE id = 3; DELETE FROM t WHERE id IN (1, 3)", &[]);
    expect_log(c, "DELETE FROM t", &[r#"{"op":"delete","table":"t","key":{"id":2}}"#]);
    refused(c, "ALTER TABLE t DROP COLUMN secret", "55006", "filter");
    refused(c, "ALTER TABLE t DROP COLUMN twice, ALTER COLUMN v TYPE numeric", "55006", "filter");
    run(c, "ALTER TABLE t RENAME COLUMN v TO w");
    take_log(c);
    expect_log(
        c,
        "INSERT INTO t VALUES (4, 20, 's')",
        &[r#"{"op":"insert","table":"t","key":{"id":4},"new":{"id":4,"w":20}}"#],
    );

    // Old images: nothing but keys that change, or all.
    run(
        c,
        "CREATE TABLE u (id int PRIMARY KEY, v int); SELECT quorum.track('u', 'c', old_image => 'none');
            INSERT INTO u VALUES (1, 1)",
    );
    take_log(c);
    run(c, "UPDATE u SET v = 2");
    let plain: Vec<u8> = c.query_one("SELECT data FROM quorum_log.log_1_1", &[]).expect("a row").get(0);
    take_log(c);
    run(c, "UPDATE u SET id = 2");
    let changed: Vec<u8> = c.query_one("SELECT data FROM quorum_log.log_1_1", &[]).expect("a row").get(0);
    assert!(plain.len() < changed.len(), "the old key is there when it is another one");
    assert_eq!(take_log(c), [r#"{"op":"update","table":"u","key":{"id":1},"new":{"id":2,"v":2}}"#]);
    run(
        c,
        "CREATE TABLE w (a int, b text); SELECT quorum.track('w', 'c', old_image => 'full');
            INSERT INTO w VALUES (1, 'x')",
    );
    take_log(c);
    expect_log(
        c,
        "UPDATE w SET a = 2",
        &[r#"{"op":"update","table":"w","old":{"a":1,"b":"x"},"new":{"a":2,"b":"x"}}"#],
    );
}

#[test]
fn partitions() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         CREATE TABLE p2 (v text, part int NOT NULL, gone int, id int NOT NULL); ALTER TABLE p2 DROP COLUMN gone;
         ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2);
         SELECT quorum.track('p', 'c', \"where\" => 'id < 1000')",
    );
    take_log(c);
    let insert = |id: i32, part: i32| {
        format!(
            r#"{{"op":"insert","table":"p","key":{{"id":{id},"part":{part}}},"new":{{"id":{id},"part":{part},"v":"x"}}}}"#
        )
    };
    let delete =
        |id: i32, part: i32| format!(r#"{{"op":"delete","table":"p","key":{{"id":{id},"part":{part}}}}}"#);
    expect_log(
        c,
        "INSERT INTO p VALUES (1, 1, 'x'), (2, 2, 'x'), (2000, 2, 'x'); INSERT INTO p2 VALUES ('x', 2, 3)",
        &[&insert(1, 1), &insert(2, 2), &insert(3, 2)],
    );
    // From one partition to another.
    expect_log(c, "UPDATE p SET part = 2 WHERE id = 1", &[&delete(1, 1), &insert(1, 2)]);
    run(c, "CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)");
    let created = take_log(c);
    assert!(created.len() == 1 && created[0].contains("CREATE TABLE p3 PARTITION OF p"), "{created:?}");
    expect_log(c, "INSERT INTO p3 VALUES (4, 3, 'x')", &[&insert(4, 3)]);
    // What empties a partition deletes its rows; what empties the table is one entry.
    expect_log(c, "TRUNCATE p3", &[&delete(4, 3)]);
    expect_log(c, "TRUNCATE p", &[r#"{"op":"truncate","table":"p"}"#]);
    expect_log(
        c,
        "BEGIN; INSERT INTO p VALUES (5, 2, 'x'); TRUNCATE p2; COMMIT",
        &[&insert(5, 2), &delete(5, 2)],
    );
    // Whether rows come or go with a partition, the tag says.
    let about = |tag: &str, sql: &str| format!(r#"{{"op":"ddl","table":"p","tag":"{tag}","sql":"{sql}"}}"#);
    let attach = "ALTER TABLE p ATTACH PARTITION p4 FOR VALUES IN (4)";
    run(c, "CREATE TABLE p4 (LIKE p INCLUDING ALL)");
    expect_log(c, attach, &[&about("ALTER TABLE", attach)]);
    expect_log(c, "INSERT INTO p4 VALUES (6, 4, 'x')", &[&insert(6, 4)]);
    // A foreign key has triggers of its own, which go with the partition.
    run(c, "CREATE TABLE refers (id int, part int, FOREIGN KEY (id, part) REFERENCES p)");
    take_log(c);
    let detach = "ALTER TABLE p DETACH PARTITION p4";
    expect_log(c, detach, &[&about("DETACH PARTITION", detach)]);
    run(c, "DROP TABLE refers");
    take_log(c);
    expect_log(c, attach, &[&about("ATTACH PARTITION", attach)]);
    expect_log(c, detach, &[&about("DETACH PARTITION", detach)]);
    expect_log(c, "INSERT INTO p4 VALUES (7, 4, 'x'); TRUNCATE p4; DROP TABLE p4", &[]);
    expect_log(c, "DROP TABLE p3", &[&about("DROP PARTITION", "DROP TABLE p3")]);
    refused(c, "SELECT quorum.track('p1', 'c')", "42710", "already");
    refused(c, "CREATE UNLOGGED TABLE p5 PARTITION OF p FOR VALUES IN (5)", "55006", "unlogged");
    run(c, "SELECT quorum.untrack('p'); INSERT INTO p VALUES (8, 1, 'x'); TRUNCATE p1");
    assert_eq!(take_log(c), [r#"{"op":"ddl","table":"p","tag":"UNTRACK","sql":""}"#]);
}

/// Whoever changes the parent of a partition locks it first, so a writer of the partition does not wait for it.
#[test]
fn writing_a_partition_needs_no_lock_on_its_parent() {
    let log = LogServer::start("");
    let (c, other) = (&mut log.connect(), &mut log.connect());
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 (v text, id int PRIMARY KEY); ALTER TABLE p ATTACH PARTITION p1 DEFAULT;
         SELECT quorum.track('p', 'c'); INSERT INTO p VALUES (1, 'a'), (2, 'b')",
    );
    take_log(c);
    run(c, "BEGIN; LOCK TABLE ONLY p");
    run(other, "SET lock_timeout = '10s'; DELETE FROM p1 WHERE id = 1");
    run(c, "COMMIT");
    run(other, "DELETE FROM p1");
    let deleted = |id: u32| format!(r#"{{"op":"delete","table":"p","key":{{"id":{id}}}}}"#);
    assert_eq!(take_log(c), [deleted(1), deleted(2)]);
}

#[test]
fn statements_on_tracked_tables() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c')");
    take_log(c);
    expect_log(
        c,
        "BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD COLUMN w int DEFAULT 7; UPDATE t SET v = 'b';
         ALTER TABLE t RENAME TO t2; INSERT INTO t2 VALUES (2); COMMIT",
        &[
            r#"{"op":"insert","table":"t","key":{"id":1},"new":{"id":1,"v":"a"}}"#,
            r#"{"op":"ddl","table":"t","tag":"ALTER TABLE","sql":"ALTER TABLE t ADD COLUMN w int DEFAULT 7"}"#,
            r#"{"op":"update","table":"t","key":{"id":1},"new":{"id":1,"v":"b","w":7}}"#,
            r#"{"op":"ddl","table":"t","tag":"RENAME","sql":"ALTER TABLE t RENAME TO t2"}"#,
            r#"{"op":"ddl","table":"t2","tag":"ALTER TABLE","sql":"ALTER TABLE t RENAME TO t2"}"#,
            r#"{"op":"insert","table":"t2","key":{"id":2},"new":{"id":2,"v":null,"w":7}}"#,
        ],
    );
    // A statement that is rolled back leaves neither an entry nor its schema.
    expect_log(
        c,
        "BEGIN; SAVEPOINT a; ALTER TABLE t2 DROP COLUMN w; INSERT INTO t2 VALUES (3); ROLLBACK TO a;
         INSERT INTO t2 VALUES (3, 'c', 1); COMMIT",
        &[r#"{"op":"insert","table":"t2","key":{"id":3},"new":{"id":3,"v":"c","w":1}}"#],
    );
    // Without the event trigger the next writer notices.
    run(c, "SET session_replication_role = replica; ALTER EVENT TRIGGER pgquorum_ddl DISABLE; ALTER TABLE t2 ADD COLUMN x int;
            ALTER EVENT TRIGGER pgquorum_ddl ENABLE ALWAYS; RESET session_replication_role");
    expect_log(
        c,
        "BEGIN; SAVEPOINT a; INSERT INTO t2 VALUES (4); ROLLBACK TO a; INSERT INTO t2 VALUES (5); COMMIT",
        &[r#"{"op":"insert","table":"t2","key":{"id":5},"new":{"id":5,"v":null,"w":7,"x":null}}"#],
    );
    run(c, "CREATE SCHEMA s");
    expect_log(
        c,
        "ALTER TABLE t2 SET SCHEMA s; ALTER SCHEMA s RENAME TO s2",
        &[
            r#"{"op":"ddl","table":"t2","tag":"RENAME","sql":"ALTER TABLE t2 SET SCHEMA s"}"#,
            r#"{"op":"ddl","schema":"s","table":"t2","tag":"ALTER TABLE","sql":"ALTER TABLE t2 SET SCHEMA s"}"#,
            r#"{"op":"ddl","schema":"s","table":"t2","tag":"RENAME","sql":"ALTER SCHEMA s RENAME TO s2"}"#,
            r#"{"op":"ddl","schema":"s2","table":"t2","tag":"ALTER SCHEMA","sql":"ALTER SCHEMA s RENAME TO s2"}"#,
        ],
    );
    run(c, "DELETE FROM s2.t2 WHERE id = 5");
    assert_eq!(take_log(c), [r#"{"op":"delete","schema":"s2","table":"t2","key":{"id":5}}"#]);
    // Its triggers stay, and stay on.
    refused(c, "DROP TRIGGER pgquorum_row ON s2.t2", "55006", "trigger");
    refused(c, "ALTER TABLE s2.t2 DROP CONSTRAINT t_pkey", "55006", "no key");
    refused(c, "ALTER TABLE s2.t2 SET UNLOGGED", "55006", "unlogged");
    run(c, "ALTER TABLE s2.t2 DISABLE TRIGGER ALL");
    take_log(c);
    run(c, "DELETE FROM s2.t2 WHERE id = 3");
    assert_eq!(take_log(c), [r#"{"op":"delete","schema":"s2","table":"t2","key":{"id":3}}"#]);
    run(c, "DROP SCHEMA s2 CASCADE");
    assert_eq!(
        take_log(c),
        [r#"{"op":"ddl","schema":"s2","table":"t2","tag":"DROP SCHEMA","sql":"DROP SCHEMA s2 CASCADE"}"#]
    );
    let left: i64 = c.query_one("SELECT count(*) FROM quorum.tracked_table", &[]).expect("a count").get(0);
    assert_eq!(left, 0);
}

/// Whatever is under way: tables are what they were before.
#[test]
fn tables_are_usable_without_the_extension() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY); SELECT quorum.track('t', 'c')");
    refused(c, "DROP EXTENSION pgquorum", "2BP01", "pgquorum");
    let other = &mut log.connect();
    run(other, "INSERT INTO t VALUES (1)");
    run(
        c,
        "BEGIN; INSERT INTO t VALUES (2); DROP EXTENSION pgquorum CASCADE; INSERT INTO t VALUES (3); COMMIT",
    );
    for client in [c, other] {
        run(client, "INSERT INTO t SELECT max(id) + 1 FROM t; UPDATE t SET id = -id WHERE id = 1");
        run(client, "BEGIN; TRUNCATE t; ALTER TABLE t ADD COLUMN more int; DROP TABLE t; ROLLBACK");
    }
    let mut again = log.connect();
    run(
        &mut again,
        "CREATE EXTENSION pgquorum; SELECT quorum.create_channel('c'); SELECT quorum.track('t', 'c')",
    );
    take_log(&mut again);
    run(&mut again, "DELETE FROM t WHERE id = 3");
    assert_eq!(take_log(&mut again), [r#"{"op":"delete","table":"t","key":{"id":3}}"#]);
}

/// Whatever the session's settings: what the log says of a value is, read back, the value.
#[test]
fn values_of_all_types_come_back() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    let types = include_str!("types.txt").lines().filter_map(|line| line.split_once('|'));
    let types: Vec<(&str, &str)> = types.map(|(kind, value)| (kind.trim(), value.trim())).collect();
    run(
        c,
        "CREATE TYPE mood AS ENUM ('sad', 'it''s ok'); CREATE DOMAIN positive AS int CHECK (value > 0);
         CREATE DOMAIN short AS varchar(5); CREATE TYPE pair AS (a int, b text, c timestamptz, d regclass);
         CREATE TYPE span AS RANGE (subtype = float8); CREATE TABLE named (x int);",
    );
    let columns: Vec<String> =
        types.iter().enumerate().map(|(at, (kind, _))| format!("c{at} {kind}")).collect();
    let values: Vec<&str> = types.iter().map(|(_, value)| *value).collect();
    run(
        c,
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY, {}); SELECT quorum.track('t', 'c')",
            columns.join(", ")
        ),
    );
    take_log(c);
    run(
        c,
        "SET DateStyle = 'German, DMY'; SET IntervalStyle = iso_8601; SET extra_float_digits = -5;
         SET bytea_output = escape; SET TimeZone = 'America/St_Johns'",
    );
    run(c, &format!("INSERT INTO t VALUES (1, {})", values.join(", ")));
    let seen: String = c
        .query_one("SELECT concat_ws(' ', current_setting('DateStyle'), current_setting('TimeZone'), now()::text ~ '^\\d\\d\\.')", &[])
        .expect("the settings")
        .get(0);
    assert_eq!(seen, "German, DMY America/St_Johns t", "the session's settings are as they were");
    let mut reader = log.connect();
    let lines = take_log(&mut reader);
    let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    for (at, (kind, value)) in types.iter().enumerate() {
        let shown = &line["new"][format!("c{at}")];
        let text = match shown {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        // Blanks between the parts of a JSON text mean nothing, and this test's own parser drops them.
        let plain = if *kind == "json" { "jsonb::text" } else { "text" };
        let same = format!(
            "SELECT CASE WHEN $1::text IS NULL THEN c{at} IS NULL ELSE c{at}::{plain} = ($1::text::{kind})::{plain} END FROM t"
        );
        let same: bool =
            reader.query_one(&same, &[&text]).unwrap_or_else(|e| panic!("{kind}: {text:?}: {e:?}")).get(0);
        assert!(same, "{kind} {value}: the log says {text:?}");
    }
    // Who may not see them does not change how names are written.
    let at = types.iter().position(|(kind, _)| *kind == "regclass").expect("regclass is in the list");
    assert_eq!(line["new"][format!("c{at}")], "public.named");
}
