//! The gate between winning an election and being appointed: who has pledged, and who must lead.

use crate::cluster::Cluster;
use crate::member::Member;
use crate::message::WalEnd;
use crate::quorum::majority;
use crate::rules::{Rule, holds};
use crate::types::{Lsn, NodeId, Position, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// Pledges for one term.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    pledges: BTreeMap<NodeId, WalEnd>,
    /// Nodes that leadership was offered to without effect in this term.
    refused: BTreeSet<NodeId>,
}

/// What the pledges so far allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    /// This node's WAL reaches further, or its server still runs as the primary: it must lead.
    HandOver(NodeId),
    /// This node may be appointed.
    Appoint {
        from_timeline: Timeline,
        lsn: Lsn,
        timeline: Timeline,
    },
}

impl Gate {
    pub fn record(&mut self, node: NodeId, end: WalEnd) {
        self.pledges.insert(node, end);
    }

    pub fn forget(&mut self, node: NodeId) {
        self.pledges.remove(&node);
    }

    pub fn has(&self, node: NodeId) -> bool {
        self.pledges.contains_key(&node)
    }

    /// Whether this node's pledge said that its server still runs as a primary.
    pub fn runs(&self, node: NodeId) -> bool {
        self.pledges.get(&node).is_some_and(|end| end.running_primary)
    }

    pub fn pledged(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.pledges.keys().copied()
    }

    /// Leadership was offered to `node` and nothing came of it.
    pub fn note_refusal(&mut self, node: NodeId) {
        self.refused.insert(node);
    }

    pub fn forget_refusals(&mut self) {
        self.refused.clear();
    }

    /// Judges the pledges. `everyone` is true once no more pledges are to be expected soon; it only matters where few
    /// pledges are needed: where commits wait for nobody, the longest WAL among the living is the best that can be
    /// saved; and where a witness makes one pledge enough, the old primary may be about to say that it runs.
    pub fn judge(&self, cluster: &Cluster, me: NodeId, everyone: bool) -> Verdict {
        // A node that takes no writes is left out, as one that refused, if the pledges of the rest suffice: they meet
        // everything that was acknowledged. The rest get the time that is given to them for the sake of caution.
        let stuck: BTreeSet<NodeId> =
            self.pledges.iter().filter(|(_, end)| end.stuck).map(|(&node, _)| node).collect();
        if !stuck.is_empty() {
            let refused = self.refused.union(&stuck).copied().collect();
            let verdict = self.judge_without(&refused, cluster, me, everyone);
            if verdict != Verdict::Wait || !everyone {
                return verdict;
            }
        }
        self.judge_without(&self.refused, cluster, me, everyone)
    }

