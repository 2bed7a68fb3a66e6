//! The tables here and at the source are not alike, or are changed.

use pgquorum_tests::{Applier, LogServer, rows, run, text};

use super::apply_statements::{assert_tidy, pair};

fn state(a: &mut Applier, table: &str) -> String {
    let sql = format!(
        "SELECT concat_ws(' ', state, code) FROM quorum.subscription_tables WHERE \"table\" = '{table}'"
    );
    text(&mut a.target, &sql)
}

#[test]
fn what_is_missing_here_stops_one_table() {
    let (source, target) = (LogServer::start(""), LogServer::start(""));
    run(
        &mut source.connect(),
        "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE absent (id int PRIMARY KEY);
         CREATE TABLE lacking (id int PRIMARY KEY, a int, b int); CREATE TABLE keyless (id int PRIMARY KEY);
         CREATE TABLE view (id int PRIMARY KEY);
         SELECT quorum.track(x, 'c') FROM unnest('{fine,absent,lacking,keyless,view}'::regclass[]) AS x",
    );
    run(
        &mut target.connect(),
        "CREATE TABLE fine (id int PRIMARY KEY); CREATE TABLE lacking (id int PRIMARY KEY, a int);
         CREATE TABLE keyless (id int); CREATE VIEW view AS SELECT 1 AS id",
    );
    let mut a = Applier::new(&source, &target, "");
    let all = "BEGIN; INSERT INTO fine VALUES (1); INSERT INTO absent VALUES (1); INSERT INTO lacking VALUES (1, 2, 3);
               INSERT INTO keyless VALUES (1); INSERT INTO view VALUES (1); INSERT INTO fine VALUES (2); COMMIT";
    a.follow(all, &["fine"]);
    let found: Vec<String> =
        ["fine", "absent", "lacking", "keyless", "view"].map(|table| state(&mut a, table)).into();
    assert_eq!(found, ["following", "stopped 42P01", "stopped 42703", "stopped 42P16", "stopped 42809"]);
    run(
        &mut a.target,
        "CREATE TABLE absent (id int PRIMARY KEY); ALTER TABLE lacking ADD b int; CREATE UNIQUE INDEX ON keyless (id);
         DROP VIEW view; CREATE TABLE view (id int PRIMARY KEY);
         SELECT quorum.resume_table('s', t) FROM unnest('{absent,lacking,keyless,view}'::text[]) AS t",
    );
    for table in ["absent", "lacking", "keyless", "view"] {
        let caught_up = a.try_pull(Some(&format!("public.{table}"))).expect("it catches up");
        assert_eq!(caught_up.changes, 1, "{table}");
        assert_eq!(state(&mut a, table), "following");
    }
    a.follow(
        "UPDATE lacking SET b = 4; DELETE FROM keyless; UPDATE absent SET id = 2; UPDATE view SET id = 5",
        &["fine", "absent", "lacking", "keyless", "view"],
    );
    assert_tidy(&target);
}

