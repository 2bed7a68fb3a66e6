//! Quorum arithmetic: how many nodes must pledge, and in which order the acknowledging set may change.
//!
//! A commit returns when its leader and k standbys of the set S have it. A primary is appointed on pledges of p data
//! voters. Nothing acknowledged is lost if every p voters share at least one node with every set that may have
//! acknowledged (R + W > N, as in Gifford, "Weighted Voting for Replicated Data", 1979).

use crate::postgres::SyncSet;
use crate::rules::{Rule, holds};
use crate::types::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// More than half of `n`.
pub fn majority(n: usize) -> usize {
    n / 2 + 1
}

/// Pledges needed before a primary may be appointed among `voters` data voters and `witnesses`, when commits wait for
/// `k` standbys.
///
/// - Enough to meet every acknowledging set: that is k + 1 data voters of n, so n − k are. Safety rests on this alone.
/// - As many data voters as every Raft majority contains: what is alive when a leader is elected should be asked, and
///   it costs no availability, because without them there is no leader. Without witnesses that is a majority of the
///   data voters; each witness that votes in their place takes one off.
///
/// That no two appointments are made in one term is Raft's own work, with its majority of all voters. So a witness may
/// vote for a leader, but it has no WAL: it never pledges and is never among the k.
///
/// With k = 0 nothing but the primary's own disk is promised; asking everybody would only make the cluster stop with
/// its first dead node.
pub fn pledges_needed(voters: usize, witnesses: usize, k: usize) -> usize {
    let in_every_majority = majority(voters + witnesses).saturating_sub(witnesses).max(1);
    if k == 0 { in_every_majority } else { in_every_majority.max(voters.saturating_sub(k)) }
}

