//! Reading tables of the extension without SQL.
//!
//! Readers have no rights on these tables, only on the functions; and a function that ran SQL with its owner's rights
//! would also run whatever operators the reader's `search_path` puts first. This way needs neither rights nor names,
//! sees what a given snapshot sees, and costs a few microseconds.

use std::ffi::{CStr, CString};

use pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::compat::primary_key_index;
use super::describe::attributes;
use super::worker::lock;
use crate::error::Refusal;

/// By what a table is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// As the statement sees it that calls.
    Statement,
    /// As it is now, also within REPEATABLE READ.
    Now,
}

/// In which order, and from where on. The table's primary key is its first column, a `bigint`.
#[derive(Clone, Copy)]
pub enum Order {
    Any,
    /// Ascending, above this key.
    Above(i64),
    Descending,
}

/// What the first column of a table's primary key, which is its first column, is to be.
#[derive(Clone, Copy)]
pub enum Key {
    Oid(u32),
    Integer(i32),
    Bigint(i64),
}

/// Up to so many pages a table is read as a whole: in a session that has not used its index yet, which is most often the
/// case, opening that costs more.
const FEW_PAGES: u32 = 2;

/// An open table. Its lock stays until the end of the transaction.
pub struct Table(pg_sys::Relation);

impl Table {
    /// `None`: it does not exist (any more).
    pub fn open(oid: u32) -> Option<Self> {
        Self::open_with(oid, lock::ACCESS_SHARE)
    }

    fn open_with(oid: u32, level: i32) -> Option<Self> {
        // SAFETY: takes the lock, then looks whether the table is still there.
        let relation = unsafe { pg_sys::try_table_open(pg_sys::Oid::from(oid), level) };
        (!relation.is_null()).then(|| Self(relation))
    }

    /// A table of schema `quorum` that belongs to the extension. `None`: the extension is not there. A relation that
    /// somebody else made under that name, in a database without the extension, is none of ours.
    pub fn of_quorum(name: &CStr) -> Option<Self> {
        Self::of_quorum_with(name, lock::ACCESS_SHARE)
    }

    /// The same with a lock of a higher level.
    pub fn of_quorum_with(name: &CStr, level: i32) -> Option<Self> {
        let own = named(name).filter(|oid| is_member(pg_sys::Oid::from(*oid)));
        own.and_then(|oid| Self::open_with(oid, level))
    }

    /// The same for the triggers that capture, which are there only where the extension is: nothing is asked about that,
    /// since it would cost the first change of a session most of its time.
    pub fn of_quorum_in_trigger(name: &CStr) -> Option<Self> {
        named(name).and_then(Self::open)
    }

    /// The same with a lock of a higher level.
    pub fn of_quorum_in_trigger_with(name: &CStr, level: i32) -> Option<Self> {
        named(name).and_then(|oid| Self::open_with(oid, level))
    }

