//! The driver's clock: milliseconds that never go back and count while the machine sleeps, so that a lease cannot
//! outlive a suspended machine.

use nix::time::{ClockId, clock_gettime};
use pgquorum_agent::types::Millis;

/// `CLOCK_BOOTTIME` in milliseconds; the server's extension reads the same clock.
pub fn now() -> Millis {
    let t = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    t.tv_sec() as u64 * 1000 + t.tv_nsec() as u64 / 1_000_000
}
