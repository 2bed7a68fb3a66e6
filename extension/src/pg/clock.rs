//! The lease's clock, and a process's own.

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// `CLOCK_BOOTTIME` in nanoseconds: monotonic, the same in every process of the machine (and in its containers,
/// unless they have a time namespace), and running while the machine is suspended.
#[inline]
pub fn boottime_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call. The clock exists since Linux 2.6.39, so the call cannot fail; were
    // it to, the zero time would make every lease look valid, hence the assertion.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert!(result == 0, "CLOCK_BOOTTIME cannot be read");
    time.tv_sec.unsigned_abs() * NS_PER_S + time.tv_nsec.unsigned_abs()
}

/// Nanoseconds for which this process has been on a processor.
pub fn own_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call, which cannot fail for a process's own clock. Were it to, no time would pass.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec.unsigned_abs() * NS_PER_S + time.tv_nsec.unsigned_abs()
}
