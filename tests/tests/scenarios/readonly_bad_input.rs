//! Statements that are too long, in no encoding, or not what their text says.

use pgquorum_tests::{
    LearningServer, PATIENCE, Plain, await_known, await_served, await_until, hash_of, is_served, known, psql,
    run, text,
};
use postgres::Client;

fn hash_of_bytes(statement: &[u8]) -> String {
    format!("{:016x}", pgquorum_statement::hash(statement))
}

#[test]
fn statements_of_a_megabyte() {
    const LENGTH: usize = 1 << 20;
    let servers = LearningServer::start("");
    let c = &mut servers.connect();
    run(c, "CREATE TABLE t (id int, v text)");
    // All of it goes when it is normalised: a literal, a comment, a list.
    let literal = format!("SELECT id FROM t WHERE v = '{}'", "x".repeat(LENGTH));
    let comment =
        format!("SELECT v /* {} /* {} */ */ FROM t", "x".repeat(LENGTH / 2), "y".repeat(LENGTH / 2));
    let list = format!("SELECT count(*) FROM t WHERE id IN ({}0)", "1234567, ".repeat(LENGTH / 9));
    let short =
        ["SELECT id FROM t WHERE v = 'y'", "SELECT v FROM t", "SELECT count(*) FROM t WHERE id IN (1, 2)"];
    for (long, short) in [&literal, &comment, &list].into_iter().zip(short) {
        assert_eq!(hash_of(long), hash_of(short), "{short}");
        run(c, long);
        run(c, short);
        await_served(c, short);
        await_known(c, short, "both were counted", |row| row.calls == 2);
    }
    // None of it goes: a text that is long as it is, and two that differ only in their last bytes.
    let column = |name: &str| format!("SELECT cardinality(ARRAY[{}1]) AS {name}", "1, ".repeat(LENGTH / 3));
    for name in ["a", "b"] {
        run(c, &column(name));
        await_served(c, &column(name));
        let row = await_known(c, &column(name), "once", |row| row.calls == 1);
        assert!(row.statement.len() <= 1100, "no more of it is kept than is needed: {}", row.statement.len());
    }
    // Nor does a long one that writes go by.
    let writes = format!("INSERT INTO t SELECT cardinality(ARRAY[{}1])", "1, ".repeat(LENGTH / 3));
    run(c, &writes);
    run(c, "SELECT 1 AS settled");
    await_served(c, "SELECT 1 AS settled");
    assert!(!is_served(c, &writes));
    // Broken ones are the server's business, and leave nothing behind.
    for broken in [format!("SELECT '{}", "x".repeat(LENGTH)), format!("SELECT /* {}", "x".repeat(LENGTH))] {
        assert!(c.batch_execute(&broken).is_err());
        assert!(known(c, &broken).is_empty());
    }
}

