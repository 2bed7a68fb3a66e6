//! Nothing is applied twice, left out or halved: repeats, gaps, wrong order, broken-off transactions, kills, two at once.

use pgquorum_tests::{Frame, piece_frame, rows, run, text};
use postgres::error::SqlState;

use super::apply_statements::pair;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

fn code(error: &postgres::Error) -> &str {
    error.code().map_or("", SqlState::code)
}

#[test]
fn repeats_are_passed_over_and_gaps_are_refused() {
    let (_source, _target, mut a) = pair(TABLE, &["t"]);
    let start = a.call(&[], None).expect("a position").position;
    for i in 1..=5 {
        run(&mut a.source, &format!("INSERT INTO t VALUES ({i}, 'a'), ({i} + 100, 'b')"));
    }
    let all = a.frames(&start);
    assert_eq!(all.len(), 5);
    let tick = all[0].row.first_tick - 1;
    let error = a.transaction(tick, &all, None).expect_err("what the columns are is not known");
    assert_eq!(code(&error), "PQ010", "{error:?}");
    a.add_schemas();
    // The first is missing.
    let error = a.transaction(u64::MAX, &all[1..], None).expect_err("a gap");
    assert_eq!(code(&error), "PQ013", "{error:?}");
    // One in the middle is missing.
    let holed: Vec<Frame> = [&all[..1], &all[2..]].concat();
    let error = a.transaction(tick, &holed, None).expect_err("a gap");
    assert_eq!(code(&error), "PQ013", "{error:?}");
    // Another order.
    let turned: Vec<Frame> = [&all[1..2], &all[..1]].concat();
    let error = a.transaction(tick, &turned, None).expect_err("a gap");
    assert_eq!(code(&error), "PQ013", "{error:?}");
    assert_eq!(rows(&mut a.target, "t"), "", "nothing was applied");

    a.transaction(tick, &all[..3], None).expect("what follows");
    let half = rows(&mut a.target, "t");
    let position = a.call(&[], None).expect("a position").position;
    // All of it again, and more.
    let again = a.transaction(tick, &all[..3], None).expect("a repeat");
    assert_eq!((again.changes, again.transactions, again.position), (0, 0, position));
    assert_eq!(rows(&mut a.target, "t"), half);
    let more = a.transaction(tick, &all, None).expect("a repeat and more");
    assert_eq!((more.changes, more.transactions, more.conflicts), (4, 2, 0));
    a.assert_same("t", "the repeats");
    // What was written in an earlier history is no repeat of what came after it.
    let mut other = all[4].clone();
    other.bytes[5] += 1;
    let error = a.transaction(u64::MAX, &[other], None).expect_err("another history");
    assert_eq!(code(&error), "PQ013", "{error:?}");
    // Damage is found.
    let mut damaged = all[4].clone();
    *damaged.bytes.last_mut().expect("bytes") ^= 1;
    let error = a.transaction(u64::MAX, &[damaged], None).expect_err("damage");
    assert_eq!(code(&error), "XX001", "{error:?}");
    let mut cut = piece_frame(u64::MAX, &[]);
    cut.extend_from_slice(&all[4].bytes[..all[4].bytes.len() - 1]);
    let error = a.call(&cut, None).expect_err("half a frame");
    assert_eq!(code(&error), "22023", "{error:?}");
}

