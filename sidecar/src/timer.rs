//! The driver's timer: one of the system's own (`timerfd`). It wakes the thread once for each time that it runs out, and
//! not at all when it is set further ahead before; the runtime's timers of more than 64 ms wake it twice, and when they
//! are set anew as well.

use crate::clock;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use pgquorum_agent::types::Millis;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct Timer {
    fd: AsyncFd<Fd>,
    at: Option<Millis>,
}

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// One that is not set. Belongs to the runtime in which this is called.
    ///
    /// # Errors
    /// The system gives no more files.
    pub fn new() -> io::Result<Timer> {
        // The same clock as `clock::now()`: it goes on while the machine sleeps.
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let fd = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        // SAFETY: the timer has one descriptor, which it closes when it is dropped, with what it is registered in here.
        let fd = unsafe { AsyncFd::register_with_interest(Fd(fd), Interest::READABLE) }?;
        Ok(Timer { fd, at: None })
    }

    /// Lets it run out at `at` (of [`clock::now`]), and at once if that is over. Nothing happens if it is set so already.
    ///
    /// # Errors
    /// None is known.
    pub fn set(&mut self, at: Millis) -> io::Result<()> {
        if self.at != Some(at) {
            self.at = Some(at);
            let left = Duration::from_millis(at.saturating_sub(clock::now())).max(Duration::from_nanos(1));
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
            self.fd.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?;
        }
        Ok(())
    }

    /// Waits until it has run out; it is to be set again then. In rare cases it says so too early: when it ran out and was
    /// set anew before anybody looked.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn ran_out(&mut self) -> io::Result<()> {
        // What it counts is not read: setting it clears that.
        self.fd.readable().await?.clear_ready();
        self.at = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_runs_out_each_time_when_it_was_set_to() {
        let mut timer = Timer::new().unwrap();
        for ahead in [30, 0, 70, 1] {
            let at = clock::now() + ahead;
            timer.set(at).unwrap();
            timer.set(at).unwrap();
            tokio::time::timeout(Duration::from_secs(60), timer.ran_out()).await.unwrap().unwrap();
            assert!(clock::now() >= at, "{} ms too early", at - clock::now());
        }
    }

    #[tokio::test]
    async fn the_last_time_that_it_was_set_to_counts() {
        let mut timer = Timer::new().unwrap();
        timer.set(clock::now() + 3_600_000).unwrap();
        let at = clock::now() + 20;
        timer.set(at).unwrap();
        tokio::time::timeout(Duration::from_secs(60), timer.ran_out()).await.unwrap().unwrap();
        assert!(clock::now() >= at);
        timer.set(clock::now() + 10).unwrap();
        timer.set(clock::now() + 3_600_000).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(60), timer.ran_out()).await.is_err(),
            "it was put off"
        );
    }
}
