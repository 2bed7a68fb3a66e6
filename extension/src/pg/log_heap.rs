//! Rows of the log, put straight into its table.

use pgquorum_change::{CHUNK_MAX, Chunk};
use pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED;
use pgrx::pg_sys;

use crate::error::Refusal;
use crate::log::slots;

/// Bytes of a row before its columns: a row header without NULLs, aligned.
const ROW_HEADER: usize = 24;
/// `order_lsn`, `xid`, `part`, `changes`, `flags`.
const FIXED: usize = 8 + 8 + 4 + 4 + 4;
const LENGTH: usize = 4;
const COLUMNS: u16 = 6;
/// Bits of `flags`.
const FIRST: i32 = 1;
const LAST: i32 = 2;

/// The table in which a channel's log grows, open until the end of the transaction.
pub struct LogHeap {
    relation: pg_sys::Relation,
    oid: u32,
    first_block: Option<u32>,
    last_block: u32,
}

/// The position that orders transactions, and the transaction's number.
#[derive(Clone, Copy)]
pub struct Identity {
    pub order_lsn: u64,
    pub xid: u64,
}

impl Identity {
    /// Of the present transaction, from now on.
    ///
    /// Transactions are ordered by where the WAL ended just before they wrote into the log. Whoever depends on another
    /// one (the same row, a unique key, a foreign key) went on only when that one's commit record was in the WAL, and
    /// comes here later, so its position is higher. Equal ones do not depend on each other. The order goes on over
    /// restarts and failovers, and needs neither a sequence nor a lock.
    pub fn now() -> Self {
        // SAFETY: reads this process's transaction, which has written, and a shared position.
        unsafe {
            let xid = pg_sys::GetTopFullTransactionId();
            Self { order_lsn: pg_sys::GetXLogInsertRecPtr(), xid: xid.value }
        }
    }
}

/// The database of this process.
pub fn database() -> u32 {
    // SAFETY: a global of this process.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

impl LogHeap {
    /// Opens a log table for this transaction and says so in the transaction's slot; `None`: it was dropped.
    pub fn open(oid: u32) -> Option<Self> {
        // SAFETY: the lock keeps the table until the end of the transaction.
        let relation =
            unsafe { pg_sys::try_relation_open(oid.into(), pg_sys::RowExclusiveLock as pg_sys::LOCKMODE) };
        (!relation.is_null()).then_some(Self { relation, oid, first_block: None, last_block: 0 })
    }

    pub fn oid(&self) -> u32 {
        self.oid
    }

    /// Closes it; the lock stays.
    pub fn close(self) {
        // SAFETY: the relation is open; this value is consumed.
        unsafe { pg_sys::relation_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE) }
    }

    /// Rows go to this page or later ones. Raises XX001 if the table has become shorter than that: whoever reads the
    /// log would not look where they went.
    pub fn keep_behind(&mut self, frontier: u32, channel: i32) {
        if frontier == 0 {
            return;
        }
        // SAFETY: the relation is open. Without a target PostgreSQL takes the table's last page.
        unsafe {
            let storage = pg_sys::RelationGetSmgr(self.relation);
            let target = (*storage).smgr_targblock;
            // The page that this process has written last; forgotten when the table becomes shorter or another file.
            if target != pg_sys::InvalidBlockNumber && target >= frontier {
                return;
            }
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let pages = pg_sys::RelationGetNumberOfBlocksInFork(self.relation, main);
            if pages < frontier {
                self.too_short(pages, frontier, channel);
            }
            (*storage).smgr_targblock = pg_sys::InvalidBlockNumber;
        }
    }

    #[cold]
    fn too_short(&self, pages: u32, frontier: u32, channel: i32) -> ! {
        Refusal::new(
            ERRCODE_DATA_CORRUPTED,
            format!("the table with the OID {}, a part of the change log, has {pages} pages, but {frontier} of it were read", self.oid),
        )
        .detail("Something cut it off or wrote it anew. What is written to it now would be missing for those who follow the channel.")
        .hint(format!("As a superuser: SELECT quorum.open_segment({channel}). Followers of the channel should copy its tables anew."))
        .raise()
    }

    /// Adds a chunk. `row` is room for it, kept between calls.
    pub fn insert(&mut self, identity: Identity, chunk: &Chunk, row: &mut RowBuffer) {
        let mut tuple = row.fill(identity, chunk);
        // SAFETY: the relation is open for writing, the row has its columns and fits a page. It is not looked at by
        // logical decoding, which would only decode the same changes again.
        unsafe {
            let command = pg_sys::GetCurrentCommandId(true);
            let options = (pg_sys::HEAP_INSERT_SKIP_FSM | pg_sys::HEAP_INSERT_NO_LOGICAL) as i32;
            pg_sys::heap_insert(self.relation, &mut tuple, command, options, std::ptr::null_mut());
        }
        let place = tuple.t_self.ip_blkid;
        let block = u32::from(place.bi_hi) << 16 | u32::from(place.bi_lo);
        self.first_block = Some(self.first_block.map_or(block, |first| first.min(block)));
        self.last_block = self.last_block.max(block);
    }

    /// Where the rows went.
    pub fn written(&self) -> Option<slots::Written> {
        self.first_block.map(|first_block| slots::Written {
            heap: self.oid,
            first_block,
            last_block: self.last_block,
        })
    }
}

/// Room for one row of the log, laid out as PostgreSQL wants it.
pub struct RowBuffer(Box<[u64; (ROW_HEADER + FIXED + LENGTH + CHUNK_MAX).div_ceil(8)]>);

impl Default for RowBuffer {
    fn default() -> Self {
        Self(Box::new([0; (ROW_HEADER + FIXED + LENGTH + CHUNK_MAX).div_ceil(8)]))
    }
}

impl RowBuffer {
    /// Makes the row and a handle to it, which is valid until the next call.
    fn fill(&mut self, identity: Identity, chunk: &Chunk) -> pg_sys::HeapTupleData {
        let length = ROW_HEADER + FIXED + LENGTH + chunk.data.len();
        debug_assert!(chunk.data.len() <= CHUNK_MAX);
        let flags = if chunk.part == 0 { FIRST } else { 0 } | if chunk.last { LAST } else { 0 };
        let numbers = [chunk.part as i32, chunk.changes as i32, flags];
        let start = self.0.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer has room for the longest chunk and is aligned for all that is written: the columns of the
        // log table in their order, none NULL, none with gaps between them. PostgreSQL sets the rest of the header.
        unsafe {
            start.write_bytes(0, ROW_HEADER);
            let header = start.cast::<pg_sys::HeapTupleHeaderData>();
            (*header).t_hoff = ROW_HEADER as u8;
            (*header).t_infomask = pg_sys::HEAP_HASVARWIDTH as u16;
            (*header).t_infomask2 = COLUMNS;
            let columns = start.add(ROW_HEADER);
            columns.cast::<u64>().write(identity.order_lsn);
            columns.cast::<u64>().add(1).write(identity.xid);
            columns.add(16).cast::<[i32; 3]>().write(numbers);
            let data = columns.add(FIXED);
            pgrx::set_varsize_4b(data.cast(), (LENGTH + chunk.data.len()) as i32);
            data.add(LENGTH).copy_from_nonoverlapping(chunk.data.as_ptr(), chunk.data.len());
            pg_sys::HeapTupleData {
                t_len: length as u32,
                t_self: pg_sys::ItemPointerData {
                    ip_blkid: pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX },
                    ip_posid: 0,
                },
                t_tableOid: pg_sys::InvalidOid,
                t_data: header,
            }
        }
    }
}
