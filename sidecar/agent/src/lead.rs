//! What a leader does: gather pledges, be appointed, promote, open, keep the lease, keep durability in order, and
//! hand over.

mod appoint;
mod hand_over;
mod keep;
mod open;
mod stuck;

use crate::entry::Appointment;
use crate::gate::Gate;
use crate::message::PeerMessage;
use crate::node::{Action, Node};
use crate::postgres::{PgFailure, PgFailureKind, PgOp, PgOutcome, SyncSet};
use crate::types::{Lsn, Millis, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// An appointment that is not committed, or a server that is not promoted, by then: somebody else should try.
const STUCK_MS: Millis = 15_000;
/// A planned change of leader is called off when it takes longer.
const HAND_OVER_MS: Millis = 10_000;
/// Upkeep of the server that failed is tried again after this time.
const RETRY_MS: Millis = 1000;
/// Entries recorded in the database at once.
const RECORD_BATCH: usize = 64;

/// Where the leader is on its way.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Pledges are gathered.
    Gate,
    /// The appointment is on its way through the log.
    Appointing,
    Promoting(Appointment),
    /// The epoch's row waits for k standbys.
    Opening(Appointment, Lsn),
    Open(Appointment),
    /// Planned change: a checkpoint first, so that the shutdown is short.
    Preparing(Appointment, NodeId),
    /// The server is shut down; its standbys get all of its WAL.
    Stopping(Appointment, NodeId),
    /// Writes are refused, as the server was told, and leadership goes to this node when the lease is over: the server may
    /// not hear it.
    Yielding(NodeId),
    /// Leadership was offered to this node.
    Offered(NodeId),
}

/// A leader's work in one term.
#[derive(Debug)]
pub struct Lead {
    pub term: u64,
    pub since: Millis,
    pub phase: Phase,
    pub phase_since: Millis,
    pub gate: Gate,
    /// Whom leadership was offered to because of its longer WAL, and when.
    offered: Option<(NodeId, Millis)>,
    next_ask: Millis,
    next_beat: Millis,
    /// The newest heartbeat that a majority answered, by the time it was sent.
    pub confirmed_at: Option<Millis>,
    renewed_at: Millis,
    /// `synchronous_standby_names` as it is known to be in force.
    pub in_force: SyncSet,
    /// As many standbys as the rule in force asks for have everything from before this epoch, so that pledges which
    /// meet that rule find it: the epoch is open, or a barrier was confirmed.
    covered: bool,
    /// A rule on its way, and the WAL position that its standbys must confirm.
    changing_sync: Option<(SyncSet, Option<Lsn>)>,
    /// Some walsenders may still follow another rule: an earlier primary's, or one whose setting failed half-way.
    sync_unsure: bool,
    retry_sync_at: Millis,
    pub checkpointed: bool,
    retry_checkpoint_at: Millis,
    slots: Option<BTreeSet<NodeId>>,
    retry_slots_at: Millis,
    recording: bool,
    retry_record_at: Millis,
    retry_open_at: Millis,
    pub down_unwell: BTreeSet<NodeId>,
    /// Nodes that an earlier leader marked down, and since when each has been well without a break.
    inherited_marks: BTreeMap<NodeId, Option<Millis>>,
    unseen_since: BTreeMap<NodeId, Millis>,
    quorum_progress: stuck::QuorumProgress,
    /// The stores that members speak with.
    pub identities: BTreeMap<NodeId, u64>,
    retry_identify_at: Millis,
}

