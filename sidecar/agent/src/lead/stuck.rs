//! A leader whose writes are stuck gives its place to a node that is better off. Where nobody is, it stays: leadership
//! that goes round and round helps nobody.

use super::{Lead, Phase};
use crate::node::Node;
use crate::rules::{Rule, holds};
use crate::types::{Lsn, Millis, NodeId};
use crate::view::State;
use crate::write_path::Writes;

/// A node that gave leadership up because it was stuck does so again after so many times `node-timeout` at the earliest.
const AGAIN_TIMEOUTS: u64 = 30;
/// Standbys that have confirmed nothing new for so many times `node-timeout`, though there is something new, are stuck.
/// Longer than a standby takes that lost its connection and comes back (`wal_sender_timeout`, 5 s).
const QUORUM_STILL_TIMEOUTS: u64 = 10;
/// The patience with an epoch that does not open doubles so often at most.
const OPENING_DOUBLINGS: u32 = 6;

/// How far k standbys were, and when that last changed, or there was nothing to confirm, or nobody to confirm it.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuorumProgress {
    at: Lsn,
    since: Millis,
}

impl Node {
    pub(super) fn check_write_path(&mut self) {
        self.note_quorum_progress();
        // A planned change, too, may wait for a checkpoint or a shutdown that the disk holds up, and a promotion for a
        // server that stands still.
        let there = |l: &Lead| {
            matches!(
                l.phase,
                Phase::Promoting(_)
                    | Phase::Opening(..)
                    | Phase::Open(_)
                    | Phase::Preparing(..)
                    | Phase::Stopping(..)
            )
        };
        if self.gave_up_lately() || !self.lead.as_ref().is_some_and(there) {
            return;
        }
        let why = match &self.writes.stuck {
            Some(why) => why.clone(),
            None if self.quorum_is_stuck() => {
                "commits wait, though enough standbys are connected and well".to_owned()
            }
            None if self.opening_is_stuck() => {
                "its epoch does not open, though enough others are connected and well".to_owned()
            }
            None => return,
        };
        let Some(to) = self.better_off() else { return };
        self.gave_up_at = Some(self.now);
        self.hand_to(to, &why);
    }

    fn gave_up_lately(&self) -> bool {
        let patience = AGAIN_TIMEOUTS * self.cluster.settings.node_timeout.ms();
        self.gave_up_at.is_some_and(|at| self.now < at + patience)
    }

    /// Whether this node should not lead while another can, though its server may still run as the primary.
    pub(crate) fn declines(&self) -> bool {
        self.writes.stuck.is_some() || self.gave_up_lately()
    }

    /// Who can lead without this node: takes writes, and so do enough others to be appointed by their pledges alone.
    fn better_off(&self) -> Option<NodeId> {
        let well = self.well_successors();
        if well.len() < self.cluster.durability.pledges_needed() {
            return None;
        }
        // Commits that wait for nobody are only safe with who has them all.
        let standbys = &self.local.obs.standbys;
        let has_all =
            |node: NodeId| standbys.iter().any(|s| s.node == node && s.flush_lsn >= self.local.obs.flush_lsn);
        well.into_iter().find(|&n| self.cluster.durability.k > 0 || has_all(n))
    }

    fn well_successors(&self) -> Vec<NodeId> {
        let well = |n: &NodeId| {
            // Who is being rewound or copied neither leads nor acknowledges soon.
            let known = self
                .statuses
                .get(n)
                .is_some_and(|(status, _)| status.writes == Writes::Well && status.state != State::Cloning);
            known || !holds(Rule::StuckStaysStuck)
        };
        self.successors().into_iter().filter(well).collect()
    }

    fn note_quorum_progress(&mut self) {
        let now = self.now;
        let fresh = now < self.local.observed_at + 2 * self.cluster.settings.node_timeout.ms();
        // A standby that was long repaired gets its time from the moment in which it is well.
        let nobody = !self.others_are_enough();
        let Some(lead) = &mut self.lead else { return };
        let (k, acknowledging) = (lead.in_force.k, &lead.in_force.standbys);
        let standbys = self.local.obs.standbys.iter().filter(|s| acknowledging.contains(&s.node));
        let mut flushed: Vec<Lsn> = standbys.map(|s| s.flush_lsn).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let at = flushed.get(k.wrapping_sub(1)).copied().unwrap_or_default();
        let progress = &mut lead.quorum_progress;
        let nothing_to_do = k == 0 || at >= self.local.obs.flush_lsn || !fresh || nobody;
        if nothing_to_do || at > progress.at || progress.since == 0 {
            *progress = QuorumProgress { at: at.max(progress.at), since: now };
        }
    }

    /// Are so many others well, by their own word, that one of them could lead? While the epoch is being opened with this
    /// one's acknowledgement, later without: there, what is acknowledged may be only here.
    fn others_are_enough(&self) -> bool {
        let Some(lead) = &self.lead else { return false };
        let without_this_one = usize::from(!matches!(lead.phase, Phase::Opening(..)));
        self.well_successors().len() >= lead.in_force.k + without_this_one
    }

    /// Nothing new is confirmed, and yet there are enough other nodes, all well by their own word, to lead and to
    /// acknowledge without this one. Where standbys are gone, commits wait: to go on with fewer is a decision.
    fn quorum_is_stuck(&self) -> bool {
        let Some(lead) = &self.lead else { return false };
        let timeout = self.cluster.settings.node_timeout.ms();
        let still = self.now >= lead.quorum_progress.since + QUORUM_STILL_TIMEOUTS * timeout;
        // Whoever leads after this one has the same patience, so that leadership does not go round.
        let long = self.now >= lead.phase_since + AGAIN_TIMEOUTS * timeout;
        let long_open = matches!(lead.phase, Phase::Open(_)) && long;
        still && long_open && self.others_are_enough()
    }

    /// The epoch's first row reaches too few, and nothing is promised or written yet: another node may try, if the
    /// others can appoint it and, with this one, acknowledge to it. Each epoch that did not open doubles the patience
    /// with the next, so that leadership does not go round: a standby that must first be found out of place, and be
    /// repaired, gets its time in the end, whoever leads.
    fn opening_is_stuck(&self) -> bool {
        let Some(lead) = &self.lead else { return false };
        let doublings = self.cluster.unopened().saturating_sub(1).min(OPENING_DOUBLINGS);
        let patience = (QUORUM_STILL_TIMEOUTS * self.cluster.settings.node_timeout.ms()) << doublings;
        let still = self.now >= lead.quorum_progress.since.max(lead.phase_since) + patience;
        let opening = matches!(lead.phase, Phase::Opening(..));
        opening && still && self.others_are_enough()
    }
}
