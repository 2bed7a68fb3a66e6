//! Sessions that are ended in the middle of a transaction with captured changes: nothing of it is in the log, nothing is
//! left of it, and the channel goes on.

use pgquorum_tests::{LogServer, PATIENCE, await_answer, run, text};
use postgres::Client;

const ROWS: &str = "SELECT count(*)::text FROM t";
const LOG_ROWS: &str = "SELECT count(*)::text FROM quorum_log.log_1_1";
const CAPTURED: &str = "SELECT coalesce(string_agg(key ->> 'id', ' ' ORDER BY tick), '') FROM quorum.changes('c') WHERE op = 'insert'";

/// Temporary files of a session.
fn files(process: &str) -> String {
    format!("SELECT count(*)::text FROM pg_ls_tmpdir() WHERE name LIKE 'pgsql\\_tmp{process}.%'")
}

/// Does a session wait for a lock?
fn waiting(process: &str) -> String {
    format!("SELECT count(*)::text FROM pg_stat_activity WHERE pid = {process} AND wait_event_type = 'Lock'")
}

/// A session with a transaction whose changes, a megabyte, wait in a file; and its process.
fn begun(log: &LogServer, c: &mut Client) -> (Client, String) {
    let mut victim = log.connect();
    let process = text(&mut victim, "SELECT pg_backend_pid()::text");
    run(
        &mut victim,
        "BEGIN; INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1001, 3000) AS i; SAVEPOINT a;
         UPDATE t SET v = 'y' WHERE id > 2000",
    );
    assert_ne!(text(c, &files(&process)), "0", "the changes are more than memory may hold");
    (victim, process)
}

fn end(c: &mut Client, process: &str) {
    assert_eq!(text(c, &format!("SELECT pg_terminate_backend({process})::text")), "true");
    let there = format!("SELECT count(*)::text FROM pg_stat_activity WHERE pid = {process}");
    await_answer(c, PATIENCE, &there, "0");
    // Its file goes with it.
    await_answer(c, PATIENCE, &files(process), "0");
    let pending = "SELECT pending_transactions::text FROM quorum.channel_state";
    await_answer(c, PATIENCE, pending, "0");
}

/// Nothing is there but these rows, in the table and in the channel.
fn only(c: &mut Client, ids: &[&str]) {
    assert_eq!(text(c, ROWS), ids.len().to_string());
    run(c, "SELECT quorum.cut('c')");
    assert_eq!(text(c, CAPTURED), ids.join(" "));
}

#[test]
fn nothing_is_left_of_a_transaction_whose_session_was_ended() {
    let log = LogServer::start("pgquorum.capture_memory = 64kB");
    let c = &mut log.connect();
    run(c, "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c')");
    let before = text(c, LOG_ROWS);

    // Between two statements.
    let (victim, process) = begun(&log, c);
    end(c, &process);
    assert_eq!(text(c, LOG_ROWS), before);
    run(c, "INSERT INTO t VALUES (1)");
    only(c, &["1"]);
    drop(victim);

    // In a statement, which waits for another transaction with the same key.
    let mut other = log.connect();
    run(&mut other, "BEGIN; INSERT INTO t VALUES (2)");
    let (mut victim, process) = begun(&log, c);
    let writing = std::thread::spawn(move || victim.batch_execute("INSERT INTO t VALUES (3), (2)").is_err());
    await_answer(c, PATIENCE, &waiting(&process), "1");
    end(c, &process);
    assert!(writing.join().expect("it has an answer"), "the session was ended");
    run(&mut other, "COMMIT");
    only(c, &["1", "2"]);

    // In its commit, when it is about to write the log.
    run(&mut other, "BEGIN; LOCK TABLE quorum_log.log_1_1 IN EXCLUSIVE MODE");
    let (mut victim, process) = begun(&log, c);
    let committing = std::thread::spawn(move || victim.batch_execute("COMMIT").is_err());
    await_answer(c, PATIENCE, &waiting(&process), "1");
    end(c, &process);
    assert!(committing.join().expect("it has an answer"), "it did not commit");
    run(&mut other, "COMMIT");
    run(c, "INSERT INTO t VALUES (4)");
    only(c, &["1", "2", "4"]);
}
