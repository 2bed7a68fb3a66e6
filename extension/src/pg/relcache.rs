//! Notices of changed tables.

use std::cell::{Cell, RefCell};

use pgrx::prelude::*;

use super::single::Single;

/// Tables about which something is kept in this process.
static WATCHED: Single<RefCell<Vec<u32>>> = Single::new(Vec::new());
static CHANGED: Single<RefCell<Vec<u32>>> = Single::new(Vec::new());
static ANY: Single<Cell<bool>> = Single::cell(false);
static ALL: Single<Cell<bool>> = Single::cell(false);
/// How many notices there were.
static GENERATION: Single<Cell<u64>> = Single::cell(0);

/// Asks to be told; once, from `_PG_init`.
pub fn init() {
    // SAFETY: the callback is registered once, before any session exists.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(at_change), pg_sys::Datum::from(0)) }
}

/// Called at any moment at which a lock may be waited for. Notes only, and calls nothing.
unsafe extern "C-unwind" fn at_change(_argument: pg_sys::Datum, relid: pg_sys::Oid) {
    let relid = relid.to_u32();
    GENERATION.set(GENERATION.get() + 1);
    if relid == 0 {
        ALL.set(true);
        ANY.set(true);
    } else if WATCHED.look(|watched| watched.contains(&relid)) {
        CHANGED.with(|changed| changed.push(relid));
        ANY.set(true);
    }
}

/// A number that changes whenever any relation may have changed.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// From now on notices about this table are wanted; true: they were not before, so what was read of it just now may
/// have changed unnoticed.
pub fn watch(relid: u32) -> bool {
    WATCHED.with(|watched| {
        let new = !watched.contains(&relid);
        if new {
            watched.push(relid);
        }
        new
    })
}

/// Which tables have changed.
pub enum Changes {
    All,
    Some(Vec<u32>),
}

/// What has changed since the last call.
#[inline]
pub fn changes() -> Option<Changes> {
    ANY.get().then(take)
}

#[cold]
fn take() -> Changes {
    ANY.set(false);
    let changed = CHANGED.take();
    if ALL.take() { Changes::All } else { Changes::Some(changed) }
}

/// Tells all processes, at the end of this transaction, that what they keep about a table is to be looked up again.
pub fn forget_everywhere(relid: pg_sys::Oid) {
    // SAFETY: the table exists; raises otherwise.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relid) }
}
