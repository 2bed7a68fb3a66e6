//! New rows that are inserted together: they arrive as if each were inserted by itself, and so does what refuses them.

use pgquorum_tests::{Applier, rows, run, text};

use super::apply_statements::{assert_tidy, pair};

#[test]
fn new_rows_of_several_tables_arrive_in_their_order() {
    let columns: String = (1..=200).map(|at| format!(", c{at} int")).collect();
    let (_source, target, mut a) = pair(
        &format!(
            "CREATE TABLE a (id int PRIMARY KEY, v text NOT NULL); CREATE INDEX ON a (left(v, 10), id); CREATE INDEX ON a USING brin (id);
             CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, u int UNIQUE);
             CREATE TABLE wide (id int PRIMARY KEY{columns})"
        ),
        &["a", "b", "wide"],
    );
    let all = &["a", "b", "wide"];
    // A trigger that rests keeps no row from being inserted with others.
    run(
        &mut a.target,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER rests BEFORE INSERT OR UPDATE ON b FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    // All in one call.
    a.batch_bytes = 100_000_000;
    let applied = a.follow(
        "DO $$ BEGIN FOR i IN 1..1500 LOOP
             INSERT INTO a VALUES (i, 'row ' || i); INSERT INTO b VALUES (i, i, -i);
             IF i % 500 = 0 THEN UPDATE a SET v = v || '!' WHERE id = i; DELETE FROM b WHERE id = i; END IF;
         END LOOP; END $$",
        all,
    );
    assert_eq!((applied.transactions, applied.changes, applied.conflicts), (1, 3006, 0));
    // More than are inserted at once, by their number, their size, and their columns.
    let applied = a.follow(
        "INSERT INTO a SELECT i, 'v' FROM generate_series(2001, 4500) AS i;
         INSERT INTO a SELECT i, repeat(i::text, 20000) FROM generate_series(4501, 4505) AS i;
         INSERT INTO wide (id, c1, c200) SELECT i, i, -i FROM generate_series(1, 500) AS i",
        all,
    );
    assert_eq!((applied.transactions, applied.changes, applied.conflicts), (1, 3005, 0));
    a.follow(
        "BEGIN; INSERT INTO a VALUES (5000, 'x'); DELETE FROM a WHERE id = 5000; INSERT INTO a VALUES (5000, 'y');
         UPDATE a SET id = 5001 WHERE id = 5000; INSERT INTO a VALUES (5000, 'z'); COMMIT;
         BEGIN; INSERT INTO wide (id) VALUES (1000); TRUNCATE wide; INSERT INTO wide (id) VALUES (1), (1000); COMMIT;
         INSERT INTO b VALUES (1500, 5000, 1); ALTER TABLE b ALTER u SET DEFAULT 1; INSERT INTO b VALUES (1501, 5001, 2)",
        all,
    );
    // By what finds rows, not only by what reads all.
    let found = "SELECT count(*)::text FROM a WHERE left(v, 10) = 'v' AND id BETWEEN 2001 AND 4500";
    run(&mut a.target, "SET enable_seqscan = off");
    assert_eq!(text(&mut a.target, found), "2500");
    assert_tidy(&target);
}

/// How a table is: its state and code, its conflicts, and how many changes of it were left out.
fn outcome(a: &mut Applier, table: &str) -> String {
    text(
        &mut a.target,
        &format!(
            "SELECT concat_ws(' ', t.state, t.code, (SELECT string_agg(concat_ws(' ', conflict, resolution, count), ', ')
                FROM quorum.conflicts WHERE \"table\" = t.table), (SELECT count(*) FROM quorum.rejected_changes AS r WHERE r.table = t.table))
             FROM quorum.subscription_tables AS t WHERE t.table = '{table}'"
        ),
    )
}

