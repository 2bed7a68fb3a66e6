//! `quorum.row_version`, read and written through its index without SQL: a commit looks for each row's version and puts the
//! new one in its place.

use pgquorum_change::KEY_BYTES;
use pgrx::PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE;
use pgrx::{IntoDatum, pg_sys};

use super::compat::primary_key_index;
use super::table::{Row, Snapshot, Table, View};
use super::worker::lock;
use crate::error::Refusal;

/// Columns of the table, by their order.
mod column {
    pub const COMMIT_US: usize = 0;
    pub const KEEPING: usize = 1;
    pub const ORIGIN: usize = 2;
    pub const DELETED: usize = 3;
    pub const KEY: usize = 4;
    pub const COUNT: usize = 5;
}

/// How often a row is looked for again that somebody else has changed meanwhile.
const TRIES: usize = 100;

/// Which row: the number under which its table's versions are kept, and its key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub keeping: i32,
    pub key: [u8; KEY_BYTES],
}

/// What is kept of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub commit_us: i64,
    /// A number of `quorum.origin`; 0: here.
    pub origin: i16,
    pub deleted: bool,
}

/// A version that was found, and where.
#[derive(Clone, Copy)]
pub struct Found {
    pub stored: Stored,
    tid: pg_sys::ItemPointerData,
}

/// The open table, as it is at one moment. The lock stays until the end of the transaction.
pub struct VersionRows {
    table: Table,
    /// What is found stays where it is as long as this is held.
    snapshot: Snapshot,
    /// Rows are looked for in order to be replaced.
    for_writing: bool,
}

impl VersionRows {
    /// For reading. `None`: the extension is gone.
    pub fn open() -> Option<Self> {
        Self::open_with(lock::ACCESS_SHARE, false)
    }

    /// For writing.
    pub fn open_for_writing() -> Option<Self> {
        Self::open_with(lock::ROW_EXCLUSIVE, true)
    }

    fn open_with(level: i32, for_writing: bool) -> Option<Self> {
        let table = Table::of_quorum_in_trigger_with(c"row_version", level)?;
        Some(Self { table, snapshot: Snapshot::take(View::Now), for_writing })
    }

    /// From here on it is seen as it is now, with what this transaction has written so far.
    pub fn look_again(&mut self) {
        // SAFETY: in a transaction that has written.
        unsafe { pg_sys::CommandCounterIncrement() };
        self.snapshot = Snapshot::take(View::Now);
    }

    pub fn find(&self, place: &Place) -> Option<Found> {
        let relation = self.table.relation();
        // Whoever replaces a row wants what is there, and nobody else writes it. What is read by a real snapshot would be
        // noted for SERIALIZABLE transactions, by pages of the index: they would fail for nothing.
        let there = &raw mut pg_sys::SnapshotSelfData;
        let snapshot = if self.for_writing { there } else { self.snapshot.get() };
        // SAFETY: the relation is open, the snapshot and the key outlive the scan, and the operators are those of the
        // primary key's columns. The row is used before the scan ends.
        unsafe {
            let mut keys = [pg_sys::ScanKeyData::default(); 2];
            let strategy = pg_sys::BTEqualStrategyNumber as u16;
            let number = |column: usize| column as i16 + 1;
            let (int_equal, uuid_equal) = (pg_sys::F_INT4EQ.into(), pg_sys::F_UUID_EQ.into());
            let key = pg_sys::Datum::from(place.key.as_ptr());
            pg_sys::ScanKeyInit(
                &mut keys[0],
                number(column::KEEPING),
                strategy,
                int_equal,
                place.keeping.into(),
            );
            pg_sys::ScanKeyInit(&mut keys[1], number(column::KEY), strategy, uuid_equal, key);
            let index = primary_key_index(relation);
            let scan = pg_sys::systable_beginscan(relation, index, true, snapshot, 2, keys.as_mut_ptr());
            let tuple = pg_sys::systable_getnext(scan);
            let found = (!tuple.is_null()).then(|| {
                let mut row = Row::of(relation);
                let row = row.fill(tuple, relation);
                let stored = Stored {
                    commit_us: row.bigint(column::COMMIT_US).unwrap_or(0),
                    origin: row.smallint(column::ORIGIN).unwrap_or(0),
                    deleted: row.boolean(column::DELETED) == Some(true),
                };
                Found { stored, tid: (*tuple).t_self }
            });
            pg_sys::systable_endscan(scan);
            found
        }
    }

