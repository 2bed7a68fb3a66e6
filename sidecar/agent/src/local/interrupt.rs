//! What takes the place of an operation under way: a pledge that is asked for must not wait for a repair to end, unless
//! there is nothing to pledge before it has.

use super::Repair;
use super::start_up::{Need, REPLAY_LIMIT_MS};
use crate::node::Node;
use crate::postgres::{PgObservation, PgOp, PgProcess, StopMode, Upstream};
use crate::types::Millis;

/// A copy is given up for a pledge only if the others did not suffice for so long: it may be hours of work.
const COPY_PATIENCE_MS: Millis = 1000;

impl Node {
    /// The operation to begin instead of the one under way.
    pub(super) fn instead_of(&self, op: &PgOp, must_cut: bool) -> Option<PgOp> {
        let obs = &self.local.obs;
        let whole = !obs.rewound && obs.process != PgProcess::Absent;
        // What brings the end of this server's WAL to light.
        let show = || if obs.is_running() { PgOp::CutReception } else { PgOp::Start };
        match op {
            // It was to lead once more, and does not answer.
            PgOp::Promote { .. } if self.is_silent_primary() => Some(PgOp::Stop(StopMode::Immediate)),
            PgOp::Follow(_) if must_cut && obs.is_running() => Some(PgOp::CutReception),
            PgOp::Rewind(_) if must_cut && whole => Some(show()),
            PgOp::Clone(_) if must_cut && whole && !self.local.damaged && self.pledge_overdue() => {
                Some(show())
            }
            PgOp::Start | PgOp::CutReception | PgOp::Rewind(_) | PgOp::Follow(_)
                if !must_cut && obs.rewound && obs.process == PgProcess::Starting =>
            {
                self.after_rewind().filter(|next| !same_upstream(op, next))
            }
            // It waits for the server, which waits for WAL.
            PgOp::Start | PgOp::CutReception if !must_cut && self.starts_in_vain() => {
                let upstream = self.source()?;
                match self.local.start_up.need(self.now, &upstream) {
                    Need::Upstream => Some(PgOp::Feed(upstream)),
                    Need::Copy => Some(PgOp::Clone(upstream)),
                    Need::Time => None,
                }
            }
            _ => None,
        }
    }

    fn pledge_overdue(&self) -> bool {
        self.pledge_asked.is_some_and(|at| self.now >= at + COPY_PATIENCE_MS)
    }

    fn starts_in_vain(&self) -> bool {
        let starting = self.local.obs.process == PgProcess::Starting && !self.local.obs.rewound;
        starting && self.local.start_up.in_vain(self.now)
    }

    /// Gives a server that does not come up its upstream, and at last other data.
    fn feed(&mut self) {
        let Some(upstream) = self.source() else { return };
        match self.local.start_up.need(self.now, &upstream) {
            Need::Upstream => self.begin(PgOp::Feed(upstream)),
            Need::Copy => {
                self.repair(Repair::Clone);
            }
            Need::Time => {}
        }
    }

    /// The promoted primary that this node should follow.
    fn source(&self) -> Option<Upstream> {
        let (appointment, upstream) = self.upstream()?;
        let known = self.known_primary(appointment.epoch).is_some_and(|p| p.node == upstream.node);
        known.then_some(upstream)
    }

    /// A server that is not there yet. If it was rewound it needs its upstream for that.
    pub(super) fn drive_starting(&mut self, must_cut: bool) {
        if self.is_silent_primary() {
            if self.now >= self.local.retry_at {
                self.begin(PgOp::Stop(StopMode::Immediate));
            }
            return;
        }
        let later = self.now < self.local.retry_at.max(self.local.repair_at);
        if must_cut || later {
            return;
        }
        if !self.local.obs.rewound {
            if self.starts_in_vain() {
                self.feed();
            }
            return;
        }
        let Some(next) = self.after_rewind() else { return };
        let told = matches!((&self.local.following, &next), (Some(told), PgOp::Follow(upstream)) if told == upstream);
        if !told {
            self.begin(next);
        } else if self.local.not_streaming_since.is_some_and(|at| self.now >= at + REPLAY_LIMIT_MS) {
            self.repair(Repair::Clone);
        }
    }

    /// Whether the process that does not answer is that of a primary, and another node was appointed since. It may stand
    /// still for ever, with all its clients, or go on at any moment.
    fn is_silent_primary(&self) -> bool {
        let PgObservation { process, pid, in_production, .. } = self.local.obs;
        let other = self.cluster.appointment.as_ref().is_some_and(|a| a.node != self.id);
        // Whoever promoted it remembers that; another sidecar may have come since.
        let primary = self.local.primary_pid == Some(pid) || in_production;
        let alive = pid != 0 && self.local.stopped_pid != Some(pid);
        process == PgProcess::Starting && alive && primary && other
    }

    /// How rewound data become whole: along a primary in whose history they end, or not at all.
    pub(super) fn after_rewind(&self) -> Option<PgOp> {
        let (appointment, upstream) = self.upstream()?;
        let primary = self.known_primary(appointment.epoch).filter(|p| p.node == upstream.node)?;
        let obs = &self.local.obs;
        let left = primary.history.iter().find(|(t, _)| *t == obs.timeline).map(|(_, left)| *left);
        let part = obs.timeline == primary.timeline || left.is_some_and(|left| obs.flush_lsn <= left);
        Some(if part { PgOp::Follow(upstream) } else { PgOp::Clone(upstream) })
    }

    /// Starts an operation that replaces another, and says what it means.
    pub(super) fn begin(&mut self, op: PgOp) {
        match &op {
            PgOp::Clone(upstream) => {
                self.local.repair = Some(Repair::Clone);
                let why = match self.local.obs.rewound {
                    true => "this node's rewound data end in a history that is not the primary's",
                    false => "the server does not come up, though it gets WAL",
                };
                let text = format!("{why}; its data are copied anew from node {}", upstream.node);
                self.trace("clone", text);
            }
            PgOp::Feed(upstream) => {
                let text = format!(
                    "the server does not come up by itself: it is given WAL of node {}, and acknowledges nothing",
                    upstream.node
                );
                self.trace("feed", text);
            }
            PgOp::Stop(_) => {
                self.fence("another node was appointed".to_owned());
                let text = "the server does not answer, and another node was appointed: it is ended";
                self.trace("demote", text.to_owned());
            }
            PgOp::Start | PgOp::CutReception if self.local.repair.is_some() => {
                self.local.stream.checked_at = None;
                let text =
                    format!("a repair is put off: term {} waits for this node's position", self.pledged);
                self.trace("repair", text);
            }
            _ => {}
        }
        self.start_operation(op);
    }
}

/// Whether the operation under way already leads to where the next one would.
fn same_upstream(op: &PgOp, next: &PgOp) -> bool {
    matches!((op, next), (PgOp::Rewind(a) | PgOp::Follow(a), PgOp::Follow(b)) if a == b)
}
