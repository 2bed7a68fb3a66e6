//! SIGSTOP of a server: of all its processes, or of the first one alone, whose children go on. Who stands still answers
//! nothing and forgets nothing: what is sent to it waits in the kernel, signals too, and after SIGCONT it goes on exactly
//! where it was.

mod sidecar;

use crate::machine::Machine;
use crate::postgres::What;
use crate::world::{Event, Time, World};
use pgquorum_agent::postgres::{PgOp, PgProcess, StopMode, SyncSet};
use pgquorum_agent::types::{Epoch, Millis, NodeId, Timeline};
use pgquorum_agent::write_path::WritePath;
use rand::Rng;

/// How long the observer waits for an answer.
const ANSWER_MS: Time = 2_000;
/// How often a new session is asked for, and a heartbeat row written.
const KNOCK_MS: Time = 1_000;
const BEAT_MS: Time = 500;
/// What takes less is not reported.
const QUICK_MS: Time = 200;

/// Which of a server's processes stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    All,
    /// Whoever is connected is served, and WAL flows; but nobody new gets in, and no signal gets through.
    Postmaster,
}

/// What the sidecar's sessions are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sessions {
    Served,
    /// Open, and nobody answers.
    Silent,
    /// The sidecar was started since, and gets none.
    None,
}

/// Signals that wait for the first process, and what it will find in the files then.
#[derive(Default)]
struct Signals {
    stop: Option<StopMode>,
    /// The upstream, and whether under the name that acknowledges nothing.
    upstream: Option<(Option<NodeId>, bool)>,
    rule: Option<SyncSet>,
    promote: Option<(Timeline, SyncSet)>,
}

/// Words about the lease that were not taken.
#[derive(Default)]
struct LeaseCalls {
    /// On an open session, not answered: it is taken first of all, however late.
    in_flight: Option<(Epoch, Millis)>,
    /// The newest; the sidecar says it again on a new session.
    latest: Option<(Epoch, Millis)>,
    revoked: Option<Epoch>,
}

pub struct Standstill {
    /// The run of the server that it is about; a later one moves.
    run: u64,
    processes: Processes,
    since: Time,
    /// The sidecar's sessions are from before.
    met: bool,
    /// The observer lost its own.
    blind: bool,
    /// When the observer's present attempt fails.
    look_ends: Time,
    knocked_at: Time,
    beat_at: Time,
    /// Clients' commits that had passed the check of this epoch's lease, and were not written yet.
    caught: u32,
    epoch: Epoch,
    /// What the network brought.
    arrived: Vec<Event>,
    lease: LeaseCalls,
    signals: Signals,
}

impl Standstill {
    fn sessions(&self) -> Sessions {
        match (self.met, self.processes) {
            (false, _) => Sessions::None,
            (true, Processes::All) => Sessions::Silent,
            (true, Processes::Postmaster) => Sessions::Served,
        }
    }

    /// The sidecar was started anew.
    pub fn forget_sessions(&mut self, now: Time) {
        self.met = false;
        self.look_ends = now + KNOCK_MS;
        self.knocked_at = now;
    }
}

impl Machine {
    /// If processes of its server stand still.
    pub fn standstill(&self) -> Option<&Standstill> {
        self.standstill.as_ref().filter(|s| s.run == self.server.run)
    }

    pub fn standstill_mut(&mut self) -> Option<&mut Standstill> {
        let run = self.server.run;
        self.standstill.as_mut().filter(|s| s.run == run)
    }

    /// All processes of its server do.
    pub fn stands_still(&self) -> bool {
        self.standstill().is_some_and(|s| s.processes == Processes::All)
    }

    /// Adds what the sidecar measures of such a server. One that starts is not asked.
    pub fn add_standstill(&self, now: Time, path: &mut WritePath) {
        let Some(still) = self.standstill().filter(|_| self.server.is_running()) else { return };
        let since = |at: Time| Some(now.saturating_sub(at)).filter(|&ms| ms >= QUICK_MS).unwrap_or(0);
        path.door_waits = since(still.knocked_at);
        if self.server.is_primary() && still.sessions() == Sessions::Silent {
            path.commit_waits = path.commit_waits.max(since(still.beat_at));
        }
    }
}

impl World {
    pub fn freeze_server(&mut self, id: NodeId, processes: Processes) {
        let now = self.now;
        let (knock, beat) = (self.rng.random_range(0..KNOCK_MS), self.rng.random_range(0..BEAT_MS));
        let (blind, lost) = (self.rng.random_bool(0.2), self.rng.random_range(0..ANSWER_MS));
        let caught = self.rng.random_range(0..3);
        let m = self.machines.get_mut(&id).expect("machines stay");
        let lives = matches!(m.server.process, PgProcess::Running | PgProcess::Starting);
        if !lives || m.standstill().is_some() {
            return;
        }
        let all = processes == Processes::All;
        let writes = all && m.server.lease_holds(m.clock(now));
        m.standstill = Some(Standstill {
            run: m.server.run,
            processes,
            since: now,
            met: m.alive(),
            blind: blind && !all,
            look_ends: now + if all { ANSWER_MS } else { lost },
            knocked_at: now + knock,
            beat_at: now + beat,
            caught: if writes { caught } else { 0 },
            epoch: m.server.lease.epoch,
            arrived: Vec::new(),
            lease: LeaseCalls::default(),
            signals: Signals::default(),
        });
        self.note(id, format!("server frozen: {processes:?}"));
    }