#[test]
fn texts_that_are_no_utf_8() {
    let servers = LearningServer::start("");
    let admin = &mut servers.connect();
    run(admin, "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let dsn = Plain::dsn(&[&servers.primary]).replace("/postgres?", "/ascii?");
    psql(&dsn, b"CREATE EXTENSION pgquorum;\nCREATE TABLE t (id int, \"n\xff\xfe\" text);\n");
    let statements: [&[u8]; 4] = [
        b"SELECT id FROM t WHERE 'a\xff\xc3' <> 'b'",
        b"SELECT \"n\xff\xfe\" FROM t",
        b"SELECT id AS \"\xc3\" FROM t",
        b"SELECT id AS \xe2\x82 FROM t",
    ];
    let mut script = Vec::new();
    for statement in statements {
        script.extend_from_slice(statement);
        script.extend_from_slice(b";\n");
    }
    psql(&dsn, &script);
    let c = &mut servers.primary.connect_to("ascii").expect("a session");
    for statement in statements {
        let hash = hash_of_bytes(statement);
        let sql = format!("SELECT ('{hash}' = ANY (quorum.served_statements()))::text");
        await_until(PATIENCE, "served", || match text(c, &sql).as_str() {
            "true" => Ok(()),
            other => Err(format!("{other}: {}", String::from_utf8_lossy(statement))),
        });
        assert_eq!(
            text(c, &format!("SELECT count(*)::text FROM quorum.readonly_statements WHERE hash = '{hash}'")),
            "1"
        );
    }
    // Whoever wants UTF-8 gets it, and all rows of the view.
    let rows = c.query("SELECT statement FROM quorum.readonly_statements", &[]).expect("valid UTF-8");
    assert!(rows.len() >= statements.len());
    // A driver computes the hash of what it sends, which is UTF-8, whatever the database's encoding.
    run(admin, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    let l = &mut servers.primary.connect_to("latin").expect("a session");
    run(l, "CREATE EXTENSION pgquorum; CREATE TABLE t (\"größe\" int)");
    run(l, "SELECT \"größe\" FROM t");
    await_served(l, "SELECT \"größe\" FROM t");
    assert_eq!(
        text(l, "SELECT quorum.statement_hash('SELECT \"größe\" FROM t')"),
        hash_of("SELECT \"größe\" FROM t")
    );
    let sql = "SELECT statement FROM quorum.readonly_statements WHERE statement LIKE '%gr_%e%'";
    assert_eq!(text(l, sql), "select \"größe\" from t");
}

/// A name of a prepared statement means one text now and another one later.
#[test]
fn prepared_statements_whose_names_are_used_again() {
    let servers = LearningServer::start("");
    let c = &mut servers.connect();
    run(
        c,
        "CREATE TABLE t (id int); CREATE SEQUENCE s;
         CREATE FUNCTION read_1() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
         CREATE FUNCTION writ_1() RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN nextval(''s''); END'",
    );
    // In SQL: the text that counts is not EXECUTE's.
    for _ in 0..50 {
        run(c, "PREPARE p AS SELECT read_1() AS by_name");
        run(c, "EXECUTE p");
        run(c, "DEALLOCATE p");
        run(c, "PREPARE p AS SELECT writ_1() AS by_name");
        run(c, "EXECUTE p");
        run(c, "DEALLOCATE p");
    }
    // In the protocol: texts of the same length that come to lie in the same place. A session that ends tells all it knows.
    let mut other = servers.connect();
    for _ in 0..200 {
        other.query("SELECT read_1()", &[]).expect("a row");
        other.query("SELECT writ_1()", &[]).expect("a row");
    }
    drop(other);
    await_served(c, "SELECT read_1()");
    await_known(c, "SELECT read_1()", "all calls and no others", |row| row.calls == 200);
    let wrong = ["SELECT writ_1()", "SELECT writ_1() AS by_name", "EXECUTE p"];
    assert!(wrong.iter().all(|statement| !is_served(c, statement)));
    // The same in one message, and in the simple protocol.
    for _ in 0..50 {
        run(c, "SELECT read_1() AS one");
        run(c, "SELECT writ_1() AS one");
        run(c, "SELECT read_1() AS two; SELECT writ_1() AS two");
        run(c, "SELECT writ_1() AS six; SELECT read_1() AS six");
    }
    await_served(c, "SELECT read_1() AS one");
    run(c, "SELECT 1 AS settled");
    await_served(c, "SELECT 1 AS settled");
    let wrong = [
        "SELECT writ_1() AS one",
        "SELECT writ_1() AS two",
        "SELECT writ_1() AS six",
        "SELECT read_1() AS two; SELECT writ_1() AS two",
        "SELECT writ_1() AS six; SELECT read_1() AS six",
    ];
    for statement in wrong {
        assert!(!is_served(c, statement), "{statement}: {:?}", known(c, statement));
    }
}

/// A plan that is kept is made anew when what it is made of has changed, and proves nothing that is no longer so.
#[test]
fn plans_that_are_kept() {
    let servers = LearningServer::start("");
    let (c, admin) = (&mut servers.connect(), &mut servers.connect());
    run(
        admin,
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, g FROM generate_series(1, 100) g; CREATE SEQUENCE s;
         CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END'",
    );
    let statement = "SELECT f(v) FROM t WHERE id = $1";
    let prepared = c.prepare(statement).expect("it is right");
    // Beyond the fifth call its plan is the same for all values.
    let mut runs = 0;
    let mut execute = |c: &mut Client, times: i32| {
        for _ in 0..times {
            runs += 1;
            c.query(&prepared, &[&(runs % 100 + 1)]).expect("a row");
        }
    };
    execute(c, 20);
    await_served(admin, statement);
    await_known(admin, statement, "all calls", |row| row.calls == 20);
    for round in 0..5 {
        run(
            admin,
            "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END'",
        );
        assert!(!is_served(admin, statement), "{:?}", known(admin, statement));
        execute(c, 20);
        run(c, "SELECT 1 AS settled");
        await_served(admin, "SELECT 1 AS settled");
        assert!(!is_served(admin, statement), "round {round}: {:?}", known(admin, statement));
        // An index, so that the plan is another one, too.
        run(admin, &format!("CREATE INDEX t_{round} ON t (v)"));
        run(
            admin,
            "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END'",
        );
        execute(c, 20);
        await_served(admin, statement);
    }
    // A table that is locked while its rows are read, one that is dropped, and a session that has gone.
    run(admin, "DROP FUNCTION f(int)");
    assert!(c.query(&prepared, &[&1]).is_err());
    assert!(!is_served(admin, statement), "{:?}", known(admin, statement));
}

#[test]
fn settings_under_which_nothing_is_learned() {
    let servers = LearningServer::start("");
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    // Backslashes in such texts are not what the hash takes them for.
    run(c, "SET standard_conforming_strings = off");
    run(c, "SELECT 'it\\'s' AS old_strings");
    run(c, "SET standard_conforming_strings = on");
    run(c, "SELECT 1 AS settled");
    await_served(look, "SELECT 1 AS settled");
    assert!(known(look, "SELECT 'its' AS old_strings").is_empty());
    run(look, "ALTER SYSTEM SET pgquorum.learn_statements = off");
    run(look, "SELECT pg_reload_conf()");
    await_until(PATIENCE, "the setting is in force", || match text(c, "SHOW pgquorum.learn_statements") {
        off if off == "off" => Ok(()),
        other => Err(other),
    });
    run(c, "SELECT 1 AS unnoticed");
    // What was learned goes on being served, and withdrawn.
    assert!(is_served(look, "SELECT 1 AS settled"));
    run(look, "ALTER SYSTEM RESET pgquorum.learn_statements");
    run(look, "SELECT pg_reload_conf()");
    await_until(PATIENCE, "the setting is in force", || match text(c, "SHOW pgquorum.learn_statements") {
        on if on == "on" => Ok(()),
        other => Err(other),
    });
    run(c, "SELECT 1 AS noticed");
    await_served(look, "SELECT 1 AS noticed");
    assert!(known(look, "SELECT 1 AS unnoticed").is_empty());
    // Not learned in a database without the extension.
    run(look, "CREATE DATABASE bare");
    let bare = &mut servers.primary.connect_to("bare").expect("a session");
    run(bare, "SELECT 1 AS bare_text");
    run(bare, "CREATE EXTENSION pgquorum");
    run(bare, "SELECT 2 AS settled_there");
    await_served(bare, "SELECT 2 AS settled_there");
    assert!(known(bare, "SELECT 1 AS bare_text").is_empty());
}
