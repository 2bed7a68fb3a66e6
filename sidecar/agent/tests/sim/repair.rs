//! Rewinds and copies of a fake server.

use crate::machine::{Machine, RunningOp};
use crate::ops::{Stage, done, failure};
use crate::postgres::Server;
use crate::world::{Event, World};
use pgquorum_agent::postgres::{PgFailureKind, PgProcess};
use pgquorum_agent::types::{Epoch, NodeId};
use rand::Rng;

impl World {
    /// Whether `node` can copy from a primary now. Who is connected need not be let in.
    fn source(&self, node: NodeId, upstream: NodeId, connected: bool) -> bool {
        let blocked = self.net.wal_blocked(node, upstream) || self.net.wal_blocked(upstream, node);
        let there = |m: &Machine| m.server.is_primary() && (connected || m.standstill().is_none());
        !blocked && self.machines.get(&upstream).is_some_and(there)
    }

    /// Connects, stops the server, writes into its data, starts it: only then it has the WAL that makes it whole.
    pub fn rewind(&mut self, node: NodeId, (upstream, epoch): (NodeId, Epoch), op: &mut RunningOp) -> Stage {
        let there = self.source(node, upstream, op.stage > 2);
        if op.stage == 2 && there && self.wal_gone_for == Some(node) {
            // There is nothing to take back, so it is started as it is.
            return self.begin_following(node, upstream, epoch);
        }
        let stalls = self.machines.get(&upstream).is_some_and(Machine::stands_still);
        let (soon, delay) = (self.rng.random_range(5..100), self.rng.random_range(self.rewind_ms.clone()));
        let fails = self.rewinds_fail;
        let source = self.machines.get(&upstream).map_or_else(Server::absent, |m| m.server.clone());
        let kept = source.wal.len().saturating_sub(self.rng.random_range(0..4));
        let superseded = self.machines[&node].sealed.is_some();
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        let common = s.common(&source);
        match op.stage {
            _ if s.process == PgProcess::Absent => failure(PgFailureKind::NoData, "there is no data"),
            // Nothing answers, and nothing says that nobody is there.
            0 if !there && self.now < op.since + 5000 => Stage::Wait(50),
            0 if there => Stage::Next(soon),
            1 => {
                s.halt(false);
                Stage::Next(soon)
            }
            2 if there && common > 0 && source.checkpointed && !fails => {
                s.rewinding = true;
                Stage::Next(delay)
            }
            0 | 2 => failure(PgFailureKind::Other, "the source is not there, or there is no common point"),
            3 if there && stalls => Stage::Wait(50),
            3 => {
                s.rewinding = false;
                if !there {
                    s.process = PgProcess::Absent;
                    return failure(PgFailureKind::Other, "the source went away");
                }
                s.truncate(common);
                for record in source.wal.iter().take(kept).skip(common) {
                    s.receive(*record);
                }
                s.whole_at = source.wal.last().map(|r| (source.wal.len() - 1, *r));
                (s.lost_wal, s.unheard, s.follows) = (false, true, epoch);
                s.clean = true;
                if superseded {
                    return failure(PgFailureKind::Cancelled, "another operation waits");
                }
                (s.process, s.clean) = (PgProcess::Starting, false);
                s.run += 1;
                s.conninfo = Some(upstream);
                self.after(2, Event::Upkeep { again: false });
                Stage::Next(soon)
            }
            _ if s.is_running() => done(),
            _ if s.process == PgProcess::Starting => {
                self.become_whole(node);
                Stage::Wait(10)
            }
            _ => failure(PgFailureKind::Other, "the server died"),
        }
    }

    /// A rewound server that has got the WAL it needs is there.
    pub fn become_whole(&mut self, node: NodeId) {
        let now = self.now;
        let m = self.machines.get_mut(&node).expect("machines stay");
        if m.standstill().is_some() {
            return;
        }
        let s = &mut m.server;
        let Some((index, record)) = s.whole_at.filter(|_| s.process == PgProcess::Starting) else { return };
        if s.is_whole() {
            (s.whole_at, s.lost_wal) = (None, false);
            (s.process, s.recovery) = (PgProcess::Running, true);
            self.after(2, Event::Upkeep { again: false });
            self.after(1, Event::Observe { node, again: false });
        } else if s.wal.len() > index {
            let text = format!("node {node} replays a history beside its pages, which reach {record:?}");
            self.check.fail(now, text);
        }
    }

    pub fn copy(&mut self, node: NodeId, (upstream, epoch): (NodeId, Epoch), stage: u32) -> Stage {
        if !self.source(node, upstream, stage > 0) {
            return failure(PgFailureKind::Other, "the source is not there");
        }
        if stage == 0 {
            return Stage::Next(self.rng.random_range(200..self.copy_ms));
        }
        if self.machines[&upstream].stands_still() {
            return Stage::Wait(50);
        }
        let source = self.machines[&upstream].server.clone();
        self.wal_gone_for = self.wal_gone_for.filter(|gone| *gone != node);
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        s.halt(false);
        (s.whole_at, s.lost_wal, s.unheard) = (None, false, true);
        (s.wal, s.timeline, s.history) = (source.wal, source.timeline, source.history);
        self.begin_following(node, upstream, epoch)
    }

    fn begin_following(&mut self, node: NodeId, upstream: NodeId, epoch: Epoch) -> Stage {
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        (s.process, s.recovery, s.clean) = (PgProcess::Running, true, false);
        s.run += 1;
        (s.conninfo, s.follows) = (Some(upstream), epoch);
        self.after(2, Event::Upkeep { again: false });
        done()
    }
}
