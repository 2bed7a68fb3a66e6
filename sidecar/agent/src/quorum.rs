//! Quorum arithmetic: how many nodes must pledge, and in which order the acknowledging set may change.
//!
//! A commit returns when its leader and k standbys of the set S have it. A primary is appointed on pledges of p data
//! voters. Nothing acknowledged is lost if every p voters share at least one node with every set that may have
//! acknowledged (R + W > N, as in Gifford, "Weighted Voting for Replicated Data", 1979).

use crate::postgres::SyncSet;
use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// More than half of `n`.
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

/// Pledges needed before a primary may be appointed among `voters` data voters when commits wait for `k` standbys:
/// a majority, so that no two appointments can go on at once, and enough to meet every acknowledging set.
///
/// With k = 0 nothing but the primary's own disk is promised; asking everybody would only make the cluster stop with
/// its first dead node, so a majority does.
pub fn pledges_needed(voters: usize, k: usize) -> usize {
    if k == 0 { majority(voters) } else { majority(voters).max(voters.saturating_sub(k)) }
}

/// The committed half of durability: who pledges, and how many standbys every commit is known to wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durability {
    /// Data voters, the leader among them.
    pub voters: BTreeSet<NodeId>,
    pub k: usize,
}

impl Durability {
    pub fn pledges_needed(&self) -> usize {
        pledges_needed(self.voters.len(), self.k)
    }

    /// The rule of `synchronous_standby_names` that goes with this when `leader` is the primary.
    pub fn sync_set(&self, leader: NodeId) -> SyncSet {
        let standbys: BTreeSet<NodeId> = self.voters.iter().copied().filter(|&n| n != leader).collect();
        SyncSet { k: self.k.min(standbys.len()), standbys }
    }

    /// Whether pledges under `self` meet every set that can acknowledge on `leader` under `sync`. Weak durability
    /// (k = 0) promises nothing, so there is nothing to meet.
    ///
    /// The worst acknowledging set takes as many standbys outside the voters as it can; what is left of it lies
    /// among the voters, the leader included if it is one.
    pub fn meets(&self, leader: NodeId, sync: &SyncSet) -> bool {
        if self.k == 0 {
            return true;
        }
        let outside = sync.standbys.iter().filter(|n| !self.voters.contains(n)).count();
        let inside = sync.k.saturating_sub(outside) + usize::from(self.voters.contains(&leader));
        self.pledges_needed() + inside > self.voters.len()
    }
}

/// What to do next on the way to another durability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put this rule in force on the primary and wait until it is verified.
    Sync(SyncSet),
    /// Commit this to the Raft log.
    Commit(Durability),
    /// Everything is as wished.
    Done,
}

/// The next step from the committed durability and the rule in force towards `target`: grow first, shrink last.
///
/// Every state on the way satisfies [`Durability::meets`]. When neither side can move directly, the primary is first
/// made to wait for all standbys of old and new, which meets anything.
pub fn next_step(leader: NodeId, committed: &Durability, in_force: &SyncSet, target: &Durability) -> Step {
    let wanted = target.sync_set(leader);
    if committed == target {
        return if *in_force == wanted { Step::Done } else { Step::Sync(wanted) };
    }
    if *in_force != wanted && committed.meets(leader, &wanted) && target.meets(leader, &wanted) {
        return Step::Sync(wanted);
    }
    if target.meets(leader, in_force) {
        return Step::Commit(target.clone());
    }
    if committed.meets(leader, &wanted) && *in_force != wanted {
        return Step::Sync(wanted);
    }
    let standbys: BTreeSet<NodeId> =
        committed.sync_set(leader).standbys.union(&wanted.standbys).copied().collect();
    Step::Sync(SyncSet { k: standbys.len(), standbys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn durability(n: u64, k: usize) -> Durability {
        Durability { voters: (1..=n).collect(), k }
    }

    /// All subsets of `items` with `size` members, as bit masks over node ids.
    fn subsets(items: &[NodeId], size: usize) -> Vec<u32> {
        (0u32..1 << items.len())
            .filter(|m| m.count_ones() as usize == size)
            .map(|m| {
                items.iter().enumerate().filter(|(i, _)| m >> i & 1 == 1).fold(0, |a, (_, n)| a | 1 << n)
            })
            .collect()
    }

    /// The truth by enumeration: does every pledge set share a node with every acknowledging set?
    fn meets_by_enumeration(d: &Durability, leader: NodeId, sync: &SyncSet) -> bool {
        let voters: Vec<NodeId> = d.voters.iter().copied().collect();
        let standbys: Vec<NodeId> = sync.standbys.iter().copied().collect();
        let acks: Vec<u32> = subsets(&standbys, sync.k).into_iter().map(|m| m | 1 << leader).collect();
        d.k == 0 || subsets(&voters, d.pledges_needed()).iter().all(|p| acks.iter().all(|a| p & a != 0))
    }

    #[test]
    fn pledges_meet_every_acknowledging_set_for_all_sizes_and_k() {
        for n in 1..=9u64 {
            for k in 1..n as usize {
                let d = durability(n, k);
                assert!(d.pledges_needed() <= n as usize);
                assert!(d.pledges_needed() >= majority(n as usize));
                for leader in 1..=n {
                    let sync = d.sync_set(leader);
                    assert!(d.meets(leader, &sync), "n={n} k={k}");
                    assert!(meets_by_enumeration(&d, leader, &sync), "n={n} k={k} leader={leader}");
                }
            }
        }
    }

    #[test]
    fn the_usual_sizes() {
        assert_eq!(pledges_needed(1, 0), 1);
        assert_eq!(pledges_needed(2, 1), 2);
        assert_eq!(pledges_needed(3, 1), 2);
        assert_eq!(pledges_needed(5, 2), 3);
        assert_eq!(pledges_needed(3, 0), 2);
        assert_eq!(pledges_needed(5, 1), 4, "one acknowledging standby: all but one must pledge");
    }

    fn arbitrary() -> impl Strategy<Value = Durability> {
        (proptest::collection::btree_set(1u64..=7, 1..=7), 0usize..7).prop_map(|(mut voters, k)| {
            voters.insert(1);
            let k = k.min(voters.len() - 1);
            Durability { voters, k }
        })
    }

    proptest! {
        #[test]
        fn the_formula_is_the_enumeration(d in arbitrary(), s in arbitrary(), leader in 1u64..=7) {
            let sync = s.sync_set(leader);
            prop_assert_eq!(d.meets(leader, &sync), meets_by_enumeration(&d, leader, &sync));
        }

        #[test]
        fn every_way_from_one_durability_to_another_is_safe_and_ends(from in arbitrary(), to in arbitrary()) {
            let leader = 1;
            let (mut committed, mut in_force) = (from.clone(), from.sync_set(leader));
            for _ in 0..6 {
                match next_step(leader, &committed, &in_force, &to) {
                    Step::Done => break,
                    Step::Sync(s) => in_force = s,
                    Step::Commit(d) => committed = d,
                }
                prop_assert!(meets_by_enumeration(&committed, leader, &in_force));
            }
            prop_assert_eq!(&committed, &to);
            prop_assert_eq!(in_force, to.sync_set(leader));
        }
    }
}
