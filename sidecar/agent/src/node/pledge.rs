//! Pledges: this node gives one when nothing is received any more, and a leader takes those of the others.

use super::Node;
use crate::message::{PeerMessage, WalEnd};
use crate::rules::{Rule, holds};
use crate::types::{Lsn, NodeId, Timeline};

impl Node {
    /// A leader asks for the promise to acknowledge nothing to older leaders.
    pub(crate) fn asked_to_pledge(&mut self, from: NodeId, term: u64) {
        if term < self.pledged || term < self.consensus.term() {
            return;
        }
        if term > self.pledged {
            self.pledged = term;
            self.out.persist.pledge = Some(term).filter(|_| holds(Rule::PledgeDurable));
            self.out.persist.sync = true;
        }
        self.pledge_to = Some((from, term));
        self.pledge_asked.get_or_insert(self.now);
        self.answer_pledge();
    }

    /// Sends the pledge if it is complete: reception is cut and the end of the WAL is known.
    pub(crate) fn answer_pledge(&mut self) {
        let Some((to, term)) = self.pledge_to else { return };
        let Some(end) = self.pledge_end(term) else { return };
        if end.running_primary {
            self.fence(format!("node {to} leads term {term}"));
        }
        if to == self.id {
            self.pledge_received(self.id, term, end);
        } else {
            self.send(to, PeerMessage::Pledged { term, end });
        }
        // An unfinished pledge is answered when it is complete; a finished one when it is asked for again.
        self.pledge_to = None;
        self.pledge_asked = None;
    }

    fn pledge_end(&self, term: u64) -> Option<WalEnd> {
        if self.is_newest_primary() {
            let (timeline, lsn) = (self.local.obs.timeline, self.local.obs.flush_lsn);
            return Some(WalEnd { running_primary: true, ..self.wal_end(timeline, lsn) });
        }
        if !holds(Rule::ReceptionCut) && self.local.obs.is_running() {
            let (timeline, lsn) = (self.local.obs.timeline, self.local.obs.flush_lsn);
            return Some(self.wal_end(timeline, lsn));
        }
        let end = self.local.cut.filter(|(t, _)| *t == term).map(|(_, end)| end)?;
        Some(WalEnd { stuck: self.declines(), ..end })
    }

    pub(crate) fn wal_end(&self, timeline: Timeline, lsn: Lsn) -> WalEnd {
        WalEnd { timeline, lsn, running_primary: false, stuck: self.declines() }
    }

    pub(super) fn pledge_received(&mut self, from: NodeId, term: u64, end: WalEnd) {
        if let Some(lead) = &mut self.lead
            && lead.term == term
        {
            if !lead.gate.has(from) {
                self.out.traces.push((
                    "pledged",
                    format!(
                        "node {from} pledged term {term}, its WAL ends at {} on timeline {}",
                        end.lsn, end.timeline
                    ),
                ));
            }
            lead.gate.record(from, end);
        }
    }
}