#[test]
fn a_row_that_collides_among_others_is_the_only_conflict() {
    let tables: String =
        (0..4).map(|at| format!("CREATE TABLE t{at} (id int PRIMARY KEY, u int UNIQUE, v text); ")).collect();
    let (_source, target, mut a) = pair(
        &format!("{tables} CREATE TABLE other (id int PRIMARY KEY)"),
        &["t0", "t1", "t2", "t3", "other"],
    );
    a.batch_bytes = 100_000_000;
    let local = "(500,-1,local)\n(9999,700,local)";
    // By the key at 500, by the other index at 700.
    let expected = [
        ("error", "stopped 23505 insert_exists stopped 1 0", (501, 1, 0), 499),
        ("skip", "following insert_exists rejected 2 2", (1000, 2, 2), 998),
        ("apply_remote", "following insert_exists applied_remote 2 0", (1002, 2, 0), 1000),
        ("keep_local", "following insert_exists kept_local 2 0", (1000, 2, 0), 998),
    ];
    for (at, (policy, said, counts, remote)) in expected.into_iter().enumerate() {
        run(
            &mut a.target,
            &format!(
                "SELECT quorum.set_table_policy('s', 't{at}', '{policy}');
                 INSERT INTO t{at} VALUES (500, -1, 'local'), (9999, 700, 'local')"
            ),
        );
        run(
            &mut a.source,
            &format!(
                "BEGIN; INSERT INTO other VALUES ({at}); INSERT INTO t{at} SELECT i, i, 'remote' FROM generate_series(1, 1000) AS i;
                 INSERT INTO other VALUES (10 + {at}); COMMIT"
            ),
        );
        let applied = a.pull();
        assert_eq!((applied.changes, applied.conflicts, applied.rejected), counts, "{policy}");
        assert_eq!(outcome(&mut a, &format!("t{at}")), said, "{policy}");
        let arrived = format!("SELECT count(*)::text FROM t{at} WHERE v = 'remote' AND id = u");
        assert_eq!(text(&mut a.target, &arrived), remote.to_string(), "{policy}");
        let others = if policy == "apply_remote" { "" } else { local };
        assert_eq!(
            rows(&mut a.target, &format!("(SELECT * FROM t{at} WHERE v = 'local')")),
            others,
            "{policy}"
        );
        a.assert_same("other", policy);
    }
    // It goes on where it stopped.
    run(&mut a.target, "DELETE FROM t0 WHERE v = 'local'; SELECT quorum.resume_table('s', 't0')");
    let caught_up = a.try_pull(Some("public.t0")).expect("it catches up");
    assert_eq!((caught_up.changes, caught_up.conflicts), (501, 0));
    a.assert_same("t0", "it was put right");
    assert_tidy(&target);
}

#[test]
fn a_row_that_is_refused_among_others_is_the_only_one() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE t (id int PRIMARY KEY, needed text, checked text, indexed text, large text)",
        &["t"],
    );
    run(
        &mut a.target,
        "ALTER TABLE t ALTER needed SET NOT NULL, ADD CHECK (checked <> 'bad'), ALTER large SET STORAGE PLAIN; CREATE INDEX ON t (indexed);
         SELECT quorum.alter_subscription('s', policy => 'skip')",
    );
    a.batch_bytes = 100_000_000;
    // A row that no page has room for is refused while all are written, the others by themselves.
    run(
        &mut a.source,
        "INSERT INTO t SELECT i, nullif('x', CASE i WHEN 50 THEN 'x' END), CASE i WHEN 100 THEN 'bad' END,
             CASE i WHEN 150 THEN (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n) END,
             CASE i WHEN 200 THEN repeat('p', 10000) END FROM generate_series(1, 300) AS i",
    );
    let applied = a.pull();
    assert_eq!((applied.changes, applied.conflicts, applied.rejected), (296, 4, 4));
    let rejected = "SELECT string_agg(concat_ws(' ', key, conflict, code), ', ' ORDER BY id) FROM quorum.rejected_changes";
    assert_eq!(
        text(&mut a.target, rejected),
        r#"{"id": 50} value 23502, {"id": 100} value 23514, {"id": 150} value 54000, {"id": 200} value 54000"#
    );
    assert_eq!(text(&mut a.target, "SELECT concat_ws(' ', count(*), sum(id)) FROM t"), "296 44650");
    // What is said of a row shows no values where the owner of its table may not see them.
    let shown = "SELECT string_agg((message LIKE '%Failing row contains%')::text, ' ' ORDER BY id)
                 FROM quorum.rejected_changes WHERE code = '23502'";
    assert_eq!(text(&mut a.target, shown), "true");
    run(
        &mut a.target,
        "CREATE ROLE somebody; ALTER TABLE t OWNER TO somebody;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    );
    run(&mut a.source, "INSERT INTO t (id) VALUES (400)");
    assert_eq!(a.pull().rejected, 1);
    assert_eq!(text(&mut a.target, shown), "true false");
    assert_tidy(&target);
}
