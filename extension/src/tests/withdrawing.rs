//! What changes take back what is known of statements: at once, with the commit.

use super::sessions::*;

/// Learns a statement, makes a change in another session, and sees that the statement is not served any more.
fn withdraws(client: &mut Client, sql: &str, change: &str) {
    let mut other = session();
    let path = value(client, "SHOW search_path");
    learn(client, sql);
    run(&mut other, &format!("SET search_path = {path}"));
    run(&mut other, &format!("BEGIN; {change}"));
    assert!(is_served(client, sql), "{change}: not before the commit");
    run(&mut other, "COMMIT");
    assert!(!is_served(client, sql), "{change} should withdraw {sql}");
}

/// The opposite.
fn leaves(client: &mut Client, sql: &str, change: &str) {
    let mut other = session();
    learn(client, sql);
    run(&mut other, change);
    assert!(is_served(client, sql), "{change} should not withdraw {sql}");
}

#[test]
fn functions() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "with_a");
    let stable = "CREATE OR REPLACE FUNCTION with_a.f(int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'";
    run(&mut client, stable);
    let sql = "SELECT with_a.f(1)";
    withdraws(&mut client, sql, &stable.replace("STABLE", "VOLATILE"));
    repeat(&mut client, 3, sql);
    assert!(!is_served(&mut client, sql), "it is not proven any more");
    withdraws_after(&mut client, stable, sql);
    withdraws(&mut client, sql, "ALTER FUNCTION with_a.f(int) VOLATILE");
    withdraws_after(&mut client, "ALTER FUNCTION with_a.f(int) STABLE", sql);
    withdraws(
        &mut client,
        sql,
        "CREATE FUNCTION with_a.f(bigint) RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    );
    withdraws_after(&mut client, "ALTER FUNCTION with_a.f(bigint) RENAME TO g", sql);
    leaves(
        &mut client,
        sql,
        "CREATE FUNCTION with_a.h(bigint) RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    );
    withdraws(&mut client, sql, "ALTER FUNCTION with_a.h(bigint) RENAME TO f");
    withdraws_after(&mut client, "ALTER FUNCTION with_a.f(bigint) RENAME TO h", sql);
    leaves(&mut client, sql, "BEGIN; ALTER FUNCTION with_a.f(int) VOLATILE; ROLLBACK");
    withdraws(&mut client, sql, "DROP FUNCTION with_a.f(int)");
    run(&mut client, "DROP SCHEMA with_a CASCADE");
}

/// After the change the statement can be learned again.
fn withdraws_after(client: &mut Client, change: &str, sql: &str) {
    run(client, change);
    learn(client, sql);
}

#[test]
fn views_rules_and_policies() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "with_b");
    run(
        &mut client,
        "SET search_path = with_b;
         CREATE TABLE t (id int, name text);
         CREATE VIEW v AS SELECT id, name FROM t;
         CREATE VIEW w AS SELECT id FROM v;
         CREATE FUNCTION vol() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    );
    withdraws(
        &mut client,
        "SELECT id FROM w",
        "CREATE OR REPLACE VIEW v AS SELECT id + vol() * 0 AS id, name FROM t",
    );
    repeat(&mut client, 3, "SELECT id FROM w");
    assert!(!is_served(&mut client, "SELECT id FROM w"));
    withdraws_after(&mut client, "CREATE OR REPLACE VIEW v AS SELECT id, name FROM t", "SELECT id FROM w");
    withdraws(&mut client, "SELECT name FROM v", "CREATE RULE r AS ON INSERT TO v DO INSTEAD NOTHING");
    withdraws(
        &mut client,
        "SELECT name FROM v",
        "CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER g INSTEAD OF UPDATE ON v FOR EACH ROW EXECUTE FUNCTION trg()",
    );
    withdraws(&mut client, "SELECT name FROM v", "DROP RULE r ON v");
    withdraws(&mut client, "SELECT name FROM t", "ALTER TABLE t ENABLE ROW LEVEL SECURITY");
    withdraws(&mut client, "SELECT name FROM t", "CREATE POLICY p ON t USING (id > 0)");
    withdraws(&mut client, "SELECT name FROM t", "DROP POLICY p ON t");
    withdraws(&mut client, "SELECT name FROM t", "ALTER TABLE t ADD COLUMN more int");
    run(&mut client, "DROP SCHEMA with_b CASCADE");
}

