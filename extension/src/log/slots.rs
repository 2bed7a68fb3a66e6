//! Where in a log table transactions under way may be writing.
//!
//! Log tables grow at the end, so a batch is found by reading their end. The worker that cuts batches (the *cutter*)
//! says from which page on it will read next time, the table's *frontier*, and writers keep to pages from there on. A
//! writer that read an older frontier shows in its slot where it may be writing; so the cutter reads from the lowest
//! page of the frontier it published before and the slots it saw then.
//!
//! Neither waits for the other. Both sides store, pass a full fence, and load: a cutter that did not see a slot has
//! published before its writer looked at the frontier again.
//!
//! The order for the cutter: `publish_frontier`, then `active`, then `prepared`; a transaction that is being prepared
//! moves from the one to the other and is seen in at least one.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst, fence};

use crate::pg::shared::{self, Shared, SharedSlice};

/// So many log tables a transaction shows one by one; beyond that it shows "any".
const HEAPS: usize = 8;
/// So many log tables have a frontier. One without is written and read from its first page: correct, but slow.
const FRONTIERS: usize = 1024;
/// Room for prepared transactions that are finished, but not read by a cutter yet, and for those that wrote several
/// log tables.
const PREPARED_EXTRA: usize = 256;

/// The log table stands for any of the database.
pub const ANY_HEAP: u32 = 0;

/// One per process that can have a transaction.
#[repr(C, align(64))] // written by one process at every commit: no other's cache line
pub struct Slot {
    /// Top transaction id with its epoch; 0: free.
    xid: AtomicU64,
    database: AtomicU32,
    used: AtomicU32,
    /// Log table and the first page that may be written.
    heaps: [(AtomicU32, AtomicU32); HEAPS],
}

/// What a prepared transaction wrote into one log table.
#[repr(C)]
pub struct Prepared {
    /// 0: free; [`TAKEN`]: being filled.
    xid: AtomicU64,
    database: AtomicU32,
    heap: AtomicU32,
    first_block: AtomicU32,
    last_block: AtomicU32,
}

/// A log table and its frontier.
#[repr(C)]
pub struct Frontier {
    /// Database and log table; 0: never used; [`TAKEN`]: free again; one below: being filled.
    key: AtomicU64,
    block: AtomicU32,
}

const TAKEN: u64 = u64::MAX;

// SAFETY: atomics, for which zero is valid.
unsafe impl Shared for Slot {}
// SAFETY: as above.
unsafe impl Shared for Prepared {}
// SAFETY: as above.
unsafe impl Shared for Frontier {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}

static SLOTS: SharedSlice<Slot> = SharedSlice::new(c"pgquorum log slots", shared::backends_max);
static PREPARED: SharedSlice<Prepared> =
    SharedSlice::new(c"pgquorum prepared log slots", || 2 * shared::prepared_max() + PREPARED_EXTRA);
static FRONTIER: SharedSlice<Frontier> = SharedSlice::new(c"pgquorum log frontiers", || FRONTIERS);
static LOST: SharedSlice<AtomicU64> = SharedSlice::new(c"pgquorum lost log slots", || 1);

/// Asks for the shared memory; from `_PG_init`.
pub fn init() {
    SLOTS.register();
    PREPARED.register();
    FRONTIER.register();
    LOST.register();
}

/// What a writer has written into one log table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub heap: u32,
    pub first_block: u32,
    pub last_block: u32,
}

/// A transaction that may be writing a log table (or any, [`ANY_HEAP`], from its frontier on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    pub xid: u64,
    pub heap: u32,
    pub first_block: u32,
}

fn own_slot() -> Option<&'static Slot> {
    shared::backend_index().and_then(|index| SLOTS.get().get(index))
}

/// Before a transaction's first row goes into a log table: the first page that it may use.
pub fn begin(xid: u64, database: u32, heap: u32) -> u32 {
    let seen = frontier(database, heap);
    let Some(slot) = own_slot() else { return seen };
    let used = slot.used.load(SeqCst) as usize;
    // Filled from the inside out: a reader goes by `xid` and `used`.
    match slot.heaps.get(used) {
        Some((place, first)) => {
            place.store(heap, SeqCst);
            first.store(seen, SeqCst);
            slot.used.store(used as u32 + 1, SeqCst);
        }
        None => {
            // The others' first pages are forgotten with them; "any" covers them by their frontiers only if those have
            // not moved on, so the first of all is kept.
            let first = slot.heaps.iter().map(|(_, first)| first.load(SeqCst)).min().unwrap_or(0).min(seen);
            slot.heaps[0].1.store(first, SeqCst);
            slot.heaps[0].0.store(ANY_HEAP, SeqCst);
        }
    }
    slot.database.store(database, SeqCst);
    slot.xid.store(xid, SeqCst);
    fence(SeqCst);
    frontier(database, heap)
}

/// At the end of a transaction, when others see what became of it.
pub fn end() {
    if let Some(slot) = own_slot().filter(|slot| slot.xid.load(SeqCst) != 0) {
        slot.xid.store(0, SeqCst);
        slot.used.store(0, SeqCst);
    }
}

