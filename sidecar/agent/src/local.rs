//! This node's own server: what it should be doing, given what is committed and what was promised.

mod interrupt;
mod repair;
mod start_up;

use crate::message::WalEnd;
use crate::node::Node;
use crate::postgres::{
    PgFailure, PgFailureKind, PgObservation, PgOp, PgOutcome, PgProcess, StopMode, Upstream,
};
use crate::types::Millis;
use repair::StreamWatch;
use start_up::StartUp;
use std::collections::BTreeMap;

/// A primary without leadership is stopped when it was not appointed again for this long after its lease was revoked.
/// Long enough for a leader that stumbled to be elected again, short enough for its clients to move on.
const FENCE_GRACE_MS: Millis = 500;
/// So many attempts to rewind are made before everything is copied.
const REWINDS: u32 = 3;
const BACKOFF_MIN_MS: Millis = 250;
const BACKOFF_MAX_MS: Millis = 8000;
/// A repair copies much before it fails.
const REPAIR_BACKOFF_MAX_MS: Millis = 30_000;

/// How a server whose history left the cluster's is brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    Rewind,
    Clone,
}

/// What this node knows of its server and is doing with it.
#[derive(Debug, Default)]
pub struct Local {
    pub obs: PgObservation,
    pub observed: bool,
    pub observed_at: Millis,
    /// The process operation that runs.
    pub op: Option<(u64, PgOp)>,
    pub side_ops: BTreeMap<u64, PgOp>,
    /// The pledge that is complete: its term, and where the WAL ends.
    pub cut: Option<(u64, WalEnd)>,
    /// The upstream that the server was last told.
    pub following: Option<Upstream>,
    pub start_up: StartUp,
    /// The server is a primary because this process promoted it or found it promoted.
    pub promoted: bool,
    /// The process that was promoted, and the one that was stopped: what an outdated look says of them is known.
    pub primary_pid: Option<u32>,
    pub stopped_pid: Option<u32>,
    /// An operation may have started the server since it was last known to be down: only a new look can tell.
    pub maybe_started: bool,
    /// Since when writes are refused.
    pub fenced_at: Option<Millis>,
    pub repair: Option<Repair>,
    /// PostgreSQL said that this data cannot be used any more: there is nothing in it to pledge.
    pub damaged: bool,
    pub retry_at: Millis,
    /// A repair that failed is tried again then; a pledge does not wait for that.
    pub repair_at: Millis,
    pub failures: u32,
    pub not_streaming_since: Option<Millis>,
    stream: StreamWatch,
    pub configured: Option<BTreeMap<String, String>>,
    pub configure_retry_at: Millis,
}

/// Whether a server can follow a primary as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Fits,
    Diverged,
    /// Not known before the server has replayed all it has, or before the primary is promoted.
    Unknown,
}

impl Node {
    pub(crate) fn observe(&mut self, obs: PgObservation) {
        if self.is_outdated(&obs) {
            return;
        }
        let before = std::mem::replace(&mut self.local.obs, obs);
        self.local.observed = true;
        self.local.observed_at = self.now;
        let obs = &self.local.obs;
        if obs.is_primary() {
            self.local.promoted = true;
            self.local.primary_pid = Some(obs.pid);
        } else if obs.in_recovery || !obs.is_running() {
            self.local.promoted = false;
        }
        if matches!(self.local.obs.process, PgProcess::Stopped | PgProcess::Absent) {
            self.local.following = None;
        }
        self.local.start_up.look(self.now, &self.local.obs, self.local.op.is_none());
        let obs = &self.local.obs;
        let lost_stream = before.streaming && !obs.streaming && obs.is_running() && obs.in_recovery;
        if lost_stream && self.local.op.is_none() {
            self.stream_lost();
        }
    }