    /// Position of a column, from 0.
    ///
    /// # Panics
    /// There is none of this name.
    pub fn column(&self, name: &CStr) -> usize {
        // SAFETY: the relation is open and locked.
        let attributes = unsafe { attributes(self.0) };
        let found = attributes.iter().position(|attribute| {
            // SAFETY: a column's name ends with a zero.
            !attribute.attisdropped && unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) } == name
        });
        found.unwrap_or_else(|| panic!("column {name:?} is missing"))
    }

    pub(super) fn relation(&self) -> pg_sys::Relation {
        self.0
    }

    pub fn oid(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe { (*self.0).rd_id.to_u32() }
    }

    /// Shows rows to `look` until it says `false`.
    pub fn rows(&self, view: View, order: Order, mut look: impl FnMut(&Row) -> bool) {
        let snapshot = Snapshot::take(view);
        let forward = !matches!(order, Order::Descending);
        // SAFETY: the scan is begun on an open relation with a snapshot that outlives it, and ended. Rows are used only
        // until the next one is fetched. The key's type and operator are those of the index' first column.
        unsafe {
            let mut keys = [pg_sys::ScanKeyData::default()];
            let mut count = 0;
            if let Order::Above(key) = order {
                pg_sys::ScanKeyInit(
                    &mut keys[0],
                    1,
                    pg_sys::BTGreaterStrategyNumber as u16,
                    pg_sys::Oid::from(pg_sys::F_INT8GT),
                    key.into(),
                );
                count = 1;
            }
            let mut row = Row::of(self.0);
            let mut show = |tuple: pg_sys::HeapTuple| !tuple.is_null() && look(row.fill(tuple, self.0));
            if matches!(order, Order::Any) {
                let no_keys = std::ptr::null_mut();
                let scan =
                    pg_sys::systable_beginscan(self.0, pg_sys::InvalidOid, false, snapshot.0, 0, no_keys);
                while show(pg_sys::systable_getnext(scan)) {}
                pg_sys::systable_endscan(scan);
                return;
            }
            let index = pg_sys::index_open(primary_key_index(self.0), lock::ACCESS_SHARE);
            let scan =
                pg_sys::systable_beginscan_ordered(self.0, index, snapshot.0, count, keys.as_mut_ptr());
            let direction = if forward {
                pg_sys::ScanDirection::ForwardScanDirection
            } else {
                pg_sys::ScanDirection::BackwardScanDirection
            };
            while show(pg_sys::systable_getnext_ordered(scan, direction)) {}
            pg_sys::systable_endscan_ordered(scan);
            pg_sys::index_close(index, lock::NONE);
        }
    }

    /// Shows rows with this key, in any order, to `look` until it says `false`.
    pub fn matching(&self, view: View, key: Key, mut look: impl FnMut(&Row) -> bool) {
        let snapshot = Snapshot::take(view);
        let (equal, value) = match key {
            Key::Oid(value) => (pg_sys::F_OIDEQ, pg_sys::Datum::from(value)),
            Key::Integer(value) => (pg_sys::F_INT4EQ, pg_sys::Datum::from(value)),
            Key::Bigint(value) => (pg_sys::F_INT8EQ, pg_sys::Datum::from(value)),
        };
        // SAFETY: as in `rows`.
        unsafe {
            let mut key = pg_sys::ScanKeyData::default();
            let strategy = pg_sys::BTEqualStrategyNumber as u16;
            pg_sys::ScanKeyInit(&mut key, 1, strategy, pg_sys::Oid::from(equal), value);
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let few = pg_sys::RelationGetNumberOfBlocksInFork(self.0, main) <= FEW_PAGES;
            let index = if few { pg_sys::InvalidOid } else { primary_key_index(self.0) };
            let scan = pg_sys::systable_beginscan(self.0, index, !few, snapshot.0, 1, &mut key);
            let mut row = Row::of(self.0);
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() || !look(row.fill(tuple, self.0)) {
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // After an error the end of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by this process and not closed since.
            unsafe { pg_sys::table_close(self.0, lock::NONE) };
        }
    }
}

/// The oid of a table by its name in schema `quorum`, whoever it belongs to.
pub fn named(name: &CStr) -> Option<u32> {
    // SAFETY: looks into the catalogues' caches; the names are valid strings.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"quorum".as_ptr(), true);
        let oid = pg_sys::get_relname_relid(name.as_ptr(), schema);
        let is_table =
            oid != pg_sys::InvalidOid && pg_sys::get_rel_relkind(oid) as u8 == pg_sys::RELKIND_RELATION;
        is_table.then(|| oid.to_u32())
    }
}

/// Does this relation belong to the extension? Only superusers make such members. In a transaction.
pub fn is_member(relation: pg_sys::Oid) -> bool {
    // SAFETY: reads the catalogues.
    unsafe {
        let owner = pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, relation);
        owner != pg_sys::InvalidOid && owner == pg_sys::get_extension_oid(c"pgquorum".as_ptr(), true)
    }
}

/// Sees to it that the extension is in this database and stays until the end of the transaction; raises 42704
/// otherwise. To be called before SQL that names the extension's functions and tables with a worker's rights, which are a
/// superuser's: without the extension others could have made functions of these names.
pub fn require_extension() {
    // Its lock stays, and DROP EXTENSION waits for it.
    if Table::of_quorum(c"channel").is_none() {
        Refusal::new(ERRCODE_UNDEFINED_OBJECT, "the extension pgquorum is no longer in this database")
            .raise();
    }
}

/// A snapshot that is kept until dropped.
pub(super) struct Snapshot(pg_sys::Snapshot, bool);

impl Snapshot {
    pub(super) fn get(&self) -> pg_sys::Snapshot {
        self.0
    }

