//! The triggers that capture: where they are, and what is locked to take them away.

use pgquorum_tests::{LogServer, PATIENCE, await_until, run, take_log};
use postgres::Client;

/// Several event triggers fire where foreign keys name the table; whichever comes first takes all of ours off.
#[test]
fn a_detached_partition_keeps_no_trigger() {
    let log = LogServer::start("");
    let c = &mut log.connect();
    run(
        c,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
         CREATE TABLE r (id int REFERENCES p); SELECT quorum.track('p', 'c');
         ALTER TABLE p DETACH PARTITION p1",
    );
    let of = |c: &mut Client, table: &str| -> i64 {
        let sql = "SELECT count(*) FROM quorum.capture_trigger WHERE relid = $1::text::regclass";
        c.query_one(sql, &[&table]).expect("a count").get(0)
    };
    assert_eq!((of(c, "p"), of(c, "p1"), of(c, "p2")), (2, 0, 2));
    take_log(c);
    run(c, "TRUNCATE p1; INSERT INTO p1 VALUES (1)");
    assert!(take_log(c).is_empty());
}

/// What track() has to lock for itself is not waited for in everybody's way.
#[test]
fn tracking_a_table_with_triggers_of_old_holds_up_no_reader() {
    let log = LogServer::start("");
    let (c, reader) = (&mut log.connect(), &mut log.connect());
    run(
        c,
        "CREATE TABLE t (id int PRIMARY KEY);
         CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row()",
    );
    run(reader, "BEGIN; SELECT FROM t");
    let mut admin = log.connect();
    let tracking = std::thread::spawn(move || run(&mut admin, "SELECT quorum.track('t', 'c')"));
    await_until(PATIENCE, "it is waiting", || {
        let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')";
        c.query_one(sql, &[]).expect("an answer").get::<_, bool>(0).then_some(()).ok_or_else(String::new)
    });
    // Whoever queued behind it would wait until the reader ends, which it does after this.
    run(c, "SET lock_timeout = '30s'");
    for _ in 0..20 {
        run(c, "SELECT FROM t");
    }
    run(reader, "COMMIT");
    tracking.join().expect("it is tracked");
}
