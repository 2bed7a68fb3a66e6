//! The list. Functions of the same class and for the same reason stand together; what has come with PostgreSQL 15 and is
//! VOLATILE must be in it (a test compares it with `pg_proc`), what is not VOLATILE is in it where that is misleading. Other
//! versions lack some of them, and have other names for some.

use super::Class::{Harmless, Refused, Unproven};
use super::Group;

// Several to a line, as they are read.
#[rustfmt::skip]
pub const GROUPS: &[Group] = &[
    Group {
        class: Harmless,
        why: "tells the time by the clock of its machine",
        functions: &[
            (274, "timeofday"), (2649, "clock_timestamp"),
        ],
    },
    Group {
        class: Harmless,
        why: "makes a random value",
        functions: &[
            (1598, "random"), (3432, "gen_random_uuid"),
        ],
    },
    Group {
        class: Harmless,
        why: "only waits",
        functions: &[
            (2626, "pg_sleep"), (3935, "pg_sleep_for"), (3936, "pg_sleep_until"),
        ],
    },
    Group {
        class: Harmless,
        why: "gives the text of the statement",
        functions: &[
            (817, "current_query"),
        ],
    },
    Group {
        class: Harmless,
        why: "adds up the sizes of files, of which a replica has the same",
        functions: &[
            (2168, "pg_database_size"), (2286, "pg_total_relation_size"), (2322, "pg_tablespace_size"),
            (2323, "pg_tablespace_size"), (2324, "pg_database_size"), (2325, "pg_relation_size"),
            (2332, "pg_relation_size"), (2997, "pg_table_size"), (2998, "pg_indexes_size"),
        ],
    },
    Group {
        class: Harmless,
        why: "reads the catalogue only",
        functions: &[
            (3423, "pg_partition_tree"), (3425, "pg_partition_ancestors"),
        ],
    },
    Group {
        class: Harmless,
        why: "chooses the rows of TABLESAMPLE",
        functions: &[
            (3313, "bernoulli"), (3314, "system"),
        ],
    },
    Group {
        class: Unproven,
        why: "runs a query that is in its argument",
        functions: &[
            (2924, "query_to_xml"), (2927, "query_to_xmlschema"), (2930, "query_to_xml_and_xmlschema"),
            (3685, "ts_rewrite"), (3689, "ts_stat"), (3690, "ts_stat"),
        ],
    },
    Group {
        class: Unproven,
        why: "reads relations that its argument names, and a view among them can call anything",
        functions: &[
            (1294, "currtid2"), (2923, "table_to_xml"), (2929, "table_to_xml_and_xmlschema"),
            (2933, "schema_to_xml"), (2935, "schema_to_xml_and_xmlschema"), (2936, "database_to_xml"),
            (2938, "database_to_xml_and_xmlschema"),
        ],
    },
    Group {
        class: Unproven,
        why: "reads a value of a type that its argument names, by functions of that type",
        functions: &[
            (750, "array_in"), (2290, "record_in"), (2400, "array_recv"), (2402, "record_recv"),
            (2597, "domain_in"), (2598, "domain_recv"), (3834, "range_in"), (3836, "range_recv"),
            (4231, "multirange_in"), (4233, "multirange_recv"),
        ],
    },
    Group {
        class: Unproven,
        why: "checks objects that its argument names, by functions of theirs",
        functions: &[
            (338, "amvalidate"), (2246, "fmgr_internal_validator"), (2248, "fmgr_sql_validator"),
        ],
    },
    Group {
        class: Refused,
        why: "changes a sequence or asks for its state, which a replica learns in steps",
        functions: &[
            (1574, "nextval"), (1575, "currval"), (1576, "setval"), (1765, "setval"), (2559, "lastval"),
            (4032, "pg_sequence_last_value"),
        ],
    },
    Group {
        class: Refused,
        why: "takes or gives back an advisory lock, of which other servers know nothing",
        functions: &[
            (2880, "pg_advisory_lock"), (2881, "pg_advisory_lock_shared"), (2882, "pg_try_advisory_lock"),
            (2883, "pg_try_advisory_lock_shared"), (2884, "pg_advisory_unlock"),
            (2885, "pg_advisory_unlock_shared"), (2886, "pg_advisory_lock"),
            (2887, "pg_advisory_lock_shared"), (2888, "pg_try_advisory_lock"),
            (2889, "pg_try_advisory_lock_shared"), (2890, "pg_advisory_unlock"),
            (2891, "pg_advisory_unlock_shared"), (2892, "pg_advisory_unlock_all"),
            (3089, "pg_advisory_xact_lock"), (3090, "pg_advisory_xact_lock_shared"),
            (3091, "pg_try_advisory_xact_lock"), (3092, "pg_try_advisory_xact_lock_shared"),
            (3093, "pg_advisory_xact_lock"), (3094, "pg_advisory_xact_lock_shared"),
            (3095, "pg_try_advisory_xact_lock"), (3096, "pg_try_advisory_xact_lock_shared"),
        ],
    },
    Group {
        class: Refused,
        why: "changes the session that it runs in",
        functions: &[
            (1599, "setseed"), (2078, "set_config"),
        ],
    },
    Group {
        class: Refused,
        why: "sends a notification",
        functions: &[
            (3036, "pg_notify"),
        ],
    },
    Group {
        class: Refused,
        why: "works on large objects",
        functions: &[
            (715, "lo_create"), (764, "lo_import"), (765, "lo_export"), (767, "lo_import"), (952, "lo_open"),
            (953, "lo_close"), (954, "loread"), (955, "lowrite"), (956, "lo_lseek"), (957, "lo_creat"),
            (958, "lo_tell"), (964, "lo_unlink"), (1004, "lo_truncate"), (3170, "lo_lseek64"),
            (3171, "lo_tell64"), (3172, "lo_truncate64"), (3457, "lo_from_bytea"), (3458, "lo_get"),
            (3459, "lo_get"), (3460, "lo_put"),
        ],
    },
    Group {
        class: Refused,
        why: "hands a snapshot of this session to others",
        functions: &[
            (3809, "pg_export_snapshot"),
        ],
    },
    Group {
        class: Refused,
        why: "takes a transaction number, and a replica has none to give",
        functions: &[
            (2943, "txid_current"), (5059, "pg_current_xact_id"),
        ],
    },
    Group {
        class: Refused,
        why: "asks for the fate of a transaction, of which a replica may not have heard",
        functions: &[
            (3360, "txid_status"), (3581, "pg_xact_commit_timestamp"), (3583, "pg_last_committed_xact"),
            (3819, "pg_get_multixact_members"), (5066, "pg_xact_status"),
            (6168, "pg_xact_commit_timestamp_origin"),
        ],
    },
    Group {
        class: Refused,
        why: "asks for something that this session alone has",
        functions: &[
            (2026, "pg_backend_pid"), (2510, "pg_prepared_statement"), (2511, "pg_cursor"),
            (2925, "cursor_to_xml"), (2928, "cursor_to_xmlschema"), (3035, "pg_listening_channels"),
            (3037, "pg_stat_get_xact_numscans"), (3038, "pg_stat_get_xact_tuples_returned"),
            (3039, "pg_stat_get_xact_tuples_fetched"), (3040, "pg_stat_get_xact_tuples_inserted"),
            (3041, "pg_stat_get_xact_tuples_updated"), (3042, "pg_stat_get_xact_tuples_deleted"),
            (3043, "pg_stat_get_xact_tuples_hot_updated"), (3044, "pg_stat_get_xact_blocks_fetched"),
            (3045, "pg_stat_get_xact_blocks_hit"), (3046, "pg_stat_get_xact_function_calls"),
            (3047, "pg_stat_get_xact_function_total_time"), (3048, "pg_stat_get_xact_function_self_time"),
            (3348, "txid_current_if_assigned"), (3788, "pg_stat_get_snapshot_timestamp"),
            (5060, "pg_current_xact_id_if_assigned"),
        ],
    },
    Group {
        class: Refused,
        why: "writes to the log of changes or controls it",
        functions: &[
            (2172, "pg_backup_start"), (2739, "pg_backup_stop"), (2848, "pg_switch_wal"),
            (3071, "pg_wal_replay_pause"), (3072, "pg_wal_replay_resume"), (3098, "pg_create_restore_point"),
            (3436, "pg_promote"), (3577, "pg_logical_emit_message"), (3578, "pg_logical_emit_message"),
        ],
    },
    Group {
        class: Refused,
        why: "works on replication slots or origins",
        functions: &[
            (3779, "pg_create_physical_replication_slot"), (3780, "pg_drop_replication_slot"),
            (3782, "pg_logical_slot_get_changes"), (3783, "pg_logical_slot_get_binary_changes"),
            (3784, "pg_logical_slot_peek_changes"), (3785, "pg_logical_slot_peek_binary_changes"),
            (3786, "pg_create_logical_replication_slot"), (3878, "pg_replication_slot_advance"),
            (4220, "pg_copy_physical_replication_slot"), (4221, "pg_copy_physical_replication_slot"),
            (4222, "pg_copy_logical_replication_slot"), (4223, "pg_copy_logical_replication_slot"),
            (4224, "pg_copy_logical_replication_slot"), (6003, "pg_replication_origin_create"),
            (6004, "pg_replication_origin_drop"), (6005, "pg_replication_origin_oid"),
            (6006, "pg_replication_origin_session_setup"), (6007, "pg_replication_origin_session_reset"),
            (6008, "pg_replication_origin_session_is_setup"),
            (6009, "pg_replication_origin_session_progress"), (6010, "pg_replication_origin_xact_setup"),
            (6011, "pg_replication_origin_xact_reset"), (6012, "pg_replication_origin_advance"),
            (6013, "pg_replication_origin_progress"),
        ],
    },
    Group {
        class: Refused,
        why: "acts on other sessions or on the server",
        functions: &[
            (2096, "pg_terminate_backend"), (2171, "pg_cancel_backend"), (2621, "pg_reload_conf"),
            (2622, "pg_rotate_logfile"),
            (4543, "pg_log_backend_memory_contexts"),
        ],
    },
    Group {
        class: Refused,
        why: "changes what the statistics show",
        functions: &[
            (2137, "pg_stat_force_next_flush"), (2230, "pg_stat_clear_snapshot"), (2274, "pg_stat_reset"),
            (2307, "pg_stat_reset_slru"), (3775, "pg_stat_reset_shared"),
            (3776, "pg_stat_reset_single_table_counters"), (3777, "pg_stat_reset_single_function_counters"),
            (6170, "pg_stat_reset_replication_slot"), (6232, "pg_stat_reset_subscription_stats"),
        ],
    },
    Group {
        class: Refused,
        why: "changes indexes or the catalogue",
        functions: &[
            (275, "pg_nextoid"), (3086, "pg_extension_config_dump"), (3445, "pg_import_system_collations"),
            (3582, "binary_upgrade_set_next_pg_type_oid"),
            (3584, "binary_upgrade_set_next_array_pg_type_oid"),
            (3586, "binary_upgrade_set_next_heap_pg_class_oid"),
            (3587, "binary_upgrade_set_next_index_pg_class_oid"),
            (3588, "binary_upgrade_set_next_toast_pg_class_oid"),
            (3589, "binary_upgrade_set_next_pg_enum_oid"), (3590, "binary_upgrade_set_next_pg_authid_oid"),
            (3591, "binary_upgrade_create_empty_extension"), (3789, "gin_clean_pending_list"),
            (3952, "brin_summarize_new_values"), (3999, "brin_summarize_range"),
            (4014, "brin_desummarize_range"), (4083, "binary_upgrade_set_record_init_privs"),
            (4101, "binary_upgrade_set_missing_value"),
            (4390, "binary_upgrade_set_next_multirange_pg_type_oid"),
            (4391, "binary_upgrade_set_next_multirange_array_pg_type_oid"),
            (4545, "binary_upgrade_set_next_heap_relfilenode"),
            (4546, "binary_upgrade_set_next_index_relfilenode"),
            (4547, "binary_upgrade_set_next_toast_relfilenode"),
            (4548, "binary_upgrade_set_next_pg_tablespace_oid"),
            (4551, "binary_upgrade_set_next_attribute_versions"), (6241, "pg_stop_making_pinned_objects"),
        ],
    },
    Group {
        class: Refused,
        why: "loads a library",
        functions: &[
            (2247, "fmgr_c_validator"),
        ],
    },
    Group {
        class: Refused,
        why: "is for PostgreSQL itself to call",
        functions: &[
            (3, "heap_tableam_handler"), (330, "bthandler"), (331, "hashhandler"), (332, "gisthandler"),
            (333, "ginhandler"), (334, "spghandler"), (335, "brinhandler"), (1250, "unique_key_recheck"),
            (1291, "suppress_redundant_updates_trigger"), (1644, "RI_FKey_check_ins"),
            (1645, "RI_FKey_check_upd"), (1646, "RI_FKey_cascade_del"), (1647, "RI_FKey_cascade_upd"),
            (1648, "RI_FKey_restrict_del"), (1649, "RI_FKey_restrict_upd"), (1650, "RI_FKey_setnull_del"),
            (1651, "RI_FKey_setnull_upd"), (1652, "RI_FKey_setdefault_del"), (1653, "RI_FKey_setdefault_upd"),
            (1654, "RI_FKey_noaction_del"), (1655, "RI_FKey_noaction_upd"), (3752, "tsvector_update_trigger"),
            (3753, "tsvector_update_trigger_column"),
        ],
    },
    Group {
        class: Refused,
        why: "fails on a replica",
        functions: &[
            (2849, "pg_current_wal_lsn"), (2850, "pg_walfile_name_offset"), (2851, "pg_walfile_name"),
            (2852, "pg_current_wal_insert_lsn"), (3330, "pg_current_wal_flush_lsn"),
        ],
    },
    Group {
        class: Refused,
        why: "tells whether this server is a replica, and how far it has got",
        functions: &[
            (1137, "pg_get_wal_replay_pause_state"), (3073, "pg_is_wal_replay_paused"),
            (3099, "pg_stat_get_wal_senders"), (3317, "pg_stat_get_wal_receiver"),
            (3781, "pg_get_replication_slots"), (3810, "pg_is_in_recovery"),
            (3820, "pg_last_wal_receive_lsn"), (3821, "pg_last_wal_replay_lsn"),
            (3830, "pg_last_xact_replay_timestamp"), (6014, "pg_show_replication_origin_status"),
            (6248, "pg_stat_get_recovery_prefetch"),
        ],
    },
    Group {
        class: Refused,
        why: "reads files of this server",
        functions: &[
            (2623, "pg_stat_file"), (2624, "pg_read_file"), (2625, "pg_ls_dir"),
            (3082, "pg_available_extensions"), (3083, "pg_available_extension_versions"),
            (3084, "pg_extension_update_paths"), (3293, "pg_read_file"), (3295, "pg_read_binary_file"),
            (3297, "pg_ls_dir"), (3307, "pg_stat_file"), (3329, "pg_show_all_file_settings"),
            (3353, "pg_ls_logdir"), (3354, "pg_ls_waldir"), (3401, "pg_hba_file_rules"),
            (3441, "pg_control_system"), (3442, "pg_control_checkpoint"), (3443, "pg_control_recovery"),
            (3444, "pg_control_init"), (3778, "pg_tablespace_location"), (3800, "pg_current_logfile"),
            (3801, "pg_current_logfile"), (3826, "pg_read_file"), (3827, "pg_read_binary_file"),
            (3828, "pg_read_binary_file"), (5029, "pg_ls_tmpdir"),
            (5030, "pg_ls_tmpdir"), (5031, "pg_ls_archive_statusdir"), (6250, "pg_ident_file_mappings"),
            (6270, "pg_ls_logicalsnapdir"), (6271, "pg_ls_logicalmapdir"), (6272, "pg_ls_replslotdir"),
        ],
    },
    Group {
        class: Refused,
        why: "tells how this server runs",
        functions: &[
            (315, "pg_jit_available"), (1065, "pg_prepared_xact"), (1371, "pg_lock_status"),
            (2034, "pg_conf_load_time"), (2198, "inet_server_addr"), (2199, "inet_server_port"),
            (2282, "pg_get_backend_memory_contexts"), (2560, "pg_postmaster_start_time"),
            (2561, "pg_blocking_pids"), (3296, "pg_notification_queue_usage"),
            (3376, "pg_safe_snapshot_blocking_pids"), (3378, "pg_isolation_test_session_is_blocked"),
            (3400, "pg_config"), (3448, "pg_collation_actual_version"), (5052, "pg_get_shmem_allocations"),
            (6224, "pg_get_wal_resource_managers"), (6249, "pg_database_collation_actual_version"),
        ],
    },
    Group {
        class: Refused,
        why: "counts what has happened on this server",
        functions: &[
            (1136, "pg_stat_get_wal"), (1391, "pg_stat_get_backend_start"),
            (1392, "pg_stat_get_backend_client_addr"), (1393, "pg_stat_get_backend_client_port"),
            (1928, "pg_stat_get_numscans"), (1929, "pg_stat_get_tuples_returned"),
            (1930, "pg_stat_get_tuples_fetched"), (1931, "pg_stat_get_tuples_inserted"),
            (1932, "pg_stat_get_tuples_updated"), (1933, "pg_stat_get_tuples_deleted"),
            (1934, "pg_stat_get_blocks_fetched"), (1935, "pg_stat_get_blocks_hit"),
            (1936, "pg_stat_get_backend_idset"), (1937, "pg_stat_get_backend_pid"),
            (1938, "pg_stat_get_backend_dbid"), (1939, "pg_stat_get_backend_userid"),
            (1940, "pg_stat_get_backend_activity"), (1941, "pg_stat_get_db_numbackends"),
            (1942, "pg_stat_get_db_xact_commit"), (1943, "pg_stat_get_db_xact_rollback"),
            (1944, "pg_stat_get_db_blocks_fetched"), (1945, "pg_stat_get_db_blocks_hit"),
            (1972, "pg_stat_get_tuples_hot_updated"), (2022, "pg_stat_get_activity"),
            (2094, "pg_stat_get_backend_activity_start"), (2306, "pg_stat_get_slru"),
            (2758, "pg_stat_get_db_tuples_returned"), (2759, "pg_stat_get_db_tuples_fetched"),
            (2760, "pg_stat_get_db_tuples_inserted"), (2761, "pg_stat_get_db_tuples_updated"),
            (2762, "pg_stat_get_db_tuples_deleted"), (2769, "pg_stat_get_bgwriter_timed_checkpoints"),
            (2770, "pg_stat_get_bgwriter_requested_checkpoints"),
            (2771, "pg_stat_get_bgwriter_buf_written_checkpoints"),
            (2772, "pg_stat_get_bgwriter_buf_written_clean"), (2773, "pg_stat_get_bgwriter_maxwritten_clean"),
            (2775, "pg_stat_get_buf_written_backend"), (2781, "pg_stat_get_last_vacuum_time"),
            (2782, "pg_stat_get_last_autovacuum_time"), (2783, "pg_stat_get_last_analyze_time"),
            (2784, "pg_stat_get_last_autoanalyze_time"), (2788, "pg_stat_get_backend_wait_event_type"),
            (2844, "pg_stat_get_db_blk_read_time"), (2845, "pg_stat_get_db_blk_write_time"),
            (2853, "pg_stat_get_backend_wait_event"), (2857, "pg_stat_get_backend_xact_start"),
            (2859, "pg_stat_get_buf_alloc"), (2878, "pg_stat_get_live_tuples"),
            (2879, "pg_stat_get_dead_tuples"), (2978, "pg_stat_get_function_calls"),
            (2979, "pg_stat_get_function_total_time"), (2980, "pg_stat_get_function_self_time"),
            (3054, "pg_stat_get_vacuum_count"), (3055, "pg_stat_get_autovacuum_count"),
            (3056, "pg_stat_get_analyze_count"), (3057, "pg_stat_get_autoanalyze_count"),
            (3063, "pg_stat_get_buf_fsync_backend"), (3065, "pg_stat_get_db_conflict_tablespace"),
            (3066, "pg_stat_get_db_conflict_lock"), (3067, "pg_stat_get_db_conflict_snapshot"),
            (3068, "pg_stat_get_db_conflict_bufferpin"), (3069, "pg_stat_get_db_conflict_startup_deadlock"),
            (3070, "pg_stat_get_db_conflict_all"), (3074, "pg_stat_get_db_stat_reset_time"),
            (3075, "pg_stat_get_bgwriter_stat_reset_time"), (3150, "pg_stat_get_db_temp_files"),
            (3151, "pg_stat_get_db_temp_bytes"), (3152, "pg_stat_get_db_deadlocks"),
            (3160, "pg_stat_get_checkpoint_write_time"), (3161, "pg_stat_get_checkpoint_sync_time"),
            (3177, "pg_stat_get_mod_since_analyze"), (3195, "pg_stat_get_archiver"),
            (3318, "pg_stat_get_progress_info"), (3426, "pg_stat_get_db_checksum_failures"),
            (3428, "pg_stat_get_db_checksum_last_failure"), (5053, "pg_stat_get_ins_since_vacuum"),
            (6118, "pg_stat_get_subscription"), (6169, "pg_stat_get_replication_slot"),
            (6185, "pg_stat_get_db_session_time"), (6186, "pg_stat_get_db_active_time"),
            (6187, "pg_stat_get_db_idle_in_transaction_time"), (6188, "pg_stat_get_db_sessions"),
            (6189, "pg_stat_get_db_sessions_abandoned"), (6190, "pg_stat_get_db_sessions_fatal"),
            (6191, "pg_stat_get_db_sessions_killed"), (6230, "pg_stat_have_stats"),
            (6231, "pg_stat_get_subscription_stats"),
        ],
    },
];
