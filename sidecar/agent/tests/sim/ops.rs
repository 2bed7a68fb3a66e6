//! Operations on a fake server: they take time, have their effect somewhere on the way, replace each other, fail.

use crate::machine::RunningOp;
use crate::postgres::What;
use crate::world::{Event, Time, World};
use pgquorum_agent::postgres::{PgFailure, PgFailureKind, PgOp, PgOutcome, PgProcess, StopMode, SyncSet};
use pgquorum_agent::types::{NodeId, Timeline};
use rand::Rng;

pub type Result = std::result::Result<PgOutcome, PgFailure>;

/// What one stage of an operation leads to.
pub enum Stage {
    Ends(Result),
    /// Look again after this time, in the next stage.
    Next(Time),
    /// Look again in the same stage.
    Wait(Time),
}

pub fn failure(kind: PgFailureKind, message: &str) -> Stage {
    Stage::Ends(Err(PgFailure { kind, message: message.to_owned() }))
}

pub fn done() -> Stage {
    Stage::Ends(Ok(PgOutcome::Done))
}

impl World {
    pub fn submit(&mut self, node: NodeId, id: u64, op: PgOp) {
        let token = self.token();
        let process = op.is_process_operation();
        self.note(node, format!("operation {id}: {op:?}"));
        let running = RunningOp { id, op, token, stage: 0, since: self.now };
        let m = self.machines.get_mut(&node).expect("machines stay");
        if process {
            let life = m.life;
            let old = m.process_op.replace(running);
            if m.server.rewinding && m.sealed.is_none() {
                m.sealed = old;
            } else if let Some(old) = old {
                let kind = PgFailureKind::Cancelled;
                let result = Err(PgFailure { kind, message: "replaced".to_owned() });
                self.after(1, Event::OperationEnds { node, life, id: old.id, result });
            }
        } else {
            // At most one of each kind: a new one replaces it.
            let (life, name) = (m.life, running.op.name());
            if let Some(old) = m.side_ops.values().find(|o| o.op.name() == name).map(|o| o.id) {
                m.side_ops.remove(&old);
                let kind = PgFailureKind::Cancelled;
                let result = Err(PgFailure { kind, message: "replaced".to_owned() });
                self.after(1, Event::OperationEnds { node, life, id: old, result });
            }
            let m = self.machines.get_mut(&node).expect("machines stay");
            m.side_ops.insert(id, running);
        }
        let slow = if self.slow_server == Some(node) { 120 } else { 0 };
        let delay = self.rng.random_range(0..8) + slow;
        self.after(delay, Event::Operation { node, token });
    }

