//! Statements that are not proven: they are watched, and served when the administrator says so, after enough clean runs.

use pgquorum_tests::{
    LearningServer, PATIENCE, await_known, await_served, await_until, hash_of, is_served, known, run, text,
};
use postgres::Client;

const MIN_CALLS: i64 = 5;

/// Volatile by its definition, though it only reads; it writes as soon as there is a row that tells it to.
const READER: &str = "CREATE TABLE orders (id int PRIMARY KEY, n int); INSERT INTO orders VALUES (1, 1);
    CREATE TABLE told (what text);
    CREATE FUNCTION reader() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        IF EXISTS (SELECT FROM told) THEN INSERT INTO orders SELECT max(id) + 1, 0 FROM orders; END IF;
        RETURN (SELECT count(*) FROM orders);
    END $$";
const STATEMENT: &str = "SELECT reader()";

fn start() -> (LearningServer, Client) {
    let servers = LearningServer::start(&format!("pgquorum.statements_min_calls = {MIN_CALLS}"));
    let mut client = servers.connect();
    run(&mut client, READER);
    (servers, client)
}

fn serve_observed(client: &mut Client, on: bool) {
    let value = if on { "on" } else { "off" };
    run(client, &format!("ALTER SYSTEM SET pgquorum.serve_observed_statements = {value}"));
    run(client, "SELECT pg_reload_conf()");
    await_until(PATIENCE, "the setting is in force", || {
        match text(client, "SHOW pgquorum.serve_observed_statements") {
            now if now == value => Ok(()),
            now => Err(now),
        }
    });
}

/// Waits until everything that has been learned so far is in the table: this statement is proven by one call.
fn settle(client: &mut Client, number: u32) {
    let statement = format!("SELECT {number} AS settled_{number}");
    run(client, &statement);
    await_served(client, &statement);
}

fn await_not_served(client: &mut Client, statement: &str) {
    await_until(PATIENCE, &format!("not served: {statement}"), || {
        if is_served(client, statement) { Err(format!("{:?}", known(client, statement))) } else { Ok(()) }
    });
}

#[test]
fn observed_statements_are_served_only_when_they_shall_be_and_after_enough_clean_runs() {
    let (_servers, mut client) = start();
    let c = &mut client;
    for _ in 1..MIN_CALLS {
        run(c, STATEMENT);
    }
    await_known(c, STATEMENT, "all but one of the calls it needs", |row| row.calls == MIN_CALLS - 1);
    serve_observed(c, true);
    settle(c, 1);
    assert!(!is_served(c, STATEMENT), "one call is missing: {:?}", known(c, STATEMENT));
    run(c, STATEMENT);
    await_served(c, STATEMENT);
    let row = await_known(c, STATEMENT, "observed", |row| row.how == "observed" && row.served);
    assert!(!row.withdrawn, "{row:?}");

    // Whoever does not want such statements gets none.
    serve_observed(c, false);
    await_not_served(c, STATEMENT);
    run(c, STATEMENT);
    settle(c, 2);
    assert!(!is_served(c, STATEMENT), "{:?}", known(c, STATEMENT));
    serve_observed(c, true);
    await_served(c, STATEMENT);
}

#[test]
fn an_observed_statement_that_writes_once_is_out_for_good() {
    let (_servers, mut client) = start();
    let c = &mut client;
    serve_observed(c, true);
    for _ in 0..MIN_CALLS {
        run(c, STATEMENT);
    }
    await_served(c, STATEMENT);
    run(c, "INSERT INTO told VALUES ('write')");
    run(c, STATEMENT);
    assert!(!is_served(c, STATEMENT), "at once, in this very session: {:?}", known(c, STATEMENT));
    run(c, "TRUNCATE told");
    for _ in 0..3 * MIN_CALLS {
        run(c, STATEMENT);
    }
    let row = await_known(c, STATEMENT, "withdrawn", |row| row.withdrawn);
    assert!(!row.served && !row.reason.is_empty(), "{row:?}");
    settle(c, 1);
    assert!(!is_served(c, STATEMENT), "clean runs make it no better: {:?}", known(c, STATEMENT));
}

#[test]
fn runs_that_write_nothing_count_only_where_a_write_would_have_been_seen() {
    let (servers, mut client) = start();
    let c = &mut client;
    serve_observed(c, true);
    // In a transaction that has a number already, nobody can tell whether the statement would have taken one.
    run(c, "BEGIN");
    run(c, "INSERT INTO orders VALUES (100, 1)");
    for _ in 0..3 * MIN_CALLS {
        run(c, STATEMENT);
    }
    run(c, "COMMIT");
    // What fails has not shown that it writes nothing.
    run(c, "CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$");
    for _ in 0..3 * MIN_CALLS {
        assert!(c.batch_execute("SELECT fails()").is_err());
    }
    settle(c, 1);
    assert!(!is_served(c, STATEMENT), "{:?}", known(c, STATEMENT));
    assert!(!is_served(c, "SELECT fails()"), "{:?}", known(c, "SELECT fails()"));
    // Several sessions together make up the number.
    for _ in 0..MIN_CALLS {
        run(&mut servers.connect(), STATEMENT);
    }
    await_served(c, STATEMENT);
}

#[test]
fn what_no_replica_can_do_is_never_observed() {
    let (_servers, mut client) = start();
    let c = &mut client;
    serve_observed(c, true);
    run(
        c,
        "CREATE SEQUENCE s; SELECT nextval('s');
         CREATE FUNCTION counts() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('s') $$;
         CREATE FUNCTION locks() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN PERFORM pg_advisory_xact_lock(1); RETURN 1; END $$;
         CREATE FUNCTION sets() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN PERFORM set_config('work_mem', '5MB', true); RETURN 1; END $$;
         CREATE FUNCTION tells() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN PERFORM pg_notify('c', 'x'); RETURN 1; END $$;
         CREATE FUNCTION row_locks() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN PERFORM FROM orders FOR SHARE; RETURN 1; END $$;
         CREATE FUNCTION table_locks() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN LOCK TABLE orders IN SHARE MODE; RETURN 1; END $$;
         CREATE FUNCTION makes() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN CREATE TEMP TABLE IF NOT EXISTS mine (n int); RETURN 1; END $$;
         CREATE FUNCTION listens() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
             BEGIN EXECUTE 'LISTEN c'; RETURN 1; END $$",
    );
    let statements = [
        "SELECT nextval('s')",
        "SELECT currval('s')",
        "SELECT counts()",
        "SELECT locks()",
        "SELECT sets()",
        "SELECT tells()",
        "SELECT row_locks()",
        "SELECT table_locks()",
        "SELECT makes()",
        "SELECT listens()",
        "SELECT pg_try_advisory_lock(7)",
        "SELECT set_config('work_mem', '4MB', false)",
        "SELECT id FROM orders FOR UPDATE",
        "UPDATE orders SET n = n WHERE false",
        "WITH x AS (DELETE FROM orders WHERE false RETURNING 1) SELECT FROM x",
        "SELECT pg_current_xact_id()",
    ];
    for statement in statements {
        // What is kept for a transaction is set up in the first call of it, and seen only then.
        for _ in 0..MIN_CALLS {
            run(c, statement);
        }
        run(c, "BEGIN");
        for _ in 0..3 * MIN_CALLS {
            run(c, statement);
        }
        run(c, "COMMIT");
    }
    settle(c, 1);
    let all = pgquorum_tests::served(c);
    let wrong: Vec<&str> = statements.into_iter().filter(|s| all.contains(&hash_of(s))).collect();
    assert!(wrong.is_empty(), "served: {wrong:?}");
}
