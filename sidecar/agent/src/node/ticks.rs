//! When time itself is an input.
//!
//! A process that is woken costs a quiet node more than what it then does. So a follower takes the time together with
//! what its leader says, and its timer is there for a leader that says nothing.

use super::{Input, Node};
use crate::lead::Lead;
use crate::types::Millis;

const TICK_MS: Millis = 10;
/// While nothing is under way.
const CALM_TICK_MS: Millis = 100;

impl Node {
    /// When time is to be an input again, in the clock of [`Node::step`]: [`Input::Tick`], unless something else was
    /// before. While nothing is under way, heartbeats and what is noticed by their absence may come a little later.
    pub fn next_tick(&self) -> Millis {
        let tick = self.tick_ms();
        let next = self.ticked_at + tick;
        if tick == TICK_MS || self.consensus.is_leader() {
            return next;
        }
        // The leader's next heartbeat is as good, if it comes a little later; a leader that is dead is not missed later.
        let (later, due) = (next + tick / 2, self.consensus.due_at());
        if due > self.ticked_at { later.min(due) } else { later }
    }

    /// When time was an input last.
    pub fn ticked_at(&self) -> Millis {
        self.ticked_at
    }

    /// After how many milliseconds time is to be an input again.
    fn tick_ms(&self) -> Millis {
        let calm = self.consensus.leader().is_some()
            && !self.consensus.is_suspicious()
            && self.pending.is_none()
            && self.local.op.is_none()
            && self.lead.as_ref().is_none_or(Lead::is_open);
        let heartbeat = self.cluster.settings.heartbeat_interval.ms();
        // A whole number of ticks, so that a heartbeat of 150 ms does not become one of 200.
        let calm_tick = heartbeat.div_ceil(heartbeat.div_ceil(CALM_TICK_MS).max(1));
        if calm { calm_tick.max(TICK_MS) } else { TICK_MS }
    }

    /// Whether an input brings the time along. A leader's heartbeats are due at their own times.
    pub(super) fn brings_time(&self, input: &Input) -> bool {
        match input {
            Input::Tick => true,
            Input::Message { .. } => {
                !self.consensus.is_leader() && self.now >= self.ticked_at + self.tick_ms() / 2
            }
            _ => false,
        }
    }
}
