//! The network between nodes: delay, loss, duplication, reordering, and links that are cut in one or both directions.

use crate::world::Time;
use pgquorum_agent::types::NodeId;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeSet;

pub struct Network {
    /// Directions in which nothing gets through.
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// The same for the stream of WAL alone; a stream may live where the sidecars do not reach each other.
    pub wal_open: BTreeSet<(NodeId, NodeId)>,
    /// And one that is broken where the sidecars do reach each other.
    pub wal_blocks: BTreeSet<(NodeId, NodeId)>,
    pub loss: f64,
    pub duplication: f64,
    pub delay: (Time, Time),
}

impl Default for Network {
    fn default() -> Network {
        Network {
            blocked: BTreeSet::new(),
            wal_open: BTreeSet::new(),
            wal_blocks: BTreeSet::new(),
            loss: 0.0,
            duplication: 0.0,
            delay: (1, 4),
        }
    }
}

impl Network {
    pub fn block(&mut self, from: NodeId, to: NodeId) {
        self.blocked.insert((from, to));
    }

    pub fn block_both(&mut self, a: NodeId, b: NodeId) {
        self.block(a, b);
        self.block(b, a);
    }

    pub fn heal(&mut self) {
        *self = Network::default();
    }

    pub fn is_blocked(&self, from: NodeId, to: NodeId) -> bool {
        from != to && self.blocked.contains(&(from, to))
    }

    /// Whether the stream of WAL gets through.
    pub fn wal_blocked(&self, from: NodeId, to: NodeId) -> bool {
        self.wal_blocks.contains(&(from, to))
            || self.is_blocked(from, to) && !self.wal_open.contains(&(from, to))
    }

    pub fn delay(&self, rng: &mut SmallRng) -> Time {
        rng.random_range(self.delay.0..=self.delay.1)
    }

    /// After which times copies of a message arrive.
    pub fn arrivals(&self, rng: &mut SmallRng, from: NodeId, to: NodeId) -> Vec<Time> {
        if self.is_blocked(from, to) || rng.random_bool(self.loss) {
            return Vec::new();
        }
        let mut times = vec![self.delay(rng)];
        if rng.random_bool(self.duplication) {
            times.push(self.delay(rng) + rng.random_range(0..50));
        }
        times
    }
}
