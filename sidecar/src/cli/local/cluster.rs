//! The directory of a local cluster: `local-cluster.toml` marks it, `node<i>/` holds a node each.

use crate::cli::client::Client;
use crate::cli::failure::{Context, Failure};
use crate::config::{NodeConfig, Secrets};
use pgquorum_agent::types::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MARKER: &str = "local-cluster.toml";

/// How long a node of this machine may take to answer a question about its state.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What makes a directory a local cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Marker {
    /// Node i has its sidecar at this port plus i and PostgreSQL at this port plus 100 plus i.
    pub base_port: u16,
    /// The user that everything runs as, if root made the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

#[derive(Clone, Debug)]
pub struct LocalCluster {
    pub dir: PathBuf,
    pub marker: Marker,
}

/// One node of a local cluster.
#[derive(Clone, Debug)]
pub struct LocalNode {
    pub id: NodeId,
    pub dir: PathBuf,
    pub config: NodeConfig,
}

impl LocalCluster {
    /// Opens the cluster in this directory.
    ///
    /// # Errors
    /// The directory is not a local cluster.
    pub fn open(dir: &Path) -> Result<LocalCluster, Failure> {
        let not_one = |why: String| {
            Failure::not_found(
                "not_a_local_cluster",
                format!("{} is not a local cluster ({why})", dir.display()),
            )
        };
        let dir = dir.canonicalize().map_err(|e| not_one(e.to_string()))?;
        let text =
            std::fs::read_to_string(dir.join(MARKER)).map_err(|e| not_one(format!("{MARKER}: {e}")))?;
        let marker = toml::from_str(&text).or_fail(format!("{} is damaged", dir.join(MARKER).display()))?;
        Ok(LocalCluster { dir, marker })
    }

    /// Marks an empty directory as a local cluster.
    ///
    /// # Errors
    /// The directory holds something else.
    pub fn create(dir: &Path, marker: Marker) -> Result<LocalCluster, Failure> {
        let doing = || format!("cannot make a cluster in {}", dir.display());
        if std::fs::read_dir(dir).or_fail(doing())?.next().is_some() {
            return Err(Failure::failed(
                "not_empty",
                format!("{} is not empty and not a local cluster; take another directory", dir.display()),
            ));
        }
        let text = toml::to_string(&marker).or_fail(doing())?;
        std::fs::write(dir.join(MARKER), text).or_fail(doing())?;
        Ok(LocalCluster { dir: dir.canonicalize().or_fail(doing())?, marker })
    }

    pub fn is_one(dir: &Path) -> bool {
        dir.join(MARKER).is_file()
    }

