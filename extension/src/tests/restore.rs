//! Tables and rows that are restored from inventories and dumps, and channels that are stopped.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// The error that a statement brings.
    fn refused(sql: &str) -> String {
        run("CREATE OR REPLACE FUNCTION pg_temp.refused(sql text) RETURNS text LANGUAGE plpgsql AS
             $$ BEGIN EXECUTE sql; RETURN 'done'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM; END $$");
        text(&format!("SELECT pg_temp.refused($text${sql}$text$)"))
    }

    #[pg_test]
    fn tables_are_made_emptied_or_made_anew() {
        run("CREATE TABLE public.orders (id int PRIMARY KEY, note varchar(5) DEFAULT 'x');
             INSERT INTO public.orders VALUES (1, 'a'); SELECT quorum.create_channel('_logger')");
        let description = text("SELECT quorum.describe_table('public', 'orders')::text");
        let restore = |overwrite: bool| {
            refused(&format!(
                "SELECT quorum.restore_collection('public', 'orders', '{description}', overwrite => {overwrite}, channel => '_logger')"
            ))
        };
        assert_eq!(restore(false), "42710 table public.orders exists");
        assert_eq!(restore(true), "done");
        let state = "SELECT count(*) || ' ' || (SELECT column_default FROM information_schema.columns
                     WHERE table_name = 'orders' AND column_name = 'note') FROM public.orders";
        assert_eq!(text(state), "0 'x'::character varying", "it was emptied and is the same table");
        assert_eq!(text("SELECT channel || ' ' || \"table\" FROM quorum.tracked_tables"), "_logger orders");
        run("ALTER TABLE public.orders ADD COLUMN more int");
        assert_eq!(restore(true), "done");
        assert_eq!(text("SELECT quorum.describe_table('public', 'orders')::text"), description);
        assert_eq!(text("SELECT channel || ' ' || \"table\" FROM quorum.tracked_tables"), "_logger orders");
        run("SELECT quorum.restore_collection('shop', 'likes', edge => true)");
        assert_eq!(
            text(
                "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'shop.likes'::regclass AND attnum > 0"
            ),
            "_key _from _to data"
        );
        assert_eq!(text("SELECT count(*)::text FROM pg_index WHERE indrelid = 'shop.likes'::regclass"), "3");
        for schema in ["pg_catalog", "quorum", "information_schema"] {
            let made =
                refused(&format!("SELECT quorum.restore_collection('{schema}', 't', overwrite => true)"));
            assert!(made.starts_with("22023 no table can be made"), "{made}");
        }
    }

    #[pg_test]
    fn rows_of_all_types_are_written_and_removed() {
        run("CREATE TABLE public.kinds (a text, b int, n numeric(6,2), j jsonb, arr int[], at timestamptz, note text DEFAULT 'kept',
                 \"_key\" text, g int GENERATED ALWAYS AS (b * 2) STORED, code char(4), PRIMARY KEY (a, b));
             INSERT INTO public.kinds (a, b, note) VALUES ('gone', 1, 'x'), ('old', 2, 'y'), ('stays', 3, 'z')");
        run(r#"SELECT quorum.restore_rows('public', 'kinds', '[
            {"key": ["gone", "1"], "joined": "gone,1", "data": null},
            {"key": ["old", "2"], "joined": "old,2", "data": {"a": "old", "b": 2, "n": "1.50", "j": {"x": null}, "arr": "{1,NULL}",
             "at": "2026-01-02 03:04:05+00", "%5Fkey": "k", "code": "ab"}},
            {"key": ["new", "4"], "joined": "new,4", "data": {"n": 7, "j": null}}]')"#);
        assert_eq!(
            text(
                "SELECT string_agg(concat_ws('|', a, b, n, j, arr, note, \"_key\", g, code), ' ' ORDER BY b) FROM public.kinds"
            ),
            r#"old|2|1.50|{"x": null}|{1,NULL}|y|k|4|ab   stays|3|z|6 new|4|7.00|kept|8"#
        );
        for (rows, error) in [
            (r#"[{"key": ["x"], "joined": "x", "data": {}}]"#, "22023"),
            (r#"[{"key": ["x", "1"], "joined": "x,1", "data": {"nothing": 1}}]"#, "42703"),
            (r#"[{"key": ["x", "1"], "joined": "x,1", "data": {"code": "too long"}}]"#, "22001"),
            (r#"[{"key": ["x", "y"], "joined": "x,y", "data": {}}]"#, "22P02"),
        ] {
            let found = refused(&format!("SELECT quorum.restore_rows('public', 'kinds', '{rows}')"));
            assert!(found.starts_with(error), "{rows}: {found}");
        }
        run(r#"SELECT quorum.restore_rows('public', 'kinds',
                '[{"key": ["x", "1"], "joined": "x,1", "data": {"nothing": 1, "n": 2}}]', force => true)"#);
        assert_eq!(text("SELECT count(*)::text FROM public.kinds"), "4");
        assert!(refused("SELECT quorum.restore_rows('public', 'none', '[]')").starts_with("42P01"));
        run("SELECT quorum.restore_collection('public', 'docs', edge => true)");
        run(r#"SELECT quorum.restore_rows('public', 'docs',
                '[{"key": ["a", "b"], "joined": "a,b", "data": {"_from": "u/1", "_to": "u/2", "since": [2020]}}]')"#);
        assert_eq!(
            text("SELECT concat_ws('|', \"_key\", \"_from\", \"_to\", data) FROM public.docs"),
            r#"a,b|u/1|u/2|{"since": [2020]}"#
        );
    }

    #[pg_test]
    fn what_a_table_calls_has_its_owners_rights() {
        run("CREATE ROLE somebody; CREATE TABLE public.trap (id int PRIMARY KEY, who text);
             ALTER TABLE public.trap OWNER TO somebody;
             CREATE FUNCTION public.spring() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.who := current_user; RETURN NEW; END $$;
             CREATE TRIGGER spring BEFORE INSERT ON public.trap FOR EACH ROW EXECUTE FUNCTION public.spring()");
        run(
            r#"SELECT quorum.restore_rows('public', 'trap', '[{"key": ["1"], "joined": "1", "data": {"who": "x"}}]')"#,
        );
        assert_eq!(text("SELECT who FROM public.trap"), "somebody");
        run("CREATE OR REPLACE FUNCTION public.spring() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RESET ROLE; SET ROLE postgres; NEW.who := current_user; RETURN NEW; END $$");
        let found = refused(
            r#"SELECT quorum.restore_rows('public', 'trap', '[{"key": ["2"], "joined": "2", "data": {}}]')"#,
        );
        assert!(found.contains("within security-"), "{found}");
    }

    #[pg_test]
    fn nothing_is_left_to_the_commit() {
        run("CREATE TABLE public.parent (id int PRIMARY KEY); INSERT INTO public.parent VALUES (1);
             CREATE TABLE public.late (id int PRIMARY KEY, parent int);
             ALTER TABLE public.late ADD CONSTRAINT late FOREIGN KEY (parent) REFERENCES public.parent INITIALLY DEFERRED");
        let restore = r#"SELECT quorum.restore_rows('public', 'late', '[{"key": ["1"], "joined": "1", "data": {"parent": 1}}]')"#;
        let found = refused(restore);
        assert!(found.starts_with("42501 cannot fire deferred trigger"), "{found}");
        run("ALTER TABLE public.late ALTER CONSTRAINT late DEFERRABLE INITIALLY IMMEDIATE");
        run(restore);
        assert_eq!(text("SELECT parent::text FROM public.late"), "1");
    }

    #[pg_test]
    fn statements_that_write_rows_do_not_show_them() {
        run("CREATE TABLE public.quiet (id int PRIMARY KEY, note text, seen text);
             CREATE FUNCTION public.quiet() RETURNS trigger LANGUAGE plpgsql AS
                 $$ DECLARE said text; BEGIN GET DIAGNOSTICS said = PG_CONTEXT; NEW.seen := said; RETURN NEW; END $$;
             CREATE TRIGGER quiet BEFORE INSERT ON public.quiet FOR EACH ROW EXECUTE FUNCTION public.quiet()");
        let rows = r#"[{"key": ["1"], "joined": "1", "data": {"note": "hush"}}]"#;
        Spi::get_one_with_args::<String>(
            "SELECT quorum.restore_rows('public', 'quiet', $1::jsonb)::text",
            &[rows.into()],
        )
        .expect("it runs");
        assert_eq!(text("SELECT note FROM public.quiet"), "hush");
        // What a report that comes meanwhile says of where it comes from.
        let seen = text("SELECT seen FROM public.quiet");
        assert!(seen.contains("INSERT INTO") && !seen.contains("hush"), "{seen}");
    }

    #[pg_test]
    fn indexes_are_made_once() {
        run(
            "CREATE TABLE public.t (id int PRIMARY KEY, email text); CREATE UNIQUE INDEX ON public.t (email);
             SELECT quorum.restore_collection('public', 'docs')",
        );
        let count = |table: &str| {
            text(&format!("SELECT count(*)::text FROM pg_index WHERE indrelid = '{table}'::regclass"))
        };
        for _ in 0..2 {
            run(
                r#"SELECT quorum.restore_indexes('public', 't', '[{"type": "persistent", "unique": true, "fields": ["email"]},
                    {"type": "hash", "unique": false, "fields": ["email"]}]')"#,
            );
            run(
                r#"SELECT quorum.restore_indexes('public', 'docs', '[{"type": "hash", "unique": true, "fields": ["a.b", "c"]}]')"#,
            );
            assert_eq!((count("public.t"), count("public.docs")), ("3".to_owned(), "2".to_owned()));
        }
        let found = refused(
            r#"SELECT quorum.restore_indexes('public', 't', '[{"type": "hash", "unique": false, "fields": ["none"]}]')"#,
        );
        assert!(found.starts_with("42703"), "{found}");
    }

    #[pg_test]
    fn a_stopped_channel_tracks_nothing_and_remembers_what_it_did() {
        run("SELECT quorum.create_channel('shop'); CREATE TABLE public.t (id int PRIMARY KEY, a int, b int);
             CREATE TABLE public.u (id int PRIMARY KEY);
             SELECT quorum.track('public.t', 'shop', ARRAY['id', 'a'], 'a > 1', 'full')");
        assert_eq!(
            text("SELECT quorum.stop_channel('shop')::text || quorum.stop_channel('shop')"),
            "truefalse"
        );
        assert_eq!(text("SELECT count(*)::text FROM quorum.tracked_tables"), "0");
        assert_eq!(
            text(
                "SELECT concat_ws('|', relid::regclass, columns, filter_sql, old_image, versions) FROM quorum.resting_table"
            ),
            "t|{1,2}|a > 1|full|f"
        );
        assert_eq!(text("SELECT (stopped_at IS NOT NULL)::text FROM quorum.channel_state"), "true");
        let tracked = refused("SELECT quorum.track('public.u', 'shop')");
        assert_eq!(tracked, "55000 channel \"shop\" is stopped: nothing is captured in it");
        // Whoever is left out does not come back; with nothing that was recorded there is no gap.
        run("SELECT quorum.untrack('public.t')");
        run("SELECT quorum.restore_collection('public', 'made', channel => 'shop')");
        assert_eq!(
            text("SELECT quorum.start_channel('shop')::text || quorum.start_channel('shop')"),
            "truefalse"
        );
        assert_eq!(text("SELECT string_agg(\"table\", ' ') FROM quorum.tracked_tables"), "made");
        assert_eq!(text("SELECT database_version::text FROM quorum.channel"), "1");
        run("SELECT quorum.keep_log('shop', rows => 10), quorum.keep_log('shop', bytes => 20)");
        run("SELECT quorum.keep_log('shop', rows => 0)");
        let kept =
            text("SELECT concat_ws('|', coalesce(retain_rows, -1), retain_bytes) FROM quorum.channels");
        assert_eq!(kept, "-1|20");
        assert!(refused("SELECT quorum.keep_log('shop', rows => -1)").starts_with("22023"));
    }

    #[pg_test]
    fn a_channel_that_is_started_captures_no_columns_that_it_did_not() {
        run("SELECT quorum.create_channel('few'); CREATE TABLE public.few (id int PRIMARY KEY, secret text NOT NULL);
             SELECT quorum.track('public.few', 'few', ARRAY['id'])");
        run("SELECT quorum.stop_channel('few')");
        // As if nothing had been recorded: that is a matter of other transactions.
        run("UPDATE quorum.resting_table SET schema_version = NULL");
        run("ALTER TABLE public.few DROP COLUMN id");
        run("ALTER TABLE public.few ADD PRIMARY KEY (secret)");
        assert_eq!(
            refused("SELECT quorum.start_channel('few')"),
            "42703 channel \"few\" cannot be started: table public.few cannot be tracked as it was: all columns that were captured were dropped"
        );
        run("SELECT quorum.untrack('public.few')");
        assert_eq!(text("SELECT quorum.start_channel('few')::text"), "true");
        assert_eq!(text("SELECT count(*)::text FROM quorum.tracked_tables"), "0");
    }
}
