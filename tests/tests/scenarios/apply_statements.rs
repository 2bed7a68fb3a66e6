//! What is done at the source is there at the target, whatever kind of statement it was.

use pgquorum_tests::{Applier, LogServer, run};

/// A source and a target with the same tables, of which the source tracks those that are named.
pub fn pair(sql: &str, tracked: &[&str]) -> (LogServer, LogServer, Applier) {
    let (source, target) = (LogServer::start(""), LogServer::start(""));
    run(&mut source.connect(), sql);
    run(&mut target.connect(), sql);
    for table in tracked {
        run(&mut source.connect(), &format!("SELECT quorum.track('{table}', 'c')"));
    }
    let applier = Applier::new(&source, &target, "");
    (source, target, applier)
}

/// What a change needs is given back when it is done: the server says so where it is not.
pub fn assert_tidy(target: &LogServer) {
    let log = target.server.log();
    let bad = log
        .lines()
        .find(|line| line.contains("leak") || line.contains("PANIC") || line.contains("not owned by"));
    assert_eq!(bad, None);
}

#[test]
fn all_statements_are_applied() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE apart (id int PRIMARY KEY, parent int REFERENCES t)",
        &["t", "child"],
    );
    let all = &["t", "child"];
    a.follow("INSERT INTO t VALUES (1, 'a'), (2, NULL)", all);
    a.follow("INSERT INTO t VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v", all);
    a.follow("INSERT INTO child VALUES (10, 1), (11, 2)", all);
    a.follow("UPDATE t SET id = 5 WHERE id = 1", all);
    a.follow("DELETE FROM t WHERE id = 2", all);
    a.follow(
        "MERGE INTO t USING (VALUES (5, 'm'), (6, 'n')) AS s (id, v) ON t.id = s.id
         WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.v)",
        all,
    );
    a.follow("UPDATE t SET v = NULL; UPDATE t SET v = 'x' || id", all);
    // Everything in one transaction: a row that is made, changed, renamed, deleted and made again.
    a.follow(
        "BEGIN; INSERT INTO t VALUES (20, 'a'); UPDATE t SET v = 'b' WHERE id = 20; UPDATE t SET id = 21 WHERE id = 20;
         DELETE FROM t WHERE id = 21; INSERT INTO t VALUES (21, 'c'); INSERT INTO t VALUES (20, 'd'); COMMIT",
        all,
    );
    a.follow(
        "BEGIN; INSERT INTO t VALUES (30, 'a'); SAVEPOINT s; INSERT INTO t VALUES (31, 'b'); ROLLBACK TO s;
         INSERT INTO t VALUES (32, 'c'); RELEASE s; COMMIT",
        all,
    );
    // Keys change places.
    a.follow(
        "BEGIN; UPDATE t SET id = -id; UPDATE t SET id = 50 + id; UPDATE t SET id = id + 100; COMMIT",
        all,
    );
    a.follow("TRUNCATE t CASCADE", all);
    a.follow("INSERT INTO t VALUES (1, 'a'); INSERT INTO child VALUES (1, 1)", all);
    a.follow("BEGIN; INSERT INTO t VALUES (2, 'b'); TRUNCATE t, child, apart; INSERT INTO t VALUES (3, 'c'); COMMIT", all);
    // A table here refers to it that is not followed.
    a.follow("INSERT INTO t VALUES (4, 'd')", all);
    run(&mut a.target, "INSERT INTO apart VALUES (1, 4)");
    a.follow("TRUNCATE t, child, apart", all);
    assert_eq!(pgquorum_tests::rows(&mut a.target, "apart"), "(1,4)", "it is none of ours");
    assert_tidy(&target);
}