#[test]
fn ddl_is_ignored_stops_or_is_run() {
    let (_source, target, mut a) = pair(
        "CREATE SCHEMA shop; CREATE TABLE shop.t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)",
        &["shop.t", "other"],
    );
    a.follow("INSERT INTO shop.t VALUES (1, 'a')", &["shop.t"]);
    // Ignored: a new column that is missing here is noticed when it comes.
    a.follow("ALTER TABLE shop.t ALTER v SET DEFAULT 'x'; INSERT INTO shop.t VALUES (2)", &["shop.t"]);
    assert_eq!(state(&mut a, "t"), "following");

    run(&mut a.target, "SELECT quorum.alter_subscription('s', ddl => 'stop')");
    // That a channel rests and goes on changes no table; what it means for each is said of each. Nor does an index.
    a.follow(
        "SELECT quorum.record_entry(t.channel, t.schema_version, e.tag)
         FROM quorum.tracked_table AS t, unnest('{STOP,START,INDEX,UNINDEX}'::text[]) AS e(tag); INSERT INTO shop.t VALUES (3)",
        &["shop.t"],
    );
    assert_eq!(state(&mut a, "t"), "following");
    run(
        &mut a.source,
        "ALTER TABLE shop.t ADD n int DEFAULT 7; UPDATE shop.t SET v = 'b' WHERE id = 1; INSERT INTO other VALUES (1)",
    );
    a.pull();
    assert_eq!(state(&mut a, "t"), "stopped PQ017");
    a.assert_same("other", "another table has stopped");
    run(&mut a.target, "ALTER TABLE shop.t ADD n int DEFAULT 7; SELECT quorum.resume_table('s', 'shop.t')");
    a.try_pull(Some("shop.t")).expect("it catches up");
    a.assert_same("shop.t", "the column was added");

    run(&mut a.target, "SELECT quorum.alter_subscription('s', ddl => 'apply')");
    // In the middle of a transaction, with a name that means something in the source's search_path only.
    run(&mut a.source, "SET search_path = shop, public");
    a.follow(
        "BEGIN; INSERT INTO t VALUES (5, 'e', 1); ALTER TABLE t ADD m text, DROP n; UPDATE t SET m = v; COMMIT;
         ALTER TABLE t RENAME v TO name; INSERT INTO t VALUES (6, 'f', 'g')",
        &["shop.t"],
    );
    // What cannot be run here stops the table, before it.
    run(&mut a.target, "ALTER TABLE shop.t ADD more int");
    run(&mut a.source, "ALTER TABLE t ADD more int; INSERT INTO t VALUES (7, 'h', 'i', 8)");
    a.pull();
    assert_eq!(state(&mut a, "t"), "stopped 42701");
    run(&mut a.target, "ALTER TABLE shop.t DROP more; SELECT quorum.resume_table('s', 'shop.t')");
    a.try_pull(Some("shop.t")).expect("it catches up");
    a.assert_same("shop.t", "the statement was run");
    assert_tidy(&target);
}

#[test]
fn a_table_that_appears_at_the_source_is_followed_from_its_beginning() {
    let (_source, target, mut a) =
        pair("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY)", &["t"]);
    a.follow("INSERT INTO t VALUES (1)", &["t"]);
    a.follow(
        "SELECT quorum.track('late', 'c'); INSERT INTO late VALUES (1); INSERT INTO t VALUES (2)",
        &["t", "late"],
    );
    // Where tables are copied, it is to be copied first.
    run(
        &mut a.target,
        "UPDATE quorum.subscription SET copy = 'error', start = NULL; CREATE TABLE later (id int PRIMARY KEY)",
    );
    run(
        &mut a.source,
        "CREATE TABLE later (id int PRIMARY KEY); SELECT quorum.track('later', 'c'); INSERT INTO later VALUES (1)",
    );
    a.pull();
    assert_eq!((state(&mut a, "later").as_str(), rows(&mut a.target, "later").as_str()), ("copy", ""));
    assert_tidy(&target);
}

#[test]
fn a_table_that_is_untracked_stops_behind_what_was_captured() {
    let (_source, target, mut a) =
        pair("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)", &["t", "other"]);
    run(
        &mut a.source,
        "INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2); SELECT quorum.untrack('t'); INSERT INTO t VALUES (3);
         INSERT INTO other VALUES (1); COMMIT",
    );
    a.pull();
    assert_eq!(
        (state(&mut a, "t").as_str(), rows(&mut a.target, "t").as_str()),
        ("stopped PQ016", "(1)\n(2)")
    );
    a.assert_same("other", "another table has stopped");
    // That it is tracked again does not bring back what was not captured.
    run(
        &mut a.source,
        "SELECT quorum.track('t', 'c'); INSERT INTO t VALUES (4); INSERT INTO other VALUES (2)",
    );
    a.pull();
    assert_eq!(state(&mut a, "t"), "stopped PQ016");
    // Nor is it passed over where nothing is copied: somebody must say that it may be missing.
    a.find_tables();
    assert_eq!(state(&mut a, "t"), "stopped PQ018");
    run(&mut a.target, "SELECT quorum.resume_table('s', 't')");
    a.try_pull(Some("public.t")).expect("it catches up");
    assert_eq!(
        (state(&mut a, "t").as_str(), rows(&mut a.target, "t").as_str()),
        ("following", "(1)\n(2)\n(4)")
    );
    a.follow("INSERT INTO t VALUES (5); DELETE FROM other", &["other"]);
    assert_eq!(rows(&mut a.target, "t"), "(1)\n(2)\n(4)\n(5)");
    // One that takes the place of another is not followed as if it were that, where tables are copied.
    run(&mut a.target, "UPDATE quorum.subscription SET copy = 'error', start = NULL");
    run(
        &mut a.source,
        "DROP TABLE other; CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (9); SELECT quorum.track('other', 'c');
         INSERT INTO other VALUES (10)",
    );
    a.pull();
    assert_eq!(
        (state(&mut a, "other").as_str(), rows(&mut a.target, "other").as_str()),
        ("stopped PQ016", "")
    );
    a.find_tables();
    assert_eq!(state(&mut a, "other"), "copy");
    assert_tidy(&target);
}