    /// A look at the server takes a while, and an operation may have ended meanwhile. A process that was stopped does
    /// not come back, and one that was promoted does not return to recovery.
    fn is_outdated(&self, obs: &PgObservation) -> bool {
        let same = |pid: Option<u32>| obs.is_running() && obs.pid != 0 && pid == Some(obs.pid);
        same(self.local.stopped_pid) || (same(self.local.primary_pid) && obs.in_recovery)
    }

    /// The stream of WAL broke. Where the leader's process is not there either, that is its death. Where it seems to be,
    /// it knows of its server's death itself and hands over; one that says nothing for two heartbeats does not.
    fn stream_lost(&mut self) {
        let Some(appointment) = &self.cluster.appointment else { return };
        let primary = appointment.node;
        if self.consensus.leader() != Some(primary) {
            return;
        }
        if self.linked(primary) {
            let wait = 2 * self.cluster.settings.heartbeat_interval.ms();
            self.suspect(primary, wait, "its stream of WAL broke");
        } else {
            self.suspect(primary, 0, "its stream of WAL broke and its sidecar is not connected");
        }
    }

    pub(crate) fn operation_done(&mut self, id: u64, result: Result<PgOutcome, PgFailure>) {
        if let Some(op) = self.local.side_ops.remove(&id) {
            self.side_operation_done(op, result);
            return;
        }
        let Some((_, op)) = self.local.op.take_if(|(running, _)| *running == id) else { return };
        match &result {
            Ok(_) => {
                self.local.failures = 0;
                (self.local.retry_at, self.local.repair_at) = (self.now, self.now);
            }
            Err(failure) => {
                self.trace("postgres", format!("operation {id}: {} failed: {failure}", op.name()));
                // Asked for again and again while a leader waits for it; what comes after it is another thing.
                self.local.failures += u32::from(op != PgOp::CutReception);
                let wait = BACKOFF_MIN_MS << self.local.failures.min(8);
                match op {
                    PgOp::Rewind(_) | PgOp::Clone(_) => {
                        self.local.repair_at = self.now + wait.min(REPAIR_BACKOFF_MAX_MS);
                        self.local.stream.checked_at = None;
                    }
                    _ => self.local.retry_at = self.now + wait.min(BACKOFF_MAX_MS),
                }
            }
        }
        self.expect_after(&op, &result);
        match (op, result) {
            (PgOp::CutReception, Ok(PgOutcome::Cut { timeline, lsn })) => {
                self.local.following = None;
                self.local.cut = Some((self.pledged, self.wal_end(timeline, lsn)));
                self.answer_pledge();
            }
            (PgOp::CutReception, Err(_)) => self.local.retry_at = self.now + 20,
            (PgOp::Follow(upstream), Ok(_)) => self.now_following(upstream),
            (PgOp::Feed(upstream), Ok(_)) => self.local.start_up.given(upstream, self.now),
            (PgOp::Rewind(upstream) | PgOp::Clone(upstream), Ok(_)) => {
                self.local.repair = None;
                self.local.damaged = false;
                self.local.configured = None;
                self.now_following(upstream);
            }
            // A source that could not be reached may be there in a moment; a copy is the last resort.
            (PgOp::Rewind(_), Err(failure))
                if failure.kind == PgFailureKind::NoData
                    || (failure.kind != PgFailureKind::Cancelled
                        && self.local.failures >= REWINDS
                        && self.writes.stuck.is_none()) =>
            {
                self.local.repair = Some(Repair::Clone);
            }
            (PgOp::Start, Err(failure)) if failure.kind == PgFailureKind::NoData => {
                self.local.repair = Some(Repair::Clone);
                self.local.damaged = true;
            }
            (PgOp::Promote { .. }, result) => self.promotion_done(result),
            (PgOp::Stop(_), result) => {
                self.local.promoted = false;
                let there = matches!(self.local.obs.process, PgProcess::Running | PgProcess::Starting);
                if result.is_ok() && there {
                    self.local.stopped_pid = Some(self.local.obs.pid);
                    self.local.obs.process = PgProcess::Stopped;
                    self.local.obs.settled = false;
                }
                self.server_stopped(result.is_ok());
            }
            _ => {}
        }
    }

