//! Giving leadership up: because the server is gone, because it was asked for, or because somebody else must have it.

use super::{HAND_OVER_MS, Phase};
use crate::entry::Appointment;
use crate::node::{Action, Node};
use crate::postgres::{PgOp, PgProcess, StopMode};
use crate::types::NodeId;
use crate::write_path::Writes;

impl Node {
    /// Refuses further writes on this node's server.
    pub(crate) fn fence(&mut self, why: String) {
        let leader = self.consensus.leader();
        self.fence_for(leader, why);
    }

    /// The same, and clients that are refused are told to go to this node. A successor may not lead yet when they come;
    /// then it refuses them, too, and they come again.
    fn fence_for(&mut self, leader: Option<NodeId>, why: String) {
        if self.local.fenced_at.is_none() {
            self.local.fenced_at = Some(self.now);
            let epoch = self.cluster.appointment.as_ref().map_or(0, |a| a.epoch);
            self.trace("fenced", format!("writes are refused from now on: {why}"));
            let hint = self.leader_hint(leader);
            self.out.actions.push(Action::RevokeLease { epoch, hint });
        }
    }

    /// Where clients should go. Empty: not known, or it would be this very node.
    fn leader_hint(&self, leader: Option<NodeId>) -> String {
        match leader.filter(|&n| n != self.id).and_then(|n| self.cluster.member(n)) {
            Some(m) => format!("node {} at {}:{}", m.id, m.ip, m.db_port),
            None => String::new(),
        }
    }

    /// A leader without its server is none.
    pub(super) fn check_primary_lives(&mut self) {
        let Some(lead) = &self.lead else { return };
        let process = self.local.obs.process;
        let gone = match lead.phase {
            // Until the promotion is over the server may well be in recovery.
            Phase::Promoting(_) => matches!(process, PgProcess::Stopped | PgProcess::Absent),
            _ => !self.local.promoted || matches!(process, PgProcess::Stopped | PgProcess::Absent),
        };
        if gone {
            self.trace("primary-lost", "this node's server is gone; leadership is given up".to_owned());
            self.local.promoted = false;
            self.abdicate("its server is gone");
        }
    }

    /// Gives leadership to whoever can take it over at once, or else back to an election.
    pub(super) fn abdicate(&mut self, why: &str) {
        match self.successor() {
            Some(to) => self.hand_to(to, why),
            None => {
                self.fence(why.to_owned());
                self.stand_again(why);
            }
        }
    }

    /// Gives leadership to this node without any preparation.
    pub(super) fn hand_to(&mut self, to: NodeId, why: &str) {
        self.fence_for(Some(to), why.to_owned());
        self.trace("hand-over", format!("leadership is offered to node {to}: {why}"));
        // Two nodes would take writes if the other was quicker than the word that the lease is over.
        if self.local.obs.is_primary() {
            self.enter(Phase::Yielding(to));
        } else {
            self.offer(to);
        }
    }

    /// Steps down and stands for election in a new term; an epoch is never appointed twice.
    pub(super) fn stand_again(&mut self, why: &str) {
        self.trace("step-down", format!("this node stands for election again: {why}"));
        let settings = self.settings();
        self.consensus.step_down(self.now, &settings);
        self.lead = None;
        self.consensus.campaign_now(self.now);
    }

    /// The voter that should lead if this node stops.
    pub(crate) fn successor(&self) -> Option<NodeId> {
        self.successors().first().copied()
    }

    /// Voters that could lead if this node stops, the best first: connected, with a server, taking writes, furthest.
    pub(super) fn successors(&self) -> Vec<NodeId> {
        let fresh = self.now.saturating_sub(2 * self.cluster.settings.node_timeout.ms());
        let mut found: Vec<_> = self
            .cluster
            .durability
            .voters
            .iter()
            .copied()
            .filter(|&n| n != self.id && self.linked(n) && self.consensus.is_up_to_date(n))
            .filter_map(|n| self.statuses.get(&n).map(|(status, at)| (n, status, *at)))
            .filter(|(_, status, at)| *at >= fresh && status.pid != 0)
            .map(|(n, status, _)| (status.writes != Writes::Stuck, status.position, std::cmp::Reverse(n)))
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, _, std::cmp::Reverse(n))| n).collect()
    }

    /// Starts a planned change of leader; the caller has checked that `to` can take over.
    pub(crate) fn begin_hand_over(&mut self, to: NodeId) {
        let Some(lead) = &self.lead else { return };
        let Phase::Open(appointment) = lead.phase.clone() else { return };
        self.trace("hand-over", format!("planned change of leader to node {to}"));
        self.enter(Phase::Preparing(appointment, to));
        self.start_operation(PgOp::Checkpoint);
    }

    pub(super) fn stop_for_hand_over(&mut self, appointment: Appointment, to: NodeId) {
        self.fence_for(Some(to), format!("leadership goes to node {to}"));
        self.enter(Phase::Stopping(appointment, to));
        self.start_operation(PgOp::Stop(StopMode::Fast));
    }

    pub(super) fn drive_hand_over(&mut self) {
        self.check_write_path();
        let Some(lead) = &self.lead else { return };
        let late = self.now >= lead.phase_since + HAND_OVER_MS;
        // The longest that may have been given, while the settings change.
        let settings = self.settings();
        let (node_timeout, lease) = (settings.node_timeout.ms(), settings.lease_ms());
        match lead.phase.clone() {
            Phase::Preparing(appointment, to) => {
                self.renew_lease(false);
                self.check_primary_lives();
                if late && self.lead.as_ref().is_some_and(|l| matches!(l.phase, Phase::Preparing(..))) {
                    self.stop_for_hand_over(appointment, to);
                }
            }
            Phase::Stopping(_, to) => {
                let stopped = matches!(self.local.obs.process, PgProcess::Stopped | PgProcess::Absent);
                if stopped && self.local.op.is_none() {
                    self.offer(to);
                } else if late && self.local.op.is_none() {
                    self.start_operation(PgOp::Stop(StopMode::Immediate));
                }
            }
            // Nothing renews it any more.
            Phase::Yielding(to) if self.now >= lead.phase_since + lease => self.offer(to),
            Phase::Offered(to) if self.now >= lead.phase_since + node_timeout => {
                self.stand_again(&format!("node {to} did not take leadership"));
            }
            _ => {}
        }
    }

    pub(super) fn offer(&mut self, to: NodeId) {
        let settings = self.settings();
        self.consensus.transfer(self.now, to, &settings);
        self.enter(Phase::Offered(to));
    }

    pub(crate) fn server_stopped(&mut self, ok: bool) {
        let Some(lead) = &self.lead else { return };
        if let Phase::Stopping(_, to) = lead.phase
            && ok
        {
            self.offer(to);
        }
    }
}
