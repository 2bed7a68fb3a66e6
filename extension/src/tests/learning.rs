//! What is learned of the statements of clients, and what is served.

use super::sessions::*;

use std::sync::{Arc, Mutex};

#[test]
fn a_query_is_proven_and_served() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_a");
    run(&mut client, "CREATE TABLE learn_a.t (id int PRIMARY KEY, name text)");
    let before = value(&mut client, "SELECT quorum.statements_state()");
    learn(&mut client, "SELECT name FROM learn_a.t WHERE id = 1 -- one");
    assert_ne!(value(&mut client, "SELECT quorum.statements_state()"), before);
    learn(&mut client, "select NAME from learn_a.t where id=1000");
    let row = value(
        &mut client,
        "SELECT concat_ws('|', count(*), min(search_path), min(statement), min(how), min(database)) FROM quorum.readonly_statements
         WHERE hash = quorum.statement_hash('select name from learn_a.t where id = 7')",
    );
    assert_eq!(row, "1|public|select name from learn_a . t where id = $|proven|pgrx_tests");
    // Whatever the protocol is.
    let statement = client.prepare("SELECT name FROM learn_a.t WHERE id = $1").expect("prepared");
    let calls = "SELECT calls FROM quorum.readonly_statements
                 WHERE hash = quorum.statement_hash('select name from learn_a.t where id = 7')";
    let before: u64 = value(&mut client, calls).parse().expect("a number");
    for id in 0..20 {
        client.query(&statement, &[&id]).expect("it runs");
    }
    let after: u64 = value(&mut client, calls).parse().expect("a number");
    assert!(after >= before + 16, "{before} {after}");
    run(&mut client, "DROP SCHEMA learn_a CASCADE");
}

#[test]
fn the_same_text_means_something_else_elsewhere() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_c1");
    clean(&mut client, "learn_c2");
    run(
        &mut client,
        "CREATE FUNCTION learn_c1.elsewhere() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION learn_c2.elsewhere() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 2; END'",
    );
    run(&mut client, "SET search_path = learn_c1");
    learn(&mut client, "SELECT elsewhere()");
    run(&mut client, "SET search_path = learn_c2, public");
    repeat(&mut client, 2, "SELECT elsewhere()");
    assert!(!is_served(&mut client, "SELECT elsewhere()"));
    let paths = "SELECT string_agg(search_path || ' ' || coalesce(how, '-'), ';' ORDER BY search_path) FROM quorum.readonly_statements
                 WHERE hash = quorum.statement_hash('SELECT elsewhere()')";
    await_until("both are saved", || value(&mut client, paths) == "learn_c1 proven;learn_c2, public -");
    run(&mut client, "DROP SCHEMA learn_c1, learn_c2 CASCADE");
}

#[test]
fn what_was_only_observed_is_served_when_asked_for() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_d");
    run(
        &mut client,
        "CREATE TABLE learn_d.t (id int);
         CREATE FUNCTION learn_d.vol() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE FUNCTION learn_d.writes() RETURNS int VOLATILE LANGUAGE plpgsql AS
             'BEGIN INSERT INTO learn_d.t VALUES (1); RETURN 1; END';
         CREATE FUNCTION learn_d.locks() RETURNS int VOLATILE LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_advisory_xact_lock(17); RETURN 1; END'",
    );
    for sql in ["SELECT learn_d.vol()", "SELECT learn_d.writes()", "SELECT learn_d.locks()"] {
        repeat(&mut client, 19, sql);
    }
    await_until("it is saved", || standing(&mut client, "SELECT learn_d.vol()").starts_with("false - "));
    repeat(&mut client, 6, "SELECT learn_d.vol()");
    repeat(&mut client, 30, "SELECT learn_d.locks()");
    run(&mut client, "ALTER SYSTEM SET pgquorum.serve_observed_statements = on");
    run(&mut client, "SELECT pg_reload_conf()");
    // Counters are saved every ten seconds or so.
    await_until("it is observed", || {
        standing(&mut client, "SELECT learn_d.vol()").starts_with("true observed")
    });
    let standing_of_writes = standing(&mut client, "SELECT learn_d.writes()");
    assert!(
        standing_of_writes.starts_with("false - a statement inside it is an INSERT"),
        "{standing_of_writes}"
    );
    let standing_of_locks = standing(&mut client, "SELECT learn_d.locks()");
    assert!(standing_of_locks.starts_with("false - function pg_advisory_xact_lock"), "{standing_of_locks}");
    run(&mut client, "ALTER SYSTEM RESET pgquorum.serve_observed_statements");
    run(&mut client, "SELECT pg_reload_conf()");
    await_until("it is not served", || !is_served(&mut client, "SELECT learn_d.vol()"));
    run(&mut client, "DROP SCHEMA learn_d CASCADE");
}