fn message(a: &mut Applier, table: &str) -> String {
    text(
        &mut a.target,
        &format!("SELECT message FROM quorum.subscription_tables WHERE \"table\" = '{table}'"),
    )
}

#[test]
fn a_table_that_is_dropped_or_renamed_stops_behind_what_it_was() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE named (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
        &["t", "named", "other"],
    );
    run(
        &mut a.source,
        "INSERT INTO t VALUES (1); INSERT INTO named VALUES (1);
         BEGIN; INSERT INTO t VALUES (2); DROP TABLE t; INSERT INTO other VALUES (1); COMMIT;
         ALTER TABLE named RENAME TO renamed; INSERT INTO renamed VALUES (2); INSERT INTO other VALUES (2)",
    );
    a.pull();
    assert_eq!(
        (state(&mut a, "t").as_str(), rows(&mut a.target, "t").as_str()),
        ("stopped PQ016", "(1)\n(2)")
    );
    assert_eq!(
        (state(&mut a, "named").as_str(), rows(&mut a.target, "named").as_str()),
        ("stopped PQ016", "(1)")
    );
    let (dropped, renamed) = (message(&mut a, "t"), message(&mut a, "named"));
    assert!(dropped.contains("was dropped at the source"), "{dropped}");
    assert!(renamed.contains("another name"), "{renamed}");
    a.assert_same("other", "other tables have stopped");
    // By its new name it is another one. Here it is the same, once it has that name.
    assert_eq!(state(&mut a, "renamed"), "stopped 42P01");
    run(&mut a.target, "ALTER TABLE named RENAME TO renamed; SELECT quorum.resume_table('s', 'renamed')");
    a.try_pull(Some("public.renamed")).expect("it catches up");
    a.assert_same("renamed", "it has the new name here, too");
    a.follow("DELETE FROM renamed WHERE id = 1; DELETE FROM other WHERE id = 1", &["renamed", "other"]);
    assert_tidy(&target);
}

#[test]
fn what_is_dropped_at_the_source_is_dropped_here_only_if_statements_are_run() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE kept (id int PRIMARY KEY); CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE two (id int PRIMARY KEY);
         CREATE TABLE other (id int PRIMARY KEY)",
        &["kept", "one", "two", "other"],
    );
    run(&mut a.target, "SELECT quorum.alter_subscription('s', ddl => 'stop')");
    a.follow("INSERT INTO kept VALUES (1); DROP TABLE kept; INSERT INTO other VALUES (1)", &["other"]);
    assert_eq!(
        (state(&mut a, "kept").as_str(), rows(&mut a.target, "kept").as_str()),
        ("stopped PQ016", "(1)")
    );
    run(&mut a.target, "SELECT quorum.alter_subscription('s', ddl => 'apply')");
    a.follow("INSERT INTO one VALUES (1); DROP TABLE one, two; INSERT INTO other VALUES (2)", &["other"]);
    for table in ["one", "two"] {
        assert_eq!(state(&mut a, table), "stopped PQ016");
        assert_eq!(text(&mut a.target, &format!("SELECT (to_regclass('{table}') IS NULL)::text")), "true");
        assert!(message(&mut a, table).contains("was run here"), "{}", message(&mut a, table));
    }
    assert_tidy(&target);
}

