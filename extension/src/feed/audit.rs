//! Is what is tracked captured? Triggers of a table can be switched off or dropped past the event triggers that would put
//! them back. The cutter looks about once a minute, between batches; `sql/audit.sql` says what it finds, once.

use pgrx::prelude::*;

use crate::pg::worker::Failure;
use crate::pg::{clock, worker};

const PACE_NS: u64 = 60_000 * clock::NS_PER_MS;

/// When it was looked last, in a database.
#[derive(Default)]
pub struct Audit {
    /// `None`: not yet.
    last_ns: Option<u64>,
    /// What was said of the last failure.
    said: String,
}

impl Audit {
    /// Looks if it is time; how long until the next time, in nanoseconds. What goes wrong is given to `log` once.
    pub fn round(&mut self, now_ns: u64, log: impl FnOnce(&Failure)) -> u64 {
        let wait_ns = self.last_ns.map_or(0, |last_ns| (last_ns + PACE_NS).saturating_sub(now_ns));
        if wait_ns > 0 {
            return wait_ns;
        }
        self.last_ns = Some(now_ns);
        match look() {
            Ok(()) => self.said.clear(),
            Err(failure) if failure.is_locked() || self.said == failure.message => {}
            Err(failure) => {
                log(&failure);
                self.said = failure.message;
            }
        }
        PACE_NS
    }
}

fn look() -> Result<(), Failure> {
    // If a crash or a failover takes back what was noted, it is found again. So nobody waits for it.
    worker::set(c"pgquorum.bypass_fence", c"on");
    worker::set(c"synchronous_commit", c"off");
    let result = worker::with_snapshot(|| {
        let noted =
            Spi::connect_mut(|client| client.update("SELECT quorum.audit_capture()", None, &[]).map(|_| ()));
        if let Err(error) = noted {
            panic!("quorum.audit_capture: {error}");
        }
    });
    worker::set(c"synchronous_commit", c"on");
    worker::set(c"pgquorum.bypass_fence", c"off");
    result
}