    /// The last observation is older than the end of an operation. Until the next one comes, what the operation did is
    /// taken for granted and what it may have changed is not relied on.
    fn expect_after(&mut self, op: &PgOp, result: &Result<PgOutcome, PgFailure>) {
        let obs = &mut self.local.obs;
        match (op, result) {
            (PgOp::Stop(_), Ok(_)) => (obs.receiver, obs.streaming) = (false, false),
            (PgOp::Start | PgOp::Follow(_) | PgOp::Rewind(_) | PgOp::Clone(_), Ok(_))
                if !obs.is_running() =>
            {
                obs.process = PgProcess::Starting;
            }
            (PgOp::CutReception, Ok(PgOutcome::Cut { timeline, lsn })) if obs.in_recovery => {
                (obs.receiver, obs.streaming, obs.settled) = (false, false, false);
                (obs.timeline, obs.flush_lsn) = (*timeline, *lsn);
            }
            _ => {}
        }
    }

    fn now_following(&mut self, upstream: Upstream) {
        self.local.following = Some(upstream);
        self.local.not_streaming_since = Some(self.now);
        self.local.stream.since = None;
        self.local.fenced_at = None;
    }

    /// Brings the server a step closer to what it should be.
    pub(crate) fn drive_local(&mut self) {
        let data_member = self.cluster.member(self.id).is_some_and(|m| m.holds_data());
        if !self.local.observed {
            return;
        }
        if self.outcast.is_some() || self.leaving.is_some() {
            self.stop_for_good();
            return;
        }
        if !data_member {
            return;
        }
        self.configure_server();
        let must_cut = self.must_be_cut();
        if !must_cut {
            self.pledge_asked = None;
        }
        if let Some((_, op)) = &self.local.op {
            if let Some(next) = self.instead_of(op, must_cut) {
                self.begin(next);
            }
            return;
        }
        if self.lead.as_ref().is_some_and(|l| l.drives_server()) {
            return;
        }
        match self.local.obs.process {
            PgProcess::Starting => self.drive_starting(must_cut),
            PgProcess::Absent | PgProcess::Stopped => self.drive_stopped(must_cut),
            PgProcess::Running if !self.local.obs.in_recovery => self.drive_primary(),
            PgProcess::Running => self.drive_standby(must_cut),
        }
    }

    fn stop_for_good(&mut self) {
        let handing_over = self.lead.as_ref().is_some_and(|l| l.is_handing_over());
        let leads = self.lead.as_ref().is_some_and(|l| l.is_open()) && self.successor().is_some();
        if handing_over || (leads && self.outcast.is_none()) {
            return;
        }
        let stopping = matches!(&self.local.op, Some((_, PgOp::Stop(_))));
        let runs = matches!(self.local.obs.process, PgProcess::Running | PgProcess::Starting);
        if runs && !stopping && self.now >= self.local.retry_at {
            self.fence("this node is stopping".to_owned());
            self.start_operation(PgOp::Stop(StopMode::Fast));
        }
    }

    /// A pledge stands that no appointment has answered yet, or this node itself is appointed: nothing may be
    /// received.
    fn must_be_cut(&self) -> bool {
        match &self.cluster.appointment {
            Some(a) => self.pledged > a.epoch || a.node == self.id,
            None => self.pledged > 0,
        }
    }