#[test]
fn a_function_that_lies_is_found_out() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_e");
    run(
        &mut client,
        "CREATE TABLE learn_e.t (id int);
         CREATE FUNCTION learn_e.writes() RETURNS int VOLATILE LANGUAGE plpgsql AS
             'BEGIN INSERT INTO learn_e.t VALUES (1); RETURN 1; END';
         CREATE FUNCTION learn_e.lies(really int) RETURNS int STABLE LANGUAGE plpgsql AS
             'BEGIN IF really > 0 THEN RETURN learn_e.writes(); END IF; RETURN 0; END'",
    );
    let sql = "SELECT learn_e.lies(0)";
    learn(&mut client, sql);
    repeat(&mut client, 1, "SELECT learn_e.lies(1)");
    assert!(!is_served(&mut client, sql), "at once");
    await_until("the table says so", || {
        standing(&mut client, sql).starts_with("false - a statement inside it is an INSERT")
    });
    let event = "SELECT message FROM quorum.event WHERE kind = 'statement-withdrawn'
                 AND details ->> 'hash' = quorum.statement_hash('SELECT learn_e.lies(0)')";
    await_until("there is an event", || value(&mut client, event).contains("was seen writing"));
    repeat(&mut client, 3, sql);
    run(&mut client, "ALTER FUNCTION learn_e.lies(int) STABLE");
    repeat(&mut client, 3, sql);
    assert!(!is_served(&mut client, sql), "whatever is changed");
    let forgotten = value(
        &mut client,
        "SELECT quorum.forget_statements(quorum.statement_hash('SELECT learn_e.lies(1)'))",
    );
    assert_eq!(forgotten, "1");
    learn(&mut client, sql);
    // It rolls back what it has written, and is found out all the same.
    let failed = client.simple_query("SELECT learn_e.lies(1), 1 / 0 * learn_e.writes()");
    assert!(failed.is_err());
    run(&mut client, "DROP SCHEMA learn_e CASCADE");
}

#[test]
fn a_statement_that_fails_after_writing_counts_as_writing() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_f");
    run(
        &mut client,
        "CREATE TABLE learn_f.t (id int);
         CREATE FUNCTION learn_f.writes() RETURNS int VOLATILE LANGUAGE plpgsql AS
             'BEGIN INSERT INTO learn_f.t VALUES (1); RAISE division_by_zero; END';
         CREATE FUNCTION learn_f.lies(really int) RETURNS int STABLE LANGUAGE plpgsql AS
             'BEGIN IF really > 0 THEN RETURN learn_f.writes(); END IF; RETURN 0; END'",
    );
    learn(&mut client, "SELECT learn_f.lies(0)");
    assert!(client.simple_query("SELECT learn_f.lies(1)").is_err());
    assert!(!is_served(&mut client, "SELECT learn_f.lies(0)"));
    run(&mut client, "DROP SCHEMA learn_f CASCADE");
}

#[test]
fn what_is_refused_is_never_served() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_g");
    run(&mut client, "CREATE TABLE learn_g.t (id int); CREATE SEQUENCE learn_g.s");
    let refused = [
        "SELECT nextval('learn_g.s')",
        "SELECT id FROM learn_g.t FOR UPDATE",
        "WITH n AS (INSERT INTO learn_g.t VALUES (1) RETURNING id) SELECT id FROM n",
        "SELECT pg_advisory_lock(1), pg_advisory_unlock(1)",
    ];
    for sql in refused {
        repeat(&mut client, 3, sql);
    }
    run(&mut client, "CREATE TEMP TABLE learn_temp (id int)");
    repeat(&mut client, 3, "SELECT id FROM learn_temp");
    learn(&mut client, "SELECT id FROM learn_g.t");
    for sql in refused {
        assert!(!is_served(&mut client, sql), "{sql}");
    }
    assert_eq!(standing(&mut client, "SELECT id FROM learn_temp"), "", "it is not even remembered");
    run(&mut client, "DROP SCHEMA learn_g CASCADE");
}

