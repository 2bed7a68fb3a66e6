//! Whether this server can follow the primary as it is, and what is done when it cannot.

use super::{Fit, Repair};
use crate::entry::Appointment;
use crate::message::OpenPrimary;
use crate::node::Node;
use crate::postgres::{PgOp, Upstream};
use crate::types::{Epoch, Lsn, Millis};

/// A standby that should stream and does not is repaired after this time.
const NOT_STREAMING_MS: Millis = 20_000;
/// What streams for so long without a break does.
const STREAMS_MS: Millis = 2_000;

/// What is remembered of a standby that was told whom to follow.
#[derive(Debug, Default)]
pub(super) struct StreamWatch {
    /// Since when each look has found it streaming on the primary's timeline.
    pub(super) since: Option<Millis>,
    /// Where its WAL ended when its history was compared with the primary's; until it streams.
    pub(super) checked_at: Option<Lsn>,
}

impl Node {
    /// The server this node should follow: the appointed one, if it is another.
    pub(super) fn upstream(&self) -> Option<(Appointment, Upstream)> {
        let appointment = self.cluster.appointment.clone()?;
        let member = self.cluster.member(appointment.node).filter(|m| m.id != self.id)?;
        let (epoch, timeline) = (appointment.epoch, appointment.timeline);
        let upstream = Upstream { node: member.id, ip: member.ip, port: member.db_port, epoch, timeline };
        Some((appointment, upstream))
    }

    /// The promoted primary of this epoch, as far as its leader said.
    pub(crate) fn known_primary(&self, epoch: Epoch) -> Option<&OpenPrimary> {
        self.beat.as_ref().and_then(|(beat, _)| beat.open.as_ref()).filter(|o| o.epoch >= epoch)
    }

    pub(super) fn fit(&self, appointment: &Appointment) -> Fit {
        let obs = &self.local.obs;
        let timeline = obs.timeline;
        // The end of the WAL is known when a receiver writes it, when it was pledged, or when all of it is replayed;
        // a server that has just started, or that crashed, has more than it shows.
        let pledged =
            self.local.cut.is_some_and(|(term, end)| term == self.pledged && end.lsn >= obs.flush_lsn);
        if !(obs.settled || obs.receiver || pledged) {
            return Fit::Unknown;
        }
        // A received but incomplete record at the very end is no divergence: replay never used it.
        let end = if obs.settled && obs.is_running() { obs.replay_lsn } else { obs.flush_lsn };
        if let Some(primary) = self.known_primary(appointment.epoch) {
            if timeline == primary.timeline {
                return Fit::Fits;
            }
            let left = primary.history.iter().find(|(t, _)| *t == timeline).map(|(_, lsn)| *lsn);
            return match left {
                Some(left) if end <= left => Fit::Fits,
                _ if obs.settled => Fit::Diverged,
                _ => Fit::Unknown,
            };
        }
        // Before the primary is promoted: what pledged no more than the appointed node had is part of its history.
        if timeline == appointment.timeline
            || (timeline == appointment.from_timeline && end <= appointment.lsn)
        {
            Fit::Fits
        } else {
            Fit::Unknown
        }
    }

    /// Begins a repair; whether it could.
    pub(super) fn repair(&mut self, repair: Repair) -> bool {
        let Some((appointment, upstream)) = self.upstream() else { return false };
        // Also before it is open: it has all that was acknowledged, by its appointment, so nothing that others must
        // keep is given up; and it may need this very standby to open.
        let Some(primary) = self.known_primary(appointment.epoch) else { return false };
        if primary.node != upstream.node || (repair == Repair::Rewind && !primary.rewind_source) {
            return false;
        }
        if self.now < self.local.retry_at.max(self.local.repair_at) {
            return false;
        }
        self.local.repair = Some(repair);
        match repair {
            Repair::Rewind => {
                let end = self.local.obs.flush_lsn;
                self.trace(
                    "rewind",
                    format!(
                        "this node's WAL ({end} on timeline {}) left the cluster's history; it is rewound to node {}",
                        self.local.obs.timeline, upstream.node
                    ),
                );
                self.start_operation(PgOp::Rewind(upstream));
            }
            Repair::Clone => {
                self.trace("clone", format!("this node's data is copied anew from node {}", upstream.node));
                self.start_operation(PgOp::Clone(upstream));
            }
        }
        true
    }

    /// A standby that was told whom to follow and does not stream for long has lost its place in the WAL.
    pub(super) fn watch_stream(&mut self) {
        let Some(primary) = self.known_primary(0) else {
            self.local.not_streaming_since = None;
            return;
        };
        // A receiver that is sent away and comes back again and again, because its history is another, or because the WAL
        // that it asks for is gone, streams for moments.
        let streams = self.local.obs.streaming && self.local.obs.timeline == primary.timeline;
        let since = self.local.stream.since.unwrap_or(self.now);
        self.local.stream.since = streams.then_some(since);
        if streams {
            if self.now >= since + STREAMS_MS {
                (self.local.not_streaming_since, self.local.repair) = (None, None);
                self.local.stream.checked_at = None;
            }
            return;
        }
        let since = *self.local.not_streaming_since.get_or_insert(self.now);
        if self.now >= since + NOT_STREAMING_MS {
            self.local.not_streaming_since = Some(self.now);
            let end = self.local.obs.flush_lsn;
            // The first attempt is the cheap one. Where it changes nothing and nothing comes, what comes next is gone.
            let in_vain = self.local.stream.checked_at.is_some_and(|before| end <= before);
            if in_vain || self.local.repair.is_some() {
                self.repair(Repair::Clone);
                return;
            }
            self.trace(
                "repair",
                "the server was told to stream and does not; its history is checked".to_owned(),
            );
            if self.repair(Repair::Rewind) {
                self.local.stream.checked_at = Some(end);
            }
        }
    }
}
