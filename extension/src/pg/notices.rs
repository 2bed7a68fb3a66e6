//! Notices of changed objects, which PostgreSQL sends to all sessions, as far as the learner of statements uses them.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};

use pg_sys::SysCacheIdentifier as Cache;
use pgrx::prelude::*;

use super::{search_path, table};
use crate::statements::learn;

/// Whether the extension is in this database. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static HERE: AtomicU8 = AtomicU8::new(UNKNOWN);
/// The learner's table, when it was found to belong to the extension.
static TABLE: AtomicU32 = AtomicU32::new(0);

const UNKNOWN: u8 = 0;
const YES: u8 = 1;
const NO: u8 = 2;

/// Asks to be told; once, from `_PG_init`.
pub fn init() {
    for cache in [Cache::PROCOID, Cache::RELOID, Cache::TYPEOID, Cache::OPEROID, Cache::NAMESPACEOID] {
        // SAFETY: the callback is registered before any session exists, and there is room for many more.
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as c_int, Some(at_notice), pg_sys::Datum::from(0))
        }
    }
}

/// Called at any moment at which a lock may be waited for. Notes only.
unsafe extern "C-unwind" fn at_notice(_argument: pg_sys::Datum, cache: c_int, _hash: u32) {
    let is = |other: Cache::Type| cache == other as c_int;
    if is(Cache::RELOID) || is(Cache::NAMESPACEOID) {
        HERE.store(UNKNOWN, Relaxed);
    }
    if is(Cache::NAMESPACEOID) {
        search_path::forget();
    }
    // Not within a transaction: it is just beginning, all notices that have been sent are taken in now, and what it runs
    // is analysed after that.
    // SAFETY: reads state of this process; cannot raise.
    if !unsafe { pg_sys::IsTransactionState() } {
        learn::take_in();
    }
}

/// Is the extension in this database, with a table for learned statements? In a transaction.
#[inline]
pub fn extension_is_here() -> bool {
    match HERE.load(Relaxed) {
        YES => true,
        NO => false,
        _ => look(),
    }
}

#[cold]
fn look() -> bool {
    let found = table::named(c"readonly_statement");
    // Only superusers make members of the extension. One that somebody else has made under the name does not count.
    let ours = found.filter(|oid| TABLE.load(Relaxed) == *oid || table::is_member(pg_sys::Oid::from(*oid)));
    TABLE.store(ours.unwrap_or(0), Relaxed);
    HERE.store(if ours.is_some() { YES } else { NO }, Relaxed);
    ours.is_some()
}
