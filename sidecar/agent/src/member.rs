//! Who belongs to the cluster.

use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a node does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Votes, holds data, may acknowledge transactions and become the primary.
    Node,
    /// Streams and serves reads; never votes, never acknowledges. Every new node starts as one.
    Listener,
    /// Votes and holds no data.
    Witness,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Listener => "listener",
            Role::Witness => "witness",
        }
    }

    /// The role of this name; the error lists the names.
    pub fn parse(text: &str) -> Result<Role, String> {
        match text {
            "node" => Ok(Role::Node),
            "listener" => Ok(Role::Listener),
            "witness" => Ok(Role::Witness),
            other => Err(format!("unknown role {other:?}: it must be listener, node or witness")),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A node as the cluster's map shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Member {
    pub id: NodeId,
    /// Address that the other nodes and the clients use.
    pub ip: IpAddr,
    /// Port on which PostgreSQL listens.
    pub db_port: u16,
    /// Port on which the sidecar listens, for REST and for its peers.
    pub api_port: u16,
    pub role: Role,
    /// Marked by `node-down`: takes no part in votes and acknowledgements until it is well again.
    #[serde(default)]
    pub down: bool,
    /// A listener that the leader makes a node by itself as soon as it has caught up.
    #[serde(default)]
    pub auto_upgrade: bool,
    /// The store that speaks for this number; not known before the node was heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u64>,
}

impl Member {
    /// Whether the node counts among those that pledge and acknowledge.
    pub fn is_data_voter(&self) -> bool {
        self.role == Role::Node && !self.down
    }

    /// Whether the node votes in Raft. A new witness does as soon as it was heard of: one that does not run yet would
    /// only make the majority larger.
    pub fn is_voter(&self) -> bool {
        self.is_data_voter() || (self.role == Role::Witness && self.identity.is_some())
    }

    pub fn holds_data(&self) -> bool {
        self.role != Role::Witness
    }

    /// `host:port` of the sidecar, with brackets around IPv6 addresses.
    pub fn api_address(&self) -> std::net::SocketAddr {
        std::net::SocketAddr::new(self.ip, self.api_port)
    }
}
