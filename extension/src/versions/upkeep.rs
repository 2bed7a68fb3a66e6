//! Old tombstones go, and versions that count no more, piece by piece: there is no index on their age, which would cost
//! each write of a row more than looking at all of them now and then. The cutter does it between batches.

use pgrx::prelude::*;

use crate::guc;
use crate::pg::worker::Failure;
use crate::pg::{clock, worker};

/// A piece: what a few milliseconds are enough for.
const PAGES: u64 = 64;
const ROWS: i32 = 500;
/// Between two pieces.
const PACE_NS: u64 = 500 * clock::NS_PER_MS;
/// From the end of the table to the next beginning a tenth of the tombstones' age passes, within these bounds.
const REST_NS_MIN: u64 = 1_000 * clock::NS_PER_MS;
const REST_NS_MAX: u64 = 600_000 * clock::NS_PER_MS;
/// After a failure.
const AGAIN_NS: u64 = 30_000 * clock::NS_PER_MS;

/// How far it has got in a database.
#[derive(Default)]
pub struct OldVersions {
    next_page: u64,
    /// When it did something last.
    last_ns: u64,
    then: Then,
    /// What was said of the last failure.
    said: String,
}

/// What is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    #[default]
    NextPiece,
    FromTheBeginning,
    TryAgain,
}

impl OldVersions {
    /// Removes a piece if one is due; how long until the next one, in nanoseconds. What goes wrong is given to `log` once.
    pub fn round(&mut self, now_ns: u64, log: impl FnOnce(&Failure)) -> u64 {
        if now_ns >= self.last_ns + self.rest_ns() {
            self.last_ns = now_ns;
            match remove(self.next_page) {
                Ok((removed, pages)) => {
                    self.said.clear();
                    self.went_on(removed, pages);
                }
                Err(failure) => {
                    self.then = Then::TryAgain;
                    if !failure.is_locked() && self.said != failure.message {
                        log(&failure);
                        self.said = failure.message;
                    }
                }
            }
        }
        (self.last_ns + self.rest_ns()).saturating_sub(now_ns)
    }

    /// After a piece.
    fn went_on(&mut self, removed: i32, pages: u64) {
        self.then = Then::NextPiece;
        // Else there may be more in the same pages.
        if removed < ROWS {
            self.next_page += PAGES;
        }
        if self.next_page >= pages {
            self.next_page = 0;
            self.then = Then::FromTheBeginning;
        }
    }

    /// By the present setting, which may have been changed meanwhile.
    fn rest_ns(&self) -> u64 {
        match self.then {
            Then::NextPiece => PACE_NS,
            Then::FromTheBeginning => long_rest_ns(age_s()),
            Then::TryAgain => AGAIN_NS,
        }
    }
}

/// A tenth of the tombstones' age, within bounds.
fn long_rest_ns(age_s: i64) -> u64 {
    let tenth_ns = age_s.unsigned_abs().saturating_mul(100 * clock::NS_PER_MS);
    tenth_ns.clamp(REST_NS_MIN, REST_NS_MAX)
}

fn age_s() -> i64 {
    i64::from(guc::TOMBSTONE_AGE_S.get())
}

/// How many rows were removed, and how many pages the table has.
fn remove(first_page: u64) -> Result<(i32, u64), Failure> {
    // If a crash or a failover takes it back, it is done again. So nobody waits for it.
    worker::set(c"pgquorum.bypass_fence", c"on");
    worker::set(c"synchronous_commit", c"off");
    let result = worker::with_snapshot(move || {
        let arguments = [
            i64::try_from(first_page).unwrap_or(0).into(),
            i32::try_from(PAGES).unwrap_or(0).into(),
            ROWS.into(),
            age_s().into(),
        ];
        let row = Spi::connect_mut(|client| {
            let sql = "SELECT r.removed, r.total_pages FROM quorum.remove_old_versions($1, $2, $3, $4) AS r";
            client.update(sql, Some(1), &arguments)?.first().get_two::<i32, i64>()
        });
        match row {
            Ok((removed, pages)) => (removed.unwrap_or(0), pages.unwrap_or(0).unsigned_abs()),
            Err(error) => panic!("old versions of rows cannot be removed: {error}"),
        }
    });
    worker::set(c"synchronous_commit", c"on");
    worker::set(c"pgquorum.bypass_fence", c"off");
    result
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn it_goes_through_the_table_and_rests_then() {
        let mut old = OldVersions::default();
        let mut goes_on = |removed, next_page, then| {
            old.went_on(removed, 130);
            assert_eq!((old.next_page, old.then), (next_page, then));
        };
        goes_on(ROWS, 0, Then::NextPiece);
        goes_on(ROWS - 1, 64, Then::NextPiece);
        goes_on(0, 128, Then::NextPiece);
        goes_on(0, 0, Then::FromTheBeginning);
        old.went_on(0, 0);
        assert_eq!((old.next_page, old.then), (0, Then::FromTheBeginning), "there is nothing at all");
    }
    #[test]
    fn it_rests_for_a_tenth_of_the_age() {
        assert_eq!(long_rest_ns(7 * 86_400), REST_NS_MAX, "a tenth of seven days is longer");
        assert_eq!(long_rest_ns(60), 6_000 * clock::NS_PER_MS);
        assert_eq!(long_rest_ns(0), REST_NS_MIN);
    }
}
