//! What was changed lately, so that a verdict that was reached before a change is not taken for one about what is there now.
//!
//! A transaction that has changed objects opens an element when it has committed, and closes it when all sessions have
//! been sent the notices that PostgreSQL sends of changes. A session that has seen a generation before it analysed a
//! statement (at the end of its transaction before, or among the notices at the beginning of this one) has taken in all
//! changes up to it; what lies behind is compared with the statement. Where the ring has turned too far, or an element is
//! still open, the answer is that something may have changed: the statement is planned again another time.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::changed::Changed;
use super::settings;
use super::shared::{self, Exclusive};
use crate::pg::shared::{Shared, SharedSlice};

const ELEMENTS: usize = 256;
const OIDS: usize = 32;
const NAMES: usize = 16;

/// What one transaction has changed.
#[repr(C)]
pub struct Element {
    /// 0: never used.
    generation: AtomicU64,
    /// Where its commit record ends.
    lsn: AtomicU64,
    database: AtomicU32,
    /// The process that has not closed it yet; 0: closed.
    open_by: AtomicI32,
    everything: AtomicU32,
    oid_count: AtomicU32,
    name_count: AtomicU32,
    oids: [AtomicU32; OIDS],
    /// The bits of its names in a statement's filter.
    names: [AtomicU64; NAMES],
}

// SAFETY: atomics only, for which zero is valid.
unsafe impl Shared for Element {}

static RING: SharedSlice<Element> =
    SharedSlice::new(c"pgquorum statement changes", || if settings::most() > 0 { ELEMENTS } else { 0 });

/// Asks for the shared memory; only while the server starts.
pub fn init() {
    RING.register();
}

/// What a session has seen of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// On a primary: all changes up to this generation.
    Generation(u64),
    /// On a standby: all changes up to this WAL position. The primary compares them.
    Replayed(u64),
}

impl Seen {
    pub fn is_in_recovery(self) -> bool {
        matches!(self, Self::Replayed(_))
    }
}

/// The newest generation.
#[inline]
pub fn generation() -> u64 {
    shared::globals().generation.load(SeqCst)
}

/// What a verdict rests on.
pub struct Statement<'a> {
    pub database: u32,
    pub depends: &'a [u32],
    pub on_all: bool,
    pub words: u64,
}

impl Element {
    fn concerns(&self, statement: &Statement) -> bool {
        let oids = self.oids[..(self.oid_count.load(Relaxed) as usize).min(OIDS)].iter();
        let names = self.names[..(self.name_count.load(Relaxed) as usize).min(NAMES)].iter();
        self.database.load(Relaxed) == statement.database
            && (self.everything.load(Relaxed) != 0
                || statement.on_all
                || oids.map(|oid| oid.load(Relaxed)).any(|oid| statement.depends.contains(&oid))
                || names.map(|bits| bits.load(Relaxed)).any(|bits| statement.words & bits == bits))
    }

    fn is_open(&self) -> bool {
        self.open_by.load(Relaxed) != 0
    }
}

/// May something that the statement rests on have changed since? In a lock of either mode.
pub fn has_changed(seen: Seen, statement: &Statement) -> bool {
    let Seen::Generation(seen) = seen else { return false };
    let globals = shared::globals();
    if globals.open.load(Relaxed) == 0 && seen >= globals.generation.load(Relaxed) {
        return false;
    }
    seen < globals.lost_generation.load(Relaxed)
        || RING.get().iter().any(|element| {
            (element.is_open() || element.generation.load(Relaxed) > seen) && element.concerns(statement)
        })
}

/// The same for a verdict of a standby that had replayed the WAL up to `lsn`; `now_lsn` is where the WAL ends here. Where
/// this server does not know what has changed since, it may have.
pub fn has_changed_since(lsn: u64, statement: &Statement, now_lsn: u64) -> bool {
    let _kept = shared::share();
    let globals = shared::globals();
    // Whatever is changed on this server after the first question comes into the ring.
    let from = match globals.covers_from.compare_exchange(0, now_lsn, SeqCst, SeqCst) {
        Ok(_) => now_lsn,
        Err(from) => from,
    };
    lsn < from
        || lsn < globals.lost_lsn.load(Relaxed)
        || RING.get().iter().any(|element| {
            (element.is_open() || element.lsn.load(Relaxed) > lsn) && element.concerns(statement)
        })
}

/// This server is a primary from this WAL position on: it knows of all changes behind it.
pub fn cover_from(lsn: u64) {
    let _ = shared::globals().covers_from.compare_exchange(0, lsn.max(1), SeqCst, SeqCst);
}

/// Tells what a transaction has changed, which has just committed; where its element is.
pub fn open(
    control: &mut Exclusive,
    database: u32,
    changed: &Changed,
    lsn: u64,
    own_pid: i32,
) -> Option<usize> {
    let all = RING.get();
    // One that is open is not written over as long as there are others.
    let (start, mut index) = (control.ring as usize, control.ring as usize);
    for step in 0..all.len() {
        index = (start + step) % all.len();
        if !all[index].is_open() {
            break;
        }
    }
    let element = all.get(index)?;
    control.ring = ((index + 1) % all.len()) as u32;
    let globals = shared::globals();
    globals.lost_generation.fetch_max(element.generation.load(Relaxed), SeqCst);
    globals.lost_lsn.fetch_max(element.lsn.load(Relaxed), SeqCst);
    let fits = changed.oids().len() <= OIDS && changed.name_bits().len() <= NAMES;
    let everything = changed.is_everything() || !fits;
    element.everything.store(everything.into(), Relaxed);
    element.oid_count.store(if everything { 0 } else { changed.oids().len() as u32 }, Relaxed);
    element.name_count.store(if everything { 0 } else { changed.name_bits().len() as u32 }, Relaxed);
    for (place, oid) in element.oids.iter().zip(changed.oids()) {
        place.store(oid, Relaxed);
    }
    for (place, bits) in element.names.iter().zip(changed.name_bits()) {
        place.store(bits, Relaxed);
    }
    element.database.store(database, Relaxed);
    element.lsn.store(lsn, Relaxed);
    if !element.is_open() {
        globals.open.fetch_add(1, Relaxed);
    }
    element.open_by.store(own_pid, Relaxed);
    element.generation.store(globals.generation.fetch_add(1, SeqCst) + 1, Relaxed);
    Some(index)
}

/// All sessions have been sent the notices of the change, so that whoever sees this generation has taken them in.
pub fn close(index: usize, own_pid: i32) {
    let _alone = shared::exclusive();
    let Some(element) = RING.get().get(index).filter(|e| e.open_by.load(Relaxed) == own_pid) else { return };
    element.generation.store(shared::globals().generation.fetch_add(1, SeqCst) + 1, Relaxed);
    element.open_by.store(0, Relaxed);
    shared::globals().open.fetch_sub(1, Relaxed);
}