    fn judge_without(
        &self,
        refused: &BTreeSet<NodeId>,
        cluster: &Cluster,
        me: NodeId,
        everyone: bool,
    ) -> Verdict {
        let voters = &cluster.durability.voters;
        let newest = cluster.appointment.as_ref();
        // A server that still runs as the newest primary has everything; it goes on if it can be reached at all.
        let running = self.pledges.iter().find(|(node, end)| {
            end.running_primary && newest.is_some_and(|a| a.node == **node && a.timeline == end.timeline)
        });
        if let Some((&node, _)) = running
            && node != me
            && !refused.contains(&node)
        {
            return Verdict::HandOver(node);
        }
        // Any other running primary has not given up its server yet: its position can still grow, it counts for
        // nothing (but for itself, if it is this node).
        let mine_runs = running.is_some_and(|(&node, _)| node == me);
        let counted: BTreeMap<NodeId, Position> = self
            .pledges
            .iter()
            .filter(|(node, end)| {
                let gave_up = !end.running_primary || !holds(Rule::RunningPrimaryNeverCounts);
                voters.contains(node) && (gave_up || (**node == me && mine_runs))
            })
            .filter(|(node, _)| !refused.contains(node))
            .map(|(&node, end)| (node, cluster.position(end.timeline, end.lsn)))
            .collect();
        let few = cluster.durability.k == 0 || cluster.durability.pledges_needed() < majority(voters.len());
        let more_wait = few && voters.len() > 1 && !everyone && !mine_runs;
        let needed = if holds(Rule::PledgesNeeded) { cluster.durability.pledges_needed() } else { 1 };
        if counted.len() < needed || more_wait {
            return Verdict::Wait;
        }
        let Some(&furthest) = counted.values().max() else { return Verdict::Wait };
        match counted.get(&me) {
            Some(&mine) if mine >= furthest || mine_runs => {
                let end = self.pledges[&me];
                let highest = self.pledges.values().map(|e| e.timeline).max().unwrap_or(end.timeline);
                let timeline = if mine_runs { end.timeline } else { cluster.fresh_timeline(highest) };
                Verdict::Appoint { from_timeline: end.timeline, lsn: end.lsn, timeline }
            }
            // Among equals one that may lead; a node that is marked down has no vote.
            _ => counted
                .iter()
                .filter(|(node, position)| **position == furthest && **node != me)
                .max_by_key(|(node, _)| cluster.member(**node).is_some_and(Member::is_voter))
                .map_or(Verdict::Wait, |(&node, _)| Verdict::HandOver(node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Appointment, Entry};
    use crate::member::Role;
    use crate::quorum::Durability;
    use crate::settings::Settings;

    fn cluster(n: u64, k: usize) -> Cluster {
        let member = |id| Member {
            id,
            ip: [127, 0, 0, 1].into(),
            db_port: 5500 + id as u16,
            api_port: 8000 + id as u16,
            role: Role::Node,
            down: false,
            auto_upgrade: false,
            identity: None,
        };
        let mut cluster = Cluster::new("test".into(), 1, member(1), Settings::default());
        let durability = Durability { voters: (1..=n).collect(), k, witnesses: 0 };
        for id in 2..=n {
            cluster.apply(id, 1, &Entry::AddNode { member: member(id) });
        }
        cluster.apply(20, 1, &Entry::Durability(durability.clone()));
        for (epoch, timeline) in [(5, 2), (6, 3)] {
            let appointment = Appointment {
                epoch,
                node: 1,
                timeline,
                from_timeline: 1,
                lsn: Lsn(0),
                durability: durability.clone(),
            };
            cluster.apply(20 + epoch, epoch, &Entry::Appoint(appointment));
        }
        cluster
    }

    fn end(timeline: Timeline, lsn: u64) -> WalEnd {
        WalEnd { timeline, lsn: Lsn(lsn), running_primary: false, stuck: false }
    }

    #[test]
    fn a_majority_and_enough_to_meet_every_acknowledgement() {
        let c = cluster(3, 1);
        let mut gate = Gate::default();
        gate.record(2, end(3, 100));
        assert_eq!(gate.judge(&c, 2, true), Verdict::Wait);
        gate.record(3, end(3, 100));
        assert_eq!(
            gate.judge(&c, 2, true),
            Verdict::Appoint { from_timeline: 3, lsn: Lsn(100), timeline: 4 },
            "ties stay where they are"
        );
        let five = cluster(5, 1);
        gate.record(4, end(3, 100));
        assert_eq!(gate.judge(&five, 2, true), Verdict::Wait, "k = 1 of five: four must pledge");
    }

    #[test]
    fn whoever_is_ahead_by_epoch_then_lsn_leads() {
        let c = cluster(3, 1);
        let mut gate = Gate::default();
        gate.record(2, end(2, 500));
        gate.record(3, end(3, 100));
        assert_eq!(gate.judge(&c, 2, true), Verdict::HandOver(3), "epoch 6 at 100 beats epoch 5 at 500");
        assert!(matches!(gate.judge(&c, 3, true), Verdict::Appoint { lsn: Lsn(100), .. }));
    }

    #[test]
    fn a_running_primary_goes_on_and_never_counts_for_another() {
        let c = cluster(3, 1);
        let mut gate = Gate::default();
        gate.record(1, WalEnd { running_primary: true, ..end(3, 100) });
        gate.record(2, end(3, 100));
        assert_eq!(gate.judge(&c, 2, true), Verdict::HandOver(1));
        assert_eq!(
            gate.judge(&c, 1, true),
            Verdict::Appoint { from_timeline: 3, lsn: Lsn(100), timeline: 3 },
            "it keeps its timeline"
        );
        gate.note_refusal(1);
        assert_eq!(
            gate.judge(&c, 2, true),
            Verdict::Wait,
            "two of three must pledge; the primary does not count"
        );
        gate.record(3, end(3, 100));
        assert!(matches!(gate.judge(&c, 2, true), Verdict::Appoint { timeline: 4, .. }));
    }

    #[test]
    fn pledges_of_listeners_do_not_count() {
        let c = cluster(3, 1);
        let mut gate = Gate::default();
        gate.record(2, end(3, 100));
        gate.record(9, end(3, 900));
        assert_eq!(gate.judge(&c, 2, true), Verdict::Wait);
    }

    #[test]
    fn a_leader_without_data_hands_over() {
        let c = cluster(3, 1);
        let mut gate = Gate::default();
        gate.record(2, end(3, 100));
        gate.record(3, end(3, 200));
        assert_eq!(gate.judge(&c, 1, true), Verdict::HandOver(3));
    }

    #[test]
    fn weak_replication_waits_a_moment_for_the_longest_log() {
        let c = cluster(3, 0);
        let mut gate = Gate::default();
        gate.record(2, end(3, 100));
        gate.record(3, end(3, 100));
        assert_eq!(gate.judge(&c, 2, false), Verdict::Wait);
        assert!(matches!(gate.judge(&c, 2, true), Verdict::Appoint { .. }));
    }

    #[test]
    fn with_a_witness_the_only_standby_is_enough_but_the_old_primary_is_waited_for() {
        let mut c = cluster(2, 1);
        let mut gate = Gate::default();
        gate.record(2, end(3, 100));
        assert_eq!(gate.judge(&c, 2, true), Verdict::Wait, "without a witness both must pledge");
        c.apply(40, 6, &Entry::Durability(Durability { voters: [1, 2].into(), k: 1, witnesses: 1 }));
        assert_eq!(gate.judge(&c, 2, false), Verdict::Wait);
        assert!(matches!(gate.judge(&c, 2, true), Verdict::Appoint { .. }));
        gate.record(1, WalEnd { running_primary: true, ..end(3, 100) });
        assert_eq!(gate.judge(&c, 2, true), Verdict::HandOver(1));
    }
}
