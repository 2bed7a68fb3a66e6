//! Reports of lost transactions on their way into the cluster's log: sent again until they are in it.

use super::Node;
use crate::entry::Entry;
use crate::lost::{Acknowledged, LostReport};
use crate::message::PeerMessage;
use crate::node::Action;
use crate::types::{Millis, NodeId, Timeline};

/// How often a report is sent that is not in the log yet.
const SEND_AGAIN_MS: Millis = 1000;

impl Node {
    /// A report that is on this node's disk.
    pub(super) fn lost(&mut self, mut report: LostReport) {
        // The database that it came from may not have heard of the newest rule.
        if self.weak_on(report.timeline) {
            report.acknowledged = Acknowledged::Possibly;
        }
        if !self.lost_reports.iter().any(|known| known.id == report.id) {
            self.trace("lost-transactions", report.sentence());
            self.lost_reports.push(report);
        }
    }

    /// Whether commits waited for nobody when this timeline was last written, as far as the log goes back.
    fn weak_on(&self, timeline: Timeline) -> bool {
        let (mut there, mut k) = (false, None);
        for record in &self.cluster.log {
            match &record.payload {
                Entry::Appoint(a) => {
                    there = a.timeline == timeline;
                    k = if there { Some(a.durability.k) } else { k };
                }
                Entry::Durability(d) if there => k = Some(d.k),
                _ => {}
            }
        }
        k == Some(0)
    }

    pub(super) fn report_lost(&mut self) {
        if self.lost_reports.is_empty() {
            return;
        }
        let cluster = &self.cluster;
        let (done, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lost_reports).into_iter().partition(|r| cluster.has_lost_report(&r.id));
        self.lost_reports = open;
        self.out.actions.extend(done.into_iter().map(|r| Action::LostReported { id: r.id }));
        if self.now < self.lost_send_at {
            return;
        }
        let Some(report) = self.lost_reports.first().cloned() else { return };
        match self.consensus.leader() {
            Some(leader) if leader != self.id => self.send(leader, PeerMessage::Lost { report }),
            Some(_) if self.consensus.is_settled_leader() => {
                self.propose(&Entry::LostTransactions(report));
            }
            _ => return,
        }
        self.lost_send_at = self.now + SEND_AGAIN_MS;
    }

    pub(super) fn lost_received(&mut self, from: NodeId, report: LostReport) {
        let known = self.cluster.has_lost_report(&report.id);
        if report.node == from && !known && report.is_bounded() && self.consensus.is_settled_leader() {
            self.propose(&Entry::LostTransactions(report));
        }
    }
}
