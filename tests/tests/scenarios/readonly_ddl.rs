//! What changes a statement's meaning takes it out of what is served, in the same transaction, on the primary and on a
//! standby, and what has nothing to do with it stays.

use pgquorum_tests::{LearningServer, await_served, is_served, known, run, served, server_error};
use postgres::Client;

/// A statement that is served, and DDL after which it may write, or fail on a standby.
struct Case {
    name: &'static str,
    before: &'static str,
    statement: &'static str,
    ddl: &'static str,
}

/// Each has a database schema of its own, `s`, and a second one in front of it, `front`.
const CASES: [Case; 25] = [
    Case {
        name: "a function of SQL is replaced",
        before: "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'",
        statement: "SELECT f(1)",
        ddl: "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO t VALUES ($1) RETURNING id'",
    },
    Case {
        name: "a function of PL/pgSQL is replaced",
        before: "CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END'",
        statement: "SELECT f(1)",
        ddl: "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN INSERT INTO t VALUES ($1); RETURN 1; END'",
    },
    Case {
        name: "a function becomes VOLATILE",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
        statement: "SELECT f()",
        ddl: "ALTER FUNCTION f() VOLATILE",
    },
    Case {
        name: "a function that a condition calls",
        before: "CREATE FUNCTION f(int) RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END'",
        statement: "SELECT count(*) FROM t WHERE f(id)",
        ddl: "ALTER FUNCTION f(int) VOLATILE",
    },
    Case {
        name: "a function that was inlined",
        before: "CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
                 CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT g()'",
        statement: "SELECT f()",
        ddl: "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT nextval(''sq'')::int'",
    },
    Case {
        name: "a function goes, another of its name comes",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'",
        statement: "SELECT f()",
        ddl: "DROP FUNCTION f(); CREATE FUNCTION f() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
    },
    Case {
        name: "a function takes another one's name",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
                 CREATE FUNCTION front.g() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
        statement: "SELECT f()",
        ddl: "ALTER FUNCTION front.g() RENAME TO f",
    },
    Case {
        name: "a function moves into a schema that comes first",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'; CREATE SCHEMA aside;
                 CREATE FUNCTION aside.f() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
        statement: "SELECT f()",
        ddl: "ALTER FUNCTION aside.f() SET SCHEMA front",
    },
    Case {
        name: "a function in a schema that comes first",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'",
        statement: "SELECT f()",
        ddl: "CREATE FUNCTION front.f() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
    },
    Case {
        name: "a function that fits the arguments better",
        before: "CREATE FUNCTION f(bigint) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'",
        statement: "SELECT f(1)",
        ddl: "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
    },
    Case {
        name: "an aggregate's function",
        before: "CREATE FUNCTION f(int, int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END';
                 CREATE AGGREGATE a(int) (sfunc = f, stype = int)",
        statement: "SELECT a(id) FROM t",
        ddl: "ALTER FUNCTION f(int, int) VOLATILE",
    },
    Case {
        name: "an operator's function",
        before: "CREATE FUNCTION f(int, int) RETURNS bool LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
                 CREATE OPERATOR === (leftarg = int, rightarg = int, function = f)",
        statement: "SELECT id FROM t WHERE id === 1",
        ddl: "ALTER FUNCTION f(int, int) VOLATILE",
    },
    Case {
        name: "an operator in a schema that comes first",
        before: "CREATE FUNCTION f(int, int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT true';
                 CREATE OPERATOR === (leftarg = int, rightarg = int, function = f);
                 CREATE FUNCTION w(int, int) RETURNS bool LANGUAGE sql VOLATILE AS 'SELECT true'",
        statement: "SELECT id FROM t WHERE id === 1",
        ddl: "CREATE OPERATOR front.=== (leftarg = int, rightarg = int, function = w)",
    },
    Case {
        name: "a cast",
        before: "CREATE TYPE pair AS (a int, b int);
                 CREATE FUNCTION f(text) RETURNS pair LANGUAGE sql VOLATILE AS 'SELECT (1, 2)::pair'",
        statement: "SELECT (v::pair).a FROM t",
        ddl: "CREATE CAST (text AS pair) WITH FUNCTION f(text)",
    },
    Case {
        name: "a domain's condition",
        before: "CREATE DOMAIN d AS int; CREATE FUNCTION f(int) RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN true; END'",
        statement: "SELECT id::d FROM t",
        ddl: "ALTER DOMAIN d ADD CHECK (f(VALUE))",
    },
    Case {
        name: "a view is replaced",
        before: "CREATE VIEW w AS SELECT 1::bigint AS n",
        statement: "SELECT n FROM w",
        ddl: "CREATE OR REPLACE VIEW w AS SELECT nextval('sq') AS n",
    },
    Case {
        name: "a function below a view",
        before: "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END'; CREATE VIEW w AS SELECT f() AS n;
                 CREATE VIEW w2 AS SELECT n FROM w",
        statement: "SELECT n FROM w2",
        ddl: "ALTER FUNCTION f() VOLATILE",
    },
    Case {
        name: "a table's place is taken by a view",
        before: "CREATE TABLE u (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "DROP TABLE u; CREATE VIEW u AS SELECT nextval('sq') AS n",
    },
    Case {
        name: "a relation in a schema that comes first",
        before: "CREATE TABLE u (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "CREATE VIEW front.u AS SELECT nextval('sq') AS n",
    },
    Case {
        name: "a table is no longer logged",
        before: "CREATE TABLE u (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "ALTER TABLE u SET UNLOGGED",
    },
    Case {
        name: "a child that is not logged",
        before: "CREATE TABLE u (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "CREATE UNLOGGED TABLE child () INHERITS (u)",
    },
    Case {
        name: "a table that is not logged becomes a child",
        before: "CREATE TABLE u (n bigint); CREATE UNLOGGED TABLE child (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "ALTER TABLE child INHERIT u",
    },
    Case {
        name: "a partition that is not logged",
        before: "CREATE TABLE u (n bigint) PARTITION BY RANGE (n); CREATE UNLOGGED TABLE part (n bigint)",
        statement: "SELECT n FROM u",
        ddl: "ALTER TABLE u ATTACH PARTITION part FOR VALUES FROM (0) TO (9)",
    },
    Case {
        name: "a policy",
        before: "CREATE TABLE u (n bigint); ALTER TABLE u ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
                 GRANT USAGE ON SCHEMA s TO reader; GRANT SELECT ON u TO reader;
                 CREATE FUNCTION f() RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN true; END'; SET ROLE reader",
        statement: "SELECT n FROM u",
        ddl: "RESET ROLE; CREATE POLICY p ON u USING (f()); SET ROLE reader",
    },
    Case {
        name: "row security is switched on",
        before: "CREATE TABLE u (n bigint); GRANT USAGE ON SCHEMA s TO reader; GRANT SELECT ON u TO reader;
                 CREATE FUNCTION f() RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN true; END';
                 CREATE POLICY p ON u USING (f()); SET ROLE reader",
        statement: "SELECT n FROM u",
        ddl: "RESET ROLE; ALTER TABLE u ENABLE ROW LEVEL SECURITY; SET ROLE reader",
    },
];