    /// The sidecar died: what it had begun may still happen, or not.
    pub fn abandon_operations(&mut self, node: NodeId) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        let op = m.process_op.take();
        m.side_ops.clear();
        m.sealed = None;
        if std::mem::take(&mut m.server.rewinding) {
            m.server.process = PgProcess::Absent;
        }
        if let Some(mut op) = op
            && self.rng.random_bool(0.5)
        {
            let _ = self.process_stage(node, &mut op);
        }
    }

    pub fn operation(&mut self, node: NodeId, token: u64) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        let sealed = m.sealed.as_ref().is_some_and(|o| o.token == token);
        let process = sealed || m.process_op.as_ref().is_some_and(|o| o.token == token);
        if process && !sealed && m.sealed.is_some() {
            return self.after(5, Event::Operation { node, token });
        }
        let found = if sealed {
            m.sealed.clone()
        } else if process {
            m.process_op.clone()
        } else {
            m.side_ops.values().find(|o| o.token == token).cloned()
        };
        let Some(mut op) = found else { return };
        // What is under way goes on in other processes than the sidecar's.
        if m.frozen && op.stage == 0 {
            return self.after(10, Event::Operation { node, token });
        }
        if m.hangs() {
            return self.after(20, Event::Operation { node, token });
        }
        // What has to write fails, if it has not begun.
        let full = m.disk_fault.is_some() && op.stage == 0 && !matches!(op.op, PgOp::Start | PgOp::Stop(_));
        let fails = self.op_failures > 0.0 && self.rng.random_bool(self.op_failures);
        let before = fails && self.rng.random_bool(0.5);
        let mut stage = match (before, process) {
            _ if full => failure(PgFailureKind::Other, "no space"),
            (true, _) => failure(PgFailureKind::Other, "it failed, as the dice said"),
            (false, true) => self.process_stage(node, &mut op),
            (false, false) => self.side_stage(node, &mut op),
        };
        if fails && matches!(stage, Stage::Ends(Ok(_))) {
            stage = failure(PgFailureKind::TimedOut, "it worked, and the answer got lost");
        }
        let m = self.machines.get_mut(&node).expect("machines stay");
        match stage {
            Stage::Ends(result) => {
                if sealed {
                    m.sealed = None;
                } else if process {
                    m.process_op = None;
                } else {
                    m.side_ops.remove(&op.id);
                }
                let life = m.life;
                let delay = self.rng.random_range(1..5);
                self.note(node, format!("operation {} ends: {result:?}", op.id));
                // The look at the server that follows the end may overtake its report, or come later.
                self.after(0, Event::Observe { node, again: false });
                self.after(delay, Event::OperationEnds { node, life, id: op.id, result });
            }
            Stage::Next(delay) | Stage::Wait(delay) => {
                if matches!(stage, Stage::Next(_)) {
                    op.stage += 1;
                }
                if sealed {
                    m.sealed = Some(op);
                } else if process {
                    m.process_op = Some(op);
                } else {
                    m.side_ops.insert(op.id, op);
                }
                self.after(delay, Event::Operation { node, token });
            }
        }
    }

    fn process_stage(&mut self, node: NodeId, op: &mut RunningOp) -> Stage {
        if let Some(stage) = self.held_up(node, op) {
            return stage;
        }
        match op.op.clone() {
            PgOp::Start => self.start_server(node),
            PgOp::Stop(mode) => self.stop_server(node, op, mode),
            PgOp::CutReception => self.cut(node, op.stage),
            PgOp::Follow(upstream) => {
                let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                if s.is_primary() {
                    return failure(PgFailureKind::Other, "it is a primary");
                }
                if s.process == PgProcess::Starting && s.whole_at.is_some() && !s.lost_wal {
                    (s.conninfo, s.follows) = (Some(upstream.node), upstream.epoch);
                    self.after(2, Event::Upkeep { again: false });
                    return done();
                }
                if !s.is_running() {
                    let started = self.start_server(node);
                    return if matches!(started, Stage::Ends(Ok(_))) { Stage::Next(1) } else { started };
                }
                let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                s.follows = upstream.epoch;
                s.read_upstream(Some(upstream.node), s.unheard);
                self.after(2, Event::Upkeep { again: false });
                done()
            }
            PgOp::Feed(upstream) => {
                let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                if s.process != PgProcess::Starting {
                    return failure(PgFailureKind::Other, "it is not starting");
                }
                (s.conninfo, s.unheard, s.follows) = (Some(upstream.node), true, upstream.epoch);
                if self.fed_servers_end {
                    s.halt(false);
                }
                self.after(2, Event::Upkeep { again: false });
                done()
            }
            PgOp::Promote { timeline, sync } => {
                let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                if !s.is_running() {
                    return failure(PgFailureKind::NotRunning, "it does not run");
                }
                if !s.recovery && s.timeline != timeline {
                    return failure(PgFailureKind::WrongTimeline, "it is a primary on another timeline");
                }
                if s.recovery && s.timeline >= timeline {
                    return failure(PgFailureKind::WrongTimeline, "the timeline is in use on this server");
                }
                if s.recovery && op.stage == 0 {
                    return Stage::Next(self.rng.random_range(10..120));
                }
                if s.recovery {
                    self.leave_recovery(node, timeline, sync);
                } else {
                    (s.sync, s.reload_at) = (sync, s.wal.len());
                    self.check_rule(node);
                }
                let switch_lsn =
                    self.machines[&node].server.history.last().map_or(Default::default(), |h| h.1);
                Stage::Ends(Ok(PgOutcome::Promoted { timeline, switch_lsn }))
            }
            PgOp::Rewind(upstream) => self.rewind(node, (upstream.node, upstream.epoch), op),
            PgOp::Clone(upstream) => self.copy(node, (upstream.node, upstream.epoch), op.stage),
            _ => failure(PgFailureKind::Other, "not a process operation"),
        }
    }

    /// Makes a standby the primary.
    pub fn leave_recovery(&mut self, node: NodeId, timeline: Timeline, sync: SyncSet) {
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        (s.sync, s.reload_at) = (sync, s.wal.len());
        let end = s.end();
        s.history.push((s.timeline, end));
        (s.timeline, s.primary_on, s.recovery) = (timeline, Some(timeline), false);
        (s.receiver, s.conninfo, s.unheard) = (None, None, false);
        let run = s.run;
        self.check_promoted(node, run, timeline);
        self.append(node, What::Other);
        self.check_rule(node);
    }

    fn start_server(&mut self, node: NodeId) -> Stage {
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        match s.process {
            PgProcess::Absent => failure(PgFailureKind::NoData, "there is no data"),
            PgProcess::Stopped => {
                s.process = PgProcess::Starting;
                s.conninfo = None;
                s.held = s.primary_on.is_some();
                s.unheard |= s.held;
                s.run += 1;
                let run = s.run;
                let delay = self.rng.random_range(30..300);
                self.script(delay, move |w| w.come_up(node, run));
                Stage::Wait(10)
            }
            PgProcess::Starting => Stage::Wait(10),
            PgProcess::Running => done(),
        }
    }

    fn come_up(&mut self, node: NodeId, run: u64) {
        let m = self.machines.get_mut(&node).expect("machines stay");
        if m.standstill().is_some() {
            return self.script(20, move |w| w.come_up(node, run));
        }
        let s = &mut m.server;
        if s.run == run && s.process == PgProcess::Starting && s.is_whole() {
            s.whole_at = None;
            (s.process, s.recovery, s.clean) = (PgProcess::Running, true, false);
            self.after(1, Event::Observe { node, again: false });
        }
    }

    fn stop_server(&mut self, node: NodeId, op: &mut RunningOp, mode: StopMode) -> Stage {
        let now = self.now;
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        if matches!(s.process, PgProcess::Stopped | PgProcess::Absent) {
            return done();
        }
        if mode == StopMode::Fast && s.is_running() && op.stage == 0 {
            s.waiters.clear();
            s.lease.until = 0;
            if s.is_primary() {
                self.append(node, What::Other);
            }
            return Stage::Next(5);
        }
        let late = now >= op.since + 1500;
        let complete = s.senders.values().all(|x| x.flush >= s.end());
        if mode == StopMode::Fast && s.is_primary() && !complete && !late {
            return Stage::Wait(5);
        }
        let clean = mode == StopMode::Fast && s.is_running();
        s.halt(clean);
        self.after(3, Event::Upkeep { again: false });
        done()
    }

    fn cut(&mut self, node: NodeId, stage: u32) -> Stage {
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        if s.process == PgProcess::Starting {
            s.conninfo = None;
            return Stage::Wait(10);
        }
        if !s.is_running() {
            return failure(PgFailureKind::NotRunning, "it does not run");
        }
        if s.is_primary() {
            return failure(PgFailureKind::Other, "it is a primary");
        }
        if stage == 0 {
            // The receiver ends a moment after it was told, and receives until then.
            return Stage::Next(self.rng.random_range(1..15));
        }
        s.conninfo = None;
        s.receiver = None;
        let (timeline, lsn) = (s.timeline, s.end());
        self.after(3, Event::Upkeep { again: false });
        Stage::Ends(Ok(PgOutcome::Cut { timeline, lsn }))
    }

    fn side_stage(&mut self, node: NodeId, op: &mut RunningOp) -> Stage {
        let now = self.now;
        let delay = self.rng.random_range(1..60);
        if let Some(stage) = self.held_up(node, op) {
            return stage;
        }
        if !matches!(op.op, PgOp::Configure(_)) && !self.machines[&node].server.is_primary() {
            return failure(PgFailureKind::NotRunning, "no primary runs here");
        }
        match op.op.clone() {
            PgOp::OpenEpoch { epoch, sync, .. } => {
                if op.stage == 0 {
                    self.append(node, What::Epoch(epoch));
                    return Stage::Next(2);
                }
                let s = &self.machines[&node].server;
                let row = s.wal.iter().rev().find(|r| r.what == What::Epoch(epoch));
                let Some(row) = row else { return failure(PgFailureKind::Other, "the row is gone") };
                let has = |n: &&NodeId| s.senders.get(n).is_some_and(|x| !x.rejoining && x.flush >= row.end);
                match sync.standbys.iter().filter(has).count() >= sync.k {
                    true => done(),
                    false if now >= op.since + 5000 => {
                        failure(PgFailureKind::TimedOut, "no standby has the row")
                    }
                    false => Stage::Wait(3),
                }
            }
            PgOp::SetSync(set) => {
                if op.stage == 0 {
                    let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                    s.sync = set;
                    s.reload_at = usize::MAX;
                    if s.sync.k == 0 {
                        for waiter in std::mem::take(&mut s.waiters) {
                            self.acknowledged(node, waiter);
                        }
                    }
                    self.check_rule(node);
                    return Stage::Next(delay);
                }
                let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
                s.reload_at = s.wal.len();
                let barrier = self.append(node, What::Other);
                self.check_rule(node);
                Stage::Ends(Ok(PgOutcome::SyncBarrier(barrier.end)))
            }
            PgOp::Checkpoint if op.stage == 0 => Stage::Next(delay * 3),
            PgOp::Checkpoint => {
                self.machines.get_mut(&node).expect("machines stay").server.checkpointed = true;
                done()
            }
            PgOp::RecordEntries(entries) => {
                let (index, term) = entries.last().map_or((0, 0), |e| (e.index, e.term));
                if index > self.machines[&node].server.recorded() {
                    self.append(node, What::Entries(index, term));
                }
                Stage::Ends(Ok(PgOutcome::Recorded { index }))
            }
            PgOp::Configure(_) => Stage::Ends(Ok(PgOutcome::Configured { restart_required: Vec::new() })),
            _ => done(),
        }
    }
}
