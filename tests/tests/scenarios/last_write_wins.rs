//! Two databases that follow each other: of each row the write is left that was committed last.

use pgquorum_tests::{Applied, Applier, LogServer, rows, run, text};
use postgres::Client;

/// Two servers, each of which follows the other one.
pub struct Both {
    /// From berlin to paris.
    pub there: Applier,
    pub back: Applier,
    pub berlin: LogServer,
    pub paris: LogServer,
}

impl Both {
    /// `tables` are made on both, these tracked, and the last write wins in them.
    pub fn start(tables: &str, tracked: &[&str], settings: &str) -> Both {
        let (berlin, paris) = (LogServer::start(""), LogServer::start(""));
        for (server, name) in [(&berlin, "berlin"), (&paris, "paris")] {
            let mut client = server.connect();
            run(&mut client, &format!("SELECT quorum.set_origin_name('{name}'); {tables}"));
            tracked.iter().for_each(|t| run(&mut client, &format!("SELECT quorum.track('{t}', 'c')")));
        }
        let settings = format!(", policy => 'last_write_wins'{settings}");
        let there = Applier::new(&berlin, &paris, &settings);
        let back = Applier::new(&paris, &berlin, &settings);
        Both { there, back, berlin, paris }
    }

    /// Applies both ways until nothing is left.
    pub fn settle(&mut self) {
        settle(&mut [&mut self.there, &mut self.back]);
    }

    pub fn in_berlin(&mut self, sql: &str) {
        run(&mut self.there.source, sql);
    }

    pub fn in_paris(&mut self, sql: &str) {
        run(&mut self.there.target, sql);
    }

    /// Both have the same rows in a table, and know the same of who wrote them.
    pub fn assert_same(&mut self, table: &str, what: &str) {
        self.there.assert_same(table, what);
        let (berlin, paris) =
            (versions(&mut self.there.source, table), versions(&mut self.there.target, table));
        assert_eq!(paris, berlin, "versions of {table} after {what}");
    }
}

/// Applies in turn until nothing is left.
pub fn settle(appliers: &mut [&mut Applier]) {
    while appliers.iter_mut().map(|applier| pull(applier).transactions).sum::<i64>() > 0 {}
}

/// Applies all that the source has, again where the server says that it may be tried again.
pub fn pull(applier: &mut Applier) -> Applied {
    loop {
        match applier.try_pull(None) {
            Ok(applied) => return applied,
            Err(error) if is_to_be_tried_again(&error) => {}
            Err(error) => panic!("applying: {error:?}"),
        }
    }
}

pub fn is_to_be_tried_again(error: &postgres::Error) -> bool {
    error.code().is_some_and(|code| ["40001", "40P01", "55P03"].contains(&code.code()))
}

/// What is known of who wrote the rows of a table, also of those that were deleted.
pub fn versions(client: &mut Client, table: &str) -> String {
    let sql = format!(
        "SELECT coalesce(string_agg(concat_ws(' ', v.key, v.commit_us, coalesce(o.name, quorum.origin_name()), v.deleted), E'\\n'
                         ORDER BY v.key), '')
         FROM quorum.row_version AS v JOIN quorum.versioned_table AS t USING (keeping) LEFT JOIN quorum.origin AS o ON o.id = v.origin
         WHERE t.relid = '{table}'::regclass"
    );
    text(client, &sql)
}

pub fn counts(client: &mut Client) -> String {
    text(
        client,
        "SELECT coalesce(string_agg(concat_ws(' ', conflict, resolution, count), ', ' ORDER BY conflict, resolution), '')
         FROM quorum.conflicts",
    )
}

fn state(client: &mut Client) -> String {
    text(client, "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables")
}

/// Writes as if it came from elsewhere, where it was committed at this time.
fn as_origin(client: &mut Client, origin: &str, time: &str, sql: &str) {
    let set = format!(
        "SELECT set_config('pgquorum.origin', '{origin}', false), set_config('pgquorum.origin_commit_time', ({time})::text, false)"
    );
    run(client, &set);
    run(client, sql);
    run(client, "RESET pgquorum.origin; RESET pgquorum.origin_commit_time");
}