const UNRELATED: &str = "SELECT count(*) FROM pg_am";

/// Runs a case in a database of its own, so that nothing is left of the one before.
fn check(servers: &LearningServer, case: &Case, number: usize) {
    let Case { name, before, statement, ddl } = case;
    let database = format!("case_{number}");
    let admin = &mut servers.connect();
    run(admin, &format!("CREATE DATABASE {database}"));
    let mut look = servers.primary.connect_to(&database).expect("a session");
    let look = &mut look;
    run(look, "CREATE EXTENSION pgquorum");
    let mut session = servers.primary.connect_to(&database).expect("a session");
    let c = &mut session;
    run(
        c,
        "CREATE SCHEMA s; CREATE SCHEMA front; SET search_path = front, s; CREATE TABLE s.t (id int, v text); CREATE SEQUENCE s.sq",
    );
    // New objects go into the second schema.
    run(c, "SET search_path = s");
    run(c, before);
    run(c, "SET search_path = front, s");
    run(c, statement);
    run(c, UNRELATED);
    await_served(look, statement);
    await_served(look, UNRELATED);

    // What is rolled back has changed nothing.
    run(c, "BEGIN; SET LOCAL search_path = s");
    run(c, ddl);
    run(c, "ROLLBACK");
    run(c, "SET search_path = front, s");
    assert!(is_served(look, statement), "{name}: rolled back: {:?}", known(look, statement));

    run(c, "BEGIN; SET LOCAL search_path = s");
    run(c, ddl);
    assert!(
        is_served(look, statement),
        "{name}: for others nothing has changed yet: {:?}",
        known(look, statement)
    );
    run(c, "COMMIT");
    run(c, "SET search_path = front, s");
    assert!(!is_served(look, statement), "{name}: right after the commit: {:?}", known(look, statement));
    // Which statements a cast concerns cannot be told by their names.
    let spares_others = !ddl.starts_with("CREATE CAST");
    assert!(is_served(look, UNRELATED) || !spares_others, "{name}: {UNRELATED} has nothing to do with it");
    servers.await_replayed();
    let mut standby = servers.standby().connect_to(&database).expect("a session on the standby");
    assert!(!is_served(&mut standby, statement), "{name}: on the standby, as soon as it has the change");
    assert!(
        is_served(&mut standby, UNRELATED) || !spares_others,
        "{name}: on the standby, {UNRELATED} has nothing to do with it"
    );

    // It stays out, whatever it does now. It may fail: that is no harm.
    for _ in 0..3 {
        let _ = c.batch_execute(statement);
    }
    let settled = format!("SELECT {number} AS settled");
    run(c, &settled);
    await_served(look, &settled);
    assert!(!is_served(look, statement), "{name}: learned anew: {:?}", known(look, statement));
    drop(standby);
}