impl Lead {
    fn new(term: u64, now: Millis) -> Lead {
        Lead {
            term,
            since: now,
            phase: Phase::Gate,
            phase_since: now,
            gate: Gate::default(),
            offered: None,
            next_ask: now,
            next_beat: now,
            confirmed_at: None,
            renewed_at: 0,
            in_force: SyncSet::default(),
            covered: false,
            changing_sync: None,
            sync_unsure: true,
            retry_sync_at: 0,
            checkpointed: false,
            retry_checkpoint_at: 0,
            slots: None,
            retry_slots_at: 0,
            recording: false,
            retry_record_at: 0,
            retry_open_at: 0,
            down_unwell: BTreeSet::new(),
            inherited_marks: BTreeMap::new(),
            unseen_since: BTreeMap::new(),
            quorum_progress: stuck::QuorumProgress::default(),
            identities: BTreeMap::new(),
            retry_identify_at: 0,
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_) | Phase::Preparing(..))
    }

    /// Leads, and has not got its primary open yet.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self.phase, Phase::Gate | Phase::Appointing | Phase::Promoting(_) | Phase::Opening(..))
    }

    pub fn is_handing_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Preparing(..) | Phase::Stopping(..) | Phase::Yielding(_) | Phase::Offered(_)
        )
    }

    /// The server's process is in the leader's hands now.
    pub fn drives_server(&self) -> bool {
        matches!(
            self.phase,
            Phase::Promoting(_)
                | Phase::Opening(..)
                | Phase::Open(_)
                | Phase::Preparing(..)
                | Phase::Stopping(..)
                | Phase::Yielding(_)
                | Phase::Offered(_)
        )
    }

    fn enter(&mut self, phase: Phase, now: Millis) {
        self.phase = phase;
        self.phase_since = now;
    }
}

impl Node {
    /// Takes up and lays down the leader's work as Raft says.
    pub(crate) fn follow_role(&mut self) {
        let term = self.consensus.term();
        let leads = self.consensus.is_leader();
        if self.lead.as_ref().is_some_and(|lead| !leads || lead.term != term) {
            self.lead = None;
            self.trace("deposed", format!("this node no longer leads (term {term})"));
            if self.local.obs.is_primary() || self.local.promoted {
                self.fence("this node no longer leads".to_owned());
            }
        }
        if self.lead.is_none() && leads && self.consensus.is_settled_leader() && self.outcast.is_none() {
            self.trace("elected", format!("this node leads term {term}"));
            // What others said to an earlier leader may be long past.
            self.statuses.clear();
            let mut lead = Lead::new(term, self.now);
            let marked = self.cluster.members.values().filter(|m| m.down);
            lead.inherited_marks = marked.map(|m| (m.id, None)).collect();
            self.lead = Some(lead);
        }
    }

    pub(crate) fn drive_lead(&mut self) {
        let Some(lead) = &self.lead else { return };
        let stuck = self.now >= lead.phase_since + STUCK_MS;
        match lead.phase.clone() {
            Phase::Gate => self.drive_gate(),
            Phase::Appointing => {
                let appointment = self.cluster.appointment.clone().filter(|a| a.epoch == lead.term);
                match appointment {
                    Some(appointment) => self.promote(appointment),
                    None if stuck => self.abdicate("the appointment was not committed in time"),
                    None => {}
                }
            }
            Phase::Promoting(_) if stuck => self.abdicate("the server was not promoted in time"),
            Phase::Promoting(_) => {
                self.check_primary_lives();
                self.check_write_path();
            }
            Phase::Opening(appointment, switch_lsn) => self.drive_opening(appointment, switch_lsn),
            Phase::Open(_) => self.drive_open(),
            Phase::Preparing(..) | Phase::Stopping(..) | Phase::Yielding(_) | Phase::Offered(_) => {
                self.drive_hand_over();
            }
        }
        self.send_beats();
    }

    fn enter(&mut self, phase: Phase) {
        let now = self.now;
        if let Some(lead) = &mut self.lead {
            lead.enter(phase, now);
        }
    }

