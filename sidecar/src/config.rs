//! A node's own configuration, `node.toml`: where things are on this machine. What the cluster has in common lives in
//! the Raft log, not here.

use crate::watchdog::WatchdogConfig;
use pgquorum_agent::settings::Span;
use pgquorum_agent::types::NodeId;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The file `node.toml`. Relative paths are taken from the folder that the file is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's number in the cluster.
    pub node: NodeId,
    /// The address that other nodes and clients use for this node.
    pub ip: IpAddr,
    /// The address the sidecar listens on; `ip` if absent. Beyond loopback a token is required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<IpAddr>,
    /// The sidecar's port, for REST and for the other nodes.
    pub api_port: u16,
    /// The address PostgreSQL listens on; `ip` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_listen: Option<IpAddr>,
    /// PostgreSQL's port.
    pub db_port: u16,
    /// PostgreSQL's data directory.
    pub data_dir: PathBuf,
    /// The sidecar's own directory: the Raft log, passwords, logs. Best on another disk than `data-dir`.
    pub state_dir: PathBuf,
    /// Where `postgres`, `pg_basebackup` and `pg_rewind` are.
    #[serde(default = "default_bin_dir")]
    pub bin_dir: PathBuf,
    /// Where PostgreSQL puts its Unix socket; `state-dir` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    /// The database that holds the cluster's own tables.
    #[serde(default = "default_admin_database")]
    pub admin_database: String,
    /// How many MiB of WAL that this node gave up when it came back are kept beside `data-dir`; the oldest go first.
    #[serde(default = "default_lost_wal_keep_mb")]
    pub lost_wal_keep_mb: u32,
    /// Further lines of pg_hba.conf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hba: Vec<String>,
    /// What to log, in the syntax of `tracing`'s filters, for example `info` or `pgquorum=debug`.
    #[serde(default = "default_log")]
    pub log: String,
    /// One JSON object a line in the log instead of text.
    #[serde(default)]
    pub log_json: bool,
    /// File with the token that REST requests must carry (`Authorization: Bearer …`); 0600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM files for TLS: certificate chain and key of this node, and the authority that signed those of all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// The machine's watchdog, usually `/dev/watchdog`: it restarts a machine that hangs as a whole while it has the
    /// primary. None if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<PathBuf>,
    /// So long the watchdog waits for a sign of life; whole seconds.
    #[serde(default = "default_watchdog_timeout", skip_serializing_if = "is_default_watchdog_timeout")]
    pub watchdog_timeout: Span,
    /// Do not lead where the watchdog cannot be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watchdog_required: bool,
}

fn default_watchdog_timeout() -> Span {
    Span(5000)
}

fn is_default_watchdog_timeout(timeout: &Span) -> bool {
    *timeout == default_watchdog_timeout()
}

/// The major versions of PostgreSQL that the extension is built for; the first is the one that is tested.
pub const POSTGRES_VERSIONS: [u32; 5] = [15, 18, 17, 16, 14];

/// Where Debian puts PostgreSQL's programs: those of the first of [`POSTGRES_VERSIONS`] that is installed.
pub fn default_bin_dir() -> PathBuf {
    let of = |version: u32| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
    let installed = POSTGRES_VERSIONS.into_iter().map(of).find(|dir| dir.join("postgres").exists());
    installed.unwrap_or_else(|| of(POSTGRES_VERSIONS[0]))
}

fn default_admin_database() -> String {
    "postgres".to_owned()
}

fn default_lost_wal_keep_mb() -> u32 {
    1024
}

fn default_log() -> String {
    "info".to_owned()
}

/// What is wrong with a configuration, for the person who wrote it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}. Create it with `pgquorum init` or `pgquorum join`.")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid configuration: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{0}")]
    Invalid(String),
}

