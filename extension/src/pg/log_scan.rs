//! The log's heaps: `order_lsn bigint, xid xid8, part int, changes int, flags int, data bytea`, written by `capture`.
//!
//! Rows are never changed, and there is no index: they are found by going through the blocks in which new ones can be,
//! and read again by their place.

use std::cell::Cell;

use pgrx::pg_sys;

use super::worker::lock;

const COLUMNS: usize = 6;
const DATA: usize = 5;

/// A log row without its data, as a scan sees it.
#[derive(Clone, Copy, Debug)]
pub struct LogRow {
    pub order_lsn: u64,
    pub xid: u64,
    pub part: u32,
    pub changes: u32,
    pub flags: u32,
    pub block: u32,
    pub offset: u16,
}

/// Which rows a scan shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those of transactions that the active snapshot sees.
    Visible,
    /// All, also those of transactions that are under way or were rolled back.
    All,
}

/// An open heap. Its lock stays until the end of the transaction.
pub struct ScannedHeap {
    relation: pg_sys::Relation,
    /// So many blocks it has at least.
    known_blocks: Cell<u32>,
}

impl ScannedHeap {
    /// `None`: it was dropped.
    pub fn open(oid: u32) -> Option<Self> {
        // SAFETY: takes the lock, then looks whether the table is still there.
        let relation = unsafe { pg_sys::try_table_open(pg_sys::Oid::from(oid), lock::ACCESS_SHARE) };
        (!relation.is_null()).then(|| Self { relation, known_blocks: Cell::new(0) })
    }

    /// How many blocks it has now. It only grows.
    pub fn blocks(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
    }

    /// Shows the rows in the blocks `from..to`.
    pub fn scan(&self, from: u32, to: u32, which: Which, mut look: impl FnMut(LogRow)) {
        let to = to.min(self.blocks());
        if from >= to {
            return;
        }
        let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
            | pg_sys::ScanOptions::SO_ALLOW_STRAT
            | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
        // SAFETY: the relation is open, the scan is ended; a row is used only until the next one is fetched. The
        // active snapshot outlives the scan; the one for all rows is static.
        unsafe {
            let snapshot = match which {
                Which::Visible => pg_sys::GetActiveSnapshot(),
                Which::All => &raw mut pg_sys::SnapshotAnyData,
            };
            let (no_keys, not_parallel) = (std::ptr::null_mut(), std::ptr::null_mut());
            let scan = pg_sys::heap_beginscan(self.relation, snapshot, 0, no_keys, not_parallel, flags);
            pg_sys::heap_setscanlimits(scan, from, to - from);
            loop {
                let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if tuple.is_null() {
                    break;
                }
                look(self.row(tuple).0);
            }
            pg_sys::heap_endscan(scan);
        }
    }

    /// Does it have this block? Asks the file system only about blocks that are news.
    fn has_block(&self, block: u32) -> bool {
        if block >= self.known_blocks.get() {
            self.known_blocks.set(self.blocks());
        }
        block < self.known_blocks.get()
    }

    /// Shows the row at a place, with its data, to `look`, which must not call into PostgreSQL. `None`: there is no row.
    ///
    /// The caller knows from a batch that its transaction has committed.
    pub fn fetch<T>(&self, block: u32, offset: u16, look: impl FnOnce(LogRow, &[u8]) -> T) -> Option<T> {
        if offset == 0 || !self.has_block(block) {
            return None;
        }
        // SAFETY: the relation is open and has this block; PostgreSQL checks the offset. The buffer stays pinned
        // until the data were looked at, and is released after.
        unsafe {
            let at = pg_sys::ItemPointerData {
                ip_blkid: pg_sys::BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: block as u16 },
                ip_posid: offset,
            };
            let mut tuple = pg_sys::HeapTupleData { t_self: at, ..Default::default() };
            let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
            let any = &raw mut pg_sys::SnapshotAnyData;
            #[cfg(feature = "pg14")]
            let found = pg_sys::heap_fetch(self.relation, any, &mut tuple, &mut buffer);
            #[cfg(not(feature = "pg14"))]
            let found = pg_sys::heap_fetch(self.relation, any, &mut tuple, &mut buffer, false);
            if !found {
                return None;
            }
            let (row, data) = self.row(&mut tuple);
            let varlena = data.cast_mut_ptr::<pg_sys::varlena>();
            let seen = look(row, pgrx::varlena::varlena_to_byte_slice(varlena));
            pg_sys::ReleaseBuffer(buffer);
            Some(seen)
        }
    }

    /// # Safety
    ///
    /// `tuple` is a row of this heap that is in memory.
    unsafe fn row(&self, tuple: pg_sys::HeapTuple) -> (LogRow, pg_sys::Datum) {
        let mut values = [pg_sys::Datum::null(); COLUMNS];
        let mut nulls = [false; COLUMNS];
        // SAFETY: see above; the heap has these columns, none of them NULL or stored elsewhere.
        let (block, offset) = unsafe {
            pg_sys::heap_deform_tuple(
                tuple,
                (*self.relation).rd_att,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            let at = &(*tuple).t_self;
            (u32::from(at.ip_blkid.bi_hi) << 16 | u32::from(at.ip_blkid.bi_lo), at.ip_posid)
        };
        let number = |column: usize| values[column].value() as u64;
        let small = |column: usize| values[column].value() as u32;
        let row = LogRow {
            order_lsn: number(0),
            xid: number(1),
            part: small(2),
            changes: small(3),
            flags: small(4),
            block,
            offset,
        };
        (row, values[DATA])
    }
}

impl Drop for ScannedHeap {
    fn drop(&mut self) {
        // After an error the end of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by this process and not closed since.
            unsafe { pg_sys::table_close(self.relation, lock::NONE) };
        }
    }
}

/// Is nobody writing to this table, and has no unfinished transaction written to it? Writers keep their lock until
/// their transaction's end, prepared ones too. Looks only; nobody waits.
pub fn has_no_writers(oid: u32) -> bool {
    let oid = pg_sys::Oid::from(oid);
    // SAFETY: takes and gives back a lock within the transaction.
    unsafe {
        let free = pg_sys::ConditionalLockRelationOid(oid, lock::SHARE);
        if free {
            pg_sys::UnlockRelationOid(oid, lock::SHARE);
        }
        free
    }
}