#[test]
fn rows_that_come_or_go_with_a_partition_stop_the_table() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2); CREATE TABLE p3 (id int PRIMARY KEY);
         CREATE TABLE p4 (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)",
        &["p", "other"],
    );
    a.follow("INSERT INTO p VALUES (1), (2); ALTER TABLE p ATTACH PARTITION p4 FOR VALUES IN (4)", &["p"]);
    assert_eq!(state(&mut a, "p"), "following", "none came with an empty one");
    a.follow("ALTER TABLE p DETACH PARTITION p2; INSERT INTO other VALUES (1)", &["other"]);
    assert_eq!(
        (state(&mut a, "p").as_str(), rows(&mut a.target, "p").as_str()),
        ("stopped PQ018", "(1)\n(2)")
    );
    run(&mut a.target, "DELETE FROM p WHERE id = 2; SELECT quorum.resume_table('s', 'p')");
    a.try_pull(Some("public.p")).expect("it catches up");
    a.follow("DELETE FROM p; INSERT INTO p VALUES (1)", &["p"]);
    let attach = "INSERT INTO p3 VALUES (3); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES IN (3)";
    a.follow(&format!("{attach}; INSERT INTO other VALUES (2)"), &["other"]);
    assert_eq!(state(&mut a, "p"), "stopped PQ018");
    run(&mut a.target, &format!("{attach}; SELECT quorum.resume_table('s', 'p')"));
    a.try_pull(Some("public.p")).expect("it catches up");
    a.assert_same("p", "the partition is here, too");
    // Where the statement is run here as well, the rows go with it.
    run(&mut a.target, "SELECT quorum.alter_subscription('s', ddl => 'apply')");
    a.follow("DROP TABLE p3; INSERT INTO other VALUES (3)", &["p", "other"]);
    assert_eq!(state(&mut a, "p"), "following");
    assert_eq!(text(&mut a.target, "SELECT (to_regclass('p3') IS NULL)::text"), "true");
    // What cannot be run stops the table before it.
    run(&mut a.target, "ALTER TABLE p DETACH PARTITION p1");
    a.follow("ALTER TABLE p DETACH PARTITION p1; INSERT INTO other VALUES (4)", &["other"]);
    let message = message(&mut a, "p");
    assert!(message.contains("DETACH PARTITION of the source cannot be run here"), "{message}");
    assert_tidy(&target);
}

#[test]
fn triggers_and_constraints_rest_but_for_those_that_are_for_this() {
    let (_source, target, mut a) = pair(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, p int REFERENCES parent, v text)",
        &["t"],
    );
    run(
        &mut a.target,
        "CREATE TABLE seen (who text, what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM set_config('search_path', 'evil', false);
                INSERT INTO public.seen VALUES (current_user, TG_NAME || ' ' || TG_OP); NEW.v := NEW.v || '+'; RETURN NEW; END $$;
         CREATE FUNCTION after_note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.seen VALUES (current_user, TG_NAME || ' ' || TG_OP || ' ' || (SELECT count(*) FROM public.t)); RETURN NULL; END $$;
         CREATE TRIGGER ordinary BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note();
         CREATE TRIGGER always BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION note();
         ALTER TABLE t ENABLE ALWAYS TRIGGER always;
         CREATE TRIGGER replica AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION after_note();
         ALTER TABLE t ENABLE REPLICA TRIGGER replica;
         CREATE ROLE somebody; ALTER TABLE t OWNER TO somebody; GRANT INSERT ON seen TO somebody",
    );
    run(
        &mut a.source,
        "INSERT INTO parent VALUES (1); INSERT INTO t VALUES (1, 1, 'a'), (2, 1, 'b'); UPDATE t SET v = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2",
    );
    let path = text(&mut a.target, "SHOW search_path");
    assert_eq!(a.pull().conflicts, 0);
    assert_eq!(text(&mut a.target, "SHOW search_path"), path, "what a trigger sets ends with the change");
    // The parent row is not here; the trigger has changed the value; everything ran as the table's owner.
    assert_eq!(rows(&mut a.target, "t"), "(1,1,c+)");
    assert_eq!(
        rows(&mut a.target, "seen"),
        "(somebody,\"always INSERT\")\n(somebody,\"always INSERT\")\n(somebody,\"always UPDATE\")\n(somebody,\"replica DELETE 1\")\n\
         (somebody,\"replica INSERT 1\")\n(somebody,\"replica INSERT 2\")\n(somebody,\"replica UPDATE 2\")"
    );
    // So does what types and defaults call.
    run(
        &mut a.target,
        "CREATE FUNCTION who() RETURNS text LANGUAGE sql VOLATILE AS 'SELECT current_user::text';
         CREATE DOMAIN owned AS text CHECK (VALUE IS NULL OR public.who() = 'somebody');
         ALTER TABLE t ADD by_default text DEFAULT public.who(); ALTER TABLE t ALTER v TYPE owned USING NULL",
    );
    // PL/pgSQL keeps the old type in mind in a session that has called the trigger.
    a.target = target.connect();
    run(&mut a.source, "UPDATE t SET v = 'e'; INSERT INTO t VALUES (4, 1, 'f')");
    assert_eq!(a.pull().conflicts, 0);
    assert_eq!(
        text(&mut a.target, "SELECT concat_ws(' ', v, by_default) FROM t WHERE id = 4"),
        "f+ somebody"
    );
    // A trigger that refuses stops the table.
    run(&mut a.target, "REVOKE INSERT ON seen FROM somebody");
    run(&mut a.source, "INSERT INTO t VALUES (3, 1, 'd')");
    a.pull();
    assert_eq!(state(&mut a, "t"), "stopped 42501");
    assert_tidy(&target);
}

