//! Functions that are declared harmless and write all the same: their statements are proven, until they are seen writing.

use pgquorum_tests::{
    LearningServer, PATIENCE, await_known, await_served, await_until, hash_of, is_served, known, run, served,
    server_error, text,
};
use postgres::Client;

/// A table of what functions are told to do; each of [`LIARS`] reads it, so that it can be made to begin lying.
const SET_UP: &str = "CREATE TABLE told (what text); CREATE TABLE written (n int); CREATE SEQUENCE s; SELECT nextval('s');
    CREATE FUNCTION do_write() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO written VALUES (1) RETURNING 1';
    CREATE FUNCTION do_lock() RETURNS int LANGUAGE plpgsql VOLATILE AS
        $$ BEGIN LOCK TABLE written IN EXCLUSIVE MODE; RETURN 1; END $$";

/// What each of them does when it lies. A STABLE function of PL/pgSQL can only do it through a VOLATILE one.
const LIARS: [(&str, &str); 8] = [
    ("writes", "do_write()"),
    ("counts", "nextval('s')"),
    ("sets", "set_config('work_mem', '5MB', true)"),
    ("locks", "pg_advisory_xact_lock(1)"),
    ("tries", "pg_try_advisory_xact_lock(2)"),
    ("tells", "pg_notify('c', 'x')"),
    ("numbers", "pg_current_xact_id()"),
    ("table_locks", "do_lock()"),
];

fn define(client: &mut Client) {
    run(client, SET_UP);
    for (name, does) in LIARS {
        run(
            client,
            &format!(
                "CREATE FUNCTION {name}() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
                 BEGIN
                     IF EXISTS (SELECT FROM told WHERE what = '{name}') THEN PERFORM {does}; END IF;
                     RETURN 1;
                 END $$"
            ),
        );
    }
}

fn statement(name: &str) -> String {
    format!("SELECT {name}()")
}

#[test]
fn a_function_that_lies_is_found_out_when_it_writes() {
    let servers = LearningServer::start("");
    let c = &mut servers.connect();
    define(c);
    for (name, _) in LIARS {
        run(c, &statement(name));
    }
    for (name, _) in LIARS {
        await_served(c, &statement(name));
    }
    for (name, does) in LIARS {
        let statement = statement(name);
        run(c, &format!("INSERT INTO told VALUES ('{name}')"));
        run(c, &statement);
        assert!(!is_served(c, &statement), "{does}, right after it was done: {:?}", known(c, &statement));
        let row = await_known(c, &statement, "withdrawn", |row| row.withdrawn);
        assert!(!row.served && !row.reason.is_empty(), "{row:?}");
        // The administrator hears which statement it was.
        await_until(PATIENCE, "a line in the server's log", || {
            let log = servers.primary.log();
            let told =
                log.lines().any(|line| line.contains("WARNING") && line.contains(&hash_of(&statement)));
            if told { Ok(()) } else { Err(format!("nothing of {}", hash_of(&statement))) }
        });
    }
    // Going on honestly is not enough.
    run(c, "TRUNCATE told");
    for (name, _) in LIARS {
        for _ in 0..100 {
            run(c, &statement(name));
        }
    }
    run(c, "SELECT 1 AS settled");
    await_served(c, "SELECT 1 AS settled");
    for (name, _) in LIARS {
        assert!(!is_served(c, &statement(name)), "{name}: {:?}", known(c, &statement(name)));
    }
    // Forgetting is the administrator's way to give it another chance.
    run(c, "SELECT quorum.forget_statements()");
    assert!(served(c).is_empty(), "everything is forgotten: {:?}", served(c));
    run(c, &statement("writes"));
    await_served(c, &statement("writes"));
}

#[test]
fn a_lie_on_a_standby_is_found_out_there() {
    let servers = LearningServer::with_standby("");
    let c = &mut servers.connect();
    define(c);
    run(c, "SELECT 1 AS honest");
    for (name, _) in LIARS {
        run(c, &statement(name));
    }
    for (name, _) in LIARS {
        await_served(c, &statement(name));
    }
    await_served(c, "SELECT 1 AS honest");
    run(
        c,
        "INSERT INTO told SELECT unnest(ARRAY['writes', 'counts', 'sets', 'locks', 'tells', 'numbers', 'table_locks'])",
    );
    servers.await_replayed();
    let liars = ["writes", "counts", "sets", "locks", "tells", "numbers", "table_locks"];
    let s = &mut servers.standby().connect().expect("a session on the standby");
    for name in liars {
        let statement = statement(name);
        await_served(s, &statement);
        // These two a standby does, though not for others to see.
        let expected = if ["sets", "locks"].contains(&name) { None } else { Some("25006") };
        assert_eq!(server_error(s, &statement).as_deref(), expected, "{statement}");
        assert!(!is_served(s, &statement), "{name}: no client of this standby is sent here again with it");
    }
    assert!(is_served(s, "SELECT 1 AS honest"), "one does not suffer for the other");
    // A client's own mistake says nothing about a statement that writes nothing.
    run(s, "BEGIN");
    assert_eq!(server_error(s, "SELECT 1 FROM no_such_table").as_deref(), Some("42P01"));
    assert_eq!(server_error(s, "SELECT 1 AS honest").as_deref(), Some("25P02"));
    run(s, "ROLLBACK");
    assert!(is_served(s, "SELECT 1 AS honest"));
    // What it hands over says that these were lies, and the primary tells the administrator of each, once.
    let learned = text(s, "SELECT quorum.take_learned(1000)::text");
    for _ in 0..2 {
        run(c, &format!("SELECT quorum.merge_statements('{learned}')"));
        for name in liars {
            let hash = hash_of(&statement(name));
            let events = format!(
                "SELECT count(*)::text FROM quorum.event
                 WHERE kind = 'statement-withdrawn' AND details ->> 'hash' = '{hash}'"
            );
            assert_eq!(text(c, &events), "1", "{name}");
            let log = servers.primary.log();
            let told = log.lines().filter(|line| line.contains("WARNING") && line.contains(&hash)).count();
            assert_eq!(told, 1, "{name}");
        }
    }
}
