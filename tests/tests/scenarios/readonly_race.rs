//! A function turns from a reader into a writer and back, again and again, while clients call it as fast as they can: in
//! no snapshot, on no server, is it a writer and served.

use pgquorum_tests::{LearningServer, PATIENCE, await_served, await_until, hash_of, run};
use postgres::{Client, IsolationLevel};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const ROUNDS: usize = 25;
/// Three forms of calls: as text, prepared, and one that its condition calls.
const STATEMENTS: [&str; 3] =
    ["SELECT flip()", "SELECT flip() AS prepared", "SELECT count(*) FROM seats WHERE n = flip()"];

const READER: &str =
    "CREATE OR REPLACE FUNCTION flip() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END'";
const WRITER: &str = "CREATE OR REPLACE FUNCTION flip() RETURNS int LANGUAGE plpgsql VOLATILE AS
    'BEGIN INSERT INTO written VALUES (1); RETURN 1; END'";

/// What a watcher has seen.
#[derive(Default)]
struct Seen {
    reader_served: AtomicU64,
    writer: AtomicU64,
}

/// Ends the threads, also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Calls, whatever comes of it: on a standby a writer fails.
fn call(mut client: Client, number: usize, stop: &AtomicBool) {
    let statement = STATEMENTS[number % STATEMENTS.len()];
    let prepared = client.prepare(statement).expect("the statement is right");
    while !stop.load(SeqCst) {
        if number.is_multiple_of(2) {
            let _ = client.simple_query(statement);
        } else {
            let _ = client.query(&prepared, &[]);
        }
    }
}

/// Compares in one snapshot what the function is with what is served.
fn watch(mut client: Client, stop: &AtomicBool, seen: &Seen) {
    let hashes: Vec<String> = STATEMENTS.iter().map(|s| hash_of(s)).collect();
    let sql =
        "SELECT provolatile::text, ARRAY(SELECT h FROM unnest($1::text[]) h WHERE h = ANY (s)) FROM pg_proc,
               quorum.served_statements() s WHERE oid = 'flip()'::regprocedure";
    while !stop.load(SeqCst) {
        let transaction =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        let mut transaction = transaction.start().expect("a transaction");
        let row = transaction.query_one(sql, &[&hashes]).expect("what is served");
        let (volatile, served): (String, Vec<String>) = (row.get(0), row.get(1));
        transaction.commit().expect("the end");
        if volatile == "v" {
            assert!(served.is_empty(), "the function writes, and is served: {served:?}");
            seen.writer.fetch_add(1, SeqCst);
        } else if served.len() == STATEMENTS.len() {
            seen.reader_served.fetch_add(1, SeqCst);
        }
    }
}

/// Waits until all that the clients began before now has ended: a call may still write as the function was then, and what
/// is forgotten before that would be seen writing again.
fn await_older_calls(client: &mut Client) {
    let since: String = client.query_one("SELECT clock_timestamp()::text", &[]).expect("the time").get(0);
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND xact_start < '{since}' AND pid <> pg_backend_pid()"
    );
    await_until(PATIENCE, "what began before has ended", || {
        match client.query_one(&sql, &[]).expect("the sessions").get::<_, i64>(0) {
            0 => Ok(()),
            some => Err(some.to_string()),
        }
    });
}

fn grows(what: &str, count: &AtomicU64) {
    let before = count.load(SeqCst);
    await_until(PATIENCE, what, || match count.load(SeqCst) {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
}

#[test]
fn in_no_snapshot_is_a_writer_served() {
    let servers = LearningServer::with_standby("log_min_messages = error");
    let mut admin = servers.connect();
    run(
        &mut admin,
        "CREATE TABLE written (n int); CREATE TABLE seats (n int); INSERT INTO seats VALUES (1), (2)",
    );
    run(&mut admin, READER);
    for statement in STATEMENTS {
        run(&mut admin, statement);
        await_served(&mut admin, statement);
    }
    servers.await_replayed();
    let standby = || servers.standby().connect().expect("a session on the standby");
    let stop = AtomicBool::new(false);
    let (primary_seen, standby_seen) = (Seen::default(), Seen::default());
    std::thread::scope(|scope| {
        let stop_all = Stop(&stop);
        let mut threads = Vec::new();
        for number in 0..4 {
            let (client, stop) = (servers.connect(), &stop);
            threads.push(scope.spawn(move || call(client, number, stop)));
        }
        let (client, stop) = (standby(), &stop);
        threads.push(scope.spawn(move || call(client, 0, stop)));
        let (client, seen) = (servers.connect(), &primary_seen);
        threads.push(scope.spawn(move || watch(client, stop, seen)));
        let (client, seen) = (standby(), &standby_seen);
        threads.push(scope.spawn(move || watch(client, stop, seen)));
        for _ in 0..ROUNDS {
            grows("the reader is served by the primary", &primary_seen.reader_served);
            run(&mut admin, WRITER);
            grows("the primary has a writer", &primary_seen.writer);
            grows("the standby has a writer", &standby_seen.writer);
            run(&mut admin, READER);
            await_older_calls(&mut admin);
            // What was seen writing is out for good, until somebody forgets it.
            run(&mut admin, "SELECT quorum.forget_statements()");
        }
        drop(stop_all);
        for thread in threads {
            thread.join().expect("nothing was wrong");
        }
    });
    assert!(standby_seen.reader_served.load(SeqCst) > 0, "the standby never served it");
}