const LONG_AGO: &str = "timestamptz '2026-01-01 00:00:00+00'";

fn resume(applier: &mut Applier) {
    if text(&mut applier.target, "SELECT quorum.resume_table('s', 't')") == "catch-up" {
        applier.try_pull(Some("public.t")).expect("it catches up");
    }
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[test]
fn conflicts_are_named_and_the_later_write_stays() {
    let mut b = Both::start(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (20, 'old'), (21, 'old'), (22, 'old')",
        &["t"],
        "",
    );
    // Rows that nobody has written since versions are kept are older than everything.
    b.in_berlin("UPDATE t SET v = 'new' WHERE id IN (20, 21)");
    b.settle();
    b.in_berlin("INSERT INTO t SELECT i, 'first' FROM generate_series(1, 9) AS i");
    b.settle();
    b.assert_same("t", "writes of one side");
    assert_eq!((counts(&mut b.there.target), counts(&mut b.back.target)), (String::new(), String::new()));
    // Each row is written here and there; what paris does is later.
    b.in_berlin(
        "UPDATE t SET v = 'berlin' WHERE id = 1;
         UPDATE t SET v = 'berlin' WHERE id = 2;
         DELETE FROM t WHERE id = 3;
         DELETE FROM t WHERE id = 4;
         UPDATE t SET id = 50 WHERE id = 5;
         INSERT INTO t VALUES (10, 'berlin');
         INSERT INTO t VALUES (11, 'berlin')",
    );
    for sql in [
        "UPDATE t SET v = 'paris' WHERE id = 1",
        "DELETE FROM t WHERE id = 2",
        "UPDATE t SET v = 'paris' WHERE id = 3",
        "DELETE FROM t WHERE id = 4",
        "UPDATE t SET id = 51 WHERE id = 5",
        "INSERT INTO t VALUES (10, 'paris')",
        "INSERT INTO t VALUES (11, 'paris')",
        "DELETE FROM t WHERE id = 11",
    ] {
        b.in_paris(sql);
    }
    b.settle();
    b.assert_same("t", "conflicts");
    let left = "(1,paris)\n(10,paris)\n(20,new)\n(21,new)\n(22,old)\n(3,paris)\n(50,first)\n(51,first)\n(6,first)\n(7,first)\n(8,first)\n(9,first)";
    assert_eq!(rows(&mut b.there.target, "t"), left);
    assert_eq!(
        counts(&mut b.there.target),
        "delete_missing kept_local 1, delete_origin_differs kept_local 1, insert_deleted kept_local 1, insert_exists kept_local 1, \
         update_deleted kept_local 2, update_origin_differs kept_local 1"
    );
    assert_eq!(
        counts(&mut b.back.target),
        "delete_missing applied_remote 1, delete_origin_differs applied_remote 1, insert_exists applied_remote 2, \
         update_deleted applied_remote 2, update_origin_differs applied_remote 1"
    );
    // Afterwards one follows the other again.
    b.in_berlin("UPDATE t SET v = 'berlin'; DELETE FROM t WHERE id = 6; INSERT INTO t VALUES (2, 'again'), (4, 'again')");
    b.settle();
    b.in_paris(
        "DELETE FROM t WHERE id = 2; UPDATE t SET id = 5 WHERE id = 51; INSERT INTO t VALUES (6, 'again')",
    );
    b.settle();
    b.assert_same("t", "one after the other");
    let rejected = "SELECT count(*)::text FROM quorum.rejected_changes";
    assert_eq!(text(&mut b.there.target, rejected) + &text(&mut b.back.target, rejected), "00");
}

#[test]
fn what_was_never_here_is_made_if_it_is_the_last_write() {
    let mut b = Both::start(TABLE, &[], "");
    b.in_berlin("INSERT INTO t VALUES (1, 'old'), (2, 'old'), (3, 'old')");
    // A table that is not tracked here cannot say who wrote a row last: it stops, and says what to do.
    b.in_berlin("SELECT quorum.track('t', 'c')");
    b.there.find_tables();
    let said = state(&mut b.there.target);
    assert!(
        said.starts_with("stopped PQ020 table public.t is not tracked here") && said.contains("quorum.track"),
        "{said}"
    );
    let again = "SELECT quorum.resume_table('s', 't')";
    pgquorum_tests::refused(&mut b.there.target, again, "55000", "not tracked");
    b.in_berlin("UPDATE t SET v = 'berlin' WHERE id = 1");
    b.in_paris("SELECT quorum.track('t', 'c')");
    resume(&mut b.there);
    b.back.find_tables();
    assert_eq!(text(&mut b.there.target, "SELECT count(*)::text FROM quorum.versioned_tables"), "1");
    b.settle();
    assert_eq!(rows(&mut b.there.target, "t"), "(1,berlin)");
    assert_eq!(counts(&mut b.there.target), "update_missing applied_remote 1");
    // A table that loses its versions stops at the next change.
    b.in_paris("SELECT quorum.drop_versions('t')");
    b.in_berlin("UPDATE t SET v = 'later' WHERE id = 1");
    b.settle();
    let said = state(&mut b.there.target);
    assert!(said.starts_with("stopped PQ020 no versions are kept"), "{said}");
    resume(&mut b.there);
    b.settle();
    assert_eq!(rows(&mut b.there.target, "t"), "(1,later)");
    // The policy of one table, where the subscription has another one.
    b.in_paris("SELECT quorum.drop_versions('t'); SELECT quorum.alter_subscription('s', policy => 'error')");
    b.in_paris("SELECT quorum.set_table_policy('s', 't', 'last_write_wins')");
    assert_eq!(text(&mut b.there.target, "SELECT count(*)::text FROM quorum.versioned_tables"), "1");
    b.in_paris("SELECT quorum.set_table_policy('s', 't', NULL); SELECT quorum.drop_versions('t')");
    b.in_paris("SELECT quorum.alter_subscription('s', policy => 'last_write_wins')");
    assert_eq!(text(&mut b.there.target, "SELECT count(*)::text FROM quorum.versioned_tables"), "1");
}

#[test]
fn at_the_same_time_the_higher_name_wins() {
    let mut b = Both::start(TABLE, &["t"], ", forward => true");
    as_origin(&mut b.there.source, "athens", LONG_AGO, "INSERT INTO t VALUES (1, 'athens'), (2, 'athens')");
    as_origin(&mut b.there.target, "basel", LONG_AGO, "INSERT INTO t VALUES (1, 'basel'), (3, 'basel')");
    b.settle();
    b.assert_same("t", "ties");
    assert_eq!(rows(&mut b.there.target, "t"), "(1,basel)\n(2,athens)\n(3,basel)");
    // The same write by another way is no conflict, and no write.
    as_origin(&mut b.there.source, "basel", LONG_AGO, "UPDATE t SET v = 'basel' WHERE id = 3");
    let before = counts(&mut b.there.target);
    let applied = b.there.pull();
    assert_eq!((applied.changes, applied.conflicts), (0, 0));
    assert_eq!(counts(&mut b.there.target), before);
}

#[test]
fn a_clock_that_is_far_ahead_is_waited_for() {
    let mut b = Both::start(TABLE, &["t"], ", forward => true");
    b.in_berlin("INSERT INTO t VALUES (1, 'good')");
    as_origin(&mut b.there.source, "rome", "now() + interval '2 hours'", "INSERT INTO t VALUES (2, 'rome')");
    b.in_berlin("INSERT INTO t VALUES (3, 'after')");
    let error = b.there.try_pull(None).expect_err("the time is far ahead");
    let error = error.as_db_error().expect("an answer of the server");
    assert_eq!(error.code().code(), "PQ021", "{error:?}");
    assert_eq!(
        error.message(),
        "a change of public.t that was made at rome has a time that is 119 min ahead of this server's clock"
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("chronyc")), "{error:?}");
    assert_eq!(
        rows(&mut b.there.target, "t"),
        "(1,good)",
        "what came before is applied, what comes after waits"
    );
    let bound = |client: &mut Client| {
        run(client, "ALTER SYSTEM SET pgquorum.clock_skew_max = '3h'");
        run(client, "SELECT pg_reload_conf()");
        let setting = "SELECT current_setting('pgquorum.clock_skew_max')";
        pgquorum_tests::await_answer(client, pgquorum_tests::PATIENCE, setting, "3h");
    };
    bound(&mut b.there.target);
    b.there.pull();
    assert_eq!(rows(&mut b.there.target, "t"), "(1,good)\n(2,rome)\n(3,after)");
    // Who writes here is later than that all the same.
    b.in_paris("UPDATE t SET v = 'paris' WHERE id = 2");
    bound(&mut b.back.target);
    b.settle();
    b.assert_same("t", "a clock that was ahead");
}