#[test]
fn what_changes_a_statement_takes_it_out_at_once() {
    let servers = LearningServer::with_standby("");
    servers.primary.sql("CREATE ROLE reader");
    for (number, case) in CASES.iter().enumerate() {
        check(&servers, case, number);
    }
}

/// A reader that is replaced by a reader is served again when it was run again.
#[test]
fn what_is_still_harmless_comes_back() {
    let servers = LearningServer::start("");
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    run(c, "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'; CREATE TABLE t (id int)");
    let statement = "SELECT f()";
    for round in 0..5 {
        run(c, statement);
        await_served(look, statement);
        run(
            c,
            &format!("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT {round}'"),
        );
        assert!(!is_served(look, statement), "it is another function now: {:?}", known(look, statement));
    }
    // Statistics, comments and rights change nothing of what a statement does.
    run(c, statement);
    run(c, "SELECT id FROM t");
    await_served(look, statement);
    await_served(look, "SELECT id FROM t");
    let harmless = [
        "ANALYZE t",
        "VACUUM t",
        "CREATE INDEX t_id ON t (id)",
        "COMMENT ON FUNCTION f() IS 'x'",
        "GRANT SELECT ON t TO PUBLIC",
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE elsewhere (n int)",
        "CREATE TEMP TABLE t_of_mine (n int)",
    ];
    for sql in harmless {
        run(c, sql);
    }
    run(c, "SELECT id FROM t");
    run(c, statement);
    run(c, "SELECT 1 AS settled");
    await_served(look, "SELECT 1 AS settled");
    await_served(look, "SELECT id FROM t");
    await_served(look, statement);
}

/// The same text means another table in a session that has a temporary one: this says nothing about all others.
#[test]
fn temporary_objects_of_one_session_do_not_count() {
    let servers = LearningServer::start("");
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    run(c, "CREATE TABLE t (id int)");
    let statement = "SELECT id FROM t";
    run(c, statement);
    await_served(look, statement);
    let other = &mut servers.connect();
    run(other, "CREATE TEMP TABLE t (id int)");
    run(other, statement);
    run(other, "SELECT 1 AS settled");
    await_served(look, "SELECT 1 AS settled");
    assert!(is_served(look, statement), "{:?}", known(look, statement));
    // A statement that only ever read a temporary table is not served to anybody.
    run(other, "CREATE TEMP TABLE mine (id int)");
    run(other, "SELECT id FROM mine");
    run(other, "SELECT 2 AS settled_2");
    await_served(look, "SELECT 2 AS settled_2");
    assert!(!is_served(look, "SELECT id FROM mine"), "{:?}", known(look, "SELECT id FROM mine"));
}

/// The same text in two search paths: it is served only if it is harmless in both, since a driver knows the text alone.
#[test]
fn a_text_that_writes_in_one_search_path_is_not_served() {
    let servers = LearningServer::start("");
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    run(
        c,
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE t (id int);
         CREATE FUNCTION a.f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
         CREATE FUNCTION b.f() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO public.t VALUES (1) RETURNING id'",
    );
    let statement = "SELECT f()";
    run(c, "SET search_path = a");
    run(c, statement);
    await_served(look, statement);
    run(c, "SET search_path = b");
    run(c, statement);
    assert!(!is_served(look, statement), "{:?}", known(look, statement));
    run(c, "SET search_path = a");
    run(c, statement);
    run(c, "SELECT 1 AS settled");
    await_served(look, "SELECT 1 AS settled");
    let rows = known(look, statement);
    let paths: Vec<(&str, &str)> = rows.iter().map(|r| (r.search_path.as_str(), r.how.as_str())).collect();
    assert!(paths.contains(&("a", "proven")) && rows.len() == 2, "{paths:?}");
    assert!(!served(look).contains(&pgquorum_tests::hash_of(statement)));
}

#[test]
fn forgetting_is_for_administrators_and_on_the_primary() {
    let servers = LearningServer::with_standby("");
    let c = &mut servers.connect();
    run(c, "CREATE ROLE somebody; GRANT quorum_reader TO somebody");
    run(c, "SELECT 1 AS here");
    await_served(c, "SELECT 1 AS here");
    run(c, "SET ROLE somebody");
    assert_eq!(server_error(c, "SELECT quorum.forget_statements()").as_deref(), Some("42501"));
    let rows = known(c, "SELECT 1 AS here");
    assert!(rows.iter().all(|row| row.statement.is_empty()), "the text is not for everybody: {rows:?}");
    run(c, "RESET ROLE");
    assert!(known(c, "SELECT 1 AS here").iter().all(|row| row.statement == "select $ as here"));
    servers.await_replayed();
    let s: &mut Client = &mut servers.standby().connect().expect("a session on the standby");
    assert_eq!(server_error(s, "SELECT quorum.forget_statements()").as_deref(), Some("25006"));
    await_served(s, "SELECT 1 AS here");
    run(c, "SELECT quorum.forget_statements()");
    assert!(served(c).is_empty());
    servers.await_replayed();
    assert!(!is_served(s, "SELECT 1 AS here"), "a standby forgets with the primary");
}
