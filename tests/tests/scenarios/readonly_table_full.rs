//! More statements than there is room for: what is used stays, memory does not grow, and nothing is mixed up.

use pgquorum_tests::{
    LearningServer, PATIENCE, await_known, await_served, await_until, hash_of, is_served, run, served, text,
};
use postgres::Client;

const MAX: i64 = 100;
const DISTINCT: u32 = 3000;

fn count(client: &mut Client) -> i64 {
    text(client, "SELECT count(*)::text FROM quorum.readonly_statements").parse().expect("a number")
}

#[test]
fn what_is_used_stays_when_the_table_is_full() {
    let servers = LearningServer::start(&format!("pgquorum.statements_max = {MAX}"));
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    let used = "SELECT 1 AS used";
    run(c, used);
    await_served(look, used);
    let shared = "SELECT sum(allocated_size)::text FROM pg_shmem_allocations WHERE name LIKE 'pgquorum%'";
    let before = text(look, shared);
    run(c, "CREATE SEQUENCE s");
    let mut writes = Vec::new();
    for number in 0..DISTINCT {
        run(c, &format!("SELECT 1 AS once_{number}"));
        if number % 10 == 0 {
            let statement = format!("SELECT nextval('s') AS once_{number}");
            run(c, &statement);
            writes.push(hash_of(&statement));
        }
        run(c, used);
        if number % 100 == 0 {
            // Each of them was proven in its time; what is there now is no more than there is room for.
            assert!(count(look) <= MAX, "{} rows", count(look));
            assert!(served(look).len() as i64 <= MAX);
        }
    }
    // It was used all the time. Its row may have given way for a moment, by a count that was saved a second ago.
    await_served(look, used);
    await_known(look, used, "its calls are kept", |row| row.calls > i64::from(DISTINCT) / 2);
    let all = served(look);
    assert!(writes.iter().all(|hash| !all.contains(hash)), "{all:?}");
    assert_eq!(text(look, shared), before, "shared memory is what it was");
    // The table in the database is bounded as the one in memory is.
    await_until(PATIENCE, "no more rows than there may be", || {
        let rows: i64 =
            text(look, "SELECT count(*)::text FROM quorum.readonly_statement").parse().expect("a number");
        if rows <= MAX { Ok(()) } else { Err(rows.to_string()) }
    });
    // There is room for what comes next, if it comes again.
    run(c, "SELECT 1 AS the_last_one");
    run(c, "SELECT 1 AS the_last_one");
    await_served(look, "SELECT 1 AS the_last_one");
}

#[test]
fn a_server_that_shall_not_learn_has_no_table_in_memory() {
    let servers = LearningServer::start("pgquorum.statements_max = 0");
    let c = &mut servers.connect();
    run(c, "SELECT 1 AS x; CREATE TABLE t (id int)");
    run(c, "SELECT id FROM t");
    assert!(served(c).is_empty());
    assert_eq!(count(c), 0);
    assert_eq!(text(c, "SELECT quorum.statement_hash('SELECT id FROM t')"), hash_of("SELECT id FROM t"));
    assert_eq!(text(c, "SELECT verdict FROM quorum.explain_readonly('SELECT id FROM t')"), "read-only");
    run(c, "SELECT quorum.forget_statements()");
    run(c, "CREATE DATABASE gone");
    run(c, "DROP DATABASE gone");
}

