//! What a leader does: gather pledges, be appointed, promote, open, keep the lease, keep durability in order, and
//! hand over.

mod hand_over;
mod keep;
mod stuck;

use crate::entry::{Appointment, Entry};
use crate::gate::{Gate, Verdict};
use crate::message::PeerMessage;
use crate::node::{Action, Node};
use crate::postgres::{PgFailure, PgFailureKind, PgOp, PgOutcome, SyncSet};
use crate::quorum::Durability;
use crate::rules::{Rule, holds};
use crate::types::{Lsn, Millis, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// How long pledges beyond those needed are waited for where few are needed.
const WEAK_WAIT_MS: Millis = 300;
/// How long a leader waits for its own server's position before it hands leadership to one that has pledged.
const OWN_PLEDGE_MS: Millis = 500;
/// An appointment that is not committed, or a server that is not promoted, by then: somebody else should try.
const STUCK_MS: Millis = 15_000;
/// A planned change of leader is called off when it takes longer.
const HAND_OVER_MS: Millis = 10_000;
/// An epoch that is not open by then misses standbys.
const SLOW_OPENING_MS: Millis = 300;
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
        matches!(self.phase, Phase::Preparing(..) | Phase::Stopping(..) | Phase::Offered(_))
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
            Phase::Promoting(_) => self.check_primary_lives(),
            Phase::Opening(appointment, switch_lsn) => self.drive_opening(appointment, switch_lsn),
            Phase::Open(_) => self.drive_open(),
            Phase::Preparing(..) | Phase::Stopping(..) | Phase::Offered(_) => self.drive_hand_over(),
        }
        self.send_beats();
    }

    fn enter(&mut self, phase: Phase) {
        let now = self.now;
        if let Some(lead) = &mut self.lead {
            lead.enter(phase, now);
        }
    }

    fn drive_gate(&mut self) {
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
        let old_lease_over = self.now >= since + self.cluster.settings.node_timeout.ms()
            || self.cluster.appointment.as_ref().is_none_or(|a| a.node == self.id || lead.gate.has(a.node));
        patient && old_lease_over
    }

    fn promote(&mut self, appointment: Appointment) {
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

    fn drive_opening(&mut self, appointment: Appointment, switch_lsn: Lsn) {
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

    fn opened(&mut self, appointment: Appointment, switch_lsn: Lsn) {
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

    /// Passes the newest confirmed heartbeat on to the server.
    fn renew_lease(&mut self, first: bool) {
        let ms = self.cluster.settings.lease_ms();
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
        let interval = self.cluster.settings.heartbeat_interval.ms();
        let Some(lead) = &mut self.lead else { return };
        if now < lead.next_beat {
            return;
        }
        lead.next_beat = now + interval;
        let beat = self.beat();
        for node in self.cluster.members.keys().copied().filter(|&n| n != self.id).collect::<Vec<_>>() {
            self.send(node, PeerMessage::Beat(beat.clone()));
        }
        self.hear(beat);
    }
}
