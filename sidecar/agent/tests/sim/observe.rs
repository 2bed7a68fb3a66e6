//! What the supervisor sees of a server, late as it may be.

use crate::world::{Event, World};
use pgquorum_agent::node::Input;
use pgquorum_agent::postgres::{PgObservation, PgOp, PgProcess, StandbyState};
use pgquorum_agent::types::NodeId;
use rand::Rng;

/// Who lets nobody in for so long is closed.
const PATIENCE_MS: u64 = 1_000;

impl World {
    pub fn observe(&mut self, node: NodeId) {
        let m = &self.machines[&node];
        if !m.alive() || m.frozen {
            return;
        }
        let path = m.write_path(self.now);
        let closed = m.server.held || path.door_waits >= PATIENCE_MS;
        self.input(node, Input::WritePath(path));
        if self.look_in_vain(node) {
            return;
        }
        self.admit_if_settled(node);
        let s = &mut self.machines.get_mut(&node).expect("machines stay").server;
        if s.is_past_the_beginning() {
            s.read_upstream(s.conninfo, false);
            self.after(2, Event::Upkeep { again: false });
        }
        let m = &self.machines[&node];
        let s = &m.server;
        let copying = m.process_op.as_ref().is_some_and(|o| matches!(o.op, PgOp::Rewind(_)) && o.stage > 0);
        let running = s.is_running();
        let rewound = s.whole_at.filter(|_| !running && !s.lost_wal).map(|(_, record)| record);
        let standbys =
            s.senders.iter().filter(|(_, sender)| !sender.rejoining).map(|(&n, sender)| StandbyState {
                node: n,
                streaming: true,
                flush_lsn: sender.flush,
                replay_lsn: sender.flush,
                acknowledges: sender.rule.k > 0 && sender.rule.standbys.contains(&n),
            });
        let observation = PgObservation {
            process: if s.rewinding { PgProcess::Absent } else { s.process },
            pid: if running { s.pid() } else { 0 },
            system_identifier: 1,
            in_recovery: running && s.recovery,
            timeline: rewound.map_or(s.timeline, |r| r.timeline),
            flush_lsn: match (rewound, s.process) {
                (_, PgProcess::Absent) => Default::default(),
                (Some(record), _) => record.end,
                (None, _) => s.end(),
            },
            replay_lsn: s.end(),
            receiver: s.receiver.is_some() || (running && s.recovery && s.conninfo.is_some()),
            streaming: s.receiver.is_some(),
            upstream_port: s.receiver.map_or(0, |r| 5000 + r.upstream as u16),
            settled: !copying
                && match s.process {
                    PgProcess::Running => s.recovery && s.receiver.is_none() && s.conninfo.is_none(),
                    PgProcess::Stopped => s.clean && s.whole_at.is_none(),
                    _ => false,
                },
            standbys: if s.is_primary() { standbys.collect() } else { Vec::new() },
            history: s.history.clone(),
            recorded_index: if s.is_primary() { s.recorded() } else { 0 },
            rewound: rewound.is_some(),
            closed,
            replaying: (s.process == PgProcess::Starting).then_some(s.wal.len() as u64),
            ..PgObservation::default()
        };
        self.report(node, observation);
    }

    /// What was seen reaches the agent.
    pub fn report(&mut self, node: NodeId, observation: PgObservation) {
        let late = if self.rng.random_bool(0.1) {
            self.rng.random_range(0..40)
        } else {
            self.rng.random_range(0..4)
        };
        // Late, but never in another order.
        let m = self.machines.get_mut(&node).expect("machines stay");
        m.observed_at = m.observed_at.max(self.now + late);
        let (delay, life) = (m.observed_at - self.now, m.life);
        self.after(delay, Event::Observed { node, life, observation: Box::new(observation) });
    }
}