    pub(crate) fn side_operation_done(&mut self, op: PgOp, result: Result<PgOutcome, PgFailure>) {
        let now = self.now;
        if let Err(failure) = &result
            && failure.kind != PgFailureKind::Cancelled
        {
            self.trace("postgres", format!("{} failed: {failure}", op.name()));
        }
        match &op {
            PgOp::Configure(parameters) => match &result {
                Ok(outcome) => {
                    self.local.configured = Some(parameters.clone());
                    if let PgOutcome::Configured { restart_required } = outcome {
                        self.local.obs.pending_restart.clone_from(restart_required);
                    }
                }
                Err(_) => self.local.configure_retry_at = now + RETRY_MS,
            },
            PgOp::CheckParameters(_) => return self.parameters_checked(result),
            _ => {}
        }
        let Some(lead) = &mut self.lead else { return };
        match (op, result) {
            (PgOp::OpenEpoch { epoch, sync, .. }, Ok(_)) => {
                if let Phase::Opening(appointment, switch_lsn) = lead.phase.clone()
                    && appointment.epoch == epoch
                    && sync == lead.in_force
                {
                    self.opened(appointment, switch_lsn);
                }
            }
            (PgOp::OpenEpoch { .. }, Err(_)) => lead.retry_open_at = now + 200,
            (PgOp::SetSync(sync), Ok(PgOutcome::SyncBarrier(barrier)))
                if lead.changing_sync.as_ref().is_some_and(|(s, _)| *s == sync) =>
            {
                lead.changing_sync = Some((sync, Some(barrier)));
            }
            (PgOp::SetSync(_), _) => {
                // It failed, or an earlier term asked for it; it may have come into force all the same.
                lead.sync_unsure = true;
                lead.changing_sync = None;
                lead.retry_sync_at = now + 500;
            }
            (PgOp::Checkpoint, result) => {
                lead.checkpointed |= result.is_ok();
                lead.retry_checkpoint_at = now + 1000;
                if let Phase::Preparing(appointment, to) = lead.phase.clone() {
                    self.stop_for_hand_over(appointment, to);
                }
            }
            (PgOp::Slots(_), Err(_)) => {
                lead.slots = None;
                lead.retry_slots_at = now + RETRY_MS;
            }
            (PgOp::RecordEntries(_), result) => {
                lead.recording = false;
                if result.is_err() {
                    lead.retry_record_at = now + RETRY_MS;
                }
                if let Ok(PgOutcome::Recorded { index }) = result {
                    self.local.obs.recorded_index = self.local.obs.recorded_index.max(index);
                }
            }
            _ => {}
        }
    }

    /// Passes the newest confirmed heartbeat on to the server.
    fn renew_lease(&mut self, first: bool) {
        let ms = self.lease_ms();
        let Some(lead) = &mut self.lead else { return };
        let (Phase::Open(appointment) | Phase::Preparing(appointment, _)) = &lead.phase else { return };
        let Some(sent_at) = lead.confirmed_at else { return };
        if first || sent_at > lead.renewed_at {
            lead.renewed_at = sent_at;
            let epoch = appointment.epoch;
            self.out.actions.push(Action::RenewLease { epoch, sent_at, ms });
        }
    }

    fn drive_open(&mut self) {
        self.check_primary_lives();
        if self.leaving.is_some()
            && let Some(to) = self.successor()
        {
            self.begin_hand_over(to);
            return;
        }
        self.check_write_path();
        self.renew_lease(false);
        if !self.lead.as_ref().is_some_and(Lead::is_open) {
            return;
        }
        self.keep_checkpoint();
        self.keep_durability();
        self.keep_slots();
        self.record_entries();
        self.identify_nodes();
        self.upgrade_listeners();
        self.raise_recovered_nodes();
        self.remove_unseen_nodes();
    }

    pub(crate) fn send_beats(&mut self) {
        let now = self.now;
        // Together with Raft's, so that both are one packet, and wake the other node once.
        let heartbeat = self.consensus.next_heartbeat();
        let interval = self.cluster.settings.heartbeat_interval.ms();
        let Some(lead) = &mut self.lead else { return };
        if now < lead.next_beat {
            return;
        }
        lead.next_beat = if heartbeat > now { heartbeat } else { now + interval };
        let beat = self.beat();
        for node in self.cluster.members.keys().copied().filter(|&n| n != self.id).collect::<Vec<_>>() {
            self.send(node, PeerMessage::Beat(beat.clone()));
        }
        self.hear(beat);
    }
}