    /// Keeps other `local up`s away until the file is closed.
    pub fn lock(&self) -> Result<File, Failure> {
        let file = File::open(self.dir.join(MARKER)).or_fail("cannot lock the cluster's directory")?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(Failure::failed(
                "busy",
                format!("another `pgquorum local up` or `down` works on {}; wait for it", self.dir.display()),
            )),
            Err(std::fs::TryLockError::Error(e)) => Err(Failure::failed("lock", format!("cannot lock: {e}"))),
        }
    }

    pub fn node_dir(&self, number: u64) -> PathBuf {
        self.dir.join(format!("node{number}"))
    }

    pub fn api_port(&self, number: u64) -> u16 {
        self.marker.base_port.saturating_add(u16::try_from(number).unwrap_or(u16::MAX))
    }

    pub fn db_port(&self, number: u64) -> u16 {
        self.api_port(number).saturating_add(100)
    }

    /// The nodes that were made completely, in order of their numbers.
    pub fn nodes(&self) -> Result<Vec<LocalNode>, Failure> {
        let mut nodes = Vec::new();
        for entry in std::fs::read_dir(&self.dir).or_fail(self.dir.display())? {
            let dir = entry.or_fail(self.dir.display())?.path();
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_node = name.strip_prefix("node").is_some_and(|n| n.parse::<u64>().is_ok());
            if is_node && LocalNode::config_file_in(&dir).exists() {
                let config = NodeConfig::load(&LocalNode::config_file_in(&dir))?;
                nodes.push(LocalNode { id: config.node, dir, config });
            }
        }
        nodes.sort_by_key(|n| n.id);
        Ok(nodes)
    }

    /// # Errors
    /// There is no such node; the message lists those that exist.
    pub fn node(&self, id: NodeId) -> Result<LocalNode, Failure> {
        let nodes = self.nodes()?;
        let known: Vec<String> = nodes.iter().map(|n| n.id.to_string()).collect();
        nodes.into_iter().find(|n| n.id == id).ok_or_else(|| {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Failure::not_found(
                "unknown_node",
                format!("{} has no node {id}; it has {known}", self.dir.display()),
            )
        })
    }

    /// The connection string that finds the leader, with the password in it: for programs, not for command lines.
    pub fn dsn(&self) -> Result<String, Failure> {
        let first = self.first()?;
        let password = Secrets::load(&first.config.secrets_file())?.superuser_password;
        self.dsn_with(&first, &format!("postgres:{password}"), "")
    }

    /// The same for libpq, with the password in a file: what stands on a command line everybody can read.
    pub fn psql_dsn(&self) -> Result<String, Failure> {
        let first = self.first()?;
        let mut passfile = first.config.data_dir.clone().into_os_string();
        passfile.push(".pgpass");
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-".contains(b);
        let escaped: String = passfile
            .as_encoded_bytes()
            .iter()
            .map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") })
            .collect();
        self.dsn_with(&first, "postgres", &format!("&passfile={escaped}"))
    }

    fn first(&self) -> Result<LocalNode, Failure> {
        self.nodes()?.into_iter().next().ok_or_else(|| {
            Failure::not_found(
                "no_nodes",
                format!("{} has no nodes yet; run `pgquorum local up`", self.dir.display()),
            )
        })
    }

    fn dsn_with(&self, first: &LocalNode, user: &str, more: &str) -> Result<String, Failure> {
        let nodes = self.nodes()?;
        let hosts: Vec<String> = nodes
            .iter()
            .filter(|n| n.config.data_dir.exists())
            .map(|n| format!("{}:{}", n.config.ip, n.config.db_port))
            .collect();
        Ok(format!(
            "postgresql://{user}@{}/{}?target_session_attrs=read-write{more}",
            hosts.join(","),
            first.config.admin_database
        ))
    }
}

impl LocalNode {
    fn config_file_in(dir: &Path) -> PathBuf {
        dir.join("node.toml")
    }

    pub fn config_file(&self) -> PathBuf {
        LocalNode::config_file_in(&self.dir)
    }

    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("sidecar.pid")
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join("sidecar.log")
    }

    pub fn client(&self) -> Client {
        // Where there are users nobody else is let in.
        let secrets = Secrets::load(&self.config.secrets_file()).ok();
        Client::local(self.config.api_port, secrets.as_ref(), ANSWER_TIMEOUT)
    }

    /// The end of the sidecar's log, for messages.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().map(|l| format!("\n  {l}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_becomes_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker { base_port: 7000, user: None };
        assert_eq!(LocalCluster::open(dir.path()).unwrap_err().code, "not_a_local_cluster");
        let made = LocalCluster::create(dir.path(), marker.clone()).unwrap();
        assert_eq!(LocalCluster::open(dir.path()).unwrap().marker, marker);
        assert_eq!((made.api_port(2), made.db_port(2)), (7002, 7102));
        assert!(made.node(1).unwrap_err().message.contains("none"));
        assert_eq!(LocalCluster::create(dir.path(), marker).unwrap_err().code, "not_empty");
    }

    #[test]
    fn one_up_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = LocalCluster::create(dir.path(), Marker { base_port: 7000, user: None }).unwrap();
        let held = cluster.lock().unwrap();
        assert_eq!(cluster.lock().unwrap_err().code, "busy");
        drop(held);
        cluster.lock().unwrap();
    }
}
