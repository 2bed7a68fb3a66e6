//! Looks that may never end: a disk that hangs holds whoever asks it, and so does a program that lies on one.

use super::Check;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long a look may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// A look on its way, on a thread of its own.
pub struct Look<T> {
    found: Receiver<T>,
    limit: Duration,
    until: Instant,
}

impl<T: Send + 'static> Look<T> {
    pub fn begin(limit: Duration, look: impl FnOnce() -> T + Send + 'static) -> Look<T> {
        let (tell, found) = channel();
        let until = Instant::now() + limit;
        // Where there can be no thread the look ends without a finding, as one that hangs.
        let _ = std::thread::Builder::new().spawn(move || {
            // Nobody waits any more if this took too long.
            let _ = tell.send(look());
        });
        Look { found, limit, until }
    }

    /// What was found. `None`: nothing in time. The thread is left where it is: nothing can end what the kernel holds.
    pub fn end(self) -> Option<T> {
        self.found.recv_timeout(self.until.saturating_duration_since(Instant::now())).ok()
    }
}

impl Look<Vec<Check>> {
    /// What was found, or that this check did not end.
    pub fn checks(self, name: &'static str) -> Vec<Check> {
        let limit = self.limit;
        self.end().unwrap_or_else(|| vec![Check::fail(name, hung(limit))])
    }
}

/// What is said of a look that did not end.
pub fn hung(limit: Duration) -> String {
    format!("did not answer within {} s: the disk or the program hangs", limit.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_does_not_end_is_a_check_that_failed() {
        let (go_on, held) = channel::<()>();
        let look = Look::begin(Duration::from_millis(20), move || {
            let _ = held.recv();
            vec![Check::ok("disk", "well")]
        });
        assert_eq!(look.checks("disk"), [Check::fail("disk", hung(Duration::from_millis(20)))]);
        drop(go_on);
        let look = Look::begin(LIMIT, || vec![Check::ok("disk", "well")]);
        assert_eq!(look.checks("disk"), [Check::ok("disk", "well")]);
        assert_eq!(hung(LIMIT), "did not answer within 5 s: the disk or the program hangs");
    }
}
