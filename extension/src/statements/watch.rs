//! What the statement of the client that runs now does.
//!
//! It has written when it was given a transaction id, when a statement or command inside it (in a function, a procedure)
//! writes, when a function was executed in it that forbids serving, or when a standby has refused it to write.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::learn;
use super::table::Place;
use crate::pg::guard::guarded;
use crate::pg::process;
use crate::pg::single::Single;

/// Something is watched. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// What is watched is planned, and its plan is not run: EXPLAIN gets ready functions that it does not execute.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static PLANS_ONLY: AtomicBool = AtomicBool::new(false);
/// It tried to write where that is refused.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static REFUSED: AtomicBool = AtomicBool::new(false);
/// A function was executed in this transaction for which no statement is served. PL/pgSQL keeps expressions ready for the
/// rest of the transaction, so that PostgreSQL does not tell of it again.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static TAINTED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    place: Place,
    /// The nesting level of savepoints where it began.
    level: i32,
    /// Its transaction had written before.
    had_id: bool,
    has_written: bool,
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static WATCHED: Single<Cell<Watched>> =
    Single::cell(Watched { place: Place::NONE, level: 0, had_id: false, has_written: false });

/// A statement of the client begins to be planned or run.
pub fn begin(place: Place) {
    let had_id = process::has_transaction_id();
    WATCHED.set(Watched { place, level: process::nesting_level(), had_id, has_written: false });
    REFUSED.store(false, Relaxed);
    PLANS_ONLY.store(false, Relaxed);
    ACTIVE.store(true, Relaxed);
}

/// A utility statement of the client begins, which plans and runs no plan.
pub fn begin_planning_only(place: Place) {
    begin(place);
    PLANS_ONLY.store(true, Relaxed);
}

/// Is a function that is got ready now, outside of all that is planned or run inside, one that is not executed?
#[inline]
pub fn only_gets_ready(nesting: u32) -> bool {
    nesting <= 1 && is_active() && PLANS_ONLY.load(Relaxed)
}

#[inline]
pub fn is_active() -> bool {
    ACTIVE.load(Relaxed)
}

/// It has ended without an error. True: it could have written, and has not.
#[inline]
pub fn ended() -> bool {
    ACTIVE.store(false, Relaxed);
    let watched = WATCHED.get();
    if watched.had_id || watched.has_written {
        return false;
    }
    if process::has_transaction_id() {
        guarded((), || learn::wrote(watched.place, GOT_ID));
        return false;
    }
    !TAINTED.load(Relaxed)
}

const GOT_ID: &str = "it was given a transaction id";

/// What was seen inside it means that it writes.
#[cold]
pub fn saw(why: &str) {
    let watched = WATCHED.get();
    if is_active() && !watched.has_written {
        WATCHED.set(Watched { has_written: true, ..watched });
        learn::wrote(watched.place, why);
    }
}

/// A function was executed for which no statement is served.
#[cold]
pub fn saw_forbidden_function(why: impl FnOnce() -> String) {
    TAINTED.store(true, Relaxed);
    if is_active() && !WATCHED.get().has_written {
        saw(&why());
    }
}

/// An error says that it tried to write where that is refused. Called where nothing may be done: it is only noted.
#[inline]
pub fn was_refused() {
    REFUSED.store(is_active(), Relaxed);
}

/// A savepoint, or with level 1 the transaction, was rolled back: what ran in it has ended by an error. `is_over`: the
/// client's statement has ended with it, even if it began on a lower level.
pub fn rolled_back(level: i32, is_over: bool) {
    if !is_active() {
        return;
    }
    let watched = WATCHED.get();
    if !is_over && level > watched.level {
        return;
    }
    ACTIVE.store(false, Relaxed);
    if REFUSED.load(Relaxed) {
        learn::wrote(watched.place, "it tried to write where that is refused");
    } else if !watched.had_id && !watched.has_written && process::has_transaction_id() {
        learn::wrote(watched.place, GOT_ID);
    }
}

/// The transaction is over.
pub fn after_transaction() {
    TAINTED.store(false, Relaxed);
}
