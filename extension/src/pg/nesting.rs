//! How deep statements are nested, so that those of the client are told from what functions and triggers run.
//!
//! An error jumps over the frames that would count back; the rollbacks that follow it do that.

use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use pgrx::pg_sys;

use crate::capture::Savepoint;
use crate::statements::{learn, watch};

/// How many statements are being planned, run or finished, one inside the other. One process: no ordering is needed, here
/// and below.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static NESTING: AtomicU32 = AtomicU32::new(0);
/// The same where savepoints began, by their nesting level: an error brings back what was there.
static NESTING_AT: [AtomicU32; LEVELS] = [const { AtomicU32::new(0) }; LEVELS];
const LEVELS: usize = 128;

/// How many statements are being planned, run or finished now, one inside the other.
#[inline]
pub fn depth() -> u32 {
    NESTING.load(Relaxed)
}

/// A statement begins to be planned, run or finished; what [`leave`] is to be given when it ends without an error.
#[inline]
pub fn enter() -> u32 {
    let outer = NESTING.load(Relaxed);
    NESTING.store(outer + 1, Relaxed);
    outer
}

/// It has ended.
#[inline]
pub fn leave(outer: u32) {
    NESTING.store(outer, Relaxed);
}

/// Is this the text that the client has sent, or that of the portal that it runs, and does it run by itself and not inside
/// another statement? What functions and triggers run has texts of its own.
#[inline]
pub fn is_clients(text: *const c_char) -> bool {
    if text.is_null() || NESTING.load(Relaxed) != 0 {
        return false;
    }
    // SAFETY: globals of this process; a portal that is active is there.
    unsafe {
        let portal = pg_sys::ActivePortal;
        std::ptr::eq(text, pg_sys::debug_query_string)
            || !portal.is_null() && std::ptr::eq(text, (*portal).sourceText)
    }
}

/// The transaction has ended, good or bad.
pub fn after_transaction(committed: bool) {
    if !committed {
        // SAFETY: a global of this process. A procedure that rolls back runs on inside its statement.
        let is_over = unsafe { pg_sys::ActivePortal.is_null() };
        watch::rolled_back(1, is_over);
        if is_over {
            NESTING.store(0, Relaxed);
        }
    }
    learn::after_transaction();
}

/// A savepoint of this nesting level begins or ends.
pub fn at_savepoint(what: Savepoint, level: i32) {
    let Some(place) = usize::try_from(level).ok().and_then(|level| NESTING_AT.get(level.min(LEVELS - 1)))
    else {
        return;
    };
    match what {
        Savepoint::Started => place.store(NESTING.load(Relaxed), Relaxed),
        Savepoint::Released => {}
        Savepoint::RolledBack => {
            watch::rolled_back(level, false);
            NESTING.store(place.load(Relaxed), Relaxed);
        }
    }
}
