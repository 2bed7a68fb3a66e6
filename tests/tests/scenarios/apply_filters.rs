//! Of some tables a subscription wants some rows only: what an update means then depends on whether the row is here.

use pgquorum_tests::{Applier, LogServer, rows, run, text};

use super::apply_statements::assert_tidy;

/// A source with these tables, and a target with those, which wants rows by these filters (JSON).
fn start(
    there: &str,
    tracked: &str,
    here: &str,
    filter: &str,
    more: &str,
) -> (LogServer, LogServer, Applier) {
    let (source, target) = (LogServer::start(""), LogServer::start(""));
    run(&mut source.connect(), &format!("{there}; SELECT quorum.track('{tracked}', 'c')"));
    run(&mut target.connect(), here);
    let applier =
        Applier::new(&source, &target, &format!(", filter => '{}'{more}", filter.replace('\'', "''")));
    (source, target, applier)
}

fn told(a: &mut Applier) -> String {
    text(
        &mut a.target,
        "SELECT concat_ws(' ', state, code, message) || coalesce((SELECT string_agg(concat_ws(' ', '', conflict, resolution, count), ','
             ORDER BY conflict) FROM quorum.conflicts), '') FROM quorum.subscription_tables",
    )
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, region text, v text, doc text);
    ALTER TABLE t ALTER doc SET STORAGE EXTERNAL";
const EU: &str = r#"{"public.t": "region = 'eu' OR v = 'all'"}"#;

#[test]
fn rows_come_and_go_as_they_fulfil_the_filter() {
    let (_source, target, mut a) = start(TABLE, "t", TABLE, EU, "");
    let wanted = "(SELECT * FROM t WHERE region = 'eu' OR v = 'all')";
    let mut follow = |sql: &str| {
        run(&mut a.source, sql);
        a.pull();
        let (there, here) = (rows(&mut a.source, wanted), rows(&mut a.target, "t"));
        assert_eq!(here, there, "{sql}");
    };
    follow(
        "INSERT INTO t SELECT i, (ARRAY['eu', 'us', NULL])[i % 3 + 1], 'v' || i FROM generate_series(1, 30) AS i",
    );
    follow("UPDATE t SET v = v || '!'");
    // In, out, both in one transaction, with another key.
    follow("UPDATE t SET region = 'eu' WHERE id IN (1, 2); UPDATE t SET region = 'us' WHERE id IN (3, 6)");
    follow("UPDATE t SET v = 'all' WHERE id = 4; UPDATE t SET v = NULL WHERE id = 4");
    follow(
        "UPDATE t SET id = id + 100, region = 'eu' WHERE id IN (5, 7); UPDATE t SET id = id + 100, region = 'us' WHERE id IN (9, 12)",
    );
    follow(
        "BEGIN; UPDATE t SET region = 'eu' WHERE id = 8; UPDATE t SET region = 'us' WHERE id = 8; UPDATE t SET region = 'eu', v = 'x' WHERE id = 8; COMMIT",
    );
    follow("DELETE FROM t WHERE id % 2 = 0; INSERT INTO t VALUES (2, 'eu', 'again'), (4, 'us', 'again')");
    follow("UPDATE t SET id = -id; UPDATE t SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END");
    follow("TRUNCATE t");
    // A large value that did not change is taken from here, if the row is.
    follow(
        "INSERT INTO t VALUES (1, 'eu', 'a', repeat('0123456789', 50000)), (2, 'us', 'a', repeat('9876543210', 50000))",
    );
    follow("UPDATE t SET v = 'b' WHERE id = 1");
    assert_eq!(told(&mut a), "following", "nothing was a conflict");
    // If it is not, the row cannot be made.
    run(&mut a.source, "UPDATE t SET region = 'eu' WHERE id = 2");
    a.pull();
    let said = told(&mut a);
    assert!(said.starts_with("stopped P0002 update_missing at "), "{said}");
    assert_tidy(&target);
}

#[test]
fn what_is_in_the_way_is_a_conflict_as_ever() {
    let there = "CREATE TABLE t (id int PRIMARY KEY, region text, v text)";
    let here = "CREATE TABLE t (id int PRIMARY KEY, region text, v text UNIQUE)";
    let (_source, target, mut a) = start(there, "t", here, EU, ", policy => 'apply_remote'");
    run(&mut a.target, "INSERT INTO t VALUES (1, 'eu', 'here'), (50, 'eu', 'taken')");
    run(
        &mut a.source,
        "INSERT INTO t VALUES (1, 'eu', 'there'), (2, 'us', 'taken'), (3, 'us', 'three');
         UPDATE t SET region = 'eu' WHERE id = 2;
         UPDATE t SET v = 'four' WHERE id = 3;
         DELETE FROM t WHERE id = 3",
    );
    a.pull();
    assert_eq!(rows(&mut a.target, "t"), "(1,eu,there)\n(2,eu,taken)");
    assert_eq!(told(&mut a), "following insert_exists applied_remote 2");
    // Who has a value that does not fit here, and is not wanted, does no harm.
    run(&mut a.target, "ALTER TABLE t ALTER id TYPE smallint");
    run(&mut a.source, "INSERT INTO t VALUES (100000, 'us', 'large'), (4, 'eu', 'small')");
    a.pull();
    assert_eq!(rows(&mut a.target, "t"), "(1,eu,there)\n(2,eu,taken)\n(4,eu,small)");
    assert_tidy(&target);
}

