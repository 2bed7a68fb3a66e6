//! What the Raft log carries: the cluster's own decisions, never user data.

use crate::lost::LostReport;
use crate::member::Member;
use crate::quorum::Durability;
use crate::registry::RegistryChange;
use crate::settings::Settings;
use crate::types::{Epoch, Lsn, NodeId, Timeline};
use crate::users::UserChange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The committed decision that a node is the primary of an epoch. Nothing is promoted without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Appointment {
    /// The Raft term of the leader that made it.
    pub epoch: Epoch,
    pub node: NodeId,
    /// The timeline this epoch writes on.
    pub timeline: Timeline,
    /// The timeline on which the appointed node's WAL ended when it pledged. The same as `timeline` when a primary
    /// that was still running was appointed again.
    pub from_timeline: Timeline,
    /// Where the appointed node's WAL ended when it pledged.
    pub lsn: Lsn,
    /// The rule of durability in force from the first write of the epoch on.
    pub durability: Durability,
}

/// One entry of the cluster's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Entry {
    AddNode {
        member: Member,
    },
    UpgradeNode {
        node: NodeId,
        #[serde(rename = "db-port")]
        db_port: u16,
        #[serde(rename = "api-port")]
        api_port: u16,
    },
    RemoveNode {
        node: NodeId,
        reason: String,
    },
    NodeDown {
        node: NodeId,
        reason: String,
    },
    NodeUp {
        node: NodeId,
    },
    /// The node was heard of for the first time, with this store; from now on no other speaks for it.
    Identified {
        node: NodeId,
        identity: u64,
    },
    Durability(Durability),
    Settings {
        settings: Settings,
    },
    /// PostgreSQL parameters of the whole cluster; `null` takes one out.
    DbConfig {
        set: BTreeMap<String, Option<String>>,
    },
    Appoint(Appointment),
    /// The appointed node accepts writes.
    Opened {
        epoch: Epoch,
        node: NodeId,
        timeline: Timeline,
        #[serde(rename = "switch-lsn")]
        switch_lsn: Lsn,
    },
    /// A node came back and gave up transactions that only it had.
    LostTransactions(LostReport),
    /// Who may log in at the REST interface.
    User(UserChange),
    /// Servers of others that registered, or are gone: many changes at once.
    Registry {
        /// Random; tells whoever asked for these changes what came of them.
        batch: u64,
        changes: Vec<RegistryChange>,
    },
    /// Something people should know of.
    Note {
        kind: String,
        node: Option<NodeId>,
        message: String,
    },
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an entry is plain data")
    }

    /// The entry as people and the database may see it.
    pub fn without_secrets(&self) -> Entry {
        match self {
            Entry::User(change) => Entry::User(change.without_secrets()),
            other => other.clone(),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Entry, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
