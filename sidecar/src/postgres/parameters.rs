//! Which PostgreSQL parameters the cluster keeps itself, and how values are written.

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
    pgquorum_agent::postgres::is_reserved_parameter(name)
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
        for ours in ["Primary_ConnInfo", "pgquorum.fence", "PGQUORUM.Fence_Grace", "pgquorum.new"] {
            assert!(is_owned(ours), "{ours}");
        }
        for others in
            ["work_mem", "pgquorum.statements_max", "pgquorum.Serve_Observed_Statements", "pgquorum"]
        {
            assert!(!is_owned(others), "{others}");
        }
    }
}