/// Of a session whose statements nobody knows, few are looked at; what they do is watched all the same.
#[test]
fn what_writes_is_seen_in_a_session_that_is_not_looked_at() {
    let mut servers = LearningServer::start("pgquorum.statements_max = 1000");
    let (c, look) = (&mut servers.connect(), &mut servers.connect());
    run(
        c,
        "CREATE TABLE told (what text); CREATE TABLE written (n int);
         CREATE FUNCTION do_write() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO written VALUES (1) RETURNING 1';
         CREATE FUNCTION lies() RETURNS int LANGUAGE plpgsql STABLE SET search_path = public AS $$ BEGIN
             IF EXISTS (SELECT FROM told WHERE what = 'write') THEN PERFORM do_write(); END IF;
             IF EXISTS (SELECT FROM told WHERE what = 'fail') THEN RAISE 'it fails'; END IF;
             RETURN 1; END $$",
    );
    let lie = |number: u32| format!("SELECT lies() AS lie_{number}");
    let (lies, lost) = (60, 20);
    for _ in 0..10 {
        (0..lies + lost).for_each(|number| run(c, &lie(number)));
    }
    (0..lies + lost).for_each(|number| await_served(look, &lie(number)));
    let mut strangers = 0..;
    let mut come = |client: &mut Client, count| {
        for number in strangers.by_ref().take(count) {
            run(client, &format!("SELECT 1 AS stranger_{number}"));
        }
    };
    come(c, 1000);
    let session = &mut servers.connect();
    come(session, 200);
    let calls = |look: &mut Client| {
        text(look, "SELECT sum(calls)::text FROM quorum.readonly_statements WHERE statement LIKE '%lie\\_%'")
    };
    (0..lies).for_each(|number| assert!(is_served(look, &lie(number)), "{number}: nothing has happened yet"));
    run(look, "INSERT INTO told VALUES ('write')");
    for number in 0..lies {
        come(session, 3);
        if number == lies / 2 {
            run(look, "INSERT INTO told VALUES ('fail')");
        }
        let failed = session.batch_execute(&lie(number)).is_err();
        assert_eq!(failed, number >= lies / 2);
        assert!(!is_served(look, &lie(number)), "{number}, right after it wrote");
    }
    // They are withdrawn though most were not counted: so they were not looked at.
    let counted = calls(look).parse::<u32>().expect("a number");
    assert!(counted < (lies + lost) * 10 + lies / 2, "{counted}");
    // Those that are served by their rows, and have no place in memory after a restart, before there is none left.
    run(look, "TRUNCATE told");
    servers.primary.restart();
    let (look, session) = (&mut servers.connect(), &mut servers.connect());
    come(session, 1100);
    for number in lies..lies + lost {
        assert!(is_served(look, &lie(number)), "{number}");
    }
    run(look, "INSERT INTO told VALUES ('write')");
    for number in lies..lies + lost {
        run(session, &lie(number));
        assert!(!is_served(look, &lie(number)), "{number}, right after it wrote");
        come(session, 1);
    }
}

/// A table that was full before the server was stopped, with less room afterwards.
#[test]
fn what_was_learned_is_there_after_a_restart_and_a_crash() {
    let mut servers = LearningServer::start("pgquorum.statements_max = 1000");
    {
        let c = &mut servers.connect();
        for number in 0..500 {
            run(c, &format!("SELECT 1 AS kept_{number}"));
        }
        run(c, "CREATE SEQUENCE s");
        for number in 0..500 {
            await_served(c, &format!("SELECT 1 AS kept_{number}"));
        }
    }
    for crash in [false, true] {
        if crash {
            servers.primary.crash()
        } else {
            servers.primary.restart()
        }
        let c = &mut servers.connect();
        // At once, before anybody has run one of them.
        let all = served(c);
        let missing = (0..500).filter(|n| !all.contains(&hash_of(&format!("SELECT 1 AS kept_{n}")))).count();
        assert_eq!(missing, 0, "of 500; crash: {crash}");
        run(c, "SELECT 1 AS kept_0");
        await_known(c, "SELECT 1 AS kept_0", "goes on counting", |row| row.calls >= 2);
    }
    let c = &mut servers.connect();
    run(c, "ALTER SYSTEM SET pgquorum.statements_max = 100");
    servers.primary.restart();
    let c = &mut servers.connect();
    for number in 0..200 {
        run(c, &format!("SELECT 1 AS later_{number}"));
    }
    await_until(PATIENCE, "as many rows as there may be now", || match count(c) {
        rows if rows <= 100 => Ok(()),
        rows => Err(rows.to_string()),
    });
    // What is withdrawn stays so over a crash.
    run(c, "CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'");
    // The table is full, so that a statement is learned when it comes again.
    run(c, "SELECT f()");
    run(c, "SELECT f()");
    await_served(c, "SELECT f()");
    run(c, "ALTER FUNCTION f() VOLATILE");
    servers.primary.crash();
    let c = &mut servers.connect();
    assert!(!is_served(c, "SELECT f()"));
}