#[test]
fn names_that_can_mean_something_new() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "with_c");
    clean(&mut client, "with_c_first");
    run(
        &mut client,
        "SET search_path = with_c_first, with_c;
         CREATE TABLE with_c.things (id int);
         CREATE TYPE with_c.kind AS ENUM ('a', 'b')",
    );
    let sql = "SELECT id FROM things";
    leaves(&mut client, sql, "CREATE TABLE with_c_first.other_things (id int)");
    leaves(&mut client, sql, "CREATE TEMP TABLE things (id int)");
    leaves(&mut client, sql, "CREATE INDEX i ON with_c_first.other_things (id)");
    withdraws(&mut client, sql, "CREATE VIEW with_c_first.things AS SELECT 1 AS id");
    withdraws(&mut client, sql, "DROP VIEW with_c_first.things");
    withdraws(&mut client, sql, "ALTER TABLE with_c_first.other_things RENAME TO things");
    withdraws(
        &mut client,
        sql,
        "ALTER TABLE with_c_first.things SET SCHEMA with_c_first; ALTER TABLE with_c_first.things RENAME TO x",
    );
    withdraws(&mut client, "SELECT 'a'::kind", "CREATE DOMAIN with_c_first.kind AS text");
    run(
        &mut client,
        "CREATE FUNCTION with_c.same(int, int) RETURNS bool STABLE LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR with_c.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = with_c.same)",
    );
    withdraws(
        &mut client,
        "SELECT id FROM things WHERE id === 1",
        "CREATE FUNCTION with_c.same(int, text) RETURNS bool STABLE LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR with_c_first.=== (LEFTARG = int, RIGHTARG = text, FUNCTION = with_c.same)",
    );
    run(&mut client, "DROP SCHEMA with_c, with_c_first CASCADE");
}

#[test]
fn inheritors_and_casts() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "with_d");
    run(
        &mut client,
        "SET search_path = with_d;
         CREATE TABLE parent (id int) PARTITION BY RANGE (id);
         CREATE TABLE child PARTITION OF parent FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
    );
    let sql = "SELECT id FROM parent";
    withdraws(&mut client, sql, "CREATE TABLE grandchild PARTITION OF child FOR VALUES FROM (0) TO (10)");
    withdraws(&mut client, sql, "ALTER TABLE child DETACH PARTITION grandchild");
    withdraws(&mut client, sql, "ALTER TABLE child ATTACH PARTITION grandchild FOR VALUES FROM (0) TO (10)");
    withdraws(&mut client, sql, "DROP TABLE grandchild");
    run(
        &mut client,
        "CREATE TYPE pair AS (a int, b int);
         CREATE FUNCTION of_pair(pair) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'",
    );
    withdraws(&mut client, sql, "CREATE CAST (pair AS int) WITH FUNCTION of_pair(pair)");
    run(&mut client, "DROP SCHEMA with_d CASCADE");
}

