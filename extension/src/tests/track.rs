//! What may be tracked, and how it is refused.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn text(sql: &str) -> Option<String> {
        Spi::get_one::<String>(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Tests run at the same time, and a name that another one has not given back yet would be waited for.
    fn run_here(sql: &str) {
        run(&here(sql));
    }

    /// With the name of this session's own channel.
    fn here(sql: &str) -> String {
        sql.replace("'shop'", "'shop_' || pg_backend_pid()")
    }

    fn set_up() {
        run_here(
            "SELECT quorum.create_channel('shop');
             CREATE TABLE t (id int PRIMARY KEY, v int, note text COLLATE \"C\", at timestamptz)",
        );
    }

    fn refused(sql: &str, code: &str, message: &str) {
        let caught = format!(
            "DO $do$ DECLARE seen text; BEGIN
                 BEGIN {sql}; EXCEPTION WHEN OTHERS THEN seen := SQLSTATE || ' ' || SQLERRM; END;
                 IF seen IS DISTINCT FROM {expected} THEN RAISE EXCEPTION 'got %', seen; END IF;
             END $do$",
            expected = quote(&format!("{code} {message}"))
        );
        run_here(&caught);
    }

    fn quote(text: &str) -> String {
        format!("'{}'", text.replace('\'', "''"))
    }

    /// As another library would that has something to do at the commit, after us.
    #[pg_test]
    fn what_comes_after_the_log_was_written_is_refused() {
        set_up();
        run_here("SELECT quorum.track('t', 'shop'); INSERT INTO t VALUES (1)");
        assert!(crate::capture::before_commit(), "there was something to write");
        let message =
            "a tracked table is written after the changes of its transaction went into the change log";
        refused("INSERT INTO t VALUES (2)", "25000", message);
        refused("TRUNCATE t", "25000", message);
        refused("ALTER TABLE t ADD COLUMN w int", "25000", message);
    }

    #[pg_test]
    fn views_show_what_is_tracked() {
        set_up();
        run_here(
            "SELECT quorum.track('t', 'shop', columns => '{note,id}', \"where\" => 'v > 5', old_image => 'none')",
        );
        let shown = "SELECT string_agg(format('%s %s %s %s %s', \"table\", columns, \"where\", old_image,
                     partitions), ',') FROM quorum.tracked_tables";
        assert_eq!(text(shown).as_deref(), Some("t {id,note} v > 5 none 0"));
        let triggers =
            "SELECT string_agg(tgname || ' ' || tgenabled::text, ',' ORDER BY tgname) FROM pg_trigger
                        WHERE tgrelid = 't'::regclass";
        assert_eq!(text(triggers).as_deref(), Some("pgquorum_row A,pgquorum_truncate A"));
        run_here("SELECT quorum.untrack('t')");
        assert_eq!(text(shown), None);
        assert_eq!(text(triggers), None);
    }

    #[pg_test]
    fn tables_that_cannot_be_tracked_are_refused_by_name() {
        set_up();
        run_here("CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE TEMPORARY TABLE tmp (id int PRIMARY KEY);
             CREATE VIEW vw AS SELECT 1 AS id; CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id; CREATE SEQUENCE s;
             CREATE TABLE no_key (id int); CREATE FOREIGN DATA WRAPPER w; CREATE SERVER sv FOREIGN DATA WRAPPER w;
             CREATE FOREIGN TABLE f (id int) SERVER sv;
             CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE UNLOGGED TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (2)");
        let track = |table: &str| format!("PERFORM quorum.track('{table}', 'shop')");
        let kind = "42809";
        refused(
            &track("u"),
            kind,
            "cannot track public.u: it is an unlogged table: a crash empties it, and no standby has it",
        );
        refused(&track("tmp"), kind, "cannot track tmp: it is a temporary table, seen by one session only");
        refused(
            &track("vw"),
            kind,
            "cannot track public.vw: it is a view, which holds no rows; track the tables below it",
        );
        refused(
            &track("mv"),
            kind,
            "cannot track public.mv: it is a materialized view, whose refresh no trigger sees",
        );
        refused(
            &track("f"),
            kind,
            "cannot track public.f: it is a foreign table, and others can change it without this server",
        );
        refused(&track("s"), kind, "cannot track public.s: it is not a table");
        refused(&track("pg_class"), kind, "cannot track pg_class: it is a system table");
        refused(
            &track("quorum.event"),
            kind,
            "cannot track quorum.event: it is one of pgquorum's own tables",
        );
        refused(
            &track("p"),
            kind,
            "cannot track public.p1: it is an unlogged table: a crash empties it, and no standby has it",
        );
        refused(
            &track("no_key"),
            "55000",
            "cannot track public.no_key: it has no key by which its rows could be told apart",
        );
        run_here("SELECT quorum.track('no_key', 'shop', old_image => 'full')");
        refused("PERFORM quorum.track('t', 'nowhere')", "42704", "there is no channel nowhere");
        refused("PERFORM quorum.untrack('t')", "42704", "table public.t is not tracked");
        run_here("SELECT quorum.track('t', 'shop')");
        let name = text("SELECT 'shop_' || pg_backend_pid()").expect("a name");
        refused(
            "PERFORM quorum.track('t', 'shop')",
            "42710",
            &format!("table public.t is already in channel \"{name}\", itself or with its partitions"),
        );
    }

    /// What goes into the log for it is seen from outside (`capture_tables`).
    #[pg_test]
    fn rows_that_come_or_go_with_a_partition_are_noticed() {
        run_here(
            "SELECT quorum.create_channel('shop');
             CREATE TABLE moved (id int PRIMARY KEY) PARTITION BY LIST (id);
             CREATE TABLE moved_1 PARTITION OF moved FOR VALUES IN (1); CREATE TABLE moved_2 PARTITION OF moved FOR VALUES IN (2);
             CREATE TABLE moved_apart (id int PRIMARY KEY); INSERT INTO moved VALUES (1); SELECT quorum.track('moved', 'shop')",
        );
        let moved = || text("SELECT quorum.partitions_moved('moved'::regclass)");
        assert_eq!(moved(), None);
        let forget = |partition: &str| {
            run(&format!("DELETE FROM quorum.tracked_partition WHERE relid = '{partition}'::regclass"));
        };
        let note = |partition: &str| {
            run(&format!(
                "INSERT INTO quorum.tracked_partition (relid, root) VALUES ('{partition}'::regclass, 'moved'::regclass)"
            ));
        };
        forget("moved_2");
        assert_eq!(moved(), None, "it holds nothing");
        forget("moved_1");
        assert_eq!(moved().as_deref(), Some("ATTACH PARTITION"));
        note("moved_1");
        note("moved_2");
        note("moved_apart");
        assert_eq!(moved(), None, "it holds nothing");
        run("INSERT INTO moved_apart VALUES (1)");
        assert_eq!(moved().as_deref(), Some("DETACH PARTITION"));
    }

    #[pg_test]
    fn the_replica_identity_is_a_key() {
        set_up();
        run_here("CREATE TABLE r (a int NOT NULL UNIQUE, b int); ALTER TABLE r REPLICA IDENTITY USING INDEX r_a_key;
             SELECT quorum.track('r', 'shop')");
        let keys = "SELECT string_agg(c ->> 'name', ',') FROM quorum.schema_version AS v,
                    jsonb_array_elements(v.columns) AS c WHERE (c ->> 'key')::boolean";
        assert_eq!(text(keys).as_deref(), Some("a"));
    }

    #[pg_test]
    fn columns_must_be_there_and_hold_the_key() {
        set_up();
        let track = |columns: &str| format!("PERFORM quorum.track('t', 'shop', columns => {columns})");
        refused(&track("'{id,nothing}'"), "42703", "table public.t has no column nothing");
        refused(&track("'{v,note}'"), "22023", "the list of columns must have the key's: id");
        refused(&track("'{}'"), "22023", "the list of columns is empty; leave it out to capture all of them");
    }

    #[pg_test]
    fn a_filter_is_a_condition_on_one_row() {
        set_up();
        run_here(
            "CREATE FUNCTION mine(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'; CREATE TYPE mood AS ENUM ('a')",
        );
        let track =
            |filter: &str| format!("PERFORM quorum.track('t', 'shop', \"where\" => {})", quote(filter));
        let condition = "a filter is one condition, as it would stand behind WHERE";
        for filter in
            ["true FROM t", "v > 1, id", "v > 1 LIMIT 1", "v > 1 UNION SELECT true", "v > 1 FOR UPDATE", ""]
        {
            let caught = format!(
                "DO $do$ BEGIN BEGIN {}; EXCEPTION WHEN syntax_error THEN RETURN; END; RAISE EXCEPTION 'taken'; END $do$",
                track(filter)
            );
            run_here(&caught);
        }
        refused(&track("true FROM t"), "42601", condition);
        let no = |reason: &str| format!("this cannot be a filter: {reason}");
        refused(&track("id IN (SELECT 1)"), "0A000", &no("it has a subquery"));
        refused(
            &track("public.mine(id)"),
            "0A000",
            &no("it uses a function that is not built in, or not immutable"),
        );
        refused(
            &track("at > now()"),
            "0A000",
            &no("it uses a function that is not built in, or not immutable"),
        );
        refused(
            &track("random() > 0.5"),
            "0A000",
            &no("it uses a function that is not built in, or not immutable"),
        );
        refused(&track("xmin IS NULL"), "0A000", &no("it uses a system column or the whole row"));
        refused(&track("t IS NULL"), "0A000", &no("it uses a system column or the whole row"));
        refused(&track("v"), "42804", "argument of tracking filter must be type boolean, not type integer");
        refused(&track("nothing > 1"), "42703", "column \"nothing\" does not exist");
        run_here("SELECT quorum.track('t', 'shop', \"where\" => $$ v % 2 = 0 AND (note LIKE 'a%' OR note IN ('x', 'y'))
             AND CASE WHEN v > 3 THEN lower(note) ELSE 'z' END > 'b' AND coalesce(v, 1) BETWEEN 1 AND 9 $$)");
    }

    #[pg_test(error = "permission denied for function track")]
    fn only_administrators_track() {
        set_up();
        run_here(
            "GRANT SELECT ON t TO quorum_reader; SET LOCAL ROLE quorum_reader; SELECT quorum.track('t', 'shop')",
        );
    }

    #[pg_test]
    fn writers_need_no_rights_on_the_log() {
        set_up();
        run_here(
            "SELECT quorum.track('t', 'shop', \"where\" => 'v > 0'); CREATE ROLE writer;
             GRANT INSERT, UPDATE, SELECT ON t TO writer; SET LOCAL ROLE writer;
             INSERT INTO t VALUES (1, 1); UPDATE t SET v = 2",
        );
        assert_eq!(text("SELECT current_user::text").as_deref(), Some("writer"));
    }

    #[pg_test]
    fn administrators_mark_where_changes_come_from() {
        run_here("SET LOCAL ROLE quorum_admin; SET LOCAL pgquorum.origin = 'elsewhere'");
    }

    #[pg_test(error = "permission denied to set parameter \"pgquorum.origin\"")]
    fn others_do_not() {
        run_here("SET LOCAL ROLE quorum_reader; SET LOCAL pgquorum.origin = 'elsewhere'");
    }

    #[pg_test(error = "this function serves the triggers that quorum.track makes, and no others")]
    fn trigger_functions_are_not_called_otherwise() {
        set_up();
        run_here(
            "CREATE TRIGGER mine BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION quorum.capture_row();
             INSERT INTO t VALUES (1)",
        );
    }
}
