//! Who wrote a row last: which of two writes wins where several clusters write the same rows.
//!
//! A write is stamped with the time of its commit and the name of where it was made. The later time wins; at the same time
//! the higher name by its bytes. A row of which nothing is known is older than every stamp, and a deletion is a write like
//! any other. Stamps are in one order for everybody, so whoever has seen the same writes keeps the same one, in whatever
//! order they came.
//!
//! That needs one thing of whoever makes a write: its stamp is later than the one that it replaces ([`commit_time`]), also
//! where clocks differ. Else the writer would keep its own write, and everybody else the one before it.

use std::cmp::Ordering;

/// When and where a row was written. Ordered by the time, then by the name's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp<'a> {
    /// Time of the commit, in microseconds since 1970 (UTC), by the clock of the origin.
    pub commit_us: i64,
    /// Name of the origin.
    pub origin: &'a str,
}

/// What becomes of a write that comes from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is later: it is to be made.
    Remote,
    /// The row here was written later: it stays.
    Local,
    /// It is the write that the row has already.
    Same,
    /// Its time is further in the future than clocks may differ: it would win over everything that is written here until
    /// then.
    FromTheFuture {
        /// How far, in microseconds.
        ahead_us: i64,
    },
}

/// Last write wins. `local` is the stamp of the row here, `None`: nothing is known of it. `now_us` is this server's clock,
/// `skew_max_us` how far clocks may differ.
#[must_use]
pub fn last_write_wins(local: Option<Stamp>, remote: Stamp, now_us: i64, skew_max_us: i64) -> Verdict {
    let ahead_us = remote.commit_us.saturating_sub(now_us);
    if ahead_us > skew_max_us {
        return Verdict::FromTheFuture { ahead_us };
    }
    match local.map_or(Ordering::Greater, |local| remote.cmp(&local)) {
        Ordering::Greater => Verdict::Remote,
        Ordering::Less => Verdict::Local,
        Ordering::Equal => Verdict::Same,
    }
}

/// The time of a commit that is made here: the clock's, but later than that of every write that it replaces. `latest_us` is
/// the latest of those; `None`: nothing is known of them.
#[must_use]
pub fn commit_time(now_us: i64, latest_us: Option<i64>) -> i64 {
    latest_us.map_or(now_us, |latest_us| now_us.max(latest_us.saturating_add(1)))
}
