//! From the election to the appointment: pledges are gathered, and leadership goes to whoever is ahead.

use super::Phase;
use crate::entry::{Appointment, Entry};
use crate::gate::Verdict;
use crate::message::PeerMessage;
use crate::node::Node;
use crate::quorum::Durability;
use crate::rules::{Rule, holds};
use crate::types::{Millis, NodeId};

/// How long pledges beyond those needed are waited for where few are needed.
const WEAK_WAIT_MS: Millis = 300;
/// How long a leader waits for its own server's position before it hands leadership to one that has pledged.
const OWN_PLEDGE_MS: Millis = 500;

impl Node {
    pub(super) fn drive_gate(&mut self) {
        let Some(lead) = &mut self.lead else { return };
        let (now, term, since) = (self.now, lead.term, lead.since);
        if now >= lead.next_ask {
            lead.next_ask = now + self.cluster.settings.heartbeat_interval.ms();
            // A running primary is asked again: once its server has been stopped, its pledge counts.
            let complete = |n: &NodeId| lead.gate.has(*n) && !lead.gate.runs(*n);
            let missing: Vec<NodeId> =
                self.cluster.durability.voters.iter().copied().filter(|n| !complete(n)).collect();
            for node in missing {
                if node == self.id {
                    self.asked_to_pledge(node, term);
                } else {
                    self.send(node, PeerMessage::Pledge { term });
                }
            }
        }
        self.note_unanswered_offer();
        if !self.is_newest_primary()
            && let Some(lead) = &mut self.lead
            && lead.gate.runs(self.id)
        {
            // The server died since it was counted as running.
            lead.gate.forget(self.id);
        }
        let everyone = self.everyone_pledged(since);
        // Nobody is ahead of this node before its own position is known; the others may just have been quicker.
        let own_soon = self.cluster.durability.voters.contains(&self.id)
            && self.local.obs.is_running()
            && now < since + OWN_PLEDGE_MS;
        let Some(lead) = &mut self.lead else { return };
        let waits_for_own = own_soon && !lead.gate.has(self.id);
        match lead.gate.judge(&self.cluster, self.id, everyone) {
            Verdict::Wait => {}
            Verdict::HandOver(node) if waits_for_own && !lead.gate.runs(node) => {}
            // Marked down, and yet it has what others lack: without a vote it cannot lead, so it gets it back.
            Verdict::HandOver(node) if self.cluster.member(node).is_some_and(|m| m.down) => {
                self.propose_up(node);
            }
            Verdict::HandOver(node) => {
                if lead.offered.is_none() {
                    lead.offered = Some((node, now));
                    self.trace("hand-over", format!("node {node} is ahead; leadership is handed to it"));
                    let settings = self.settings();
                    self.consensus.transfer(now, node, &settings);
                }
            }
            // A server that was shut down told its position at rest; it must run before it can be promoted. If that
            // takes long, somebody else should lead.
            Verdict::Appoint { .. } if !self.local.obs.is_running() => {
                if now >= lead.phase_since + 3 * self.cluster.settings.node_timeout.ms() {
                    lead.gate.note_refusal(self.id);
                }
            }
            Verdict::Appoint { from_timeline, lsn, timeline } => {
                let durability = self.opening_durability();
                let appointment =
                    Appointment { epoch: term, node: self.id, timeline, from_timeline, lsn, durability };
                if self.propose(&Entry::Appoint(appointment.clone())) {
                    self.enter(Phase::Appointing);
                    if !holds(Rule::PromoteAfterCommit) {
                        self.promote(appointment);
                    }
                }
            }
        }
    }

    /// The durability that a new epoch opens with: already that of the present members if it meets what is committed,
    /// because a node that was removed or marked down meanwhile will never acknowledge the epoch's row.
    fn opening_durability(&self) -> Durability {
        let (committed, wanted) = (&self.cluster.durability, self.cluster.wanted_durability());
        let safe = wanted.voters.contains(&self.id) && committed.meets(self.id, &wanted.sync_set(self.id));
        if safe && committed.k > 0 { wanted } else { committed.clone() }
    }

    /// An offer of leadership without effect: that node is left out, if the others suffice. When nobody is left the
    /// refusals are forgotten, and everybody is tried again.
    fn note_unanswered_offer(&mut self) {
        let patience = self.cluster.settings.node_timeout.ms();
        let now = self.now;
        let Some(lead) = &mut self.lead else { return };
        if let Some((node, at)) = lead.offered
            && now >= at + patience
        {
            lead.gate.note_refusal(node);
            lead.offered = None;
        }
        // After a while those that refused are asked again: they may have been busy, or the offer got lost.
        if now >= lead.phase_since + 5 * patience {
            lead.gate.forget_refusals();
            lead.phase_since = now;
        }
    }

    /// Whether all that can be asked have pledged, or had their time. With k = 0 nothing but time and the pledges of all
    /// living nodes protects the last transactions: then also the old primary's lease must have run out.
    fn everyone_pledged(&self, since: Millis) -> bool {
        let Some(lead) = &self.lead else { return false };
        let all = self.cluster.durability.voters.iter().all(|&n| lead.gate.has(n) || !self.linked(n));
        let patient = all || self.now >= since + WEAK_WAIT_MS;
        if self.cluster.durability.k > 0 {
            return patient;
        }
        // Its clock may be slower than this one: its lease has run out when the whole timeout has passed.
        let old_lease_over = self.now >= since + self.settings().node_timeout.ms()
            || self.cluster.appointment.as_ref().is_none_or(|a| a.node == self.id || lead.gate.has(a.node));
        patient && old_lease_over
    }
}
