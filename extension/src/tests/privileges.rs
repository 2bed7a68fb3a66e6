//! Who may do what. Nothing is for PUBLIC.

use pgrx::prelude::*;

#[pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn text(sql: &str) -> String {
        Spi::get_one::<String>(sql).expect("query runs").expect("query returns a value")
    }

    /// Functions of the schema that a role may execute, but for the tests' own.
    fn executable(role: &str) -> String {
        text(&format!(
            "SELECT coalesce(string_agg(p.proname::text, ' ' ORDER BY p.proname), '') FROM pg_proc AS p
             WHERE p.pronamespace = 'quorum'::regnamespace AND has_function_privilege('{role}', p.oid, 'EXECUTE')"
        ))
    }

    #[pg_test]
    fn nothing_is_for_public() {
        Spi::run("CREATE ROLE nobody_special").expect("the role is created");
        assert_eq!(executable("nobody_special"), "");
        assert_eq!(text("SELECT has_schema_privilege('nobody_special', 'quorum', 'USAGE')::text"), "false");
        let tables = "SELECT count(*)::text FROM pg_class AS c WHERE c.relnamespace = 'quorum'::regnamespace
                      AND c.relkind IN ('r', 'v') AND has_any_column_privilege('nobody_special', c.oid, 'SELECT, INSERT, UPDATE')";
        assert_eq!(text(tables), "0");
    }

    #[pg_test]
    fn readers_read() {
        assert_eq!(
            executable("quorum_reader"),
            "admits_clients applied_index applier_show changes channel_ends channel_id channel_sequences \
             delta_state dump_start \
             explain_readonly find_position info is_leader key_number leader lease map \
             neighbours origin_name publications_state read_log read_packed row_version_of served_statements \
             statement_hash statements_here statements_state unread_since wait wal_position \
             weak_commits who_wins"
        );
        Spi::run("SET LOCAL ROLE quorum_reader").expect("the role is taken");
        for sql in [
            "SELECT quorum.map()",
            "SELECT quorum.info()",
            "SELECT quorum.leader()",
            "SELECT quorum.lease()",
            "SELECT quorum.wal_position()",
            "SELECT quorum.weak_commits(), quorum.admits_clients()",
            "SELECT quorum.is_leader(), quorum.applied_index()",
            "SELECT quorum.served_statements(), quorum.statements_state(), quorum.statement_hash('select 1')",
            "SELECT * FROM quorum.readonly_statements",
            "SELECT FROM quorum.event, quorum.config, quorum.db_config, quorum.cluster_log, quorum.leadership, \
             quorum.lost_transactions, quorum.heartbeat",
        ] {
            Spi::run(sql).expect("a reader may run it");
        }
    }

    #[pg_test]
    fn admins_change_through_functions_only() {
        assert_eq!(
            executable("quorum_admin"),
            "add_schemas admit_clients admits_clients advance_sequences alter_publication \
             alter_subscription applied_index applier_configure applier_forget applier_show \
             applier_start applier_stop apply apply_entry apply_snapshot await_sync begin_load \
             begin_sync changes channel_ends \
             channel_id channel_sequences confirm_applied copy_plan count_import create_channel cut \
             delta_outcome delta_state drop_channel drop_follower drop_rejected drop_versions \
             dump_start enable_subscription end_load end_sync explain_readonly find_position flush_caches \
             forget_statements info is_leader keep_log keep_versions key_number leader lease lease_renew \
             lease_revoke map mark_unsent merge_statements move_follower neighbours open_epoch \
             origin_name origin_number prune publication_ended publication_id publications_state \
             publish purge read_log read_packed register_follower reload report_publication \
             report_subscription report_table reset_config_versions rest_subscription resume_table \
             retry_rejected row_version_of see_change_size see_source served_statements \
             set_leader_hint \
             set_origin_name set_table_policy start_channel statement_hash statements_here \
             statements_state stop_channel subscribe subscription_id subscription_tables_found \
             sync sync_full sync_outcome table_copied take_learned track unpublish unread_since unsubscribe untrack wait \
             wake_subscription wal_position weak_commits who_wins"
        );
        let tables = "SELECT count(*)::text FROM pg_class AS c WHERE c.relnamespace = 'quorum'::regnamespace
                      AND c.relkind = 'r' AND has_table_privilege('quorum_admin', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')";
        assert_eq!(text(tables), "0");
        Spi::run("SET LOCAL ROLE quorum_admin").expect("the role is taken");
        Spi::run(
            r#"SELECT quorum.apply_entry(1, 1, '{"nodes": [{"id": 1, "ip": "a", "role": "node"}], "config": {"a": "b"}}');
               SELECT quorum.open_epoch(1, 1, 1, '0/1', 1, '{1}');
               SELECT quorum.set_leader_hint('node 1')"#,
        )
        .expect("an admin may change the state");
    }

    #[pg_test(error = "permission denied to set parameter \"pgquorum.bypass_fence\"")]
    fn only_superusers_bypass_the_fence() {
        Spi::run("SET LOCAL ROLE quorum_admin").expect("the role is taken");
        let _ = Spi::run("SET LOCAL pgquorum.bypass_fence = on");
    }

    #[pg_test(error = "permission denied to set parameter \"pgquorum.allow_weak_commits\"")]
    fn only_superusers_allow_weak_commits() {
        Spi::run("SET LOCAL ROLE quorum_admin").expect("the role is taken");
        let _ = Spi::run("SET LOCAL pgquorum.allow_weak_commits = on");
    }

    #[pg_test]
    fn everything_is_described() {
        let bare = "SELECT coalesce(string_agg(o.name, ' '), '') FROM (
                        SELECT p.proname::text FROM pg_proc AS p
                        WHERE p.pronamespace = 'quorum'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
                        UNION ALL SELECT c.relname::text FROM pg_class AS c
                        WHERE c.relnamespace = 'quorum'::regnamespace AND c.relkind = 'r'
                          AND obj_description(c.oid, 'pg_class') IS NULL) AS o (name)";
        assert_eq!(text(bare), "");
    }

    #[pg_test]
    fn definer_functions_have_a_fixed_search_path() {
        let open = "SELECT coalesce(string_agg(p.proname::text, ' '), '') FROM pg_proc AS p
                    WHERE p.pronamespace = 'quorum'::regnamespace AND p.prosecdef
                      AND p.proconfig IS DISTINCT FROM ARRAY['search_path=pg_catalog, pg_temp']";
        assert_eq!(text(open), "");
    }
}