#[test]
fn a_transaction_of_the_source_is_committed_as_a_whole() {
    let (_source, _target, mut a) = pair(TABLE, &["t"]);
    let start = a.call(&[], None).expect("a position").position;
    run(&mut a.source, "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 1000) AS i");
    a.add_schemas();
    let all = a.frames(&start);
    assert!(all.len() > 5);
    let tick = all[0].row.first_tick - 1;
    let error = a.transaction(tick, &all[..3], None).expect_err("half a transaction");
    assert_eq!(code(&error), "25000", "{error:?}");
    assert_eq!(rows(&mut a.target, "t"), "");
    assert_eq!(a.call(&[], None).expect("a position").position, start);

    // Outside a transaction, each call is one.
    let mut batch = piece_frame(tick, &all);
    batch.extend_from_slice(&all[0].bytes);
    assert_eq!(code(&a.call(&batch, None).expect_err("half a transaction")), "25000");
    run(&mut a.target, "BEGIN");
    assert!(a.call(&batch, None).expect("the beginning").in_transaction);
    let error = a.target.batch_execute("PREPARE TRANSACTION 'p'").expect_err("half a transaction");
    assert_eq!(code(&error), "25000", "{error:?}");

    // Savepoints would take away what is known as applied.
    run(&mut a.target, "BEGIN; SAVEPOINT s");
    assert_eq!(code(&a.call(&batch, None).expect_err("a savepoint")), "25001");
    run(&mut a.target, "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_eq!(code(&a.call(&batch, None).expect_err("another isolation level")), "25001");
    run(&mut a.target, "ROLLBACK");

    // The connection to the source breaks in the middle, and the rest comes in a piece of its own.
    run(&mut a.target, "BEGIN");
    let mut first = piece_frame(tick, &all);
    all[..3].iter().for_each(|frame| first.extend_from_slice(&frame.bytes));
    assert!(a.call(&first, None).expect("the beginning").in_transaction);
    let at = all[2].row.last_tick;
    let again = a.frames(&format!("{}:{at}", all[0].row.epoch));
    let mut rest = piece_frame(at, &again);
    again.iter().for_each(|frame| rest.extend_from_slice(&frame.bytes));
    let end = a.call(&rest, None).expect("the rest");
    assert_eq!((end.in_transaction, end.transactions), (false, 1));
    run(&mut a.target, "COMMIT");
    a.assert_same("t", "a resumed transaction");
}

#[test]
fn what_is_killed_in_the_middle_is_applied_once() {
    let (_source, mut target, mut a) = pair(TABLE, &["t"]);
    a.add_schemas();
    for round in 0..3 {
        let start = a.call(&[], None).expect("a position").position;
        for i in 1..=3 {
            run(
                &mut a.source,
                &format!("INSERT INTO t VALUES ({round} * 10 + {i}, 'a'); UPDATE t SET v = v || {i}"),
            );
        }
        let all = a.frames(&start);
        let mut batch = piece_frame(all[0].row.first_tick - 1, &all);
        all.iter().for_each(|frame| batch.extend_from_slice(&frame.bytes));
        run(&mut a.target, "BEGIN");
        a.call(&batch, None).expect("it applies");
        if round == 0 {
            // The session ends without a commit.
            a.target = target.connect();
        } else {
            target.server.crash();
            a.target = target.connect();
        }
        assert_eq!(a.call(&[], None).expect("a position").position, start);
        a.pull();
        a.assert_same("t", "a kill");
        if round == 2 {
            target.server.crash();
            a.target = target.connect();
            assert_eq!(a.pull().changes, 0, "the commit has survived with its position");
            a.assert_same("t", "a kill after the commit");
        }
    }
}

#[test]
fn two_at_once_apply_each_change_once() {
    let (_source, target, mut a) = pair("CREATE TABLE t (id int PRIMARY KEY, n int)", &["t"]);
    a.add_schemas();
    run(&mut a.source, "INSERT INTO t VALUES (1, 0)");
    a.pull();
    let start = a.call(&[], None).expect("a position").position;
    for _ in 0..40 {
        run(&mut a.source, "UPDATE t SET n = n + 1");
    }
    let all = a.frames(&start);
    let tick = all[0].row.first_tick - 1;
    let mut batch = piece_frame(tick, &all);
    all.iter().for_each(|frame| batch.extend_from_slice(&frame.bytes));
    let id = a.id;
    let done: i64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (batch, mut client) = (&batch, target.connect());
                scope.spawn(move || -> i64 {
                    let sql = "SELECT changes FROM quorum.apply($1, $2)";
                    client.query_one(sql, &[&id, batch]).expect("it applies or passes over").get(0)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    assert_eq!(done, 40);
    a.assert_same("t", "three at once");
    assert_eq!(text(&mut a.target, "SELECT coalesce(sum(count), 0)::text FROM quorum.conflicts"), "0");
}