    fn drive_stopped(&mut self, must_cut: bool) {
        // A server that was shut down cleanly has told where its WAL ends; no need to start it for a pledge.
        let at_rest = self.local.obs.settled && !self.local.maybe_started;
        if must_cut && self.local.obs.process == PgProcess::Stopped && at_rest {
            self.complete_pledge_at_rest();
        }
        if self.now < self.local.retry_at {
            return;
        }
        if !must_cut && self.local.obs.rewound {
            if let Some(next) = self.after_rewind().filter(|_| self.now >= self.local.repair_at) {
                self.begin(next);
            }
            return;
        }
        if self.local.obs.process == PgProcess::Absent && self.local.repair.is_none() {
            self.local.repair = Some(Repair::Clone);
        }
        // Never while a pledge stands: a repair ends with streaming from the older primary. Where it cannot begin, the
        // server runs as it is, because its pledge may be what the cluster waits for.
        let repairing = !must_cut && self.local.repair.is_some_and(|repair| self.repair(repair));
        let later = !must_cut && self.local.repair.is_some() && self.now < self.local.repair_at;
        if repairing || later || self.local.obs.process == PgProcess::Absent {
            return;
        }
        match self.upstream() {
            Some((appointment, upstream)) if !must_cut && self.fit(&appointment) == Fit::Fits => {
                self.start_operation(PgOp::Follow(upstream));
            }
            _ => {
                self.start_operation(PgOp::Start);
            }
        }
    }

    fn complete_pledge_at_rest(&mut self) {
        if self.local.cut.is_none_or(|(term, _)| term != self.pledged) {
            let end = self.wal_end(self.local.obs.timeline, self.local.obs.flush_lsn);
            self.local.cut = Some((self.pledged, end));
            self.answer_pledge();
        }
    }

    fn drive_primary(&mut self) {
        if !self.is_newest_primary() {
            self.fence("another node was appointed".to_owned());
            self.start_operation(PgOp::Stop(StopMode::Immediate));
            return;
        }
        if self.lead.is_none() {
            self.fence("this node no longer leads".to_owned());
        }
        // While this node leads it gathers pledges to be appointed again; nobody else can be meanwhile.
        let waited = self.local.fenced_at.is_some_and(|at| self.now >= at + FENCE_GRACE_MS);
        if self.lead.is_none() && waited && self.now >= self.local.retry_at {
            self.trace(
                "demote",
                "the server is stopped: this node was not appointed again in time".to_owned(),
            );
            self.start_operation(PgOp::Stop(StopMode::Immediate));
        }
    }

    fn drive_standby(&mut self, must_cut: bool) {
        if self.now < self.local.retry_at {
            return;
        }
        if must_cut {
            let done = self.local.cut.is_some_and(|(term, _)| term == self.pledged);
            if !done || self.local.obs.receiver && self.local.following.is_some() {
                self.start_operation(PgOp::CutReception);
            }
            return;
        }
        let Some((appointment, upstream)) = self.upstream() else { return };
        if self.local.following.as_ref() == Some(&upstream) {
            self.watch_stream();
            return;
        }
        if self.local.repair == Some(Repair::Clone) {
            self.repair(Repair::Clone);
            return;
        }
        match self.fit(&appointment) {
            Fit::Fits => {
                self.local.repair = None;
                self.start_operation(PgOp::Follow(upstream));
            }
            Fit::Diverged => {
                self.repair(Repair::Rewind);
            }
            // The end of the WAL is only known for sure when nothing is being received.
            Fit::Unknown if self.local.obs.receiver => {
                self.start_operation(PgOp::CutReception);
            }
            Fit::Unknown => {}
        }
    }

    /// Makes the cluster's PostgreSQL parameters those of this server.
    fn configure_server(&mut self) {
        let running = self.local.side_ops.values().any(|op| matches!(op, PgOp::Configure(_)));
        let wanted = &self.cluster.db_config;
        if running
            // It would not listen.
            || self.local.obs.process == PgProcess::Starting
            || self.local.configured.as_ref() == Some(wanted)
            || self.now < self.local.configure_retry_at
        {
            return;
        }
        let wanted = wanted.clone();
        self.start_operation(PgOp::Configure(wanted));
    }
}
