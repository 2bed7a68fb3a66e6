//! Subscriptions as people and the sidecar see them in SQL. What is applied is tested from outside, with two servers.

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

    /// A subscription that copies nothing and begins at 5:100, with a table.
    fn followed(more: &str) -> i32 {
        run("CREATE TABLE public.orders (id int PRIMARY KEY, v text)");
        let sql = format!(
            "SELECT quorum.subscribe('s', '{{http://10.0.0.1:8008}}', 'shop', copy => 'none', start => '5:100'{more})"
        );
        let id = Spi::get_one::<i32>(&sql).expect("it is made").expect("an id");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "orders"}}]')"#
        ));
        id
    }

    #[pg_test]
    fn nobody_is_said_to_be_up_to_date_who_hears_nothing() {
        let id = followed("");
        let lag = "SELECT lag_ticks || ' ' || CASE WHEN lag_seconds < 1 THEN 'now' WHEN lag_seconds < 100 THEN 'late' ELSE 'old' END
                   FROM quorum.subscription_state";
        run(&format!(
            "SELECT quorum.report_subscription({id}, 'following', end_epoch => 5, end_tick => 100)"
        ));
        assert_eq!(text(lag), "0 now");
        run("UPDATE quorum.subscription_status SET end_seen_at = end_seen_at - interval '1 minute'");
        run(&format!("SELECT quorum.report_subscription({id}, 'waiting', 'unreachable')"));
        assert_eq!(text(lag), "0 late");
        run(&format!("SELECT quorum.report_subscription({id}, 'following', end_epoch => 5, end_tick => 130);
                      UPDATE quorum.subscription_position SET committed_at = clock_timestamp() - interval '1 hour'"));
        assert_eq!(text(lag), "30 old");
        let bytes = "SELECT coalesce(lag_bytes::text, 'unknown') FROM quorum.subscription_state";
        assert_eq!(text(bytes), "unknown");
        run(&format!("SELECT quorum.see_change_size({id}, 70)"));
        assert_eq!(text(bytes), "2100");
    }

    #[pg_test]
    fn a_subscription_is_made_changed_and_ended() {
        followed("");
        let state =
            "SELECT concat_ws(' ', state, position, policy, jobs, tables_known, has_secret, remote_origin)
                     FROM quorum.subscription_state";
        assert_eq!(text(state), "starting 5:100 error 2 1 f far");
        run("SELECT quorum.alter_subscription('s', policy => 'skip', jobs => 4, secret => 'hush')");
        assert_eq!(text(state), "starting 5:100 skip 4 1 t far");
        run("SELECT quorum.enable_subscription('s', false)");
        assert_eq!(text("SELECT state FROM quorum.subscription_state"), "disabled");
        run("SELECT quorum.unsubscribe('s')");
        assert_eq!(text("SELECT count(*)::text FROM quorum.subscription_state"), "0");
        assert_eq!(text("SELECT count(*)::text FROM quorum.subscription_table"), "0");
    }

    #[pg_test]
    fn the_secret_is_shown_nowhere() {
        run(
            "SELECT quorum.subscribe('s', '{http://10.0.0.1:8008}', 'shop', login => 'me', secret => 'hush')",
        );
        assert_eq!(text("SELECT secret FROM quorum.subscription"), "hush");
        let shown = "SELECT string_agg(v::text, ' ') FROM quorum.subscription_state AS v";
        assert!(!text(shown).contains("hush"));
        for role in ["quorum_reader", "quorum_admin", "quorum_follower"] {
            let may =
                format!("SELECT has_any_column_privilege('{role}', 'quorum.subscription', 'SELECT')::text");
            assert_eq!(text(&may), "false", "{role}");
        }
    }

    #[pg_test]
    fn an_origin_name_is_given_once() {
        let default =
            "SELECT (quorum.origin_name() = (SELECT system_identifier FROM pg_control_system()) || '.' ||
                       (SELECT oid FROM pg_database WHERE datname = current_database()))::text";
        assert_eq!(text(default), "true");
        run("SELECT quorum.set_origin_name('berlin'); SELECT quorum.set_origin_name('berlin')");
        assert_eq!(text("SELECT quorum.origin_name()"), "berlin");
    }

    #[pg_test(error = "this database has the origin name 'berlin' already")]
    fn an_origin_name_is_not_changed() {
        run("SELECT quorum.set_origin_name('berlin'); SELECT quorum.set_origin_name('paris')");
    }

    #[pg_test]
    fn where_the_last_write_wins_it_is_kept_who_wrote_a_row_last() {
        let state = "SELECT string_agg(concat_ws(' ', \"table\", state, code), ', ' ORDER BY \"table\")
                     FROM quorum.subscription_tables";
        let kept = "SELECT coalesce(string_agg(\"table\", ', '), '') FROM quorum.versioned_tables";
        let id = followed(", policy => 'last_write_wins'");
        assert_eq!((text(state).as_str(), text(kept).as_str()), ("orders stopped PQ020", ""));
        run("SELECT quorum.create_channel('here'); SELECT quorum.track('public.orders', 'here')");
        assert_eq!(text("SELECT quorum.resume_table('s', 'orders')"), "following");
        assert_eq!((text(state).as_str(), text(kept).as_str()), ("orders following", "orders"));
        // Tables that are not here, are not tracked, or whose rows cannot be told apart by their keys.
        run("CREATE TABLE public.loose (id int PRIMARY KEY); CREATE TABLE public.float (id float PRIMARY KEY);
             SELECT quorum.track('public.float', 'here')");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "orders"}},
               {{"schema": "public", "table": "loose"}}, {{"schema": "public", "table": "float"}}, {{"schema": "public", "table": "none"}}]')"#
        ));
        assert_eq!(text(state), "float stopped PQ020, loose stopped PQ020, none following, orders following");
        let message = "SELECT message FROM quorum.subscription_tables WHERE \"table\" = 'float'";
        assert!(text(message).contains("keys of type double precision"), "{}", text(message));
        // They stay when nobody follows any more.
        run("SELECT quorum.unsubscribe('s')");
        assert_eq!(text(kept), "orders");
    }

    #[pg_test(
        error = "last_write_wins is not possible for table public.orders: table public.orders is not tracked here, so it cannot be kept who wrote a row last"
    )]
    fn another_policy_becomes_last_write_wins_only_where_that_is_possible() {
        followed("");
        run("SELECT quorum.alter_subscription('s', policy => 'last_write_wins')");
    }

    #[pg_test]
    fn copied_rows_are_older_than_everything_where_versions_are_kept() {
        run("SELECT quorum.create_channel('here'); CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY);
             SELECT quorum.track('public.a', 'here'), quorum.keep_versions('public.a')");
        run("SELECT quorum.subscribe('s', '{http://a:1}', 'shop', copy => 'truncate')");
        let id = text("SELECT quorum.subscription_id('s')::text");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "a"}}, {{"schema": "public", "table": "b"}}]')"#
        ));
        let before = |table: &str| {
            text(&format!("SELECT before FROM quorum.copy_plan({id}, 'public', '{table}', '{{id}}')"))
        };
        let emptied = |table: &str| {
            format!(
                "SELECT quorum.run_as_owner('{table}'::regclass, 'DELETE FROM {table}'); SELECT quorum.copy_as_owner('{table}'::regclass)"
            )
        };
        let time = "SET LOCAL pgquorum.origin_commit_time = '1970-01-01 00:00:00+00'";
        assert_eq!(before("a"), format!("{time}; {}", emptied("public.a")));
        assert_eq!(before("b"), emptied("public.b"));
    }

    #[pg_test(
        error = "an address in remote is not of the form http://host:port or https://host:port (login and secret are arguments of their own)"
    )]
    fn addresses_hold_no_password() {
        run("SELECT quorum.subscribe('s', '{http://me:hush@a:1}', 'shop')");
    }

    #[pg_test(error = "start is now, a position EPOCH:TICK or a time with time zone, not 'soon'")]
    fn a_start_is_a_position_or_a_time() {
        run("SELECT quorum.subscribe('s', '{http://a:1}', 'shop', copy => 'none', start => 'soon')");
    }

    #[pg_test(error = "the source of subscription s is this database itself")]
    fn nobody_follows_himself() {
        let id = followed("");
        run(&format!("SELECT quorum.subscription_tables_found({id}, quorum.origin_name(), '[]')"));
    }

    #[pg_test(error = "the source of subscription s is another database than before")]
    fn another_source_is_noticed() {
        let id = followed("");
        run(&format!("SELECT quorum.subscription_tables_found({id}, 'further', '[]')"));
    }

    #[pg_test]
    fn wanted_tables_that_the_source_does_not_track_are_said() {
        let id = followed(", tables => '{public.orders,public.items}'");
        let tables =
            "SELECT string_agg(concat_ws(' ', \"table\", state, after, code), ', ' ORDER BY \"table\")
                      FROM quorum.subscription_tables";
        assert_eq!(text(tables), "items stopped PQ016, orders following 5:100");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "items"}}]')"#
        ));
        assert_eq!(text(tables), "items following 5:100, orders following 5:100");
    }

    #[pg_test]
    fn a_table_that_is_tracked_again_is_copied_or_waits_until_somebody_takes_the_gap() {
        let id = followed("");
        let found = format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "orders"}}]')"#
        );
        let stop = "UPDATE quorum.subscription_table SET state = 'stopped', code = 'PQ016', after_epoch = 5, after_tick = 60";
        let table = "SELECT concat_ws(' ', state, after, code) FROM quorum.subscription_tables";
        run(stop);
        // However often the source says that it tracks it.
        run(&format!("{found}; {found}"));
        assert_eq!(text(table), "stopped 5:60 PQ018");
        let message = text("SELECT message FROM quorum.subscription_tables");
        assert!(message.contains("tracks this table again") && message.contains("resume_table"), "{message}");
        assert_eq!(text("SELECT quorum.resume_table('s', 'orders')"), "catch-up");
        assert_eq!(text(table), "catch-up 5:60");
        // A copy of everything brings what is missing.
        run(&format!("{stop}; {found}; SELECT quorum.reload_subscription({id})"));
        assert_eq!(text(table), "copy");
        run(&format!("{stop}; {found}"));
        assert_eq!(text(table), "copy");
    }

    #[pg_test]
    fn a_copied_table_follows_or_catches_up() {
        run("CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY)");
        run("SELECT quorum.subscribe('s', '{http://a:1}', 'shop')");
        let id = text("SELECT quorum.subscription_id('s')::text");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "a"}}, {{"schema": "public", "table": "b"}}]')"#
        ));
        assert_eq!(
            text(&format!("SELECT quorum.table_copied({id}, 'public', 'a', 5, 100, 3, 30)")),
            "following"
        );
        assert_eq!(text("SELECT position FROM quorum.subscription_state"), "5:100");
        // The subscription has gone on while the other table was copied from an older snapshot.
        run(&format!("SELECT quorum.save_position({id}, NULL, 5, 110, now())"));
        assert_eq!(
            text(&format!("SELECT quorum.table_copied({id}, 'public', 'b', 5, 105, 3, 30)")),
            "catch-up"
        );
        run(&format!("SELECT quorum.save_position({id}, 'public.b', 5, 108, now())"));
        let state = "SELECT state || ' ' || after FROM quorum.subscription_tables WHERE \"table\" = 'b'";
        assert_eq!(text(state), "catch-up 5:108");
        run(&format!("SELECT quorum.save_position({id}, 'public.b', 5, 112, now())"));
        assert_eq!(text(state), "following 5:112");
    }

    #[pg_test]
    fn a_stopped_table_goes_on_where_it_stopped() {
        let id = followed("");
        run(&format!(
            "SELECT quorum.save_position({id}, NULL, 5, 200, now());
             SELECT quorum.report_table({id}, 'public', 'orders', state => 'stopped', code => '42703', message => 'why')"
        ));
        assert_eq!(text("SELECT quorum.resume_table('s', 'orders')"), "catch-up");
        assert_eq!(text("SELECT quorum.resume_table('s', 'public.orders', true)"), "copy");
    }

    #[pg_test]
    fn a_copy_is_planned_by_the_columns_that_are_here() {
        let id = followed("");
        run(
            "CREATE TABLE public.g (a int PRIMARY KEY, \"B c\" text, twice int GENERATED ALWAYS AS (a * 2) STORED, more int)",
        );
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "g"}}]')"#
        ));
        let plan = |columns: &str| {
            text(&format!(
                "SELECT concat_ws(' | ', before, copy, after, copied_columns) FROM quorum.copy_plan({id}, 'public', 'g', '{columns}')"
            ))
        };
        assert_eq!(
            plan(r#"{B c,twice,a}"#),
            r#"SELECT quorum.require_empty('public.g'); SELECT quorum.copy_as_owner('public.g'::regclass) | COPY public.g ("B c", a) FROM STDIN | {"B c",a}"#
        );
        run("UPDATE quorum.subscription SET copy = 'merge', start = NULL");
        run("INSERT INTO public.g VALUES (1, 'old', DEFAULT, 7)");
        let step = |column: &str| {
            text(&format!("SELECT {column} FROM quorum.copy_plan({id}, 'public', 'g', '{{B c,a}}')"))
        };
        run(&step("before"));
        assert_eq!(step("copy"), r#"COPY pg_temp.pgquorum_copy ("B c", a) FROM STDIN"#);
        run("INSERT INTO pg_temp.pgquorum_copy VALUES ('new', 1), ('two', 2)");
        assert!(step("after").contains("quorum.run_as_owner"), "{}", step("after"));
        run(&step("after"));
        let rows = "SELECT string_agg(g::text, ' ' ORDER BY a) FROM public.g";
        assert_eq!(text(rows), "(1,new,2,7) (2,two,4,)");
    }

    #[pg_test]
    fn a_copy_takes_the_rows_that_are_wanted() {
        let id = followed(r#", filter => '{"public.orders": "v = ''eu'' AND id > 3"}'"#);
        let plan = format!("SELECT copy FROM quorum.copy_plan({id}, 'public', 'orders', '{{id,v}}')");
        let copy = "COPY public.orders (id, v) FROM STDIN WHERE (((v = 'eu'::text) AND (id > 3)))";
        assert_eq!(text(&plan), copy);
        assert_eq!(text("SELECT filter FROM quorum.subscription_tables"), "v = 'eu' AND id > 3");
        run("SELECT quorum.alter_subscription('s', filter => '{}')");
        assert_eq!(text(&plan), "COPY public.orders (id, v) FROM STDIN");
    }

    #[pg_test]
    fn a_filter_of_a_table_that_the_source_does_not_have_is_seen() {
        let id = followed(r#", filter => '{"public.oders": "id > 3"}'"#);
        let tables = "SELECT string_agg(concat_ws(' ', \"table\", state, code), ', ' ORDER BY \"table\") FROM quorum.subscription_tables";
        assert_eq!(text(tables), "oders stopped PQ016, orders following");
        run(r#"SELECT quorum.alter_subscription('s', filter => '{"public.orders": "id > 3"}')"#);
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "orders"}}]')"#
        ));
        assert_eq!(text(tables), "orders following");
    }

    #[pg_test]
    fn filters_are_looked_at_when_they_are_given() {
        followed("");
        run("CREATE FUNCTION pg_temp.refused(sql text) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN EXECUTE sql; RETURN 'taken'; EXCEPTION WHEN OTHERS THEN RETURN sqlstate || ' ' || sqlerrm; END $$");
        for (filter, said) in [
            (r#"{"public.orders": "v = 'eu'"}"#, "taken"),
            (r#"{"public.later": "whatever"}"#, "taken"),
            (r#"["public.orders"]"#, "22023 filter is an object"),
            (r#"{"orders": "v = 'eu'"}"#, "22023 in filter a table is named as schema.table"),
            (r#"{"public.orders": 1}"#, "22023 the filter of table public.orders must be a condition"),
            (
                r#"{"public.orders": "w = 1"}"#,
                "42703 the filter of table public.orders cannot be used: column",
            ),
            (
                r#"{"public.orders": "random() < 0.5"}"#,
                "0A000 the filter of table public.orders cannot be used: this cannot be a filter",
            ),
            (r#"{"public.orders": "id"}"#, "42804 the filter of table public.orders cannot be used: "),
        ] {
            let sql = format!("SELECT quorum.alter_subscription('s', filter => $f${filter}$f$)");
            let refused = text(&format!("SELECT pg_temp.refused($s${sql}$s$)"));
            assert!(refused.starts_with(said), "{filter}: {refused}");
        }
        for sql in [
            r#"SELECT quorum.alter_subscription('s', policy => 'last_write_wins', filter => '{"public.orders": "id > 3"}')"#,
            r#"SELECT quorum.alter_subscription('s', filter => '{"public.orders": "id > 3"}'), quorum.set_table_policy('s', 'orders', 'last_write_wins')"#,
            r#"SELECT quorum.alter_subscription('s', tables => '{public.other}', filter => '{"public.orders": "id > 3"}')"#,
        ] {
            let refused = text(&format!("SELECT pg_temp.refused($s${sql}$s$)"));
            assert!(refused.starts_with("22023 ") && refused.contains("filter"), "{sql}: {refused}");
        }
    }

    #[pg_test(error = "table public.g lacks columns that the source copies: b")]
    fn a_copy_needs_all_columns() {
        let id = followed("");
        run("CREATE TABLE public.g (a int PRIMARY KEY)");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "g"}}]');
               SELECT quorum.copy_plan({id}, 'public', 'g', '{{a,b}}')"#
        ));
    }

    const TRIGGERS: &str =
        "CREATE ROLE somebody; CREATE TABLE public.g (a int PRIMARY KEY) PARTITION BY LIST (a);
         CREATE TABLE public.one PARTITION OF public.g FOR VALUES IN (1);
         CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER usual BEFORE INSERT ON public.one FOR EACH ROW EXECUTE FUNCTION public.note();
         CREATE TRIGGER always BEFORE INSERT ON public.one FOR EACH ROW EXECUTE FUNCTION public.note();
         ALTER TABLE public.one ENABLE ALWAYS TRIGGER always; ALTER TABLE public.one OWNER TO somebody";

    /// Takes a table into a subscription, and asks how to copy it.
    fn planned(id: i32, more: &str) {
        run(&format!("{TRIGGERS}; {more}"));
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "g"}}]');
               SELECT quorum.copy_plan({id}, 'public', 'g', '{{a}}')"#
        ));
    }

    #[pg_test(
        error = "triggers of partitions of table public.g that belong to somebody else would run with the rights of the table's owner when rows are copied: always"
    )]
    fn a_copy_fires_nobodys_triggers_as_somebody_else() {
        planned(followed(""), "");
    }

    #[pg_test]
    fn a_copy_fires_the_owners_triggers() {
        planned(followed(""), "ALTER TABLE public.g OWNER TO somebody");
    }

    #[pg_test(
        error = "row level security is forced on the owner of table public.g, with whose rights rows are copied"
    )]
    fn a_copy_passes_no_policy_of_rows_by() {
        planned(
            followed(""),
            "ALTER TABLE public.g OWNER TO somebody; ALTER TABLE public.g ENABLE ROW LEVEL SECURITY;
             ALTER TABLE public.g FORCE ROW LEVEL SECURITY",
        );
    }

    #[pg_test(error = "public.g is no ordinary table here")]
    fn a_view_is_not_copied_into() {
        let id = followed("");
        run("CREATE VIEW public.g AS SELECT 1 AS a");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "g"}}]');
               SELECT quorum.copy_plan({id}, 'public', 'g', '{{a}}')"#
        ));
    }

    #[pg_test]
    fn an_empty_batch_tells_where_the_subscription_is() {
        let id = followed("");
        let row = format!(
            "SELECT concat_ws(' ', epoch, tick, in_transaction, one_by_one) FROM quorum.apply({id}, '')"
        );
        assert_eq!(text(&row), "5 100 f f");
    }

    #[pg_test(error = "subscription s is not enabled")]
    fn a_resting_subscription_applies_nothing() {
        let id = followed("");
        run("SELECT quorum.enable_subscription('s', false)");
        run(&format!("SELECT quorum.apply({id}, '')"));
    }

    #[pg_test(error = "there is no rejected change 7")]
    fn only_what_is_kept_is_forgotten() {
        run("SELECT quorum.drop_rejected(7)");
    }

    #[pg_test(error = "permission denied for function apply")]
    fn readers_apply_nothing() {
        let id = followed("");
        run(&format!("SET LOCAL ROLE quorum_reader; SELECT quorum.apply({id}, '')"));
    }
}