#[test]
fn rows_that_collide_in_other_indexes_are_weighed_too() {
    let mut b = Both::start(
        "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, w int UNIQUE, v text CHECK (v <> 'bad'))",
        &["t"],
        "",
    );
    b.in_paris("INSERT INTO t VALUES (1, 1, 1, 'paris'), (2, 2, 2, 'paris'), (3, 3, 3, 'paris')");
    b.in_berlin("INSERT INTO t VALUES (11, 1, 11, 'berlin'), (12, 2, 3, 'berlin')");
    b.there.pull();
    assert_eq!(
        rows(&mut b.there.target, "t"),
        "(11,1,11,berlin)\n(12,2,3,berlin)",
        "the later rows are left"
    );
    assert_eq!(
        counts(&mut b.there.target),
        "insert_exists applied_remote 1, multiple_unique_conflicts applied_remote 1"
    );
    // One of the rows in the way is later.
    b.in_berlin("INSERT INTO t VALUES (13, 4, 5, 'berlin'); UPDATE t SET u = 6 WHERE id = 11");
    b.in_paris("INSERT INTO t VALUES (4, 4, 4, 'paris'); INSERT INTO t VALUES (6, 6, 7, 'paris')");
    b.there.pull();
    assert_eq!(
        rows(&mut b.there.target, "t"),
        "(11,1,11,berlin)\n(12,2,3,berlin)\n(4,4,4,paris)\n(6,6,7,paris)"
    );
    assert_eq!(
        counts(&mut b.there.target),
        "insert_exists applied_remote 1, insert_exists kept_local 1, multiple_unique_conflicts applied_remote 1, \
         update_exists kept_local 1"
    );
    // A value that does not fit is kept aside; tried again, it is weighed as well.
    b.in_berlin("ALTER TABLE t DROP CONSTRAINT t_v_check; UPDATE t SET v = 'bad' WHERE id = 12");
    assert_eq!(b.there.pull().rejected, 1);
    b.in_paris("ALTER TABLE t DROP CONSTRAINT t_v_check; UPDATE t SET v = 'later' WHERE id = 12");
    let retry = "SELECT quorum.retry_rejected(min(id)) FROM quorum.rejected_changes";
    assert_eq!(
        text(&mut b.there.target, retry),
        "not applied: update_origin_differs: the row was written later than that"
    );
    b.in_berlin("UPDATE t SET v = 'last' WHERE id = 12");
    b.there.pull();
    assert_eq!(text(&mut b.there.target, "SELECT v FROM t WHERE id = 12"), "last");
}

#[test]
fn a_table_that_is_emptied_twice_is_emptied_once() {
    let mut b = Both::start(TABLE, &["t"], ", forward => true");
    b.in_berlin("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5) AS i");
    b.settle();
    b.in_berlin(
        "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'new'), (2, 'new'); DELETE FROM t WHERE id = 2; COMMIT",
    );
    b.settle();
    b.assert_same("t", "TRUNCATE");
    assert_eq!(rows(&mut b.there.target, "t"), "(1,new)");
    // Rows of before come late.
    let late = "INSERT INTO t VALUES (9, 'late'); TRUNCATE t; INSERT INTO t VALUES (8, 'late')";
    as_origin(&mut b.there.source, "rome", LONG_AGO, late);
    b.there.pull();
    assert_eq!(rows(&mut b.there.target, "t"), "(1,new)", "all of it was before the table was emptied");
}
