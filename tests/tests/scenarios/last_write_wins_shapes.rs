//! The last write wins also where tables are partitioned, here and there in other ways, and where keys have other types.

use pgquorum_tests::{rows, text};

use super::apply_statements::assert_tidy;
use super::last_write_wins::Both;

/// Runs one of two texts, by where it is.
fn where_it_is(berlin: &str, paris: &str) -> String {
    format!("DO $do$ BEGIN IF quorum.origin_name() = 'berlin' THEN {berlin}; ELSE {paris}; END IF; END $do$")
}

/// Both sides write the same rows, and hear of each other late.
fn collide(b: &mut Both, key: &str) {
    b.in_berlin(&format!(
        "INSERT INTO t ({key}, v) SELECT i, i % 4, 'first' FROM generate_series(1, 24) AS i"
    ));
    b.settle();
    b.assert_same("t", "writes of one side");
    b.in_berlin(&format!(
        "UPDATE t SET v = 'berlin' WHERE id IN (1, 2, 3); DELETE FROM t WHERE id IN (4, 5); UPDATE t SET {1} = 3 WHERE id IN (6, 8);
         INSERT INTO t ({0}, v) VALUES (30, 1, 'berlin'), (31, 2, 'berlin'); DELETE FROM t WHERE id = 9; INSERT INTO t ({0}, v) VALUES (9, 1, 'again')",
        key,
        key.split(", ").last().expect("two columns")
    ));
    b.in_paris(&format!(
        "UPDATE t SET v = 'paris' WHERE id IN (2, 4); DELETE FROM t WHERE id IN (3, 6); UPDATE t SET {1} = 1 WHERE id = 8;
         INSERT INTO t ({0}, v) VALUES (30, 1, 'paris'), (32, 3, 'paris'); UPDATE t SET v = 'paris' WHERE id = 9",
        key,
        key.split(", ").last().expect("two columns")
    ));
    b.settle();
    b.assert_same("t", "both have written");
    let left = "SELECT string_agg(v, ' ' ORDER BY id) FROM t WHERE id IN (1, 2, 4, 9, 30, 31, 32)";
    assert_eq!(text(&mut b.there.target, left), "berlin paris paris paris paris berlin paris");
    let gone = "SELECT count(*)::text FROM t WHERE id IN (3, 5)";
    assert_eq!(text(&mut b.there.target, gone), "0");
    b.in_berlin("UPDATE t SET v = 'last'; DELETE FROM t WHERE id > 30");
    b.settle();
    b.assert_same("t", "one after the other");
    assert_eq!(text(&mut b.back.target, "SELECT string_agg(DISTINCT v, ' ') FROM t"), "last");
    let rejected = "SELECT count(*)::text FROM quorum.rejected_changes";
    assert_eq!(text(&mut b.there.target, rejected) + &text(&mut b.back.target, rejected), "00");
    assert_tidy(&b.berlin);
    assert_tidy(&b.paris);
}

const COLUMNS: &str = "(id int, region int, v text, PRIMARY KEY (id, region))";

#[test]
fn partitions_may_be_others_on_each_side() {
    let berlin =
        "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, 2); CREATE TABLE t3 PARTITION OF t DEFAULT";
    let paris = "CREATE TABLE a (v text, gone int, region int NOT NULL, id int NOT NULL); ALTER TABLE a DROP COLUMN gone;
        ALTER TABLE t ATTACH PARTITION a FOR VALUES IN (1); CREATE TABLE b PARTITION OF t DEFAULT PARTITION BY HASH (region);
        CREATE TABLE b0 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE b1 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    let tables =
        format!("CREATE TABLE t {COLUMNS} PARTITION BY LIST (region); {}", where_it_is(berlin, paris));
    collide(&mut Both::start(&tables, &["t"], ""), "id, region");
}

#[test]
fn one_side_may_have_partitions_and_the_other_none() {
    let berlin = format!("CREATE TABLE t {COLUMNS}");
    let paris = format!(
        "CREATE TABLE t {COLUMNS} PARTITION BY RANGE (region); CREATE TABLE low PARTITION OF t FOR VALUES FROM (MINVALUE) TO (2);
         CREATE TABLE high PARTITION OF t FOR VALUES FROM (2) TO (MAXVALUE)"
    );
    collide(&mut Both::start(&where_it_is(&berlin, &paris), &["t"], ""), "id, region");
}

#[test]
fn keys_may_have_types_that_print_the_same() {
    let berlin = "CREATE TABLE t (id int, code varchar(10), v text, PRIMARY KEY (id, code))";
    let paris = "CREATE TABLE t (id bigint, code text, v varchar(100), PRIMARY KEY (code, id))";
    collide(&mut Both::start(&where_it_is(berlin, paris), &["t"], ""), "id, code");
}

#[test]
fn a_key_that_the_other_side_cannot_read_is_kept_and_said() {
    let berlin = "CREATE TABLE t (id bigint PRIMARY KEY, v text)";
    let paris = "CREATE TABLE t (id smallint PRIMARY KEY, v text)";
    let mut b = Both::start(&where_it_is(berlin, paris), &["t"], "");
    b.in_berlin("INSERT INTO t VALUES (1, 'one'), (100000, 'large'), (2, 'two')");
    b.settle();
    assert_eq!(rows(&mut b.there.target, "t"), "(1,one)\n(2,two)");
    let rejected =
        "SELECT string_agg(concat_ws(' ', op, conflict, code, key), ', ') FROM quorum.rejected_changes";
    assert_eq!(text(&mut b.there.target, rejected), r#"insert value 22003 {"id": 100000}"#);
    // Another key altogether: it is not known which row is which.
    b.in_paris("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (v), ADD UNIQUE (id)");
    b.in_berlin("INSERT INTO t VALUES (3, 'more')");
    b.settle();
    let said = text(
        &mut b.there.target,
        "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables",
    );
    assert!(said.starts_with("stopped PQ020 "), "{said}");
    assert_tidy(&b.paris);
}
