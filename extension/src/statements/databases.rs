//! What sessions, savers and the launcher tell each other of databases in which statements are learned.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::settings;
use crate::feed;
use crate::pg::shared::{Shared, SharedSlice};
use crate::pg::{clock, process, worker};

/// So long nobody is started in a database that somebody wants for himself: PostgreSQL waits 5 s for those who are in it.
const AWAY_NS: u64 = 6_000 * clock::NS_PER_MS;
/// A database without a place is saved when one is free.
const DATABASES: usize = 64;

/// How much there is to do.
const NOTHING: u32 = 0;
const WANTED: u32 = 1;
const AT_ONCE: u32 = 2;

#[repr(C)]
pub struct Database {
    /// 0: free.
    oid: AtomicU32,
    /// The process that saves; 0: none.
    saver_pid: AtomicI32,
    wanted: AtomicU32,
    /// Not 0: all rows are to be set back.
    sweep: AtomicU32,
    /// Not 0: its last saver has found no extension there.
    bare: AtomicU32,
    /// Until then somebody wants it for himself (`CLOCK_BOOTTIME`).
    away_until_ns: AtomicU64,
    /// Prepared transactions that had changed something, plus one, as far as they were taken into account; 0: not yet.
    prepared: AtomicU64,
    /// `quorum.statements_counter.forgotten`, plus one, as this server has followed it; 0: not yet.
    forgotten: AtomicU64,
}

// SAFETY: atomics only, for which zero is valid.
unsafe impl Shared for Database {}

static DATABASE: SharedSlice<Database> =
    SharedSlice::new(c"pgquorum statement databases", || if settings::most() > 0 { DATABASES } else { 0 });

/// Asks for the shared memory; only while the server starts.
pub fn init() {
    DATABASE.register();
}

fn known(database: u32) -> Option<&'static Database> {
    DATABASE.get().iter().find(|entry| entry.oid.load(SeqCst) == database)
}

/// The place of a database, made if there is room.
fn of(database: u32) -> Option<&'static Database> {
    known(database).or_else(|| {
        DATABASE.get().iter().find(|entry| {
            let owner = entry.oid.compare_exchange(0, database, SeqCst, SeqCst).unwrap_or_else(|owner| owner);
            owner == 0 || owner == database
        })
    })
}

/// Something was learned, which is to be saved within a second or so.
pub fn want(database: u32) {
    raise(database, WANTED);
}

/// Something was learned that is to be saved at once.
pub fn hurry(database: u32) {
    raise(database, AT_ONCE);
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
fn raise(database: u32, wanted: u32) {
    let Some(entry) = of(database) else { return };
    if entry.wanted.fetch_max(wanted, SeqCst) >= wanted || process::in_recovery() {
        return;
    }
    let pid = entry.saver_pid.load(SeqCst);
    if !worker::lives(pid) {
        feed::shared::wake_launcher();
    } else if wanted == AT_ONCE {
        worker::wake(pid);
    }
}

/// All rows are to be set back: nobody knows which ones a committed transaction should have.
pub fn sweep(database: u32) {
    if let Some(entry) = of(database) {
        entry.sweep.store(1, SeqCst);
        entry.wanted.store(NOTHING, SeqCst);
        hurry(database);
    }
}

/// Are all rows to be set back? Nothing is served until that is done.
pub fn is_to_be_swept(database: u32) -> bool {
    known(database).is_some_and(|entry| entry.sweep.load(SeqCst) != 0)
}

/// It is done.
pub fn is_swept(database: u32) {
    if let Some(entry) = known(database) {
        entry.sweep.store(0, SeqCst);
    }
}

/// For a saver that begins, in itself; with `pid` 0 for one that ends.
pub fn set_saver(database: u32, pid: i32) {
    if let Some(entry) = of(database) {
        entry.saver_pid.store(pid, SeqCst);
    }
}

/// For a saver: what it is about to look at is what there is to do. True: it was to hurry.
pub fn take_wanted(database: u32) -> bool {
    known(database).is_some_and(|entry| entry.wanted.swap(NOTHING, SeqCst) == AT_ONCE)
}

/// Somebody wants the database for himself, to drop or to copy it: who saves in it goes, and comes back when that should be
/// over. What takes away from what is served is saved all the same.
pub fn make_way(database: u32) {
    if let Some(entry) = known(database) {
        entry.away_until_ns.store(clock::boottime_ns() + AWAY_NS, SeqCst);
        worker::wake(entry.saver_pid.load(SeqCst));
    }
}

/// Until when nobody is to save there what can wait; 0 or past: there is no reason not to.
pub fn away_until_ns(database: u32) -> u64 {
    let waits = |entry: &&Database| entry.wanted.load(SeqCst) < AT_ONCE;
    known(database).filter(waits).map_or(0, |entry| entry.away_until_ns.load(SeqCst))
}

/// For the launcher: the databases that want a saver and have none.
pub fn without_saver() -> Vec<u32> {
    let all = DATABASE.get().iter();
    let wanting = all.filter(|entry| entry.oid.load(SeqCst) != 0 && entry.wanted.load(SeqCst) != NOTHING);
    let alone = wanting.filter(|entry| !worker::lives(entry.saver_pid.load(SeqCst)));
    alone.map(|entry| entry.oid.load(SeqCst)).collect()
}

/// For a saver that finds no extension in its database.
pub fn set_bare(database: u32) {
    if let Some(entry) = known(database) {
        entry.bare.store(1, SeqCst);
    }
}

/// For the launcher: has the last saver ended because there was no extension? That is no failure: should the extension be
/// created, the next one is started at once.
pub fn take_bare(database: u32) -> bool {
    known(database).is_some_and(|entry| entry.bare.swap(0, SeqCst) != 0)
}

/// For a saver that has had its turn: does another database wait for one?
pub fn another_waits(database: u32) -> bool {
    let now_ns = clock::boottime_ns();
    without_saver().iter().any(|other| *other != database && now_ns >= away_until_ns(*other))
}

/// The database is gone.
pub fn forget(database: u32) {
    if let Some(entry) = known(database) {
        for field in [&entry.wanted, &entry.sweep, &entry.bare] {
            field.store(0, SeqCst);
        }
        entry.away_until_ns.store(0, SeqCst);
        entry.prepared.store(0, SeqCst);
        entry.forgotten.store(0, SeqCst);
        entry.oid.store(0, SeqCst);
    }
}

/// So many prepared transactions have changed something since the server started, as far as they were taken into account
/// in a database. `None`: not even those that it started with.
pub fn prepared(database: u32) -> Option<u64> {
    known(database)?.prepared.load(SeqCst).checked_sub(1)
}

/// They are taken into account.
pub fn set_prepared(database: u32, count: u64) {
    if let Some(entry) = known(database) {
        entry.prepared.store(count + 1, SeqCst);
    }
}

/// On a standby: the table says how often everything was forgotten. True: this server has not followed that yet.
pub fn is_forgotten_anew(database: u32, forgotten: u64) -> bool {
    of(database).is_some_and(|entry| {
        let before = entry.forgotten.swap(forgotten + 1, SeqCst);
        before != 0 && before != forgotten + 1
    })
}
