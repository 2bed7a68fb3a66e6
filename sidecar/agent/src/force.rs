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
/// The same for the numbers of nodes: a server that still streams under a number must never be taken for a new node.
const NUMBERS: NodeId = 10;

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
    cluster.next_node += NUMBERS;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Appointment;
    use crate::first_state;
    use crate::member::Member;
    use crate::quorum::Durability;
    use crate::settings::Settings;
    use crate::types::Lsn;

    fn member(id: NodeId, role: Role) -> Member {
        let (ip, port) = ([127, 0, 0, 1].into(), id as u16);
        let (db_port, api_port) = (5000 + port, 8000 + port);
        Member { id, ip, db_port, api_port, role, down: false, auto_upgrade: false, identity: Some(id) }
    }

    /// Three nodes and a witness; node 2 is the primary of epoch 7. One entry is in the log and not in the state.
    fn survivor() -> Restored {
        let mut cluster = Cluster::new("c".into(), 1, member(1, Role::Node), Settings::default());
        for (id, role) in [(2, Role::Node), (3, Role::Node), (4, Role::Witness), (5, Role::Listener)] {
            cluster.apply(id, 1, &Entry::AddNode { member: member(id, role) });
        }
        let mut restored = first_state(&cluster, 1);
        let durability = Durability { voters: [1, 2, 3].into(), k: 1, witnesses: 1 };
        let appointment =
            Appointment { epoch: 7, node: 2, timeline: 3, from_timeline: 2, lsn: Lsn(100), durability };
        let data = Entry::Appoint(appointment).encode();
        restored.entries = vec![raft::eraftpb::Entry { index: 6, term: 7, data, ..Default::default() }];
        restored.hard_state.term = 9;
        restored.pledge = 11;
        restored
    }

    #[test]
    fn the_survivor_is_alone_above_everything_it_knows_and_keeps_what_it_has() {
        let forced = force(&survivor(), 1, 0xabc).unwrap();
        assert_eq!(forced.abandoned, [2, 3, 4, 5]);
        assert!(
            forced.after_epoch > 11,
            "above the pledge, which is above the vote, which is above the epoch"
        );
        let (state, cluster) = (&forced.restored, &forced.cluster);
        assert_eq!(state.hard_state.term, forced.after_epoch);
        assert_eq!(state.snapshot.get_metadata().get_conf_state().voters, [1]);
        assert_eq!(state.pledge, 11, "a promise is a promise");
        assert_eq!(cluster.cluster_id, "c.2-00000abc");
        assert_eq!(cluster.members.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(cluster.removed, [2, 3, 4, 5].into());
        assert_eq!(cluster.durability, Durability { voters: [1].into(), ..Durability::default() });
        assert_eq!(cluster.epoch_of(3), 7, "what was in the log counts, committed or not");
        assert!(cluster.fresh_timeline(3) > 4 && cluster.next_node > 6);
        let note =
            |e: &Entry| matches!(e, Entry::Note { kind, node: Some(1), .. } if kind == "forced-leader");
        assert!(cluster.log.iter().any(|r| note(&r.payload)), "it is audited");
        assert!(cluster.log.iter().all(|r| r.index < 100_000 || r.term == forced.after_epoch));
    }

    #[test]
    fn a_listener_can_be_forced_and_a_witness_a_stranger_and_one_left_behind_cannot() {
        let forced = force(&survivor(), 5, 1).unwrap();
        assert!(forced.cluster.member(5).unwrap().is_data_voter());
        assert_eq!(force(&survivor(), 4, 1).unwrap_err(), ForceError::Witness(4));
        assert_eq!(force(&survivor(), 9, 1).unwrap_err(), ForceError::NotMember);
        assert_eq!(force(&Restored::default(), 1, 1).unwrap_err(), ForceError::NotMember);
        let left = Restored { superseded: true, ..survivor() };
        assert_eq!(force(&left, 1, 1).unwrap_err(), ForceError::Superseded);
    }
}
