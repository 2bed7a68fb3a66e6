//! From the appointment to the open epoch: the server is promoted, and its first row goes to k standbys.

use super::Phase;
use crate::entry::{Appointment, Entry};
use crate::node::Node;
use crate::postgres::{PgFailure, PgFailureKind, PgOp, PgOutcome};
use crate::rules::{Rule, holds};
use crate::types::{Lsn, Millis};

/// An epoch that is not open by then misses standbys.
const SLOW_OPENING_MS: Millis = 300;

impl Node {
    pub(super) fn promote(&mut self, appointment: Appointment) {
        let sync = appointment.durability.sync_set(self.id);
        let timeline = appointment.timeline;
        if timeline == appointment.from_timeline && !self.is_newest_primary() {
            // It was to go on as it was. Promoted anew it would write on that timeline a second time.
            self.abdicate("its server is gone");
            return;
        }
        self.local.cut = None;
        self.local.repair = None;
        self.enter(Phase::Promoting(appointment));
        self.start_operation(PgOp::Promote { timeline, sync });
    }

    pub(crate) fn promotion_done(&mut self, result: Result<PgOutcome, PgFailure>) {
        let Some(lead) = &self.lead else { return };
        let Phase::Promoting(appointment) = lead.phase.clone() else { return };
        match result {
            Ok(PgOutcome::Promoted { timeline, switch_lsn }) if timeline == appointment.timeline => {
                self.trace("promoted", format!("this node's server is a primary on timeline {timeline}"));
                self.local.promoted = true;
                self.local.primary_pid = Some(self.local.obs.pid);
                let in_force = appointment.durability.sync_set(self.id);
                if let Some(lead) = &mut self.lead {
                    lead.in_force = in_force;
                    // A standby's walsenders count for nothing before its promotion, and read the new rule with it;
                    // those of a primary that goes on may be late.
                    lead.sync_unsure = appointment.timeline == appointment.from_timeline;
                }
                self.enter(Phase::Opening(appointment.clone(), switch_lsn));
                self.open(&appointment, switch_lsn);
                if !holds(Rule::OpeningWaits) {
                    self.opened(appointment, switch_lsn);
                }
            }
            Ok(_) => self.abdicate("the server was promoted to a timeline that it was not given"),
            Err(failure) if failure.kind == PgFailureKind::Cancelled => {}
            Err(failure) => self.abdicate(&format!("the server could not be promoted: {failure}")),
        }
    }

    fn open(&mut self, appointment: &Appointment, switch_lsn: Lsn) {
        let Some(sync) = self.lead.as_ref().map(|l| l.in_force.clone()) else { return };
        let (epoch, timeline) = (appointment.epoch, appointment.timeline);
        self.start_operation(PgOp::OpenEpoch { epoch, timeline, switch_lsn, sync });
    }

    pub(super) fn drive_opening(&mut self, appointment: Appointment, switch_lsn: Lsn) {
        self.check_primary_lives();
        self.check_write_path();
        let Some(lead) = &self.lead else { return };
        if !matches!(lead.phase, Phase::Opening(..)) {
            return;
        }
        if self.now >= lead.phase_since + SLOW_OPENING_MS {
            // The standbys that are missed may have to be rewound first, which needs a checkpoint here.
            self.keep_checkpoint();
        }
        // Who is gone for good is no longer waited for once the log says so; see `keep_durability`.
        self.keep_durability();
        self.remove_unseen_nodes();
        let Some(lead) = &self.lead else { return };
        // An attempt that waits for standbys by a rule of the past is given up for a new one.
        let opening = self.local.side_ops.values().any(|op| match op {
            PgOp::OpenEpoch { sync, .. } => *sync == lead.in_force,
            _ => false,
        });
        if !opening && matches!(lead.phase, Phase::Opening(..)) && self.now >= lead.retry_open_at {
            self.open(&appointment, switch_lsn);
        }
    }

    pub(super) fn opened(&mut self, appointment: Appointment, switch_lsn: Lsn) {
        self.local.fenced_at = None;
        if let Some(lead) = &mut self.lead {
            lead.covered = true;
        }
        let (epoch, node, timeline) = (appointment.epoch, appointment.node, appointment.timeline);
        self.enter(Phase::Open(appointment));
        self.renew_lease(true);
        self.trace("opened", format!("this node accepts writes in epoch {epoch}"));
        self.propose(&Entry::Opened { epoch, node, timeline, switch_lsn });
        self.keep_checkpoint();
        if let Some(lead) = &mut self.lead {
            lead.next_beat = self.now;
        }
    }
}
