//! Where one PostgreSQL server lives and how it is reached.

use pgquorum_agent::types::NodeId;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The role under which standbys stream and copies are taken.
pub const REPLICATION_ROLE: &str = "quorum_replicator";
/// The role under which the sidecar itself works.
pub const SUPERUSER: &str = "postgres";
/// What the sidecar's sessions call themselves in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "pgquorum sidecar";

/// Passwords. Never printed: not in logs, not in errors, not on command lines.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    pub superuser_password: String,
    pub replication_password: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// Everything the supervisor must know of the server beside it.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub node: NodeId,
    pub data_dir: PathBuf,
    /// Directory of `postgres`, `initdb`, `pg_basebackup`, `pg_rewind`, `pg_controldata`.
    pub bin_dir: PathBuf,
    /// Address on which the server listens and under which its peers reach it.
    pub listen: IpAddr,
    pub port: u16,
    pub socket_dir: PathBuf,
    pub secrets: Secrets,
    /// Database that holds the cluster's tables.
    pub admin_database: String,
    /// The server's stderr is appended to this file.
    pub log_file: PathBuf,
    /// Lines put into `pg_hba.conf` after the cluster's own rules and before the general ones.
    pub extra_hba: Vec<String>,
    pub wal_retrieve_retry_interval_ms: u32,
    pub wal_timeout_ms: u32,
    pub wal_keep_size_mb: u32,
    pub max_slot_wal_keep_size_mb: u32,
    /// How much WAL that was given up is kept beside the data directory.
    pub lost_wal_keep_bytes: u64,
    /// Library of the extension in `shared_preload_libraries`. `None` only in tests of this module: such a server has
    /// no fence.
    pub extension_library: Option<String>,
    /// The database that this node's cluster has; a data directory that holds another one is left alone. 0: not known.
    pub system_identifier: u64,
}

impl PostgresConfig {
    /// A configuration with the defaults for everything that has one.
    pub fn new(
        node: NodeId,
        data_dir: PathBuf,
        bin_dir: PathBuf,
        listen: IpAddr,
        port: u16,
        secrets: Secrets,
    ) -> Self {
        PostgresConfig {
            node,
            socket_dir: parent_of(&data_dir).to_path_buf(),
            log_file: beside(&data_dir, ".log"),
            data_dir,
            bin_dir,
            listen,
            port,
            secrets,
            admin_database: "postgres".to_owned(),
            extra_hba: Vec::new(),
            wal_retrieve_retry_interval_ms: 100,
            wal_timeout_ms: 5000,
            wal_keep_size_mb: 512,
            max_slot_wal_keep_size_mb: 8192,
            lost_wal_keep_bytes: 1 << 30,
            extension_library: Some("pgquorum".to_owned()),
            system_identifier: 0,
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Password file for libpq, beside the data directory and not in it, so that copies do not carry it.
    pub(super) fn passfile(&self) -> PathBuf {
        beside(&self.data_dir, ".pgpass")
    }

    /// Present while a rewind is under way: the data directory is unusable as long as it is there.
    pub(super) fn rewind_marker(&self) -> PathBuf {
        beside(&self.data_dir, ".rewinding")
    }

    pub(super) fn wal_dir(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }
}

/// What libpq needs to notice within seconds that the other machine is gone: without it a read waits for hours.
pub const ALIVE: &str = "connect_timeout=5 tcp_user_timeout=8000 keepalives=1 keepalives_idle=2 keepalives_interval=2 \
                         keepalives_count=3";

/// The same for a program that the whole node waits for: not longer than the cluster waits for a silent node, as far
/// as libpq can (it knows no less than two seconds for a connection).
pub fn alive(patience: Duration) -> String {
    let (seconds, ms) = (patience.as_secs_f64().ceil().max(2.0), patience.as_millis().max(1000) * 2);
    format!(
        "connect_timeout={seconds} tcp_user_timeout={ms} keepalives=1 keepalives_idle=1 keepalives_interval=1 \
         keepalives_count=2"
    )
}

/// The name under which a node's standby connects and acknowledges, and the name of its slot.
pub fn standby_name(node: NodeId) -> String {
    format!("pgquorum_{node}")
}

/// The name of a node's standby whose data do not fit together yet: nobody counts what it confirms.
pub fn rejoining_name(node: NodeId) -> String {
    format!("pgquorum_{node}_rejoining")
}

/// The node of a standby's name.
pub fn standby_node(name: &str) -> Option<NodeId> {
    let digits = name.strip_prefix("pgquorum_")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The path with `suffix` appended to its last component.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_standbys_round_trip() {
        assert_eq!(standby_node(&standby_name(12)), Some(12));
        for bad in [
            "pgquorum_",
            "pgquorum_1_rejoining",
            "pgquorum_x",
            "pgquorum_-1",
            "pgquorum_+1",
            "other_1",
            "pgquorum sidecar",
        ] {
            assert_eq!(standby_node(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secrets = Secrets { superuser_password: "s3cret".into(), replication_password: "other".into() };
        let config = PostgresConfig::new(
            1,
            "/x/data".into(),
            "/bin".into(),
            IpAddr::from([127, 0, 0, 1]),
            5432,
            secrets,
        );
        let text = format!("{config:?}");
        assert!(!text.contains("s3cret") && !text.contains("other"), "{text}");
        assert_eq!(config.passfile(), Path::new("/x/data.pgpass"));
        assert_eq!(config.rewind_marker(), Path::new("/x/data.rewinding"));
    }
}
