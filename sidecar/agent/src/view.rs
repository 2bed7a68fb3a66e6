//! A snapshot of everything a node knows, for the readers: REST, command line, metrics.

use crate::cluster::Cluster;
use crate::postgres::PgObservation;
use crate::request::LeaderAddress;
use crate::standing::Outcast;
use crate::types::{Epoch, Lsn, Millis, NodeId, Position};
use crate::write_path::Writes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a node does at this moment, in one word for tables and in one sentence for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Primary, open for writes.
    Leader,
    /// Raft leader on the way to being the primary: pledges, appointment, promotion, opening.
    Electing,
    /// Streams from the primary.
    Replica,
    /// Runs, but does not stream.
    Detached,
    /// A former primary that was fenced off and has not become a standby yet.
    Fenced,
    /// PostgreSQL starts or replays.
    Starting,
    /// PostgreSQL does not run.
    Stopped,
    /// Is being rewound or copied.
    Cloning,
    /// Holds no data.
    Witness,
    /// Has not heard of its cluster.
    Unknown,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Leader => "leader",
            State::Electing => "electing",
            State::Replica => "replica",
            State::Detached => "detached",
            State::Fenced => "fenced",
            State::Starting => "starting",
            State::Stopped => "stopped",
            State::Cloning => "cloning",
            State::Witness => "witness",
            State::Unknown => "unknown",
        }
    }
}

/// What a node tells the leader about itself, and the leader tells everybody about all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub state: State,
    pub position: Position,
    pub replay_lsn: Lsn,
    pub streaming: bool,
    /// Process id of the server, 0 if none.
    pub pid: u32,
    /// Peers this node is connected with.
    pub sees: Vec<NodeId>,
    pub pending_restart: Vec<String>,
    pub trouble: Option<String>,
    /// Whether its disk, and its server if that is the primary, take writes.
    #[serde(default)]
    pub writes: Writes,
    pub copy_progress: Option<(u64, u64)>,
}

/// Everything a node knows, at one moment.
#[derive(Clone, Debug)]
pub struct View {
    pub id: NodeId,
    /// The node is a member of a cluster and has heard of it.
    pub member: bool,
    /// The node was a member and has no part in the cluster any more.
    pub removed: bool,
    /// Why.
    pub outcast: Option<Outcast>,
    /// Raft's present term.
    pub term: u64,
    /// The Raft leader, if one is known.
    pub raft_leader: Option<NodeId>,
    pub state: State,
    /// This node is the primary, appointed in `epoch`, opened, and its lease holds.
    pub is_open_leader: bool,
    /// End of this node's lease on the driver's clock, 0 if it has none.
    pub lease_until: Millis,
    /// The epoch in which this node's primary is open, or the newest it heard of.
    pub epoch: Epoch,
    /// The node that is known to accept writes now.
    pub leader: Option<LeaderAddress>,
    pub cluster: Arc<Cluster>,
    pub postgres: PgObservation,
    /// What is known of every node, this one included. On a follower as old as the leader's last heartbeat.
    pub nodes: BTreeMap<NodeId, NodeStatus>,
    /// A membership or settings change is on its way.
    pub change_in_flight: bool,
    /// When the loop last ran, on the driver's clock.
    pub at: Millis,
}

impl View {
    /// Whether the two differ in nothing but times, and in how the nodes' servers are. Nobody who waits for a change is woken
    /// by those; a new field must be decided upon here.
    pub fn is_like(&self, other: &View) -> bool {
        let View {
            id,
            member,
            removed,
            outcast,
            term,
            raft_leader,
            state,
            is_open_leader,
            lease_until: _,
            epoch,
            leader,
            cluster,
            postgres: _,
            nodes: _,
            change_in_flight,
            at: _,
        } = other;
        (self.id, self.member, self.removed, self.outcast) == (*id, *member, *removed, *outcast)
            && (self.term, self.raft_leader, self.state) == (*term, *raft_leader, *state)
            && (self.is_open_leader, self.epoch) == (*is_open_leader, *epoch)
            && self.change_in_flight == *change_in_flight
            && self.leader == *leader
            && Arc::ptr_eq(&self.cluster, cluster)
    }
}

/// One line for `GET /rpc`: what was said between nodes and what this node did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Unix time in milliseconds.
    pub at: u64,
    pub kind: String,
    pub message: String,
}
