//! What administrators ask for, and how it is refused.

use crate::member::{Member, Role};
use crate::registry::{RegistryChange, RegistryOutcome};
use crate::settings::{Settings, SettingsPatch};
use crate::types::NodeId;
use crate::users::{User, UserChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A change that an administrator asks for. Only the leader carries it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    SetSettings {
        patch: SettingsPatch,
    },
    /// `None` takes a parameter out.
    SetDbConfig {
        set: BTreeMap<String, Option<String>>,
    },
    ChangeLeader {
        node: NodeId,
    },
    AddNode {
        ip: IpAddr,
        db_port: Option<u16>,
        api_port: Option<u16>,
        role: Role,
        auto_upgrade: bool,
    },
    UpgradeNode {
        node: NodeId,
        db_port: u16,
        api_port: u16,
    },
    RemoveNode {
        node: NodeId,
    },
    NodeDown {
        node: NodeId,
        reason: String,
    },
    User(UserChange),
    /// Changes of registered servers, made one after the other in one entry of the log.
    Registry {
        /// A random number.
        batch: u64,
        changes: Vec<RegistryChange>,
    },
}

/// What a request brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    Settings {
        settings: Settings,
    },
    DbConfig {
        parameters: BTreeMap<String, String>,
        restart_required: Vec<String>,
    },
    Leader {
        node: NodeId,
    },
    Node {
        member: Member,
    },
    Removed {
        node: NodeId,
    },
    /// The user as it is now; `None`: there is none of this name.
    User {
        user: Option<User>,
    },
    /// What came of each change.
    Registry {
        outcomes: Vec<RegistryOutcome>,
    },
}

/// Why a request was refused, for programs. Each kind has one HTTP status; see `docs/rest.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionKind {
    /// A value is wrong (400).
    InvalidValue,
    /// The node or the proposal is gone (410).
    Gone,
    /// No such node (410).
    UnknownNode,
    /// No such user (404).
    UnknownUser,
    /// There is a user of this name already (409).
    Exists,
    /// This node is not a member yet (412).
    NotMember,
    /// The node's state does not allow it: has not caught up, is behind, is down, is the leader (412).
    Precondition,
    /// This node is not the leader (417); the rejection names it.
    NotLeader,
    /// Another membership or settings change is in flight (420).
    ChangeInFlight,
    /// No leader now (530).
    NoLeader,
    /// The consensus or the database did not answer in time (531).
    Unavailable,
    /// A fault of ours (500).
    Internal,
}

/// A refusal: nothing was changed, unless the kind is `Unavailable` or the code is `proposal_gone` (then the outcome is
/// unknown, because the proposal may still be committed).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    pub kind: RejectionKind,
    /// A stable word for this very case, e.g. `not_caught_up`.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// Where the leader is, if that is the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderAddress>,
}

/// Where to find the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LeaderAddress {
    pub id: NodeId,
    pub api: SocketAddr,
    pub db: SocketAddr,
}

impl Rejection {
    pub fn new(kind: RejectionKind, code: &str, message: impl Into<String>) -> Rejection {
        Rejection { kind, code: code.to_owned(), message: message.into(), leader: None }
    }
}
