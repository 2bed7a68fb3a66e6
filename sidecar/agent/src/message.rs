//! What nodes say to each other beside Raft's own messages. Every message may be lost or repeated; senders repeat
//! until they see the effect.

use crate::lost::LostReport;
use crate::types::{Epoch, Lsn, NodeId, Timeline};
use crate::view::NodeStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Wire {
    /// One of Raft's messages.
    Raft(Box<raft::eraftpb::Message>),
    Peer(PeerMessage),
}

/// Our own messages. Tagged from outside: an inner tag would make serde read the maps' numeric keys as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerMessage {
    /// From a new leader to every data voter: promise that nothing is acknowledged to an older leader any more, then
    /// say how far your WAL reaches.
    Pledge { term: u64 },
    /// The promise: durable, reception cut, and the position is the true end.
    Pledged { term: u64, end: WalEnd },
    /// From every node to the leader: how it is.
    Status {
        status: NodeStatus,
        /// Of its store.
        #[serde(default)]
        identity: u64,
    },
    /// From every node to the leader: transactions that it gave up, until the cluster's log holds them.
    Lost { report: LostReport },
    /// From the leader to every node with each heartbeat.
    Beat(Beat),
}

/// Where a node's WAL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalEnd {
    pub timeline: Timeline,
    pub lsn: Lsn,
    /// The server is a running primary, fenced: it can go on only by being appointed again. Its position may still
    /// grow, so it never counts towards the appointment of another node.
    pub running_primary: bool,
    /// The node takes no writes now, or gave leadership up lately because its writes were stuck: it is not to lead where
    /// others can.
    #[serde(default)]
    pub stuck: bool,
}

/// What the leader tells everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub term: u64,
    /// The primary of this leader's epoch, once it is promoted.
    pub open: Option<OpenPrimary>,
    pub nodes: BTreeMap<NodeId, NodeStatus>,
}

/// The primary as its followers must know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPrimary {
    pub epoch: Epoch,
    pub node: NodeId,
    pub timeline: Timeline,
    /// The timelines before the present one, and where each ended.
    pub history: Vec<(Timeline, Lsn)>,
    pub flush_lsn: Lsn,
    /// A checkpoint has finished since the promotion: `pg_rewind` may use this server as its source.
    pub rewind_source: bool,
    /// The epoch is open. Before, standbys may already follow, and must be rewound if they need it: the epoch may
    /// not be able to open without them.
    pub accepts_writes: bool,
}