    /// It goes on. If it was killed meanwhile there is nobody to go on.
    pub fn thaw_server(&mut self, id: NodeId) {
        let m = self.machines.get_mut(&id).expect("machines stay");
        let run = m.server.run;
        let Some(still) = m.standstill.take().filter(|s| s.run == run) else { return };
        self.note(id, "server thawed");
        for event in still.arrived {
            self.happen(event);
        }
        for _ in 0..still.caught {
            self.commit(id, still.epoch, still.since);
        }
        if let Some((epoch, until)) = still.lease.in_flight {
            self.renew_lease(id, epoch, until);
        }
        self.take_signals(id, still.signals);
        self.become_whole(id);
        self.say_again(id, still.lease.latest, still.lease.revoked);
        self.after(1, Event::Observe { node: id, again: false });
        self.after(2, Event::Upkeep { again: false });
    }

    /// Lowest number first: SIGHUP, SIGINT, SIGQUIT, SIGUSR1. Who is told to end is not promoted any more.
    fn take_signals(&mut self, id: NodeId, signals: Signals) {
        let soon = self.rng.random_range(0..10);
        let server = &mut self.machines.get_mut(&id).expect("machines stay").server;
        let run = server.run;
        if let Some((upstream, unheard)) = signals.upstream {
            server.read_upstream(upstream, unheard);
        }
        if let Some(rule) = signals.rule.filter(|_| server.is_primary()) {
            let waiters = if rule.k == 0 { std::mem::take(&mut server.waiters) } else { Vec::new() };
            (server.sync, server.reload_at) = (rule, server.wal.len());
            for waiter in waiters {
                self.acknowledged(id, waiter);
            }
            self.check_rule(id);
        }
        match (signals.stop, signals.promote) {
            (Some(mode), _) => self.script(soon, move |w| w.end_as_told(id, run, mode)),
            (None, Some((timeline, sync))) => {
                self.script(soon, move |w| w.promote_as_told(id, run, timeline, sync));
            }
            (None, None) => {}
        }
    }

    fn end_as_told(&mut self, id: NodeId, run: u64, mode: StopMode) {
        let m = &self.machines[&id];
        if m.server.run != run {
            return;
        }
        let asked = m.process_op.as_ref().is_some_and(|o| matches!(o.op, PgOp::Stop(StopMode::Fast)));
        let fast = mode == StopMode::Fast && m.server.is_running();
        match (fast, asked) {
            // Whoever asked is there and sees to it.
            (true, true) => {}
            (true, false) => {
                if m.server.is_primary() {
                    self.append(id, What::Other);
                }
                self.machines.get_mut(&id).expect("machines stay").server.halt(true);
                self.note(id, "server ends, as it was told before it stood still");
                self.after(1, Event::Observe { node: id, again: false });
                self.after(3, Event::Upkeep { again: false });
            }
            (false, _) => self.kill_server(id),
        }
    }

    /// Whoever asked may have given up long ago.
    fn promote_as_told(&mut self, id: NodeId, run: u64, timeline: Timeline, sync: SyncSet) {
        let server = &self.machines[&id].server;
        if server.run == run && server.is_running() && server.recovery && server.timeline < timeline {
            self.leave_recovery(id, timeline, sync);
        }
    }

    /// The newest word about the lease comes again, on a new session.
    fn say_again(&mut self, id: NodeId, latest: Option<(Epoch, Millis)>, revoked: Option<Epoch>) {
        if latest.is_none() && revoked.is_none() {
            return;
        }
        let life = self.machines[&id].life;
        let soon = self.rng.random_range(1..50);
        self.script(soon, move |w| {
            let m = &w.machines[&id];
            match m.life == life && m.alive() {
                true if m.frozen => w.say_again(id, latest, revoked),
                true => {
                    if let Some(epoch) = revoked {
                        w.revoke_lease(id, epoch);
                    }
                    if let Some((epoch, until)) = latest {
                        w.renew_lease(id, epoch, until);
                    }
                }
                false => {}
            }
        });
    }

    /// Keeps a renewal that a server does not take now. Whether it did.
    pub fn keep_renewal(&mut self, node: NodeId, epoch: Epoch, until: Millis) -> bool {
        let m = self.machines.get_mut(&node).expect("machines stay");
        let Some(still) = m.standstill_mut().filter(|s| s.sessions() != Sessions::Served) else {
            return false;
        };
        let calls = &mut still.lease;
        if still.met && calls.in_flight.is_none() && calls.revoked.is_none() {
            calls.in_flight = Some((epoch, until));
        } else if calls.revoked.is_none_or(|r| epoch > r) {
            calls.latest = calls.latest.max(Some((epoch, until)));
        }
        true
    }

    /// The same for the word that it is over.
    pub fn keep_revocation(&mut self, node: NodeId, epoch: Epoch) -> bool {
        let m = self.machines.get_mut(&node).expect("machines stay");
        let Some(still) = m.standstill_mut().filter(|s| s.sessions() != Sessions::Served) else {
            return false;
        };
        let calls = &mut still.lease;
        calls.revoked = calls.revoked.max(Some(epoch));
        calls.latest = calls.latest.filter(|(latest, _)| *latest > epoch);
        true
    }

    /// WAL and confirmations for a server that stands still wait in its kernel. Returns what happens now.
    pub fn let_wait(&mut self, event: Event) -> Option<Event> {
        let (Event::Wal { to, .. } | Event::Confirm { to, .. }) = &event else { return Some(event) };
        let Some(m) = self.machines.get_mut(to).filter(|m| m.stands_still()) else { return Some(event) };
        m.standstill_mut()?.arrived.push(event);
        None
    }
}
