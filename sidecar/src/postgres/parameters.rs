//! Which PostgreSQL parameters the cluster keeps itself, and how values are written.

/// Parameters that only pgquorum sets. Taken out of ALTER SYSTEM's file and of the cluster's own parameters.
const OWNED: &[&str] = &[
    "cluster_name",
    "fsync",
    "full_page_writes",
    "hot_standby",
    "hot_standby_feedback",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_slot_wal_keep_size",
    "password_encryption",
    "pgquorum.bypass_fence",
    "pgquorum.fence",
    "pgquorum.node_id",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_end_command",
    "restart_after_crash",
    "restore_command",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_keep_size",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_status_interval",
    "wal_receiver_timeout",
    "wal_retrieve_retry_interval",
    "wal_sender_timeout",
    // Files that the supervisor must find where it writes them.
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "include",
    "include_dir",
    "include_if_exists",
];

/// Values that the cluster's parameters may replace.
pub const DEFAULTS: &[(&str, &str)] = &[
    ("max_wal_senders", "32"),
    ("max_replication_slots", "32"),
    // A promotion replays all WAL first, so a query that holds replay up also holds a failover up.
    ("max_standby_streaming_delay", "5s"),
    ("max_standby_archive_delay", "5s"),
    ("checkpoint_completion_target", "0.9"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_lock_waits", "on"),
    // The sidecar connects all the time.
    ("log_connections", "off"),
];

pub fn is_owned(name: &str) -> bool {
    OWNED.iter().any(|owned| owned.eq_ignore_ascii_case(name))
}

/// A name that can stand in a configuration file: identifiers with dots.
pub fn is_valid_name(name: &str) -> bool {
    let part = |p: &str| {
        let mut bytes = p.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
    };
    name.split('.').all(part)
}

/// The value as a string of the configuration file's grammar (`GUC_scanstr` in guc-file.l).
pub fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('\'');
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            // The file is read as C strings: what follows a NUL would be lost.
            '\0' => {}
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(quote("plain"), "'plain'");
        assert_eq!(quote("it's"), "'it''s'");
        assert_eq!(quote("a\\'b\nport = 1"), "'a\\\\''b\\nport = 1'");
        assert_eq!(quote("a\0b"), "'ab'");
    }

    #[test]
    fn names_are_identifiers() {
        for good in ["work_mem", "auto_explain.log_min_duration", "_x"] {
            assert!(is_valid_name(good), "{good}");
        }
        for bad in ["", "a b", "a=b", "a\nport", ".a", "a.", "1a", "a'"] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
        assert!(is_owned("Primary_ConnInfo") && !is_owned("work_mem"));
    }
}