impl NodeConfig {
    /// Reads and checks the file; relative paths become absolute.
    pub fn load(path: &Path) -> Result<NodeConfig, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: NodeConfig = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string() })?;
        let base = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let base = std::path::absolute(base)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let paths = [Some(&mut config.data_dir), Some(&mut config.state_dir), Some(&mut config.bin_dir)];
        let optional = [
            config.socket_dir.as_mut(),
            config.token_file.as_mut(),
            config.tls_cert.as_mut(),
            config.tls_key.as_mut(),
            config.tls_ca.as_mut(),
        ];
        for p in paths.into_iter().chain(optional).flatten() {
            *p = base.join(&*p);
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses what cannot work and what would be unsafe.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.node == 0 {
            return invalid("node must be 1 or more".to_owned());
        }
        if self.api_port == 0 || self.db_port == 0 {
            return invalid("api-port and db-port must be between 1 and 65535".to_owned());
        }
        if self.ip.is_unspecified() {
            return invalid(format!(
                "ip is {}, an address that other nodes cannot reach; write this machine's own address",
                self.ip
            ));
        }
        if !self.api_listen().ip().is_loopback() && self.token_file.is_none() {
            return invalid(format!(
                "the sidecar would listen on {} without a token: anybody who reaches it could change the cluster. Set \
                 token-file (and tls-cert, tls-key), or listen on 127.0.0.1",
                self.api_listen()
            ));
        }
        let timeout = self.watchdog_timeout.ms();
        if !timeout.is_multiple_of(1000) || !(2_000..=300_000).contains(&timeout) {
            return invalid(format!(
                "watchdog-timeout is {}: write whole seconds from 2s to 5m. An abandoned server stops by itself within two \
                 seconds, so the machine need not be restarted earlier",
                self.watchdog_timeout
            ));
        }
        if self.watchdog_required && self.watchdog.is_none() {
            return invalid("watchdog-required needs watchdog, for example \"/dev/watchdog\"".to_owned());
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return invalid("tls-cert and tls-key go together: set both or none".to_owned());
        }
        Ok(())
    }

    pub fn api_listen(&self) -> SocketAddr {
        SocketAddr::new(self.listen.unwrap_or(self.ip), self.api_port)
    }

    pub fn socket_dir(&self) -> &Path {
        self.socket_dir.as_deref().unwrap_or(&self.state_dir)
    }

    pub fn secrets_file(&self) -> PathBuf {
        self.state_dir.join("secrets.toml")
    }

    pub fn store_file(&self) -> PathBuf {
        self.state_dir.join("raft.redb")
    }

    pub fn watchdog_config(&self) -> Option<WatchdogConfig> {
        let device = self.watchdog.clone()?;
        let seconds = u32::try_from(self.watchdog_timeout.ms() / 1000).unwrap_or(u32::MAX);
        Some(WatchdogConfig { device, seconds, required: self.watchdog_required })
    }

    pub fn postgres_log(&self) -> PathBuf {
        self.state_dir.join("postgres.log")
    }
}

/// Passwords and the secret that nodes prove to each other that they belong together. Printed nowhere.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Secrets {
    /// Shared by all nodes; never sent over the wire, only proven.
    pub cluster_secret: String,
    /// PostgreSQL role `postgres`.
    pub superuser_password: String,
    /// PostgreSQL role `quorum_replicator`.
    pub replication_password: String,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(hidden)")
    }
}

impl Secrets {
    /// New secrets of 256 bits each from the system's random numbers.
    pub fn generate() -> Secrets {
        let random = || {
            let bytes: [u8; 32] = rand::random();
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        Secrets { cluster_secret: random(), superuser_password: random(), replication_password: random() }
    }

    pub fn load(path: &Path) -> Result<Secrets, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        // The parser's own message could quote a secret, so it is not passed on.
        toml::from_str(&text).map_err(|_| ConfigError::Parse {
            path: path.to_owned(),
            message: "expected cluster-secret, superuser-password and replication-password".to_owned(),
        })
    }

    /// Writes the file so that only its owner can read it.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        let new = path.with_extension("new");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Result<NodeConfig, ConfigError> {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("node.toml");
        let text = format!(
            "node = 1\napi-port = 8008\ndb-port = 5432\ndata-dir = \"data\"\nstate-dir = \"state\"\n{more}"
        );
        std::fs::write(&file, text).expect("written");
        NodeConfig::load(&file)
    }

    #[test]
    fn loopback_needs_no_token_and_anything_else_does() {
        let config = parse("ip = \"127.0.0.1\"").unwrap();
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
        for open in ["ip = \"10.0.0.1\"", "ip = \"127.0.0.1\"\nlisten = \"0.0.0.0\""] {
            let refused = parse(open).unwrap_err().to_string();
            assert!(refused.contains("without a token"), "{refused}");
            assert!(parse(&format!("{open}\ntoken-file = \"token\"")).is_ok());
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (wrong, reason) in [
            ("ip = \"0.0.0.0\"", "cannot reach"),
            ("ip = \"127.0.0.1\"\ntls-cert = \"c.pem\"", "go together"),
            ("ip = \"127.0.0.1\"\nsurprise = 1", "surprise"),
            ("ip = \"127.0.0.1\"\nwatchdog-timeout = \"1500ms\"", "whole seconds"),
            ("ip = \"127.0.0.1\"\nwatchdog-timeout = \"1s\"", "whole seconds"),
            ("ip = \"127.0.0.1\"\nwatchdog-required = true", "needs watchdog"),
            ("ip = \"nowhere\"", "ip"),
        ] {
            let refused = parse(wrong).unwrap_err().to_string();
            assert!(refused.contains(reason), "{wrong}: {refused}");
        }
    }

    #[test]
    fn secrets_are_kept_from_others_and_from_messages() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("secrets.toml");
        let secrets = Secrets::generate();
        secrets.save(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Secrets::load(&file).unwrap() == secrets);
        assert!(!format!("{secrets:?}").contains(&secrets.superuser_password));
        std::fs::write(&file, "cluster-secret = \"s3cret\"").unwrap();
        assert!(!Secrets::load(&file).unwrap_err().to_string().contains("s3cret"));
    }
}
