//! What is here and what is at the source are not the same: conflicts are named, counted, and resolved as the policy says.

use pgquorum_tests::{Applier, rows, run, text};

use super::apply_statements::{assert_tidy, pair};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE, v text CHECK (v <> 'bad'), w text);
     ALTER TABLE t ALTER w SET STORAGE EXTERNAL; CREATE TABLE other (id int PRIMARY KEY)";

fn with_policy(a: &mut Applier, policy: &str) {
    run(&mut a.target, &format!("SELECT quorum.alter_subscription('s', policy => '{policy}')"));
}

fn counts(a: &mut Applier) -> String {
    text(
        &mut a.target,
        "SELECT coalesce(string_agg(concat_ws(' ', \"table\", conflict, resolution, count), ', '
                ORDER BY \"table\", conflict, resolution), '') FROM quorum.conflicts",
    )
}

fn rejected(a: &mut Applier) -> String {
    text(
        &mut a.target,
        "SELECT coalesce(string_agg(concat_ws(' ', op, conflict, code, key, old, new), ', ' ORDER BY id), '')
         FROM quorum.rejected_changes",
    )
}

/// Conflicts of every kind. Row 3 has none.
fn provoke(a: &mut Applier) {
    run(
        &mut a.source,
        "INSERT INTO t VALUES (1, 1, 'a', 'x'), (2, 2, 'b', 'x'), (3, 3, 'c', 'x'), (4, 4, 'd', 'x')",
    );
    assert_eq!(a.pull().conflicts, 0);
    run(
        &mut a.target,
        "DELETE FROM t WHERE id IN (1, 2); UPDATE t SET u = -4 WHERE id = 4;
         INSERT INTO t VALUES (10, 10, 'local', 'x'), (11, 12, 'local', 'x'), (13, 14, 'local', 'x'), (14, 15, 'local', 'x'), (15, 4, 'local', 'x')",
    );
    run(
        &mut a.source,
        "INSERT INTO other VALUES (1);
         UPDATE t SET v = 'A' WHERE id = 1;                 -- update_missing
         DELETE FROM t WHERE id = 2;                        -- delete_missing
         UPDATE t SET v = 'C' WHERE id = 3;
         INSERT INTO t VALUES (10, 20, 'remote', 'y');      -- insert_exists, by the key
         INSERT INTO t VALUES (12, 12, 'remote', 'y');      -- insert_exists, by another unique index
         INSERT INTO t VALUES (14, 14, 'remote', 'y');      -- multiple_unique_conflicts
         UPDATE t SET u = 5 WHERE id = 4; UPDATE t SET u = 4 WHERE id = 4;     -- update_exists
         INSERT INTO other VALUES (2)",
    );
}

#[test]
fn error_stops_the_table_and_no_other_one() {
    let (_source, target, mut a) = pair(TABLES, &["t", "other"]);
    provoke(&mut a);
    let applied = a.pull();
    assert_eq!((applied.conflicts, applied.rejected), (1, 0));
    a.assert_same("other", "the stop of another table");
    assert_eq!(text(&mut a.target, "SELECT v FROM t WHERE id = 3"), "c", "nothing after the conflict");
    assert_eq!(counts(&mut a), "t update_missing stopped 1");
    let state =
        "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables WHERE \"table\" = 't'";
    let said = text(&mut a.target, state);
    assert!(
        said.starts_with("stopped P0002 update_missing at ") && said.ends_with("is not in table public.t"),
        "{said}"
    );

    // Put right, the table goes on with the change at which it stopped, alone.
    run(
        &mut a.target,
        "DELETE FROM t WHERE id > 4; UPDATE t SET u = 4 WHERE id = 4; INSERT INTO t VALUES (1, 1, 'a', 'x'), (2, 2, 'b', 'x');
         SELECT quorum.resume_table('s', 't')",
    );
    let early = a.follow("INSERT INTO other VALUES (3)", &["other"]);
    assert_eq!(early.changes, 1, "what is behind is not mixed with the rest");
    let caught_up = a.try_pull(Some("public.t")).expect("it catches up");
    assert_eq!((caught_up.conflicts, caught_up.changes), (0, 8));
    assert_eq!(
        text(&mut a.target, "SELECT state FROM quorum.subscription_tables WHERE \"table\" = 't'"),
        "following"
    );
    a.follow("UPDATE t SET v = v || '.'; INSERT INTO other VALUES (4)", &["t", "other"]);
    let error = a.try_pull(Some("public.t")).expect_err("it is where the others are");
    assert_eq!(error.code().map_or("", |code| code.code()), "55000");
    assert_tidy(&target);
}

#[test]
fn skip_keeps_what_it_leaves_out() {
    let (_source, target, mut a) = pair(TABLES, &["t", "other"]);
    with_policy(&mut a, "skip");
    provoke(&mut a);
    let applied = a.pull();
    assert_eq!((applied.conflicts, applied.rejected), (6, 6));
    assert_eq!(text(&mut a.target, "SELECT v FROM t WHERE id = 3"), "C");
    assert_eq!(
        counts(&mut a),
        "t delete_missing rejected 1, t insert_exists rejected 2, t multiple_unique_conflicts rejected 1, \
         t update_exists rejected 1, t update_missing rejected 1"
    );
    let first = rejected(&mut a);
    assert!(
        first.starts_with(
            r#"update update_missing P0002 {"id": 1} {"u": 1, "v": "A", "w": "x", "id": 1}, delete delete_missing P0002 {"id": 2}, insert insert_exists 23505 {"id": 10}"#
        ),
        "{first}"
    );
    // Tried again: still not, then yes.
    let id = text(&mut a.target, "SELECT min(id)::text FROM quorum.rejected_changes");
    let retry = format!("SELECT quorum.retry_rejected({id})");
    assert_eq!(
        text(&mut a.target, &retry),
        "not applied: update_missing: the row to be updated is not in table public.t"
    );
    run(&mut a.target, "INSERT INTO t VALUES (1, 1, 'mine', 'mine')");
    assert_eq!(text(&mut a.target, &retry), "applied");
    assert_eq!(text(&mut a.target, "SELECT v FROM t WHERE id = 1"), "A");
    assert_eq!(text(&mut a.target, "SELECT count(*)::text FROM quorum.rejected_changes"), "5");
    run(&mut a.target, "SELECT quorum.drop_rejected(id) FROM quorum.rejected_changes");
    assert_eq!(rejected(&mut a), "");
    assert_tidy(&target);
}

