//! The cluster's decisions as a pure state machine.
//!
//! Nothing here does I/O, reads a clock or draws a random number by itself: observations come in with a time, actions
//! go out. So the same code runs in the sidecar and in the simulator.
//!
//! [`node::Node`] is the whole of it. Inside: `consensus` (Raft and its timers), `cluster` (the replicated state),
//! `gate` (pledges), `lead` (a leader's work), `local` (this node's server), `admin` (requests), `standing` (who may
//! speak for a number), `write_path` (whether this node takes writes), `barrier` (whether clients may see what it has).

mod admin;
pub mod barrier;
pub mod cluster;
mod consensus;
pub mod entry;
pub mod force;
pub mod gate;
mod lead;
mod local;
pub mod logstore;
pub mod lost;
pub mod member;
pub mod message;
pub mod node;
pub mod postgres;
pub mod quorum;
pub mod registry;
pub mod request;
#[cfg(feature = "mutants")]
pub mod rules;
#[cfg(not(feature = "mutants"))]
mod rules;
pub mod settings;
pub mod standing;
mod status;
pub mod types;
pub mod users;
pub mod view;
pub mod write_path;

/// The state of a node that has never run: alone in a new cluster.
///
/// What is returned must be on disk before the node starts; see [`logstore::Restored`].
pub fn first_state(cluster: &cluster::Cluster, node: types::NodeId) -> logstore::Restored {
    let mut cluster = cluster.clone();
    cluster.passed(1, 1);
    let identity = cluster.identity_of(node).unwrap_or(0);
    let mut restored = logstore::Restored { identity, ..logstore::Restored::default() };
    let meta = restored.snapshot.mut_metadata();
    meta.index = 1;
    meta.term = 1;
    meta.mut_conf_state().voters = vec![node];
    restored.snapshot.data = serde_json::to_vec(&cluster).expect("the state is plain data");
    restored.hard_state.term = 1;
    restored.hard_state.commit = 1;
    restored
}