#[test]
fn commands_that_only_show_are_served() {
    let _alone = alone();
    let mut client = session();
    learn(&mut client, "SHOW work_mem");
    learn(&mut client, "EXPLAIN SELECT 1");
    run(&mut client, "BEGIN");
    repeat(&mut client, 1, "DECLARE learn_cursor CURSOR FOR SELECT 1");
    run(&mut client, "COMMIT");
    await_until("the cursor's declaration is served", || {
        is_served(&mut client, "DECLARE learn_cursor CURSOR FOR SELECT 1")
    });
    repeat(&mut client, 2, "SET work_mem = '5MB'");
    assert!(!is_served(&mut client, "SET work_mem = '5MB'"));
}

#[test]
fn two_texts_with_one_hash_are_not_served() {
    let _alone = alone();
    let (mut client, mut other) = (session(), session());
    run(&mut client, "SELECT tests.force_statement_hash(4711)");
    repeat(&mut client, 2, "SELECT 'one', 'collision'");
    let served = "SELECT '0000000000001267' = ANY (quorum.served_statements())";
    await_until("it is served", || value(&mut other, served) == "t");
    repeat(&mut client, 1, "SELECT 'another', 'collision', 'here'");
    assert_eq!(value(&mut other, served), "f");
    let reason = "SELECT reason FROM quorum.readonly_statements WHERE hash = '0000000000001267'";
    await_until("the table says so", || {
        value(&mut other, reason) == "two different statements have this hash"
    });
    run(&mut client, "SELECT tests.force_statement_hash(NULL)");
}

#[test]
fn the_least_used_go() {
    let _alone = alone();
    let mut client = session();
    repeat(&mut client, 50, "SELECT 'often', 'used'");
    await_until("it is served", || is_served(&mut client, "SELECT 'often', 'used'"));
    for number in 0..1500 {
        client.simple_query(&format!("SELECT 1 AS learn_many_{number}")).expect("it runs");
    }
    let count = "SELECT count(*) FROM quorum.readonly_statement";
    await_until("many were saved", || {
        value(&mut client, count).parse::<u32>().is_ok_and(|count| count > 250)
    });
    let most: u32 = value(&mut client, "SHOW pgquorum.statements_max").parse().expect("a number");
    for _ in 0..5 {
        let count: u32 = value(&mut client, count).parse().expect("a number");
        assert!(count <= most, "{count}");
        repeat(&mut client, 5, "SELECT 'often', 'used'");
    }
    assert!(is_served(&mut client, "SELECT 'often', 'used'"));
}

#[test]
fn odd_texts_do_no_harm() {
    let _alone = alone();
    let mut client = session();
    let long = "x".repeat(1 << 20);
    for _ in 0..3 {
        assert_eq!(value(&mut client, &format!("SELECT length('{long}')")), (1 << 20).to_string());
    }
    let list = (0..100_000).map(|number| number.to_string()).collect::<Vec<_>>().join(", ");
    repeat(&mut client, 2, &format!("SELECT 1 WHERE 5 IN ({list})"));
    repeat(&mut client, 2, &format!("SELECT cardinality(ARRAY[{list}])"));
    repeat(&mut client, 2, ";;  SELECT 1 /* a /* nested */ comment */ ;; SELECT 2 ;");
    assert!(client.simple_query("SELECT 'unfinished").is_err());
    assert!(client.simple_query("SELECT \"no such column\"").is_err());
    run(&mut client, "SET standard_conforming_strings = off");
    repeat(&mut client, 2, r"SELECT 'a\'b' AS not_learned");
    run(&mut client, "SET standard_conforming_strings = on");
    assert!(!is_served(&mut client, r"SELECT 'a' AS not_learned"));
    await_until("the long one is served", || is_served(&mut client, "SELECT length('short')"));
}

#[test]
fn everything_can_be_forgotten() {
    let _alone = alone();
    let mut client = session();
    learn(&mut client, "SELECT 'forget me'");
    run(&mut client, "SELECT quorum.forget_statements()");
    assert_eq!(value(&mut client, "SELECT cardinality(quorum.served_statements())"), "0");
    learn(&mut client, "SELECT 'forget me'");
    let refused = client.simple_query("SELECT quorum.forget_statements('xyz')").expect_err("no hash");
    assert_eq!(refused.code().map(postgres::error::SqlState::code), Some("22023"));
}

