//! What has come with later versions of PostgreSQL, and what only one version has under an OID that another version gave
//! to something else. As in `list`: what is VOLATILE must be here, what is not is here where that is misleading.

use super::Class::{Harmless, Refused, Unproven};
use super::Group;

// Several to a line, as they are read.
#[rustfmt::skip]
pub const GROUPS: &[Group] = &[
    #[cfg(feature = "pg14")]
    Group {
        class: Refused,
        why: "begins or ends a backup of this server, or asks whether there is one",
        functions: &[
            (2173, "pg_stop_backup"), (3813, "pg_is_in_backup"), (3814, "pg_backup_start_time"),
        ],
    },
    #[cfg(not(feature = "pg18"))]
    Group {
        class: Refused,
        why: "is what earlier versions had for the server's files",
        functions: &[
            (4099, "pg_rotate_logfile_old"), (4100, "pg_read_file_old"),
        ],
    },
    #[cfg(feature = "pg18")]
    Group {
        class: Refused,
        why: "tells how this server runs",
        functions: &[
            (4099, "pg_numa_available"), (4100, "pg_get_shmem_allocations_numa"),
        ],
    },
    // PostgreSQL 16.
    Group {
        class: Harmless,
        why: "makes a random value",
        functions: &[
            (6212, "random_normal"), (6215, "array_shuffle"), (6216, "array_sample"),
        ],
    },
    Group {
        class: Unproven,
        why: "reads a value of a type that its argument names, by functions of that type",
        functions: &[
            (6210, "pg_input_is_valid"), (6211, "pg_input_error_info"),
        ],
    },
    Group {
        class: Refused,
        why: "asks for something that this session alone has",
        functions: &[
            (6218, "pg_stat_get_xact_tuples_newpage_updated"),
        ],
    },
    Group {
        class: Refused,
        why: "writes to the log of changes or controls it",
        functions: &[
            (6305, "pg_log_standby_snapshot"),
        ],
    },
    Group {
        class: Refused,
        why: "reads files of this server",
        functions: &[
            (6208, "pg_read_file"), (6209, "pg_read_binary_file"),
        ],
    },
    Group {
        class: Refused,
        why: "counts what has happened on this server",
        functions: &[
            (6107, "pg_stat_get_backend_subxact"), (6214, "pg_stat_get_io"),
            (6217, "pg_stat_get_tuples_newpage_updated"), (6309, "pg_stat_get_db_conflict_logicalslot"),
            (6310, "pg_stat_get_lastscan"),
        ],
    },
    // PostgreSQL 17.
    Group {
        class: Harmless,
        why: "makes a random value",
        functions: &[
            (6339, "random"), (6340, "random"), (6341, "random"),
        ],
    },
    Group {
        class: Refused,
        why: "works on replication slots or origins",
        functions: &[
            (6344, "pg_sync_replication_slots"),
        ],
    },
    Group {
        class: Refused,
        why: "changes indexes or the catalogue",
        functions: &[
            (6312, "binary_upgrade_logical_slot_has_caught_up"), (6319, "binary_upgrade_add_sub_rel_state"),
            (6320, "binary_upgrade_replorigin_advance"),
        ],
    },
    Group {
        class: Refused,
        why: "reads files of this server",
        functions: &[
            (6321, "pg_available_wal_summaries"), (6322, "pg_wal_summary_contents"),
        ],
    },
    Group {
        class: Refused,
        why: "tells how this server runs",
        functions: &[
            (6318, "pg_get_wait_events"), (6323, "pg_get_wal_summarizer_state"),
        ],
    },
    Group {
        class: Refused,
        why: "counts what has happened on this server",
        functions: &[
            (6314, "pg_stat_get_checkpointer_stat_reset_time"),
            (6327, "pg_stat_get_checkpointer_restartpoints_timed"),
            (6328, "pg_stat_get_checkpointer_restartpoints_requested"),
            (6329, "pg_stat_get_checkpointer_restartpoints_performed"),
        ],
    },
    // PostgreSQL 18.
    Group {
        class: Harmless,
        why: "makes a random value",
        functions: &[
            (6428, "uuidv4"), (6429, "uuidv7"), (6430, "uuidv7"),
        ],
    },
    Group {
        class: Refused,
        why: "asks for the state of a sequence, which a replica learns in steps",
        functions: &[
            (6427, "pg_get_sequence_data"),
        ],
    },
    Group {
        class: Refused,
        why: "changes what the statistics show",
        functions: &[
            (6387, "pg_stat_reset_backend_stats"),
        ],
    },
    Group {
        class: Refused,
        why: "changes what the planner knows of tables",
        functions: &[
            (6362, "pg_restore_relation_stats"), (6363, "pg_restore_attribute_stats"),
            (6397, "pg_clear_relation_stats"), (6398, "pg_clear_attribute_stats"),
        ],
    },
    Group {
        class: Refused,
        why: "reads files of this server",
        functions: &[
            (6400, "pg_ls_summariesdir"),
        ],
    },
    Group {
        class: Refused,
        why: "tells how this server runs",
        functions: &[
            (6353, "pg_get_loaded_modules"), (6399, "pg_get_aios"),
        ],
    },
    Group {
        class: Refused,
        why: "counts what has happened on this server",
        functions: &[
            (6313, "pg_stat_get_backend_wal"), (6355, "pg_stat_get_db_parallel_workers_to_launch"),
            (6356, "pg_stat_get_db_parallel_workers_launched"), (6358, "pg_stat_get_total_vacuum_time"),
            (6359, "pg_stat_get_total_autovacuum_time"), (6360, "pg_stat_get_total_analyze_time"),
            (6361, "pg_stat_get_total_autoanalyze_time"), (6366, "pg_stat_get_checkpointer_slru_written"),
            (6377, "pg_stat_get_checkpointer_num_performed"), (6386, "pg_stat_get_backend_io"),
        ],
    },
];
