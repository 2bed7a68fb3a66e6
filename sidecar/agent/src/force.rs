//! Going on without a majority, because an administrator says that it is lost for good. The state of one survivor is
//! rewritten, while nothing runs with it, into that of a cluster of one; what only the others had is given up.

use crate::cluster::Cluster;
use crate::consensus::entry_data;
use crate::entry::Entry;
use crate::logstore::Restored;
use crate::member::Role;
use crate::standing::next_generation;
use crate::types::{Epoch, NodeId, Timeline};

/// How far terms and indexes jump, so that they lie above anything that the lost nodes may have got to meanwhile.
const TERMS: u64 = 1_000;
const INDEXES: u64 = 100_000;
/// The same for timelines; their numbers are reserved by small files, one each.
const TIMELINES: Timeline = 16;

/// What comes out of it.
#[derive(Debug)]
pub struct Forced {
    pub restored: Restored,
    pub cluster: Cluster,
    /// Who is no member any more.
    pub abandoned: Vec<NodeId>,
    /// The next primary's epoch is higher than this.
    pub after_epoch: Epoch,
}

/// Why it cannot be done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForceError {
    #[error("this node's log does not say that it is a member of a cluster; there is nothing to go on with")]
    NotMember,
    #[error("node {0} is a witness: it has no data to go on with. Run this on a node that holds data")]
    Witness(NodeId),
    #[error(
        "the cluster was forced to go on with another node already, and this one was left behind. Join it to that one"
    )]
    Superseded,
    #[error(
        "the state in this node's log is not understood ({0}); use the program that wrote it, or a newer one"
    )]
    NotUnderstood(String),
}

/// The replicated state as far as a node's log goes, committed or not: nothing of it may come twice.
pub fn whole_log(restored: &Restored) -> Result<Cluster, ForceError> {
    if restored.snapshot.data.is_empty() {
        return Err(ForceError::NotMember);
    }
    let unknown = |e: serde_json::Error| ForceError::NotUnderstood(e.to_string());
    let mut cluster: Cluster = serde_json::from_slice(&restored.snapshot.data).map_err(unknown)?;
    for entry in &restored.entries {
        if entry.index <= cluster.applied_index {
            continue;
        }
        let data = entry_data(entry);
        if data.is_empty() {
            cluster.passed(entry.index, entry.term);
        } else {
            cluster.apply(entry.index, entry.term, &Entry::decode(&data).map_err(unknown)?);
        }
    }
    Ok(cluster)
}

/// Makes `node` the only member. `random` keeps its cluster apart from another survivor's that is forced too.
pub fn force(restored: &Restored, node: NodeId, random: u32) -> Result<Forced, ForceError> {
    if restored.superseded {
        return Err(ForceError::Superseded);
    }
    let mut cluster = whole_log(restored)?;
    let member = cluster.member(node).cloned().ok_or(ForceError::NotMember)?;
    if member.role == Role::Witness {
        return Err(ForceError::Witness(node));
    }
    let epochs = cluster.timelines.values().copied().chain(cluster.appointment.as_ref().map(|a| a.epoch));
    let known = epochs.chain([restored.hard_state.term, restored.pledge, cluster.applied_term]).max();
    let term = known.unwrap_or(0) + TERMS;
    let mut index = cluster.applied_index.max(restored.hard_state.commit) + INDEXES;
    let abandoned: Vec<NodeId> = cluster.members.keys().copied().filter(|&n| n != node).collect();
    cluster.cluster_id = next_generation(&cluster.cluster_id, random);
    cluster.last_timeline += TIMELINES;
    let mut entries = Vec::new();
    if !member.is_data_voter() {
        entries.push(Entry::UpgradeNode { node, db_port: member.db_port, api_port: member.api_port });
    }
    let reason = "the cluster was forced to go on without it".to_owned();
    entries.extend(abandoned.iter().map(|&node| Entry::RemoveNode { node, reason: reason.clone() }));
    entries.push(Entry::Note {
        kind: "forced-leader".to_owned(),
        node: Some(node),
        message: format!(
            "node {node} was forced to lead without a majority; nodes {abandoned:?} were given up, and with them what \
             only they had"
        ),
    });
    for entry in entries {
        index += 1;
        cluster.apply(index, term, &entry);
    }
    index += 1;
    let durability = cluster.wanted_durability();
    cluster.apply(index, term, &Entry::Durability(durability));
    let mut forced = Restored { pledge: restored.pledge, identity: restored.identity, ..Restored::default() };
    let meta = forced.snapshot.mut_metadata();
    (meta.index, meta.term) = (index, term);
    meta.mut_conf_state().voters = vec![node];
    forced.snapshot.data = serde_json::to_vec(&cluster).expect("the state is plain data");
    (forced.hard_state.term, forced.hard_state.commit) = (term, index);
    Ok(Forced { restored: forced, cluster, abandoned, after_epoch: term })
}