#[test]
fn apply_remote_makes_it_as_it_is_at_the_source() {
    let (_source, target, mut a) = pair(TABLES, &["t", "other"]);
    with_policy(&mut a, "apply_remote");
    provoke(&mut a);
    let applied = a.pull();
    assert_eq!((applied.conflicts, applied.rejected), (6, 0));
    a.assert_same("t", "all conflicts");
    a.assert_same("other", "all conflicts");
    assert_eq!(
        counts(&mut a),
        "t delete_missing applied_remote 1, t insert_exists applied_remote 2, t multiple_unique_conflicts applied_remote 1, \
         t update_exists applied_remote 1, t update_missing applied_remote 1"
    );
    // A row whose large value was not sent cannot be made.
    run(&mut a.source, "UPDATE t SET w = repeat('w', 100000) WHERE id = 3");
    a.pull();
    run(&mut a.target, "DELETE FROM t WHERE id = 3");
    run(&mut a.source, "UPDATE t SET v = 'D' WHERE id = 3");
    assert_eq!(a.pull().rejected, 1);
    assert!(rejected(&mut a).starts_with("update update_missing P0002"), "{}", rejected(&mut a));
    assert_tidy(&target);
}

#[test]
fn keep_local_leaves_what_is_here() {
    let (_source, target, mut a) = pair(TABLES, &["t", "other"]);
    with_policy(&mut a, "error");
    run(&mut a.target, "SELECT quorum.set_table_policy('s', 't', 'keep_local')");
    provoke(&mut a);
    let applied = a.pull();
    assert_eq!((applied.conflicts, applied.rejected), (6, 0));
    assert_eq!(
        rows(&mut a.target, "t"),
        "(10,10,local,x)\n(11,12,local,x)\n(13,14,local,x)\n(14,15,local,x)\n(15,4,local,x)\n(3,3,C,x)\n(4,5,d,x)"
    );
    assert_eq!(rejected(&mut a), "");
    // A value that does not fit is no conflict between rows: it is kept.
    run(&mut a.target, "DELETE FROM t WHERE id = 15");
    run(
        &mut a.source,
        "ALTER TABLE t DROP CONSTRAINT t_v_check; UPDATE t SET v = 'bad' WHERE id = 3; UPDATE t SET v = 'E' WHERE id = 4",
    );
    assert_eq!(a.pull().rejected, 1);
    assert!(rejected(&mut a).starts_with("update value 23514"), "{}", rejected(&mut a));
    assert_eq!(text(&mut a.target, "SELECT v FROM t WHERE id = 4"), "E");
    assert_tidy(&target);
}

#[test]
fn values_that_do_not_fit_stop_the_table() {
    let (_source, target, mut a) = pair("CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]);
    run(&mut a.target, "ALTER TABLE t ALTER v TYPE varchar(3)");
    a.follow("INSERT INTO t VALUES (1, 'abc')", &["t"]);
    run(&mut a.source, "INSERT INTO t VALUES (2, 'x'), (3, 'abcd'), (4, 'y')");
    a.pull();
    assert_eq!(rows(&mut a.target, "t"), "(1,abc)\n(2,x)");
    let code = "SELECT code FROM quorum.subscription_tables";
    assert_eq!(text(&mut a.target, code), "22001");
    run(&mut a.target, "ALTER TABLE t ALTER v TYPE text; SELECT quorum.resume_table('s', 't')");
    a.try_pull(Some("public.t")).expect("it catches up");
    a.assert_same("t", "the type was changed");
    assert_tidy(&target);
}

#[test]
fn others_who_change_the_same_rows_are_waited_for() {
    let (_source, target, mut a) = pair("CREATE TABLE t (id int PRIMARY KEY, n int)", &["t"]);
    run(&mut a.target, "ALTER TABLE t ADD m int DEFAULT 0");
    run(&mut a.source, "INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) AS i");
    a.pull();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut local = target.connect();
        let stop = &stop;
        let worker = scope.spawn(move || {
            let mut done = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                done += local
                    .execute("UPDATE t SET m = m + 1 WHERE id = $1", &[&(done as i32 % 20 + 1)])
                    .expect("an update");
            }
            done
        });
        for _ in 0..30 {
            run(&mut a.source, "UPDATE t SET n = n + 1");
            let applied = a.pull();
            assert_eq!((applied.conflicts, applied.changes), (0, 20));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let done = worker.join().expect("the other session");
        assert_eq!(
            text(&mut a.target, "SELECT concat_ws(' ', min(n), max(n), sum(m)) FROM t"),
            format!("30 30 {done}")
        );
    });
    assert_tidy(&target);
}