#[test]
fn all_types_are_applied() {
    let (_source, target, mut a) = pair(
        r#"CREATE TYPE mood AS ENUM ('sad', 'happy');
           CREATE TYPE pair AS (a int, "b c" text);
           CREATE DOMAIN positive AS int NOT NULL CHECK (VALUE > 0);
           CREATE TABLE t (id bigint PRIMARY KEY, a smallint, b int, c bigint, d numeric, e numeric(10,2), f real, g double precision,
               h bool, i text, j varchar(10), k char(5), l bytea, m date, n time, o timetz, p timestamp, q timestamptz,
               r interval, s uuid, t json, u jsonb, v int[], w text[], x inet, y macaddr, z bit(4), aa varbit, ab point, ac box,
               ad int4range, ae mood, af pair, ag positive, ah xml, ai money, aj tsvector, ak oid, al regclass, am "char", an name,
               ao mood[], ap pair[], aq int4multirange, ar hstore_like)"#
            .replace(", ar hstore_like", "")
            .as_str(),
        &["t"],
    );
    run(
        &mut a.source,
        "SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; SET timezone = 'Asia/Tokyo'",
    );
    run(
        &mut a.target,
        "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET timezone = 'America/Lima'; SET extra_float_digits = -3",
    );
    a.follow(
        r#"INSERT INTO t VALUES (1, -32768, -2147483648, -9223372036854775808, 'NaN', 12345678.91, '-Infinity', 0.1::float8 + 0.2,
               true, E'a\tb\\c"d''é€😀', 'abc', 'ab', '\x00ff10', '2001-02-03 BC', '24:00', '01:02:03.456+05:30', 'infinity',
               '2001-02-03 04:05:06.789+09', '-1 year -2 mons +3 days -04:05:06.7', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
               '{"a":  [1, 2], "b": null}', '{"a": [1, 2.50], "b": "é"}', '{{1,NULL},{3,4}}', '{"a,b","c\"d",NULL,""}', '10.0.0.1/8',
               '08:00:2b:01:02:03', B'1010', B'10101', '(1.5,-2)', '(1,2),(3,4)', '[1,10)', 'happy', '(1,"x, y")', 7,
               '<a>b</a>', '12.34', '''a'':1 ''b'':2', 42, 'pg_class', 'x', 'name', '{sad,happy}', ARRAY[(1,'"')::pair], '{[1,2),[5,7)}')"#,
        &["t"],
    );
    a.follow("INSERT INTO t (id, ag) VALUES (2, 1)", &["t"]);
    a.follow("UPDATE t SET f = 1e30, g = 4.9e-324, d = 123456789012345678901234567890.123456789, c = 9223372036854775807, i = ''", &["t"]);
    a.follow(
        "UPDATE t SET q = 'infinity', m = '5874897-12-31', r = '178000000 years', b = NULL, ae = 'sad'",
        &["t"],
    );
    a.follow("DELETE FROM t", &["t"]);
    assert_tidy(&target);
}

#[test]
fn large_values_and_those_that_did_not_change() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE t (id int PRIMARY KEY, v int, doc text, small text); ALTER TABLE t ALTER doc SET STORAGE EXTERNAL",
        &["t"],
    );
    a.follow(
        "INSERT INTO t SELECT i, 1, repeat('0123456789' || i, 50000), 's' FROM generate_series(1, 3) AS i",
        &["t"],
    );
    a.follow("UPDATE t SET v = 2", &["t"]);
    a.follow("UPDATE t SET id = id + 10, small = NULL", &["t"]);
    a.follow("UPDATE t SET doc = doc || '!' WHERE id = 11; UPDATE t SET doc = NULL WHERE id = 12", &["t"]);
    // One change in many calls.
    a.batch_bytes = 1;
    a.follow("UPDATE t SET doc = repeat('ab', 100000), v = v + 1; UPDATE t SET v = v + 1", &["t"]);
    assert_tidy(&target);
}

#[test]
fn a_large_transaction_comes_in_many_calls() {
    let (_source, target, mut a) = pair("CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]);
    let applied = a.follow(
        "BEGIN; INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 30000) AS i; UPDATE t SET v = v || '!' WHERE id % 3 = 0;
         DELETE FROM t WHERE id % 5 = 0; COMMIT; INSERT INTO t VALUES (0, 'next')",
        &["t"],
    );
    assert_eq!((applied.transactions, applied.changes), (2, 30_000 + 10_000 + 6_000 + 1));
    assert_eq!(applied.conflicts, 0);
    assert_tidy(&target);
}

#[test]
fn columns_are_matched_by_name_and_computed_where_they_are_computed() {
    let (source, target) = (LogServer::start(""), LogServer::start(""));
    run(
        &mut source.connect(),
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b text, twice int);
         SELECT quorum.track('t', 'c')",
    );
    run(
        &mut target.connect(),
        "CREATE TABLE t (more text DEFAULT 'local', twice int GENERATED ALWAYS AS (a * 2) STORED, gone int, b text,
             a bigint, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now(), n serial);
         ALTER TABLE t DROP COLUMN gone",
    );
    let mut a = Applier::new(&source, &target, "");
    run(
        &mut a.source,
        "INSERT INTO t (a, b, twice) VALUES (1, 'x', 7), (2, 'y', 8); UPDATE t SET a = 5 WHERE id = 2",
    );
    a.pull();
    let here = pgquorum_tests::rows(&mut a.target, "(SELECT id, a, b, twice, more, at IS NULL, n FROM t)");
    assert_eq!(here, "(1,1,x,2,local,f,1)\n(2,5,y,10,local,f,2)");
    run(&mut a.target, "UPDATE t SET more = 'mine'");
    run(&mut a.source, "UPDATE t SET b = 'z'");
    a.pull();
    let here = pgquorum_tests::rows(&mut a.target, "(SELECT id, a, b, twice, more FROM t)");
    assert_eq!(here, "(1,1,z,2,mine)\n(2,5,z,10,mine)");
    assert_tidy(&target);
}

#[test]
fn partitioned_tables_are_followed_into_their_partitions() {
    let columns = "(id int, region int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)";
    let (source, target) = (LogServer::start(""), LogServer::start(""));
    run(
        &mut source.connect(),
        &format!(
            "CREATE TABLE t {columns}; CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t3 PARTITION OF t DEFAULT;
             SELECT quorum.track('t', 'c')"
        ),
    );
    // Other partitions, with columns in another order.
    run(
        &mut target.connect(),
        &format!(
            "CREATE TABLE t {columns}; CREATE TABLE a (v text, gone int, region int NOT NULL, id int NOT NULL);
             ALTER TABLE a DROP COLUMN gone; ALTER TABLE t ATTACH PARTITION a FOR VALUES IN (1);
             CREATE TABLE b PARTITION OF t DEFAULT PARTITION BY HASH (region); CREATE TABLE b0 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE b1 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        ),
    );
    let mut a = Applier::new(&source, &target, "");
    a.follow("INSERT INTO t SELECT i, i % 6, 'v' || i FROM generate_series(1, 60) AS i", &["t"]);
    a.follow("UPDATE t SET v = v || '!' WHERE id % 2 = 0; DELETE FROM t WHERE id % 7 = 0", &["t"]);
    // Rows move between partitions, at the source or here only.
    a.follow("UPDATE t SET region = region + 1", &["t"]);
    a.follow("UPDATE t SET region = 1 - region WHERE region < 2; UPDATE t SET id = id + 100", &["t"]);
    a.follow("BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 1, 'x'); COMMIT", &["t"]);
    assert_tidy(&target);
}