/// When a transaction has been prepared: shows what it wrote until a cutter has read it. Cannot fail; where there is
/// no room, [`lost`] grows.
pub fn hand_over(xid: u64, database: u32, written: &[Written]) {
    for part in written {
        let free =
            PREPARED.get().iter().find(|entry| entry.xid.compare_exchange(0, TAKEN, SeqCst, SeqCst).is_ok());
        let Some(entry) = free else {
            LOST.get().iter().for_each(|count| {
                count.fetch_add(1, SeqCst);
            });
            continue;
        };
        entry.database.store(database, SeqCst);
        entry.heap.store(part.heap, SeqCst);
        entry.first_block.store(part.first_block, SeqCst);
        entry.last_block.store(part.last_block, SeqCst);
        entry.xid.store(xid, SeqCst);
    }
    end();
}

/// For the cutter: the transactions of a database that may be writing now. With [`ANY_HEAP`], `first_block` holds for
/// every log table.
pub fn active(database: u32) -> Vec<Active> {
    fence(SeqCst);
    let mut all = Vec::new();
    for slot in SLOTS.get() {
        let xid = slot.xid.load(SeqCst);
        if xid == 0 || slot.database.load(SeqCst) != database {
            continue;
        }
        let used = slot.used.load(SeqCst) as usize;
        all.extend(slot.heaps.iter().take(used).map(|(heap, first)| Active {
            xid,
            heap: heap.load(SeqCst),
            first_block: first.load(SeqCst),
        }));
    }
    all
}

/// For the cutter: the prepared transactions of a database and exactly where they wrote, also those that are finished
/// by now and have not been forgotten.
pub fn prepared(database: u32) -> Vec<(u64, Written)> {
    let entries = PREPARED.get().iter().map(|entry| (entry.xid.load(SeqCst), entry));
    entries
        .filter(|(xid, entry)| *xid != 0 && *xid != TAKEN && entry.database.load(SeqCst) == database)
        .map(|(xid, entry)| {
            let (heap, first) = (entry.heap.load(SeqCst), entry.first_block.load(SeqCst));
            (xid, Written { heap, first_block: first, last_block: entry.last_block.load(SeqCst) })
        })
        .collect()
}

/// For the cutter: a prepared transaction is finished, and read or rolled back.
pub fn forget_prepared(xid: u64) {
    for entry in PREPARED.get() {
        let _ = entry.xid.compare_exchange(xid, 0, SeqCst, SeqCst);
    }
}

/// For the cutter: how many prepared transactions there was no room for since the server started. When it has grown,
/// the log must be read once from where the last batch says.
pub fn lost() -> u64 {
    LOST.get().first().map_or(0, |count| count.load(SeqCst))
}

/// Frees the places of a database that nobody will read any more, when its last channel was dropped.
pub fn forget_database(database: u32) {
    for entry in PREPARED.get() {
        let xid = entry.xid.load(SeqCst);
        if xid != 0 && xid != TAKEN && entry.database.load(SeqCst) == database {
            let _ = entry.xid.compare_exchange(xid, 0, SeqCst, SeqCst);
        }
    }
    for heap in heaps(database) {
        forget_heap(database, heap);
    }
}

/// The log tables of a database that have a frontier.
pub fn heaps(database: u32) -> Vec<u32> {
    let keys = FRONTIER.get().iter().map(|place| place.key.load(SeqCst)).filter(|key| *key < TAKEN - 1);
    keys.filter(|key| *key != 0 && key >> 32 == u64::from(database)).map(|key| key as u32).collect()
}

fn key(database: u32, heap: u32) -> u64 {
    u64::from(database) << 32 | u64::from(heap)
}

/// Places to look for a key, in order: from its hash on, to the first that was never used.
fn probe(key: u64) -> impl Iterator<Item = &'static Frontier> {
    let all = FRONTIER.get();
    let start = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize;
    (0..all.len()).map(move |step| &all[(start + step) % all.len()])
}

/// The first page that writers of a log table may use.
pub fn frontier(database: u32, heap: u32) -> u32 {
    let key = key(database, heap);
    for place in probe(key) {
        match place.key.load(SeqCst) {
            0 => return 0,
            found if found == key => return place.block.load(SeqCst),
            _ => {}
        }
    }
    0
}

/// For the cutter, the only one to call it for a database: from now on writers use pages from this one on.
pub fn publish_frontier(database: u32, heap: u32, block: u32) {
    let key = key(database, heap);
    let mut free = None;
    for place in probe(key) {
        match place.key.load(SeqCst) {
            found if found == key => {
                place.block.store(block, SeqCst);
                fence(SeqCst);
                return;
            }
            0 => {
                free = free.or(Some((place, 0)));
                break;
            }
            TAKEN => free = free.or(Some((place, TAKEN))),
            _ => {}
        }
    }
    if let Some((place, was)) = free {
        // Whoever loses the place to another database's cutter goes without until the next time.
        if place.key.compare_exchange(was, TAKEN - 1, SeqCst, SeqCst).is_ok() {
            place.block.store(block, SeqCst);
            place.key.store(key, SeqCst);
        }
    }
    fence(SeqCst);
}

/// When a log table is dropped.
pub fn forget_heap(database: u32, heap: u32) {
    let key = key(database, heap);
    for place in probe(key) {
        match place.key.load(SeqCst) {
            0 => return,
            found if found == key => {
                let _ = place.key.compare_exchange(key, TAKEN, SeqCst, SeqCst);
                return;
            }
            _ => {}
        }
    }
}
