//! The disk of a sidecar: what an output wants to be durable, before and after a crash.

use pgquorum_agent::logstore::{Persist, Restored};
use pgquorum_agent::node::Output;
use rand::Rng;
use rand::rngs::SmallRng;

/// A disk, and the write that is on its way together with everything that waits for it.
pub struct Disk {
    /// What the process would read back.
    pub state: Restored,
    /// What is left after a crash at the worst moment, and the writes since then that were not made durable.
    durable: Restored,
    unsynced: Vec<Persist>,
    pub writing: Option<Box<Output>>,
    /// The file is gone or torn: a sidecar refuses to start with it.
    pub lost: bool,
}

impl Disk {
    pub fn new(state: Restored) -> Disk {
        let durable = state.clone();
        Disk { state, durable, unsynced: Vec::new(), writing: None, lost: false }
    }

    /// How long this write takes; most are quick, some meet a checkpoint of the server.
    pub fn delay(rng: &mut SmallRng, output: &Output) -> u64 {
        match (output.persist.is_empty(), output.persist.sync) {
            (true, _) | (_, false) => 0,
            _ if rng.random_bool(0.02) => rng.random_range(10..80),
            _ => rng.random_range(0..4),
        }
    }

    pub fn write(&mut self, change: &Persist) {
        if change.is_empty() {
            return;
        }
        self.state.absorb(change);
        if change.sync {
            self.unsynced.drain(..).for_each(|earlier| self.durable.absorb(&earlier));
            self.durable.absorb(change);
        } else {
            self.unsynced.push(change.clone());
        }
    }

    /// The write has ended: what waited for it may go out.
    pub fn written(&mut self) -> Option<Box<Output>> {
        let output = self.writing.take()?;
        self.write(&output.persist);
        Some(output)
    }

    /// The process dies while a write may be on its way: it is on disk or it is not, what waited for it never left.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        if let Some(output) = self.writing.take()
            && rng.random_bool(0.5)
        {
            self.write(&output.persist);
        }
        // Of what was not synced a part may be there, in the order in which it was written.
        let left = rng.random_range(0..=self.unsynced.len());
        self.unsynced.drain(..).take(left).for_each(|change| self.durable.absorb(&change));
        self.state = self.durable.clone();
    }
}
