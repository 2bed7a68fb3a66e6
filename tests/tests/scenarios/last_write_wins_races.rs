//! Whoever writes a row here at the moment at which a change of it is weighed loses nothing.

use pgquorum_tests::{Applied, Applier, LogServer, PATIENCE, await_answer, rows, run, text};
use postgres::Client;
use postgres::error::SqlState;

use super::apply_statements::assert_tidy;
use super::last_write_wins::{Both, counts, pull};

const WAITS: &str = "SELECT (count(*) > 0)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%quorum.apply%'";

/// Applies berlin's changes in paris, while a session in paris has a transaction open that has run `sql`, and ends it so
/// when the other one waits for it.
fn while_open(b: &mut Both, sql: &str, end: &str) {
    let (mut local, mut watcher): (Client, Client) = (b.paris.connect(), b.paris.connect());
    run(&mut local, &format!("BEGIN; {sql}"));
    std::thread::scope(|scope| {
        let there = &mut b.there;
        let applied = scope.spawn(move || pull(there));
        await_answer(&mut watcher, PATIENCE, WAITS, "true");
        run(&mut local, end);
        applied.join().expect("it is applied");
    });
}

fn start() -> Both {
    let mut b = Both::start("CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"], "");
    b.in_berlin("INSERT INTO t SELECT i, 'first' FROM generate_series(1, 9) AS i");
    b.settle();
    b
}

#[test]
fn a_write_that_commits_meanwhile_is_the_later_one() {
    let mut b = start();
    // An update and a deletion of a row that is here.
    b.in_berlin("UPDATE t SET v = 'berlin' WHERE id = 1");
    while_open(&mut b, "UPDATE t SET v = 'paris' WHERE id = 1", "COMMIT");
    b.in_berlin("DELETE FROM t WHERE id = 2");
    while_open(&mut b, "UPDATE t SET v = 'paris' WHERE id = 2", "COMMIT");
    b.in_berlin("UPDATE t SET v = 'berlin' WHERE id = 3");
    while_open(&mut b, "DELETE FROM t WHERE id = 3", "COMMIT");
    // A row that is not here yet.
    b.in_berlin("INSERT INTO t VALUES (10, 'berlin')");
    while_open(&mut b, "INSERT INTO t VALUES (10, 'paris')", "COMMIT");
    // One that is gone here, and is made again while its deletion there is applied.
    b.in_paris("DELETE FROM t WHERE id = 4");
    b.in_berlin("DELETE FROM t WHERE id = 4");
    while_open(&mut b, "INSERT INTO t VALUES (4, 'paris')", "COMMIT");
    // Made and deleted again, before it comes from there.
    b.in_berlin("INSERT INTO t VALUES (11, 'berlin')");
    while_open(
        &mut b,
        "INSERT INTO t VALUES (11, 'paris'); DELETE FROM t WHERE id = 11; INSERT INTO t VALUES (11)",
        "COMMIT",
    );
    // What is rolled back was never written.
    b.in_berlin("UPDATE t SET v = 'berlin' WHERE id = 5; DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (12, 'berlin')");
    while_open(&mut b, "UPDATE t SET v = 'paris' WHERE id = 5; DELETE FROM t WHERE id = 6", "ROLLBACK");
    let left = "(1,paris)\n(10,paris)\n(11,)\n(12,berlin)\n(2,paris)\n(4,paris)\n(5,berlin)\n(7,first)\n(8,first)\n(9,first)";
    assert_eq!(rows(&mut b.there.target, "t"), left);
    b.settle();
    b.assert_same("t", "races");
    assert_eq!(
        counts(&mut b.there.target),
        "delete_origin_differs kept_local 2, insert_exists kept_local 2, update_deleted kept_local 1, update_origin_differs kept_local 1"
    );
    assert_tidy(&b.paris);
    assert_tidy(&b.berlin);
}

#[test]
fn a_tombstone_waits_for_prepared_transactions() {
    let mut b = start();
    b.in_paris("DELETE FROM t WHERE id = 1");
    b.in_berlin("DELETE FROM t WHERE id = 1");
    // Whoever has written versions may not have ended while one is written that no row holds.
    b.in_paris("BEGIN; UPDATE t SET v = 'paris' WHERE id = 9; PREPARE TRANSACTION 'p'");
    let error = b.there.try_pull(None).expect_err("it waits for half a second");
    assert_eq!(error.code().map_or("", |code| code.code()), "55P03", "{error:?}");
    // Others go on meanwhile.
    b.in_paris("UPDATE t SET v = 'paris' WHERE id = 8");
    b.in_paris("COMMIT PREPARED 'p'");
    b.settle();
    b.assert_same("t", "the prepared transaction has ended");
    assert_eq!(text(&mut b.there.target, "SELECT count(*)::text FROM t"), "8");
    assert_eq!(counts(&mut b.there.target), "delete_missing applied_remote 1");
}