    pub(super) fn take(view: View) -> Self {
        // SAFETY: in a transaction. The statement's snapshot is active while its functions run.
        unsafe {
            match view {
                View::Statement if pg_sys::ActiveSnapshotSet() => Self(pg_sys::GetActiveSnapshot(), false),
                _ => Self(pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()), true),
            }
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if self.1 && !std::thread::panicking() {
            // SAFETY: registered in `take`.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// A row, while it is shown. Columns count from 0; a NULL is `None`.
pub struct Row {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Row {
    /// Room for a row of an open table.
    ///
    /// # Safety
    ///
    /// The relation is open.
    pub(super) unsafe fn of(relation: pg_sys::Relation) -> Self {
        // SAFETY: see above.
        let columns = unsafe { (*(*relation).rd_att).natts }.unsigned_abs() as usize;
        Self { values: vec![pg_sys::Datum::null(); columns], nulls: vec![true; columns] }
    }

    /// # Safety
    ///
    /// The relation is open and the one that there is room for; the tuple is a row of it.
    pub(super) unsafe fn fill(&mut self, tuple: pg_sys::HeapTuple, relation: pg_sys::Relation) -> &Self {
        let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        // SAFETY: see above.
        unsafe { pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, values, nulls) };
        self
    }

    pub(super) fn columns(&self) -> usize {
        self.values.len()
    }

    pub(super) fn put(&mut self, column: usize, value: Option<pg_sys::Datum>) {
        self.values[column] = value.unwrap_or(pg_sys::Datum::null());
        self.nulls[column] = value.is_none();
    }

    pub(super) fn parts(&mut self) -> (*mut pg_sys::Datum, *mut bool) {
        (self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
    }

    fn get<T: FromDatum>(&self, column: usize) -> Option<T> {
        // SAFETY: the caller names a column of this type; the datum is valid while the row is shown, and copied.
        unsafe { T::from_datum(self.values[column], self.nulls[column]) }
    }

    pub fn bigint(&self, column: usize) -> Option<i64> {
        self.get(column)
    }

    /// Of a column that holds no negative numbers and no NULL.
    pub fn number(&self, column: usize) -> u64 {
        self.bigint(column).and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
    }

    pub fn integer(&self, column: usize) -> Option<i32> {
        self.get(column)
    }

    pub fn small(&self, column: usize) -> u32 {
        self.integer(column).and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    }

    pub fn oid(&self, column: usize) -> u32 {
        self.get::<pg_sys::Oid>(column).map_or(0, |oid| oid.to_u32())
    }

    pub fn text(&self, column: usize) -> Option<String> {
        self.get(column)
    }

    /// Of a `text` or `bytea`; in the encoding of the database.
    pub fn bytes(&self, column: usize) -> Option<Vec<u8>> {
        self.get(column)
    }

    pub fn time(&self, column: usize) -> Option<TimestampWithTimeZone> {
        self.get(column)
    }

    pub fn smallint(&self, column: usize) -> Option<i16> {
        self.get(column)
    }

    pub fn boolean(&self, column: usize) -> Option<bool> {
        self.get(column)
    }

    /// Of a `pg_lsn`; 0 for NULL.
    pub fn lsn(&self, column: usize) -> u64 {
        if self.nulls[column] { 0 } else { self.values[column].value() as u64 }
    }

    pub fn oids(&self, column: usize) -> Vec<u32> {
        let oids: Vec<pg_sys::Oid> = self.get(column).unwrap_or_default();
        oids.into_iter().map(pg_sys::Oid::to_u32).collect()
    }

    pub fn text_in_utf8(&self, column: usize) -> Option<String> {
        self.bytes(column).map(|text| super::encoding::to_utf8(&text).into_owned())
    }

    pub fn integers(&self, column: usize) -> Vec<i32> {
        self.get(column).unwrap_or_default()
    }

    pub fn smallints(&self, column: usize) -> Option<Vec<i16>> {
        self.get(column)
    }

    pub fn is_null(&self, column: usize) -> bool {
        self.nulls[column]
    }

    pub fn bigints(&self, column: usize) -> Vec<i64> {
        self.get(column).unwrap_or_default()
    }

    /// A `jsonb` as text.
    pub fn json(&self, column: usize) -> Option<String> {
        self.json_bytes(column).map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    /// The same in the encoding of the database.
    pub fn json_bytes(&self, column: usize) -> Option<Vec<u8>> {
        if self.nulls[column] {
            return None;
        }
        // SAFETY: the caller names a column of type jsonb; the output is a string of its own.
        unsafe {
            let text =
                pg_sys::OidOutputFunctionCall(pg_sys::Oid::from(pg_sys::F_JSONB_OUT), self.values[column]);
            Some(CStr::from_ptr(text).to_bytes().to_vec())
        }
    }
}

/// For names that are put together: none of ours holds a zero byte.
pub fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
