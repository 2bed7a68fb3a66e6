//! Where it is kept who wrote a row last, other policies know it, too: conflicts have more exact names, and `keep_local` and
//! `skip` leave what others have written.

use pgquorum_tests::{Applier, LogServer, rows, run, text};

use super::apply_statements::{assert_tidy, pair};
use super::last_write_wins::counts;

/// The target keeps versions and has other rows than the source.
fn differing(policy: &str, versions: bool) -> (LogServer, LogServer, Applier) {
    let (source, target, mut a) = pair("CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]);
    run(
        &mut a.target,
        &format!("SELECT quorum.track('t', 'c'), quorum.alter_subscription('s', policy => '{policy}')"),
    );
    if versions {
        run(&mut a.target, "SELECT quorum.keep_versions('t')");
    }
    run(&mut a.source, "INSERT INTO t SELECT i, 'first' FROM generate_series(1, 6) AS i");
    assert_eq!(a.pull().conflicts, 0);
    run(&mut a.target, "UPDATE t SET v = 'here' WHERE id IN (1, 2); DELETE FROM t WHERE id IN (3, 4)");
    // What the source writes in its own rows is no conflict.
    run(&mut a.source, "UPDATE t SET v = 'second' WHERE id = 5; UPDATE t SET id = 60 WHERE id = 6");
    assert_eq!(a.pull().conflicts, 0);
    run(&mut a.source, "UPDATE t SET v = 'there' WHERE id = 1");
    run(&mut a.source, "DELETE FROM t WHERE id = 2");
    run(&mut a.source, "DELETE FROM t WHERE id = 4");
    run(&mut a.source, "UPDATE t SET v = 'there' WHERE id = 3");
    (source, target, a)
}

#[test]
fn without_versions_nothing_is_known_of_others() {
    let (_source, target, mut a) = differing("skip", false);
    assert_eq!(a.pull().conflicts, 2);
    assert_eq!(counts(&mut a.target), "delete_missing rejected 1, update_missing rejected 1");
    assert_eq!(rows(&mut a.target, "t"), "(1,there)\n(5,second)\n(60,first)");
    assert_tidy(&target);
}

#[test]
fn error_stops_at_what_is_missing_and_counts_what_it_overwrites() {
    let (_source, target, mut a) = differing("error", true);
    run(&mut a.target, "INSERT INTO t VALUES (4)");
    assert_eq!(a.pull().conflicts, 4);
    assert_eq!(
        counts(&mut a.target),
        "delete_origin_differs applied_remote 2, update_deleted stopped 1, update_origin_differs applied_remote 1"
    );
    assert_eq!(rows(&mut a.target, "t"), "(1,there)\n(5,second)\n(60,first)");
    let said =
        text(&mut a.target, "SELECT concat_ws(' ', state, code, message) FROM quorum.subscription_tables");
    assert!(said.starts_with("stopped P0002 update_deleted at "), "{said}");
    assert_tidy(&target);
}

#[test]
fn apply_remote_overwrites_and_says_so() {
    let (_source, target, mut a) = differing("apply_remote", true);
    assert_eq!(a.pull().conflicts, 4);
    a.assert_same("t", "apply_remote");
    assert_eq!(
        counts(&mut a.target),
        "delete_missing applied_remote 1, delete_origin_differs applied_remote 1, update_deleted applied_remote 1, \
         update_origin_differs applied_remote 1"
    );
    assert_tidy(&target);
}

#[test]
fn keep_local_keeps_what_others_wrote() {
    let (_source, target, mut a) = differing("keep_local", true);
    assert_eq!(a.pull().conflicts, 4);
    assert_eq!(rows(&mut a.target, "t"), "(1,here)\n(2,here)\n(5,second)\n(60,first)");
    assert_eq!(
        counts(&mut a.target),
        "delete_missing kept_local 1, delete_origin_differs kept_local 1, update_deleted kept_local 1, \
         update_origin_differs kept_local 1"
    );
    assert_tidy(&target);
}

#[test]
fn skip_keeps_them_aside_until_somebody_decides() {
    let (_source, target, mut a) = differing("skip", true);
    assert_eq!(a.pull().rejected, 4);
    assert_eq!(rows(&mut a.target, "t"), "(1,here)\n(2,here)\n(5,second)\n(60,first)");
    assert_eq!(
        counts(&mut a.target),
        "delete_missing rejected 1, delete_origin_differs rejected 1, update_deleted rejected 1, update_origin_differs rejected 1"
    );
    let retried = text(
        &mut a.target,
        "SELECT string_agg(conflict || ': ' || split_part(message, ' ', 1), ', ' ORDER BY id) FROM quorum.rejected_changes",
    );
    assert!(retried.starts_with("update_origin_differs: the, delete_origin_differs: the"), "{retried}");
    // Somebody wants it as it came.
    let id = text(&mut a.target, "SELECT min(id)::text FROM quorum.rejected_changes");
    assert_eq!(text(&mut a.target, &format!("SELECT quorum.retry_rejected({id})")), "applied");
    assert_eq!(text(&mut a.target, "SELECT v FROM t WHERE id = 1"), "there");
    assert_tidy(&target);
}
