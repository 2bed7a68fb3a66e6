//! The applier of the replication interface in SQL: settings, positions, and writing with the rights of a table's owner.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).expect("it runs");
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// The error that a statement brings, and its detail.
    fn refused(sql: &str) -> String {
        run("CREATE OR REPLACE FUNCTION pg_temp.refused(sql text) RETURNS text LANGUAGE plpgsql AS
             $$ DECLARE said text; BEGIN EXECUTE sql; RETURN 'done';
             EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS said = PG_EXCEPTION_DETAIL; RETURN concat_ws(' ', SQLSTATE, SQLERRM, said);
             END $$");
        text(&format!("SELECT pg_temp.refused($text${sql}$text$)"))
    }

    const STATE: &str = "SELECT concat_ws(' ', s ->> 'running', s ->> 'phase', s ->> 'applied', s ->> 'resume', s ->> 'error_number')
                         FROM quorum.applier_show() AS s";
    const GENERATION: &str = "SELECT quorum.applier_show() ->> 'generation'";

    #[pg_test]
    fn it_is_configured_started_and_stopped() {
        assert!(
            refused("SELECT quorum.applier_start()").starts_with("55000 the applier has no endpoint yet")
        );
        run(r#"SELECT quorum.applier_configure('{"endpoint": "tcp://a:1", "username": "me"}', 'hush')"#);
        let password = "SELECT coalesce(password, 'none') FROM quorum.applier";
        assert_eq!(text(password), "hush");
        // The password stays while it is for the same server and user.
        run(
            r#"SELECT quorum.applier_configure('{"endpoint": "tcp://a:1", "username": "me", "autoStart": true}')"#,
        );
        assert_eq!(text(password), "hush");
        assert!(!text("SELECT quorum.applier_show()::text").contains("hush"));
        for config in [r#"'{"endpoint": "tcp://a:1", "username": "me", "password": ""}'"#, "'[]'", "NULL"] {
            let found = refused(&format!("SELECT quorum.applier_configure({config})"));
            assert!(found.starts_with("22023") && !found.contains("hush"), "{config}: {found}");
        }
        for role in ["quorum_reader", "quorum_admin", "quorum_follower"] {
            let may = format!("SELECT has_any_column_privilege('{role}', 'quorum.applier', 'SELECT')::text");
            assert_eq!(text(&may), "false", "{role}");
        }
        run("SELECT quorum.applier_start(18446744073709551615)");
        assert_eq!(text(STATE), "true initialized 18446744073709551615 18446744073709551615 0");
        assert!(refused("SELECT quorum.applier_configure('{}')").starts_with("55000 the applier is running"));
        assert!(refused("SELECT quorum.applier_idle()").starts_with("55000 the applier is running"));
        // One that runs is left alone.
        run("SELECT quorum.applier_start(5)");
        assert_eq!(text(STATE), "true initialized 18446744073709551615 18446744073709551615 0");
        run("SELECT quorum.applier_stop(), quorum.applier_stop()");
        assert_eq!(text(STATE), "false inactive 18446744073709551615 18446744073709551615 0");
        run("SELECT quorum.applier_idle()");
        run(r#"SELECT quorum.applier_configure('{"endpoint": "tcp://b:1", "username": "me"}')"#);
        assert_eq!(text(password), "none");
        run("SELECT quorum.applier_forget()");
        assert_eq!(text(STATE), "false inactive 0");
        assert_eq!(text("SELECT quorum.applier_show() #>> '{config,endpoint}'"), "tcp://b:1");
    }

    #[pg_test]
    fn only_who_was_started_last_moves_it() {
        run(r#"SELECT quorum.applier_configure('{"endpoint": "tcp://a:1"}'); SELECT quorum.applier_start()"#);
        let first = text(GENERATION);
        let advance = |generation: &str, before: u64, to: u64| {
            refused(&format!(
                "SELECT quorum.applier_advance({generation}, {before}, {to}, {to}, {to}, 3, 2, 1, 0, 0.5)"
            ))
        };
        assert_eq!(advance(&first, 0, 10), "done");
        assert!(advance(&first, 9, 20).starts_with("PQ013"));
        assert_eq!(advance(&first, 10, 20), "done");
        let report = |generation: &str| {
            text(&format!(
                r#"SELECT quorum.applier_report({generation}, '{{"phase": "running", "available": "30", "requests": 2,
                   "error_number": 1400, "error_message": "down"}}')::text"#
            ))
        };
        assert_eq!(report(&first), "true");
        assert_eq!(text(STATE), "true running 20 20 1400");
        let counts = "SELECT concat_ws(' ', s ->> 'events', s ->> 'documents', s ->> 'removals', s ->> 'applies', s ->> 'requests')
                      FROM quorum.applier_show() AS s";
        assert_eq!(text(counts), "6 4 2 2 2");
        run("SELECT quorum.applier_stop(); SELECT quorum.applier_start(resync => true)");
        let second = text(GENERATION);
        assert!(advance(&first, 20, 30).starts_with("55000 the applier is not enabled any more"));
        assert_eq!(report(&first), "false");
        run(&format!("SELECT quorum.applier_failed({first}, 1401, 'a lie')"));
        assert_eq!(text(STATE), "true initialized 20 20 0");
        assert!(refused(&format!("SELECT quorum.applier_synced({first}, 40)")).starts_with("55000"));
        run(&format!("SELECT quorum.applier_synced({second}, 40)"));
        assert_eq!(text(STATE), "true initialized 40 40 0");
        assert_eq!(
            text("SELECT concat_ws(' ', s ->> 'resync', s ->> 'resyncs') FROM quorum.applier_show() AS s"),
            "false 1"
        );
        run(&format!("SELECT quorum.applier_failed({second}, 1401, 'a lie')"));
        assert_eq!(text(STATE), "false inactive 40 40 1401");
    }

    #[pg_test]
    fn what_a_table_is_made_of_is_known() {
        run("CREATE TABLE public.\"Odd one\" (b int, a varchar(9), g int GENERATED ALWAYS AS (1) STORED,
                 n int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (a, b));
             CREATE TABLE public.keyless (a int); CREATE VIEW public.seen AS SELECT 1 AS a;
             CREATE TABLE public.late (a int, CONSTRAINT late_key PRIMARY KEY (a) DEFERRABLE)");
        let columns = "SELECT string_agg(concat_ws(' ', c ->> 'name', c ->> 'type', c ->> 'key', c ->> 'computed', c ->> 'always'), ', ')
                       FROM jsonb_array_elements(quorum.applier_table('public', 'Odd one') -> 'columns') AS c";
        assert_eq!(
            text(columns),
            "b integer true false false, a character varying(9) true false false, g integer false true false, \
             n integer false false true"
        );
        let problem = |schema: &str, table: &str| {
            text(&format!(
                "SELECT coalesce(quorum.applier_table('{schema}', '{table}') ->> 'problem', 'none')"
            ))
        };
        assert_eq!(problem("public", "Odd one"), "none");
        assert!(problem("public", "keyless").contains("no primary key"));
        assert!(problem("public", "late").contains("no primary key"));
        assert!(problem("public", "seen").contains("no ordinary table"));
        assert!(problem("quorum", "applier").contains("pgquorum"));
        assert!(problem("pg_catalog", "pg_class").contains("system"));
        assert_eq!(text("SELECT coalesce(quorum.applier_table('public', 'none')::text, 'none')"), "none");
        run("SELECT quorum.applier_make_table('users')");
        run("INSERT INTO public.users (_key, data) VALUES ('a', '{}')");
        assert!(refused("SELECT quorum.applier_make_table('users')").starts_with("42P07"));
    }

    #[pg_test]
    fn rows_are_written_with_the_rights_of_the_tables_owner() {
        run("CREATE ROLE owner_of_t; CREATE TABLE public.t (id int PRIMARY KEY, v text, who text);
             GRANT CREATE ON SCHEMA public TO owner_of_t; ALTER TABLE public.t OWNER TO owner_of_t;
             CREATE FUNCTION public.who() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.who := current_user; RETURN NEW; END $$;
             CREATE TRIGGER who BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.who();
             ALTER TABLE public.t ENABLE ALWAYS TRIGGER who");
        let write = |sql: &str, lines: &str| {
            format!("SELECT quorum.applier_write('public.t'::regclass, $sql${sql}$sql$, {lines})::text")
        };
        let insert = "INSERT INTO public.t AS t (id, v) SELECT r.id, r.v FROM unnest($1) AS l(line),
                      LATERAL json_to_record(l.line::json -> 'data') AS r(id int, v text)
                      ON CONFLICT (id) DO UPDATE SET v = excluded.v";
        let lines = r#"ARRAY['{"data": {"id": 1, "v": "a"}}', '{"data": {"id": 2, "v": [1, 2]}}']"#;
        assert_eq!(text(&write(insert, lines)), "2");
        let rows = "SELECT string_agg(concat_ws(' ', id, v, who), ', ' ORDER BY id) FROM public.t";
        assert_eq!(text(rows), "1 a owner_of_t, 2 [1, 2] owner_of_t");
        assert_eq!(text("SELECT current_user::text"), text("SELECT session_user::text"));
        let secret = "INSERT INTO public.t (id, v) SELECT 3, rolpassword FROM pg_authid LIMIT 1";
        assert!(refused(&write(secret, "'{}'")).starts_with("42501"));
        assert!(refused(&write("SET ROLE postgres", "'{}'")).starts_with("42501 cannot set parameter"));
        assert_eq!(text("SELECT current_user::text"), text("SELECT session_user::text"));
        assert_eq!(text(&write("DELETE FROM public.t", "'{}'")), "2");
        assert!(refused("SELECT quorum.applier_write(4294967294, 'SELECT 1', '{}')").starts_with("42P01"));
    }

    #[pg_test]
    fn what_the_tables_owner_sets_ends_with_what_is_run_for_it() {
        run("CREATE ROLE owner_of_sets; CREATE TABLE public.sets (id int PRIMARY KEY);
             ALTER TABLE public.sets OWNER TO owner_of_sets; GRANT pg_execute_server_program TO owner_of_sets;
             CREATE FUNCTION public.sets() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN
                 PERFORM set_config('search_path', 'evil, pg_catalog, pg_temp', false), set_config('application_name', 'evil', false);
                 RETURN NEW;
             END $$;
             CREATE TRIGGER sets BEFORE INSERT ON public.sets FOR EACH ROW EXECUTE FUNCTION public.sets();
             ALTER TABLE public.sets ENABLE ALWAYS TRIGGER sets");
        let settings =
            "SELECT concat_ws(' | ', current_setting('search_path'), current_setting('application_name'))";
        let before = text(settings);
        let insert = |id: i32| {
            format!(
                "SELECT quorum.applier_write('public.sets'::regclass, 'INSERT INTO public.sets VALUES ({id})', '{{}}')"
            )
        };
        run(&insert(1));
        assert_eq!(text(settings), before, "a statement of the applier");
        assert!(refused(&insert(1)).starts_with("23505"));
        assert_eq!(text(settings), before, "one that fails");
        run("SELECT quorum.run_as_owner('public.sets'::regclass, 'INSERT INTO public.sets VALUES (2)')");
        assert_eq!(text(settings), before, "any statement");
        run("SELECT quorum.copy_as_owner('public.sets'::regclass)");
        run("COPY public.sets FROM PROGRAM 'echo 3'");
        assert_eq!(text(settings), before, "a copy");
        assert_eq!(text("SELECT string_agg(id::text, ' ' ORDER BY id) FROM public.sets"), "1 2 3");
    }
}
