//! What the sidecar meets at a server that stands still: looks and operations that wait, for as long as the real ones do.

use super::{ANSWER_MS, Sessions, Standstill};
use crate::machine::RunningOp;
use crate::ops::{Stage, done, failure};
use crate::world::{Time, World};
use pgquorum_agent::postgres::{PgFailureKind, PgObservation, PgOp, PgProcess, StopMode};
use pgquorum_agent::types::NodeId;

/// How long it waits for: a new session, one that sees new configuration, the end of recovery, and the end of a server that
/// was told to end, in good order or at once.
const CONNECT_MS: Time = 2_000;
const CONFIRM_MS: Time = 10_000;
const PROMOTE_MS: Time = 30_000;
const FAST_STOP_MS: Time = 30_000;
const IMMEDIATE_STOP_MS: Time = 5_000;
/// The observer asks for a session again and again, and waits so long for each.
const LOOK_AGAIN_MS: Time = 1_050;

impl World {
    /// A look at a server that does not answer says nothing for a while, and then that it starts. Whether it was such.
    pub fn look_in_vain(&mut self, node: NodeId) -> bool {
        let now = self.now;
        let m = self.machines.get_mut(&node).expect("machines stay");
        let (running, pid, in_production) = (m.server.is_running(), m.server.pid(), !m.server.recovery);
        let unseen = |s: &&mut Standstill| running && (s.blind || s.sessions() != Sessions::Served);
        let Some(still) = m.standstill_mut().filter(unseen) else { return false };
        if now >= still.look_ends {
            still.look_ends = now + LOOK_AGAIN_MS;
            let trouble = Some("the server does not answer".to_owned());
            self.report(
                node,
                PgObservation {
                    process: PgProcess::Starting,
                    pid,
                    in_production,
                    trouble,
                    ..PgObservation::default()
                },
            );
        }
        true
    }

    /// How an operation fares where processes of the server stand still; `None`: as on any other server.
    pub fn held_up(&mut self, node: NodeId, op: &RunningOp) -> Option<Stage> {
        let now = self.now;
        let m = self.machines.get_mut(&node).expect("machines stay");
        let (frozen, run, server) = (m.frozen, m.server.run, &mut m.server);
        let still = m.standstill.as_mut().filter(|s| s.run == run)?;
        let (sessions, running) = (still.sessions(), server.is_running());
        let over = |ms: Time| now >= op.since + ms;
        let at_most = |ms: Time| match over(ms) {
            true => failure(PgFailureKind::TimedOut, "no answer"),
            false => Stage::Wait(20),
        };
        Some(match &op.op {
            PgOp::Stop(mode) => {
                still.signals.stop = Some(*mode);
                let patience = if *mode == StopMode::Fast { FAST_STOP_MS } else { 0 };
                if frozen || !over(patience + IMMEDIATE_STOP_MS) {
                    return Some(Stage::Wait(20));
                }
                // SIGKILL ends also who stands still.
                self.kill_server(node);
                done()
            }
            PgOp::Rewind(_) if op.stage > 3 => Stage::Wait(20),
            PgOp::Rewind(_) | PgOp::Clone(_) if op.stage == 0 => return None,
            // They stop the server before they change anything.
            PgOp::Rewind(_) | PgOp::Clone(_) => {
                still.signals.stop = Some(StopMode::Fast);
                if !frozen && over(FAST_STOP_MS + IMMEDIATE_STOP_MS + ANSWER_MS) {
                    return None;
                }
                Stage::Wait(20)
            }
            PgOp::Start => Stage::Wait(20),
            PgOp::CutReception if sessions == Sessions::Served && (server.is_primary() || op.stage > 0) => {
                return None;
            }
            PgOp::CutReception => {
                still.signals.upstream = Some((None, server.unheard));
                match sessions {
                    _ if !running => Stage::Wait(20),
                    Sessions::Silent => Stage::Wait(20),
                    Sessions::Served => at_most(CONFIRM_MS),
                    Sessions::None => at_most(CONNECT_MS),
                }
            }
            PgOp::Follow(upstream) => {
                let needs_wal = server.whole_at.is_some() && !server.lost_wal;
                match sessions {
                    _ if !running && needs_wal => {
                        still.signals.upstream = Some((Some(upstream.node), server.unheard));
                        server.follows = upstream.epoch;
                        done()
                    }
                    _ if !running => Stage::Wait(20),
                    Sessions::Served if server.is_primary() => return None,
                    Sessions::Served => {
                        still.signals.upstream = Some((Some(upstream.node), server.unheard));
                        server.follows = upstream.epoch;
                        done()
                    }
                    Sessions::Silent => Stage::Wait(20),
                    Sessions::None => at_most(CONNECT_MS),
                }
            }
            PgOp::Feed(upstream) if !running => {
                still.signals.upstream = Some((Some(upstream.node), true));
                server.follows = upstream.epoch;
                done()
            }
            PgOp::Feed(_) => return None,
            PgOp::Promote { .. } if !running => return None,
            PgOp::Promote { timeline, sync } => {
                let (can, is) = (server.timeline < *timeline, server.timeline == *timeline);
                if server.recovery && can && (op.stage > 0 || sessions == Sessions::Served) {
                    still.signals.promote = Some((*timeline, sync.clone()));
                }
                match (sessions, server.recovery) {
                    (Sessions::Silent, _) => Stage::Wait(20),
                    (Sessions::None, _) => at_most(CONNECT_MS),
                    (Sessions::Served, true) if can => at_most(PROMOTE_MS),
                    (Sessions::Served, false) if is => {
                        still.signals.rule = Some(sync.clone());
                        at_most(CONFIRM_MS)
                    }
                    (Sessions::Served, _) => return None,
                }
            }
            // All others begin with a session of their own.
            _ if op.stage == 0 => at_most(CONNECT_MS),
            PgOp::SetSync(_) => at_most(CONFIRM_MS),
            _ if sessions == Sessions::Served => return None,
            _ => Stage::Wait(20),
        })
    }
}
