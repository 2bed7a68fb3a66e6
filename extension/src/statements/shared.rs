//! The lock of the learner's shared memory, and what needs none.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, PgLwLockExclusiveGuard, PgLwLockShareGuard, pg_shmem_init};

use super::settings;
use crate::pg::shared::SharedSlice;

/// Where places are taken from.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Control {
    /// The last tag that was given.
    pub tags: u64,
    /// The place that was looked at last for one to be given up.
    pub hand: u32,
    /// So many places were used at least once.
    pub used: u32,
    /// The first free place among them, plus one; 0: none.
    pub free: u32,
    /// The place of the ring that is written next.
    pub ring: u32,
}

#[derive(Default)]
#[repr(C, align(64))] // read at the end of every transaction
pub struct Globals {
    /// Counts the changes that were told to the ring.
    pub generation: AtomicU64,
    /// Elements of the ring that are open.
    pub open: AtomicU64,
    /// Below this generation, changes have fallen out of the ring.
    pub lost_generation: AtomicU64,
    /// And up to this WAL position.
    pub lost_lsn: AtomicU64,
    /// From this WAL position on the ring has what was changed; 0: nobody has asked yet.
    pub covers_from: AtomicU64,
    /// Counts what was learned here that takes away from what is served.
    pub negatives: AtomicU64,
    /// Not 0: new statements take the places of others.
    pub full: AtomicU64,
    /// Statements that came to the door since it was shut last.
    pub came: AtomicU64,
    /// Counts prepared transactions that have changed something.
    pub prepared: AtomicU64,
}

// SAFETY: plain integers, no pointers, valid at any address of any process.
unsafe impl PGRXSharedMemory for Control {}
// SAFETY: as above.
unsafe impl PGRXSharedMemory for Globals {}

// SAFETY: the names are this extension's own.
static CONTROL: PgLwLock<Control> = unsafe { PgLwLock::new(c"pgquorum statements lock") };
// SAFETY: as above.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static GLOBALS: PgAtomic<Globals> = unsafe { PgAtomic::new(c"pgquorum statements state") };

/// Words of the filter, a bit for every 1/2^20 of all hashes.
const GIVEN_WORDS: usize = 1 << 14;
static GIVEN: SharedSlice<AtomicU64> =
    SharedSlice::new(c"pgquorum served statements", || if settings::most() > 0 { GIVEN_WORDS } else { 0 });

pub type Shared = PgLwLockShareGuard<'static, Control>;
pub type Exclusive = PgLwLockExclusiveGuard<'static, Control>;

/// Asks for the shared memory; only while the server starts.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(CONTROL);
    pg_shmem_init!(GLOBALS);
    GIVEN.register();
}

/// Keeps places where they are. Nothing that may raise an error is to be done meanwhile.
pub fn share() -> Shared {
    CONTROL.share()
}

/// Lets places be given and taken, texts be written and the ring be read and written consistently. As [`share`].
pub fn exclusive() -> Exclusive {
    CONTROL.exclusive()
}

#[inline]
pub fn globals() -> &'static Globals {
    GLOBALS.get()
}

/// These hashes are about to be given out as served. To be called before what takes away from them is looked at, so that
/// whatever is learned after that look counts as a change.
pub fn note_given(hashes: impl Iterator<Item = u64>) {
    for (word, bit) in hashes.filter_map(given_bit) {
        // Most are there already, and readers need not take the line from each other.
        if word.load(SeqCst) & bit == 0 {
            word.fetch_or(bit, SeqCst);
        }
    }
}

/// May a statement with this hash have been given out as served?
pub fn may_be_given(hash: u64) -> bool {
    given_bit(hash).is_some_and(|(word, bit)| word.load(SeqCst) & bit != 0)
}

/// Something was learned that a statement with this hash is not to be served. Counts only if it may have been given out.
pub fn note_negative(hash: u64) {
    if may_be_given(hash) {
        globals().negatives.fetch_add(1, SeqCst);
    }
}

fn given_bit(hash: u64) -> Option<(&'static AtomicU64, u64)> {
    let word = GIVEN.get().get((hash >> 50) as usize)?;
    Some((word, 1 << (hash >> 44 & 63)))
}