#[test]
fn others_words_are_joined_unless_something_has_changed_since() {
    let _alone = alone();
    let mut client = session();
    clean(&mut client, "learn_h");
    run(&mut client, "CREATE FUNCTION learn_h.f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let word = |client: &mut Client, hash: i64, lsn: &str| {
        let oid = value(client, "SELECT 'learn_h.f()'::regprocedure::oid");
        format!(
            r#"SELECT quorum.merge_statements('[{{"hash": {hash}, "path": "", "words": 0, "depends": [{oid}], "all": false,
                "verdict": 1, "barred": false, "clean": 5, "calls": 7, "used": 1700000000000000, "check": 1, "length": 3,
                "query_id": null, "text": "616263", "reason": null, "lsn": "{lsn}"}}]')"#
        )
    };
    let served = |client: &mut Client, hash: &str| {
        value(client, &format!("SELECT '{hash}' = ANY (quorum.served_statements())")) == "t"
    };
    // The first question says from when on this server knows what was changed.
    let old = word(&mut client, 16, "0/1");
    assert_eq!(value(&mut client, &old), "1");
    assert!(!served(&mut client, "0000000000000010"));
    let lsn = value(&mut client, "SELECT pg_current_wal_insert_lsn()");
    let fresh = word(&mut client, 17, &lsn);
    assert_eq!(value(&mut client, &fresh), "1");
    assert!(served(&mut client, "0000000000000011"));
    run(&mut client, "CREATE OR REPLACE FUNCTION learn_h.f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 2'");
    assert!(!served(&mut client, "0000000000000011"), "withdrawn like any other");
    let late = word(&mut client, 18, &lsn);
    assert_eq!(value(&mut client, &late), "1");
    assert!(!served(&mut client, "0000000000000012"), "it is about what was there before");
    let calls = "SELECT calls FROM quorum.readonly_statements WHERE hash = '0000000000000012'";
    assert_eq!(value(&mut client, calls), "7", "but it was used");
    run(&mut client, "DROP SCHEMA learn_h CASCADE");
}

#[test]
fn a_lie_that_another_node_has_seen_is_told_once() {
    let _alone = alone();
    let mut client = session();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut teller = session_that_hears(&mut client, Arc::clone(&heard));
    let word = |hash: i64, lied: &str| {
        format!(
            r#"SELECT quorum.merge_statements('[{{"hash": {hash}, "path": "7075626c6963", "words": 0, "depends": [], "all": false,
                "verdict": 1, "barred": true, {lied} "clean": 0, "calls": 1, "used": 1700000000000000, "check": 1, "length": 3,
                "query_id": null, "text": "616263", "reason": "77726f7465", "lsn": "0/1"}}]')"#
        )
    };
    let events = |client: &mut Client, hash: &str| {
        value(
            client,
            &format!(
                "SELECT count(*) FROM quorum.event WHERE kind = 'statement-withdrawn' AND details ->> 'hash' = '{hash}'
                 AND details ->> 'search-path' = 'public' AND message LIKE '%{hash}%was seen writing (wrote)'"
            ),
        )
    };
    let warnings = |hash: &str| {
        let all = heard.lock().expect("what was heard");
        all.iter().filter(|line: &&String| line.starts_with("WARNING") && line.contains(hash)).count()
    };
    // A node that is older does not say, and one that only watched it knows of no lie.
    assert_eq!(value(&mut teller, &word(19, "")), "1");
    assert_eq!(value(&mut teller, &word(20, r#""lied": false,"#)), "1");
    assert_eq!(events(&mut client, "0000000000000013"), "0");
    assert_eq!(events(&mut client, "0000000000000014"), "0");
    // Two nodes have seen it.
    for _ in 0..2 {
        assert_eq!(value(&mut teller, &word(21, r#""lied": true,"#)), "1");
        assert_eq!(events(&mut client, "0000000000000015"), "1");
        assert_eq!(warnings("0000000000000015"), 1);
    }
    // Whoever forgets it is told when it is withdrawn anew.
    assert_eq!(value(&mut client, "SELECT quorum.forget_statements('0000000000000015')"), "1");
    assert_eq!(value(&mut teller, &word(21, r#""lied": true,"#)), "1");
    assert_eq!(events(&mut client, "0000000000000015"), "2");
    assert_eq!(warnings("0000000000000015"), 2);
    run(&mut client, "DELETE FROM quorum.event WHERE details ->> 'hash' = '0000000000000015'");
    for hash in ["0000000000000013", "0000000000000014", "0000000000000015"] {
        run(&mut client, &format!("SELECT quorum.forget_statements('{hash}')"));
    }
}
