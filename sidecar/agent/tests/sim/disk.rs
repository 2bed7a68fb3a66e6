//! The disk of a sidecar: what an output wants to be durable, before and after a crash.

use pgquorum_agent::logstore::Restored;
use pgquorum_agent::node::Output;
use rand::Rng;
use rand::rngs::SmallRng;

/// A disk, and the write that is on its way together with everything that waits for it.
pub struct Disk {
    pub state: Restored,
    pub writing: Option<Box<Output>>,
}

impl Disk {
    pub fn new(state: Restored) -> Disk {
        Disk { state, writing: None }
    }

    /// How long this write takes; most are quick, some meet a checkpoint of the server.
    pub fn delay(rng: &mut SmallRng, output: &Output) -> u64 {
        match (output.persist.is_empty(), output.persist.sync) {
            (true, _) | (_, false) => 0,
            _ if rng.random_bool(0.02) => rng.random_range(10..80),
            _ => rng.random_range(0..4),
        }
    }

    /// The write has ended: what waited for it may go out.
    pub fn written(&mut self) -> Option<Box<Output>> {
        let output = self.writing.take()?;
        self.state.absorb(&output.persist);
        Some(output)
    }

    /// The process dies while a write may be on its way: it is on disk or it is not, what waited for it never left.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        if let Some(output) = self.writing.take()
            && rng.random_bool(0.5)
        {
            self.state.absorb(&output.persist);
        }
    }
}