/// Whatever it is that calls a function of the owner's: what that sets is not in force where the session goes on.
#[test]
fn what_functions_of_the_owner_set_ends_with_the_change() {
    const KINDS: [(&str, &str); 12] = [
        ("checked", "(id int PRIMARY KEY, v int CHECK (evil(v) IS NOT NULL))"),
        ("typed", "(id int PRIMARY KEY, v evil_int)"),
        ("keyed", "(id evil_int PRIMARY KEY, v int)"),
        ("defaulted", "(id int PRIMARY KEY, v int, more int DEFAULT evil(1))"),
        ("generated", "(id int PRIMARY KEY, v int, more int GENERATED ALWAYS AS (evil(v)) STORED)"),
        ("computed", "(id int PRIMARY KEY, v int); CREATE INDEX ON public.computed (evil(v))"),
        ("partial", "(id int PRIMARY KEY, v int); CREATE INDEX ON public.partial (v) WHERE evil(v) > 0"),
        ("ordered", "(id int, v int); CREATE UNIQUE INDEX ON public.ordered (id public.evil_order)"),
        (
            "watched",
            "(id int PRIMARY KEY, v int); CREATE TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON public.watched \
             FOR EACH ROW EXECUTE FUNCTION public.watch(); ALTER TABLE public.watched ENABLE REPLICA TRIGGER watch",
        ),
        ("made", "(id int PRIMARY KEY, v int); ALTER TABLE public.made ADD more evil_pair DEFAULT ROW(1, 1)"),
        ("bound", "PARTITION OF public.whole (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (1000)"),
        ("plain", "(id int PRIMARY KEY, v int NOT NULL)"),
    ];
    let make: String =
        KINDS.iter().map(|(name, _)| format!("CREATE TABLE {name} (id int PRIMARY KEY, v int); ")).collect();
    let names = KINDS.map(|(name, _)| name);
    let (_source, target, mut a) = pair(&make, &names);
    run(
        &mut a.target,
        "CREATE FUNCTION evil(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM set_config('search_path', 'evil', false); RETURN n; END $$; \
         CREATE DOMAIN evil_int AS int CHECK (public.evil(VALUE) IS NOT NULL); CREATE ROLE somebody; \
         CREATE TYPE evil_pair AS (a evil_int, b int); \
         CREATE FUNCTION evil_compare(a int, b int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM set_config('search_path', 'evil', false); RETURN btint4cmp(a, b); END $$; \
         CREATE OPERATOR CLASS evil_order FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, \
             OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 evil_compare(int, int); \
         CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM set_config('search_path', 'evil', false); RETURN NULL; END $$; \
         CREATE TABLE whole (id int, v int) PARTITION BY RANGE ((evil(id)))",
    );
    for (name, columns) in KINDS {
        // The functions are found whatever they set.
        let columns = columns.replace("evil(", "public.evil(").replace("evil_int", "public.evil_int");
        run(
            &mut a.target,
            &format!(
                "DROP TABLE public.{name}; CREATE TABLE public.{name} {columns}; ALTER TABLE public.{name} OWNER TO somebody"
            ),
        );
        a.target = target.connect();
    }
    let path = text(&mut a.target, "SHOW search_path");
    for name in names {
        run(
            &mut a.source,
            &format!(
                "INSERT INTO {name} VALUES (1, 1), (2, 2); UPDATE {name} SET v = 3 WHERE id = 1; DELETE FROM {name} WHERE id = 2"
            ),
        );
        assert_eq!(a.pull().conflicts, 0, "{name}");
        assert_eq!(text(&mut a.target, "SHOW search_path"), path, "{name}");
        let found = format!("SELECT string_agg(id || ' ' || v, ',') FROM public.{name}");
        assert_eq!(text(&mut a.target, &found), "1 3", "{name}");
    }
}