#[test]
fn what_was_written_between_the_look_and_the_insert_is_weighed_again() {
    let mut b = start();
    // The quick way fails; the careful one is held up when it has looked, and just before it inserts.
    b.in_paris(
        "CREATE SEQUENCE calls;
         CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$
         DECLARE call bigint := nextval('public.calls');
         BEGIN
             IF call = 1 THEN RAISE EXCEPTION 'not this way'; END IF;
             IF call = 2 THEN PERFORM pg_advisory_xact_lock(7); END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER held BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION held();
         ALTER TABLE t ENABLE REPLICA TRIGGER held",
    );
    for (id, sql, count) in [
        (
            20,
            "INSERT INTO t VALUES (20, 'paris'); DELETE FROM t WHERE id = 20",
            "insert_deleted kept_local 1",
        ),
        (21, "INSERT INTO t VALUES (21, 'paris')", "insert_deleted kept_local 1, insert_exists kept_local 1"),
    ] {
        b.in_paris("SELECT setval('calls', 1, false)");
        b.in_berlin(&format!("INSERT INTO t VALUES ({id}, 'berlin')"));
        while_open(
            &mut b,
            "SELECT pg_advisory_lock(7)",
            &format!("{sql}; COMMIT; SELECT pg_advisory_unlock(7)"),
        );
        assert_eq!(text(&mut b.there.target, "SELECT last_value::text FROM calls"), "2", "{sql}");
        assert_eq!(counts(&mut b.there.target), count, "{sql}");
    }
    let left = "SELECT string_agg(id || ' ' || v, ', ' ORDER BY id) FROM t WHERE id > 9";
    assert_eq!(text(&mut b.there.target, left), "21 paris");
    b.in_paris("DROP TRIGGER held ON t");
    b.settle();
    b.assert_same("t", "what was weighed again");
    assert_tidy(&b.paris);
}

/// Who has its turn may be held up for longer than the other one waits, which then tries again.
fn in_turn(applier: &mut Applier) -> Result<Applied, postgres::Error> {
    loop {
        match applier.try_pull(None) {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            done => return done,
        }
    }
}

#[test]
fn two_that_bury_the_same_row_do_not_wait_for_each_other() {
    let (berlin, bern, paris) = (LogServer::start(""), LogServer::start(""), LogServer::start(""));
    for (server, name) in [(&berlin, "berlin"), (&bern, "bern"), (&paris, "paris")] {
        let sql = "CREATE TABLE t (id int PRIMARY KEY, v int); SELECT quorum.track('t', 'c')";
        run(&mut server.connect(), &format!("SELECT quorum.set_origin_name('{name}'); {sql}"));
    }
    let settings = ", policy => 'last_write_wins'";
    let mut one = Applier::new(&berlin, &paris, settings);
    run(&mut one.target, "UPDATE quorum.subscription SET name = 'one'");
    let mut other = Applier::new(&bern, &paris, settings);
    run(&mut one.source, "INSERT INTO t SELECT i, 0 FROM generate_series(1, 50) AS i");
    run(
        &mut other.source,
        "INSERT INTO t SELECT CASE i WHEN 1 THEN 100 ELSE i END, 0 FROM generate_series(1, 50) AS i",
    );
    pull(&mut one);
    pull(&mut other);
    let (mut local, mut watcher) = (paris.connect(), paris.connect());
    let waiting = WAITS.replace("> 0", "= 2");
    for id in 2..12 {
        run(&mut local, &format!("DELETE FROM t WHERE id = {id}"));
        run(
            &mut one.source,
            &format!("BEGIN; UPDATE t SET v = v + 1 WHERE id = 1; DELETE FROM t WHERE id = {id}; COMMIT"),
        );
        run(
            &mut other.source,
            &format!("BEGIN; UPDATE t SET v = v + 1 WHERE id = 100; DELETE FROM t WHERE id = {id}; COMMIT"),
        );
        // Both have begun, and come to the deletion at the same moment.
        run(&mut local, "BEGIN; SELECT FROM t WHERE id IN (1, 100) FOR UPDATE");
        std::thread::scope(|scope| {
            let both = [&mut one, &mut other].map(|applier| scope.spawn(move || in_turn(applier)));
            await_answer(&mut watcher, PATIENCE, &waiting, "true");
            run(&mut local, "COMMIT");
            for applied in both {
                let applied = applied.join().expect("a thread").expect("nobody gives up");
                assert_eq!(applied.transactions, 1);
            }
        });
    }
    assert_eq!(text(&mut local, "SELECT string_agg(v::text, ' ') FROM t WHERE id IN (1, 100)"), "10 10");
    assert_tidy(&paris);
}