#[test]
fn partitions_are_needed_for_wanted_rows_only() {
    let columns = "(id int, region text, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)";
    let there = format!("CREATE TABLE t {columns}; CREATE TABLE d PARTITION OF t DEFAULT");
    let here = format!(
        "CREATE TABLE t {columns}; CREATE TABLE e (v text, gone int, region text NOT NULL, id int NOT NULL);
         ALTER TABLE e DROP COLUMN gone; ALTER TABLE t ATTACH PARTITION e FOR VALUES IN ('eu');
         CREATE TABLE f PARTITION OF t FOR VALUES IN ('uk')"
    );
    let filter = r#"{"public.t": "region IN ('eu', 'uk')"}"#;
    let (_source, target, mut a) = start(&there, "t", &here, filter, "");
    let mut follow = |sql: &str| {
        run(&mut a.source, sql);
        a.pull();
        let wanted = "(SELECT * FROM t WHERE region IN ('eu', 'uk'))";
        let (there, here) = (rows(&mut a.source, wanted), rows(&mut a.target, "t"));
        assert_eq!(here, there, "{sql}");
    };
    follow(
        "INSERT INTO t SELECT i, (ARRAY['eu', 'us', 'uk'])[i % 3 + 1], 'v' FROM generate_series(1, 30) AS i",
    );
    follow("UPDATE t SET v = 'w'; DELETE FROM t WHERE id % 5 = 0");
    follow("UPDATE t SET region = 'uk' WHERE region = 'eu' AND id < 10");
    follow(
        "UPDATE t SET region = 'eu' WHERE region = 'us' AND id < 20; UPDATE t SET region = 'us' WHERE region = 'uk' AND id > 20",
    );
    assert_eq!(told(&mut a), "following");
    assert_tidy(&target);
}

#[test]
fn a_filter_that_cannot_be_used_stops_the_table() {
    let (_source, target, mut a) = start(TABLE, "t", "", EU, "");
    // It could not be looked at before: the table is made now, with another column.
    run(&mut a.target, "CREATE TABLE t (id int PRIMARY KEY, v text, doc text, area text)");
    run(&mut a.source, "ALTER TABLE t DROP COLUMN region; INSERT INTO t VALUES (1, 'all')");
    a.pull();
    let said = told(&mut a);
    assert!(
        said.starts_with("stopped PQ022 the filter of table public.t cannot be used")
            && said.contains("region"),
        "{said}"
    );
    for (filter, code, word) in [
        ("area = 'x'", "", ""),
        ("v = now()::text", "0A000", "immutable"),
        ("v = (SELECT 'x')", "0A000", "subquery"),
        ("v = 'x'; DROP TABLE t", "42601", "syntax error"),
        ("nothing = 1", "42703", "nothing"),
    ] {
        let sql = format!(
            "SELECT quorum.alter_subscription('s', filter => jsonb_build_object('public.t', $f${filter}$f$))"
        );
        if code.is_empty() {
            run(&mut a.target, &sql);
        } else {
            pgquorum_tests::refused(&mut a.target, &sql, code, word);
        }
    }
    // A column that the source does not send.
    run(&mut a.target, "SELECT quorum.resume_table('s', 't')");
    a.try_pull(Some("public.t")).expect("it catches up as far as it can");
    let said = told(&mut a);
    assert!(said.contains("the source does not send"), "{said}");
    run(
        &mut a.target,
        r#"SELECT quorum.alter_subscription('s', filter => '{"public.t": "v = ''all''"}'); SELECT quorum.resume_table('s', 't')"#,
    );
    a.try_pull(Some("public.t")).expect("it catches up");
    run(&mut a.source, "INSERT INTO t VALUES (2, 'some'), (3, 'all')");
    a.pull();
    assert_eq!(text(&mut a.target, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "1,3");
    // All rows, from now on.
    run(&mut a.target, "SELECT quorum.alter_subscription('s', filter => '{}')");
    run(&mut a.source, "INSERT INTO t VALUES (4, 'some')");
    a.pull();
    assert_eq!(text(&mut a.target, "SELECT string_agg(id::text, ',' ORDER BY id) FROM t"), "1,3,4");
    assert_tidy(&target);
}