    /// Puts a version in the place of what was found there, if anything was. Each place once between two calls of
    /// [`Self::look_again`].
    pub fn put(&self, place: &Place, found: Option<Found>, version: &Stored) {
        if self.put_over(place, found, version) {
            return;
        }
        // The worker that removes old tombstones was faster.
        for _ in 0..TRIES {
            pgrx::check_for_interrupts!();
            // Held while what is found now is replaced.
            let _snapshot = Snapshot::take(View::Now);
            let found = self.find(place);
            if self.put_over(place, found, version) {
                return;
            }
        }
        Refusal::new(
            ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access: the version of a row is being written by others all the time",
        )
        .hint("Run the transaction again.")
        .raise()
    }

    /// False: what was found is not there any more.
    fn put_over(&self, place: &Place, found: Option<Found>, version: &Stored) -> bool {
        match found {
            None => {
                self.insert(place, version);
                true
            }
            Some(old) => old.stored == *version || self.update(old.tid, place, version),
        }
    }

    fn insert(&self, place: &Place, version: &Stored) {
        let relation = self.table.relation();
        let tuple = self.tuple(place, version);
        // SAFETY: the relation is open for writing; the tuple is a row of it. It is not for logical decoding: who follows
        // that way has no use for it.
        unsafe {
            let command = pg_sys::GetCurrentCommandId(true);
            let options = pg_sys::HEAP_INSERT_NO_LOGICAL as i32;
            pg_sys::heap_insert(relation, tuple, command, options, std::ptr::null_mut());
            self.index(&raw mut (*tuple).t_self, place);
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// False: the row is not there any more.
    fn update(&self, mut tid: pg_sys::ItemPointerData, place: &Place, version: &Stored) -> bool {
        let relation = self.table.relation();
        let tuple = self.tuple(place, version);
        // SAFETY: as above; the row was found by the snapshot that is still held, so its place was not given to another.
        unsafe {
            let done = heap_update(relation, &mut tid, tuple);
            let ok = done == pg_sys::TM_Result::TM_Ok;
            // Where its page has no room left it went to another one, where no index entry leads yet.
            if ok && u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE == 0 {
                self.index(&raw mut (*tuple).t_self, place);
            }
            pg_sys::heap_freetuple(tuple);
            ok
        }
    }

    fn tuple(&self, place: &Place, version: &Stored) -> pg_sys::HeapTuple {
        let mut values = [pg_sys::Datum::null(); column::COUNT];
        let mut nulls = [false; column::COUNT];
        let mut put = |column: usize, value: Option<pg_sys::Datum>| {
            values[column] = value.unwrap_or(pg_sys::Datum::null());
        };
        put(column::COMMIT_US, version.commit_us.into_datum());
        put(column::KEEPING, place.keeping.into_datum());
        put(column::ORIGIN, version.origin.into_datum());
        put(column::DELETED, version.deleted.into_datum());
        put(column::KEY, Some(pg_sys::Datum::from(place.key.as_ptr())));
        // SAFETY: the values are of the columns' types, and are copied.
        unsafe {
            pg_sys::heap_form_tuple((*self.table.relation()).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr())
        }
    }

    /// Adds an entry to the primary key's index. Waits for whoever adds the same one.
    ///
    /// # Safety
    ///
    /// There is a row of this key at `tid`, put there by this transaction.
    unsafe fn index(&self, tid: pg_sys::ItemPointer, place: &Place) {
        let relation = self.table.relation();
        let mut values = [pg_sys::Datum::from(place.keeping), pg_sys::Datum::from(place.key.as_ptr())];
        let mut nulls = [false; 2];
        // SAFETY: see above; values and their order are those of the index.
        unsafe {
            let oid = primary_key_index(relation);
            let index = pg_sys::index_open(oid, lock::ROW_EXCLUSIVE);
            let info = pg_sys::BuildIndexInfo(index);
            let unique = pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES;
            pg_sys::index_insert(
                index,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                tid,
                relation,
                unique,
                false,
                info,
            );
            pg_sys::pfree(info.cast());
            pg_sys::index_close(index, lock::NONE);
        }
    }
}

/// Puts a new row in the place of another one, and waits for whoever has locked that.
///
/// # Safety
///
/// There is a row of the open relation at `tid`, and the tuple is one for it.
unsafe fn heap_update(
    relation: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    tuple: pg_sys::HeapTuple,
) -> pg_sys::TM_Result::Type {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut mode = pg_sys::LockTupleMode::LockTupleExclusive;
    let any_snapshot = std::ptr::null_mut();
    // SAFETY: see above.
    unsafe {
        let command = pg_sys::GetCurrentCommandId(true);
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::heap_update(
            relation,
            tid,
            tuple,
            command,
            any_snapshot,
            true,
            &mut failure,
            &mut mode,
        );
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        {
            let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
            pg_sys::heap_update(
                relation,
                tid,
                tuple,
                command,
                any_snapshot,
                true,
                &mut failure,
                &mut mode,
                &mut indexes,
            )
        }
    }
}