/// The committed half of durability: who pledges, and how many standbys every commit is known to wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durability {
    /// Data voters, the leader among them.
    pub voters: BTreeSet<NodeId>,
    pub k: usize,
    /// How many members vote in Raft and hold no data.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub witnesses: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Durability {
    pub fn pledges_needed(&self) -> usize {
        pledges_needed(self.voters.len(), self.witnesses, self.k)
    }

    /// The rule of `synchronous_standby_names` that goes with this when `leader` is the primary.
    pub fn sync_set(&self, leader: NodeId) -> SyncSet {
        let standbys: BTreeSet<NodeId> = self.voters.iter().copied().filter(|&n| n != leader).collect();
        let counted = if holds(Rule::WitnessNeverCounts) { 0 } else { self.witnesses };
        SyncSet { k: self.k.saturating_sub(counted).min(standbys.len()), standbys }
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

    /// Whether pledges under `self` meet whatever `leader` alone has, so that it does not matter who else has it: all
    /// voters must pledge, and it is one of them.
    pub fn needs(&self, leader: NodeId) -> bool {
        self.voters.contains(&leader) && self.pledges_needed() >= self.voters.len()
    }

    /// Whether pledges under `self` meet everything that was met by pledges under `before` and that `leader` has: of
    /// the voters at most as many lack it as were too few to be appointed before, and those that were none.
    pub fn follows(&self, before: &Durability, leader: NodeId) -> bool {
        let new = self.voters.iter().filter(|n| !before.voters.contains(n)).count();
        let lack = before.pledges_needed().saturating_sub(1) + new;
        self.needs(leader) || (before.k > 0 && self.voters.contains(&leader) && self.pledges_needed() > lack)
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
/// made to wait for as many of the standbys of old and new as meet both; all of them meet anything.
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
    // As few as will do: one of them may be the reason for the change.
    let meets = |k: &usize| {
        let sync = SyncSet { k: *k, standbys: standbys.clone() };
        committed.meets(leader, &sync) && target.meets(leader, &sync)
    };
    let k = (0..standbys.len()).find(meets).unwrap_or(standbys.len());
    Step::Sync(SyncSet { k, standbys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn durability(n: u64, witnesses: usize, k: usize) -> Durability {
        Durability { voters: (1..=n).collect(), k, witnesses }
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
    fn pledges_meet_every_acknowledging_set_for_all_sizes_with_and_without_witnesses() {
        for (n, witnesses) in (1..=9u64).flat_map(|n| (0..=3).map(move |w| (n, w))) {
            for k in 1..n as usize {
                let d = durability(n, witnesses, k);
                assert!((1..=n as usize).contains(&d.pledges_needed()));
                for leader in 1..=n {
                    let sync = d.sync_set(leader);
                    assert!(d.meets(leader, &sync), "n={n} witnesses={witnesses} k={k}");
                    assert!(
                        meets_by_enumeration(&d, leader, &sync),
                        "n={n} witnesses={witnesses} k={k} leader={leader}"
                    );
                }
            }
        }
    }

    /// Fewer pledges than that would miss an acknowledging set, or would not ask all that every majority contains.
    #[test]
    fn not_one_pledge_more_than_needed_is_asked_for() {
        for (n, witnesses) in (1..=9u64).flat_map(|n| (0..=3).map(move |w| (n, w))) {
            for k in 0..n as usize {
                let (d, fewer) =
                    (durability(n, witnesses, k), durability(n, witnesses, k).pledges_needed() - 1);
                let voters: Vec<NodeId> = d.voters.iter().copied().collect();
                let acks = subsets(&voters, k + 1);
                let missed = subsets(&voters, fewer).iter().any(|p| acks.iter().any(|a| p & a == 0));
                let all: Vec<NodeId> = (1..=n + witnesses as u64).collect();
                let data = (1..=n).fold(0u32, |a, id| a | 1 << id);
                let least = subsets(&all, majority(all.len())).iter().map(|m| (m & data).count_ones()).min();
                assert!(
                    (k > 0 && missed) || fewer < least.unwrap().max(1) as usize,
                    "n={n} witnesses={witnesses} k={k}: {fewer} pledges would do"
                );
            }
        }
    }

    /// A majority elects a leader of each term; whatever majority it is, its data nodes are enough for an appointment
    /// when commits wait for half of them (the default), so a witness costs nothing and helps where it can.
    #[test]
    fn every_majority_is_enough_for_an_appointment_by_default() {
        for (n, witnesses) in (1..=9u64).flat_map(|n| (0..=1).map(move |w| (n, w))) {
            let d = durability(n, witnesses, n as usize / 2);
            let least = majority(n as usize + witnesses).saturating_sub(witnesses).max(1);
            assert_eq!(d.pledges_needed(), least, "n={n} witnesses={witnesses}");
        }
    }

    #[test]
    fn the_usual_sizes() {
        assert_eq!(pledges_needed(1, 0, 0), 1);
        assert_eq!(pledges_needed(2, 0, 1), 2);
        assert_eq!(pledges_needed(2, 1, 1), 1, "the only standby has everything that was acknowledged");
        assert_eq!(pledges_needed(3, 0, 1), 2);
        assert_eq!(pledges_needed(3, 1, 1), 2);
        assert_eq!(pledges_needed(4, 0, 2), 3);
        assert_eq!(pledges_needed(4, 1, 2), 2);
        assert_eq!(pledges_needed(5, 0, 2), 3);
        assert_eq!(pledges_needed(3, 0, 0), 2);
        assert_eq!(pledges_needed(2, 1, 0), 1);
        assert_eq!(pledges_needed(5, 0, 1), 4, "one acknowledging standby: all but one must pledge");
        assert_eq!(pledges_needed(5, 3, 1), 4, "and no number of witnesses changes that");
    }

    #[test]
    fn a_log_without_witnesses_reads_as_before() {
        let json = serde_json::json!({"voters": [1, 2], "k": 1});
        let d: Durability = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(d, durability(2, 0, 1));
        assert_eq!(serde_json::to_value(d).unwrap(), json);
    }

    fn arbitrary() -> impl Strategy<Value = Durability> {
        (proptest::collection::btree_set(1u64..=7, 1..=7), 0usize..7, 0usize..3).prop_map(
            |(mut voters, k, witnesses)| {
                voters.insert(1);
                let k = k.min(voters.len() - 1);
                Durability { voters, k, witnesses }
            },
        )
    }

    /// Whether every pledge set of `d` has a member in `holders`.
    fn finds(d: &Durability, holders: u32) -> bool {
        let voters: Vec<NodeId> = d.voters.iter().copied().collect();
        subsets(&voters, d.pledges_needed()).iter().all(|p| p & holders != 0)
    }

    proptest! {
        #[test]
        fn the_formula_is_the_enumeration(d in arbitrary(), s in arbitrary(), leader in 1u64..=7) {
            let sync = s.sync_set(leader);
            prop_assert_eq!(d.meets(leader, &sync), meets_by_enumeration(&d, leader, &sync));
        }

        /// Whoever had what was acknowledged before: if the leader has it too and the old pledges found it, then the
        /// new ones do.
        #[test]
        fn what_follows_finds_all_that_was_found_before(before in arbitrary(), d in arbitrary()) {
            let leader = 1;
            let found = |d: &Durability| (0u32..1 << 8).filter(|h| h >> leader & 1 == 1 && finds(d, *h)).collect::<Vec<_>>();
            if d.follows(&before, leader) {
                prop_assert!(found(&before).iter().all(|h| finds(&d, *h)));
            }
            if d.needs(leader) {
                prop_assert!(finds(&d, 1 << leader));
            }
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
