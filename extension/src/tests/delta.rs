//! Versions and counts of the delta interface in SQL. With two servers it is tested from outside.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").unwrap_or_else(|| "NULL".to_owned())
    }

    const STATE: &str = "SELECT concat_ws(' ', role, subscription, state, loading, database_version, delta_version,
                         delta_error_count, cache_flush, import_counts::text) FROM quorum.delta_state('shop')";

    /// A subscription `s` whose one table was copied at tick 100 from version 3 of the source, which began at tick 40.
    fn followed() -> i32 {
        run("CREATE TABLE public.orders (id int PRIMARY KEY, v text)");
        let sql = "SELECT quorum.subscribe('s', '{http://10.0.0.1:8008}', 'shop')";
        let id = Spi::get_one::<i32>(sql).expect("it is made").expect("an id");
        assert_eq!(text(STATE), "worker s starting t 0 0 0 0 [{\"type\": \"DATA\", \"count\": 0}]");
        run(&format!(
            r#"SELECT quorum.subscription_tables_found({id}, 'far', '[{{"schema": "public", "table": "orders"}}]');"#
        ));
        assert_eq!(text(&format!("SELECT quorum.see_source({id}, 3, 40)::text")), "false");
        run(&format!("SELECT quorum.begin_load({id}, 3, 40)"));
        assert_eq!(text(&format!("SELECT quorum.end_load({id})::text")), "false", "nothing was copied");
        run(&format!("SELECT quorum.table_copied({id}, 'public', 'orders', 5, 100, 1, 1)"));
        assert_eq!(text(&format!("SELECT quorum.end_load({id})::text")), "true");
        assert_eq!(text(&format!("SELECT quorum.end_load({id})::text")), "false", "it is counted once");
        id
    }

    #[pg_test]
    fn a_load_is_counted_when_all_of_it_is_there() {
        let id = followed();
        assert_eq!(text(STATE), "worker s starting f 3 60 0 0 [{\"type\": \"DATA\", \"count\": 1}]");
        // The source was pruned: what is here is older, until it was copied anew.
        assert_eq!(text(&format!("SELECT quorum.see_source({id}, 3, 40)::text")), "false");
        assert_eq!(text(&format!("SELECT quorum.see_source({id}, 4, 100)::text")), "true");
        run("SELECT quorum.reload('s')");
        assert_eq!(
            text(&format!("SELECT quorum.see_source({id}, 4, 100)::text")),
            "false",
            "it is under way"
        );
        assert_eq!(text(STATE), "worker s starting t 3 0 0 0 [{\"type\": \"DATA\", \"count\": 1}]");
        run(&format!("SELECT quorum.begin_load({id}, 4, 100); SELECT quorum.begin_load({id}, 5, 110)"));
        run(&format!("SELECT quorum.table_copied({id}, 'public', 'orders', 5, 112, 1, 1)"));
        // Whoever copied died before it said so.
        assert_eq!(
            text(&format!("SELECT quorum.see_source({id}, 5, 110)::text")),
            "true",
            "it began with version 4"
        );
        assert_eq!(text(STATE), "worker s starting f 4 12 0 0 [{\"type\": \"DATA\", \"count\": 2}]");
        run("SELECT quorum.unsubscribe('s')");
        assert_eq!(text("SELECT count(*)::text FROM quorum.subscription_version"), "0");
    }

    #[pg_test]
    fn what_is_not_copied_has_the_version_of_the_source() {
        let sql =
            "SELECT quorum.subscribe('s', '{http://10.0.0.1:8008}', 'shop', copy => 'none', start => '5:50')";
        let id = Spi::get_one::<i32>(sql).expect("it is made").expect("an id");
        run(&format!("SELECT quorum.subscription_tables_found({id}, 'far', '[]')"));
        assert_eq!(text(&format!("SELECT quorum.see_source({id}, 3, 40)::text")), "false");
        assert_eq!(text(STATE), "worker s starting f 3 10 0 0 [{\"type\": \"DATA\", \"count\": 0}]");
    }

    #[pg_test]
    fn errors_count_since_the_last_load() {
        let id = followed();
        run(&format!(
            "INSERT INTO quorum.conflict_count SELECT {id}, 'public', 'orders', c, r, n, now()
             FROM (VALUES ('insert_exists', 'rejected', 2), ('value', 'rejected', 1), ('update_missing', 'kept_local', 9),
                          ('update_missing', 'stopped', 1)) AS v (c, r, n)"
        ));
        assert!(text(STATE).starts_with("worker s starting f 3 60 4 "), "{}", text(STATE));
        run(&format!(
            "SELECT quorum.report_table({id}, 'public', 'orders', state => 'stopped', code => '42703', message => 'x')"
        ));
        assert!(
            text(STATE).starts_with("worker s starting f 3 60 4 "),
            "the stopped one is counted: {}",
            text(STATE)
        );
        let outcome = text("SELECT quorum.delta_outcome('s', 0, 100, 10)::text");
        assert!(
            outcome.contains("\"table\": \"public.orders\"") && outcome.contains("\"after\": 100"),
            "{outcome}"
        );
        run("SELECT quorum.reload('s')");
        run(&format!(
            "SELECT quorum.begin_load({id}, 3, 40); SELECT quorum.table_copied({id}, 'public', 'orders', 5, 100, 1, 1);
             SELECT quorum.end_load({id})"
        ));
        assert!(text(STATE).starts_with("worker s starting f 3 60 0 "), "{}", text(STATE));
    }

    #[pg_test]
    fn a_director_shows_its_channel_and_counts() {
        run("CREATE TABLE public.orders (id int PRIMARY KEY); SELECT quorum.create_channel('shop')");
        run("SELECT quorum.track('public.orders', 'shop')");
        assert!(text(STATE).starts_with("director f 1 "), "{}", text(STATE));
        assert_eq!(text("SELECT quorum.flush_caches('shop')::text"), "1");
        assert_eq!(text("SELECT quorum.flush_caches('shop')::text"), "2");
        assert_eq!(text("SELECT quorum.count_import('shop', 'GEO')::text"), "1");
        assert!(
            text(STATE)
                .ends_with(" 2 [{\"type\": \"DATA\", \"count\": 0}, {\"type\": \"GEO\", \"count\": 1}]"),
            "{}",
            text(STATE)
        );
        assert_eq!(text("SELECT quorum.reset_config_versions()::text"), "0");
    }

    fn outcome(id: &str) -> String {
        text(&format!(
            "SELECT concat_ws(' ', waiting, results::text, code, message) FROM quorum.sync_outcome({id})"
        ))
    }

    #[pg_test]
    fn a_synchronisation_is_asked_for_and_answered() {
        followed();
        let id = text("SELECT quorum.begin_sync('shop', false, '1 minute', true)::text");
        assert_eq!(outcome(&id), "t");
        run(&format!(r#"SELECT quorum.end_sync({id}, '[{{"success": true}}]')"#));
        assert_eq!(outcome(&id), r#"f [{"success": true}]"#);
        run(&format!("SELECT quorum.end_sync({id}, code => 'x', message => 'y')"));
        assert_eq!(outcome(&id), r#"f [{"success": true}]"#, "it is said once");
        let all = text("SELECT quorum.begin_sync(NULL, true, '1 minute', false)::text");
        run(&format!("SELECT quorum.end_sync({all}, code => 'director_failed', message => 'it is silent')"));
        assert_eq!(outcome(&all), "f director_failed it is silent");
        // Nobody answers.
        let late = text("SELECT quorum.begin_sync('shop', false, '1 minute', false)::text");
        run(&format!(
            "UPDATE quorum.sync_request SET expires_at = clock_timestamp() - interval '11 seconds' WHERE id = {late}"
        ));
        assert!(outcome(&late).starts_with("f timed_out no sidecar has answered"), "{}", outcome(&late));
        run("UPDATE quorum.sync_request SET requested_at = requested_at - interval '25 hours'");
        let next = text("SELECT quorum.begin_sync('shop', false, '1 minute', false)::text");
        assert_eq!(text("SELECT string_agg(id::text, ' ') FROM quorum.sync_request"), next);
    }

    #[pg_test]
    fn whoever_follows_nothing_has_everything() {
        run("SELECT quorum.create_channel('shop')");
        let one = text("SELECT quorum.begin_sync('shop', false, '1 minute', true)::text");
        assert_eq!(outcome(&one), "f []");
        let all = text("SELECT quorum.begin_sync(NULL, true, '1 minute', false)::text");
        assert_eq!(outcome(&all), "f");
    }

    #[pg_test(error = "there is no channel shop")]
    fn no_channel_is_synchronised() {
        run("SELECT quorum.begin_sync('shop', false, '1 minute', true)");
    }

    #[pg_test(error = "wait is 02:00:00: it takes more than nothing and at most an hour")]
    fn nobody_waits_for_ever() {
        run("SELECT quorum.begin_sync(NULL, true, '2 hours', true)");
    }

    #[pg_test(error = "invalid transaction termination")]
    fn a_synchronisation_is_no_part_of_a_transaction() {
        run("SELECT quorum.create_channel('shop'); CALL quorum.sync('shop')");
    }

    #[pg_test(error = "there is no channel shop")]
    fn a_channel_must_be_there() {
        text(STATE);
    }

    #[pg_test(error = "there is no channel shop")]
    fn caches_of_no_channel_are_not_flushed() {
        run("SELECT quorum.flush_caches('shop')");
    }

    #[pg_test(
        error = "'ALL' is no kind of import: DATA, ATTRIBUTES_AND_DATA, SUGGEST, RECOMMENDATION, RANKING, CUSTOMER_SPECIFIC_PRICING or GEO"
    )]
    fn imports_are_of_known_kinds() {
        run("SELECT quorum.create_channel('shop'); SELECT quorum.count_import('shop', 'ALL')");
    }

    #[pg_test(
        error = "several subscriptions follow a channel shop, and none of them has its name: say which is meant"
    )]
    fn one_of_several_is_meant_by_its_name() {
        run(
            "SELECT quorum.subscribe(n, '{http://10.0.0.1:8008}', 'shop') FROM unnest(ARRAY['a', 'b', 'shop']) AS n",
        );
        assert!(text(STATE).starts_with("worker shop "), "{}", text(STATE));
        assert!(text("SELECT subscription FROM quorum.delta_state('shop', 'b')").starts_with('b'));
        run("SELECT quorum.unsubscribe('shop')");
        text(STATE);
    }
}
