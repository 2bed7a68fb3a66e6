//! Changes know where they were made, and do not go round in circles.

use pgquorum_tests::{Applier, LogServer, rows, run, text};
use postgres::error::SqlState;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT quorum.track('t', 'c')";

fn two() -> (LogServer, LogServer) {
    let servers = (LogServer::start(""), LogServer::start(""));
    for (server, name) in [(&servers.0, "berlin"), (&servers.1, "paris")] {
        run(&mut server.connect(), &format!("SELECT quorum.set_origin_name('{name}'); {TABLE}"));
    }
    servers
}

#[test]
fn two_follow_each_other() {
    let (berlin, paris) = two();
    let mut there = Applier::new(&berlin, &paris, "");
    let mut back = Applier::new(&paris, &berlin, "");
    run(&mut there.source, "INSERT INTO t VALUES (1, 'berlin')");
    run(&mut there.source, "INSERT INTO t VALUES (2, 'x'); UPDATE t SET v = 'y' WHERE id = 2");
    run(&mut back.source, "INSERT INTO t VALUES (11, 'paris')");
    run(&mut back.source, "INSERT INTO t VALUES (12, 'paris')");
    let applied = there.pull();
    assert_eq!((applied.one_by_one, applied.transactions, applied.changes), (true, 2, 3));
    let applied = back.pull();
    assert_eq!(
        (applied.transactions, applied.changes, applied.conflicts),
        (4, 2, 0),
        "its own come back and are dropped"
    );
    there.assert_same("t", "both ways");
    assert_eq!(rows(&mut there.target, "t").lines().count(), 4);
    // Nothing is left over.
    let (one, other) = (there.pull(), back.pull());
    assert_eq!((one.changes, other.changes), (0, 0));
    let (one, other) = (there.pull(), back.pull());
    assert_eq!((one.transactions, other.transactions), (0, 0));
    // The log here says where each was made.
    let said = text(
        &mut paris.connect(),
        "SELECT string_agg(coalesce(origin, 'here'), ', ' ORDER BY tick)
         FROM quorum.changes('c') WHERE op IN ('insert', 'update')",
    );
    assert_eq!(said, "here, here, berlin, berlin, berlin");
}

#[test]
fn many_transactions_at_once_are_refused_where_the_table_is_captured() {
    let (berlin, paris) = two();
    let mut a = Applier::new(&berlin, &paris, "");
    let start = a.call(&[], None).expect("a position").position;
    run(&mut a.source, "INSERT INTO t VALUES (1, 'a')");
    run(&mut a.source, "INSERT INTO t VALUES (2, 'b')");
    a.add_schemas();
    let all = a.frames(&start);
    let error = a.transaction(all[0].row.first_tick - 1, &all, None).expect_err("two at once");
    assert_eq!(error.code(), Some(&SqlState::from_code("PQ012")), "{error:?}");
    assert_eq!(a.pull().transactions, 2);
    // What cannot be applied at first goes the careful way, in the same transaction.
    run(
        &mut a.target,
        "SELECT quorum.alter_subscription('s', policy => 'apply_remote'); DELETE FROM t WHERE id = 1",
    );
    run(&mut a.source, "BEGIN; UPDATE t SET v = 'c'; INSERT INTO t VALUES (3, 'd'); COMMIT");
    let applied = a.pull();
    assert_eq!((applied.transactions, applied.changes, applied.conflicts), (1, 3, 1));
    a.assert_same("t", "the careful way");
}

#[test]
fn what_comes_from_elsewhere_is_forwarded_only_if_asked_for() {
    let (berlin, paris) = two();
    let rome = LogServer::start("");
    run(&mut rome.connect(), &format!("SELECT quorum.set_origin_name('rome'); {TABLE}"));
    let mut first = Applier::new(&berlin, &paris, "");
    let mut second = Applier::new(&paris, &rome, "");
    let mut ring = Applier::new(&rome, &berlin, ", forward => true");
    run(&mut first.source, "INSERT INTO t VALUES (1, 'berlin')");
    run(&mut first.target, "INSERT INTO t VALUES (2, 'paris')");
    first.pull();
    assert_eq!(second.pull().changes, 1);
    assert_eq!(rows(&mut second.target, "t"), "(2,paris)", "what was made in berlin is not forwarded");
    run(&mut second.target, "SELECT quorum.alter_subscription('s', forward => true)");
    run(&mut first.source, "INSERT INTO t VALUES (3, 'berlin')");
    first.pull();
    second.pull();
    assert_eq!(rows(&mut second.target, "t"), "(2,paris)\n(3,berlin)");
    // Round the ring: what was made in berlin does not come back, what was made in paris arrives.
    let applied = ring.pull();
    assert_eq!((applied.changes, applied.conflicts), (1, 0));
    assert_eq!(rows(&mut ring.target, "t"), "(1,berlin)\n(2,paris)\n(3,berlin)");
    assert_eq!(first.pull().changes, 0);
    let said = text(
        &mut rome.connect(),
        "SELECT string_agg(origin, ' ' ORDER BY tick) FROM quorum.changes('c') WHERE op = 'insert'",
    );
    assert_eq!(said, "paris berlin", "the first origin is kept");
}