#[test]
fn whatever_the_isolation_level_and_the_savepoints_are() {
    let _alone = alone();
    let (mut client, mut other) = (session(), session());
    clean(&mut client, "with_e");
    run(&mut client, "CREATE TABLE with_e.t (id int); CREATE TABLE with_e.u (id int)");
    run(&mut other, "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM with_e.u");
    learn(&mut client, "SELECT id FROM with_e.t");
    run(&mut other, "ALTER TABLE with_e.t ADD COLUMN a int; COMMIT");
    assert!(!is_served(&mut client, "SELECT id FROM with_e.t"));
    learn(&mut client, "SELECT id FROM with_e.t");
    run(&mut other, "BEGIN; SAVEPOINT s; ALTER TABLE with_e.t ADD COLUMN b int; RELEASE s; COMMIT");
    assert!(!is_served(&mut client, "SELECT id FROM with_e.t"));
    // Two at the same time.
    let mut third = session();
    learn(&mut client, "SELECT t.id, u.id FROM with_e.t, with_e.u");
    run(&mut other, "BEGIN; ALTER TABLE with_e.t ADD COLUMN c int");
    run(&mut third, "BEGIN; ALTER TABLE with_e.u ADD COLUMN c int");
    run(&mut other, "COMMIT");
    run(&mut third, "COMMIT");
    assert!(!is_served(&mut client, "SELECT t.id, u.id FROM with_e.t, with_e.u"));
    // In a procedure that commits.
    learn(&mut client, "SELECT id FROM with_e.t");
    run(
        &mut other,
        "DO $$ BEGIN ALTER TABLE with_e.t ADD COLUMN d int; COMMIT; PERFORM id FROM with_e.t; END $$",
    );
    assert!(!is_served(&mut client, "SELECT id FROM with_e.t"));
    run(&mut client, "DROP SCHEMA with_e CASCADE");
}

#[test]
fn a_withdrawal_that_cannot_be_made_withdraws_everything() {
    let _alone = alone();
    let (mut client, mut other, mut locker) = (session(), session(), session());
    clean(&mut client, "with_f");
    run(&mut client, "CREATE TABLE with_f.t (id int)");
    learn(&mut client, "SELECT id FROM with_f.t");
    learn(&mut client, "SELECT 'with_f'");
    run(&mut locker, "BEGIN; LOCK TABLE quorum.readonly_statement IN SHARE MODE");
    run(&mut other, "SET lock_timeout = '100ms'; ALTER TABLE with_f.t ADD COLUMN a int");
    assert!(!is_served(&mut client, "SELECT id FROM with_f.t"));
    run(&mut locker, "COMMIT");
    await_until("the rest is served again", || {
        repeat(&mut client, 1, "SELECT 'with_f'");
        is_served(&mut client, "SELECT 'with_f'")
    });
    learn(&mut client, "SELECT id FROM with_f.t");
    run(&mut client, "DROP SCHEMA with_f CASCADE");
}

#[test]
fn what_sessions_have_prepared_is_proven_again() {
    let _alone = alone();
    let (mut client, mut other) = (session(), session());
    clean(&mut client, "with_g");
    run(&mut client, "CREATE TABLE with_g.t (id int)");
    let sql = "SELECT id AS with_g_word FROM with_g.t WHERE id = $1";
    let prepared = client.prepare(sql).expect("prepared");
    let execute = |client: &mut Client| {
        client.query(&prepared, &[&1]).expect("it runs");
    };
    // By now its plan is kept.
    (0..10).for_each(|_| execute(&mut client));
    await_until("it is served", || is_served(&mut other, sql));
    // PostgreSQL sees no reason to plan it again.
    run(&mut other, "CREATE TABLE with_g.with_g_word (id int)");
    assert!(!is_served(&mut other, sql));
    await_until("it is served again", || {
        execute(&mut client);
        is_served(&mut other, sql)
    });
    // And when it does see one.
    run(&mut other, "ALTER TABLE with_g.t ADD COLUMN a int");
    assert!(!is_served(&mut other, sql));
    await_until("it is served again", || {
        execute(&mut client);
        is_served(&mut other, sql)
    });
    run(&mut client, "DROP SCHEMA with_g CASCADE");
}

#[test]
fn what_a_transaction_has_not_committed_is_not_learned() {
    let _alone = alone();
    let (mut client, mut other) = (session(), session());
    clean(&mut client, "with_h");
    run(
        &mut client,
        "CREATE FUNCTION with_h.f() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'",
    );
    let sql = "SELECT with_h.f()";
    repeat(&mut other, 2, sql);
    await_until("it is known", || !standing(&mut other, sql).is_empty());
    run(&mut client, "BEGIN; ALTER FUNCTION with_h.f() STABLE");
    repeat(&mut client, 3, sql);
    run(&mut client, "ROLLBACK");
    repeat(&mut other, 2, sql);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert!(!is_served(&mut other, sql));
    run(&mut client, "DROP SCHEMA with_h CASCADE");
}
