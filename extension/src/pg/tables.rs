//! How the rows of a tracked table are captured: looked up once, kept until the table changes.

use std::ffi::CStr;
use std::ops::Range;

use pgquorum_change::{Change, Encoder, KEY_BYTES, Old, Op, Schema, by_name, change};
use pgrx::PgSqlErrorCode::{ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, ERRCODE_T_R_SERIALIZATION_FAILURE};
use pgrx::pg_sys;

use super::columns::{Columns, Row};
use super::describe::attributes;
use super::encoding;
use super::filter::Filter;
use super::query;
use super::tracking::{self, Tracking};
use super::trigger::{OpenTable, RowEvent, Tuple};
use super::version_rows::Place;
use crate::error::Refusal;
use crate::versions::{self, entry};

/// What is recorded of old rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OldImage {
    /// Only keys that change or vanish.
    None,
    Key,
    Full,
}

/// A tracked table, or a partition of one.
pub struct Table {
    /// The table that is tracked.
    pub root: u32,
    pub channel: i32,
    pub schema_version: u64,
    /// The schema version was recorded by this transaction, without a statement that changed the table.
    pub made_version: bool,
    /// The number under which versions of its rows are kept; `None`: they are not.
    pub keeping: Option<i32>,
    /// Places in the key's image, in the order of the columns' names.
    key_order: Vec<usize>,
    old_image: OldImage,
    columns: Columns,
    filter: Option<Filter>,
    old: Row,
    new: Row,
    /// Room for a key, to be compared.
    key: Vec<u8>,
    /// What output functions and the filter keep.
    memory: pg_sys::MemoryContext,
}

impl Table {
    /// Looks up how a table is captured; `None`: it is not. Whatever is wrong with what is found is an ERROR: a change
    /// that cannot be captured must not be made.
    pub fn look_up(table: OpenTable) -> Option<Self> {
        let found = tracking::of(table)?;
        Some(Self::new(table, found).unwrap_or_else(|| tracking::unreadable()))
    }

    fn new(table: OpenTable, found: Tracking) -> Option<Self> {
        let (version, made_version) = match found.schema_version {
            Some(version) => (version, false),
            None => (record_schema(found.root), true),
        };
        let (schema, name) = (found.schema_name, found.table_name);
        let columns = Schema::new(version, &schema, &name, &found.columns).ok()?;
        let old_image = match found.old_image.as_str() {
            "none" => OldImage::None,
            "key" => OldImage::Key,
            "full" => OldImage::Full,
            _ => return None,
        };
        if old_image != OldImage::Full && !columns.columns.iter().any(|column| column.key) {
            no_key(&schema, &name);
        }
        let key: Vec<&str> = columns.key.iter().map(|at| columns.columns[*at].name.as_str()).collect();
        let relation = table.0;
        // SAFETY: the context is deleted with the table; the relation is open.
        unsafe {
            let places = places(relation, &columns)?;
            let memory = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CacheMemoryContext,
                c"pgquorum tracked table".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            Some(Self {
                root: found.root,
                channel: found.channel,
                schema_version: version,
                made_version,
                keeping: versions::of_table(found.root).map(|kept| kept.keeping),
                key_order: by_name(&key),
                old_image,
                columns: Columns::new(places, memory),
                filter: found.filter.map(|tree| Filter::new(&tree, relation, found.root.into(), memory)),
                old: Row::default(),
                new: Row::default(),
                key: Vec::new(),
                memory,
            })
        }
    }

    /// What becomes of an event by the filter: nothing, or an operation. A row that an update takes across the
    /// filter's edge appears or vanishes.
    pub fn operation(&self, event: &RowEvent) -> Option<Op> {
        let Some(filter) = &self.filter else { return Some(event.op) };
        // SAFETY: the event's slots hold rows of this table.
        let takes = |tuple: &Option<Tuple>| tuple.as_ref().is_some_and(|t| unsafe { filter.takes(t.slot) });
        match (event.op, takes(&event.old), takes(&event.new)) {
            (Op::Update, true, true) => Some(Op::Update),
            (Op::Update | Op::Delete, true, _) => Some(Op::Delete),
            (Op::Update | Op::Insert, _, true) => Some(Op::Insert),
            _ => None,
        }
    }

    /// Writes a change.
    #[inline]
    pub fn write(&mut self, op: Op, event: &RowEvent, out: &mut Vec<u8>) {
        let _settings = self.columns.settings();
        // SAFETY: the event's tuples are valid rows of this table while the trigger runs; the settings hold.
        unsafe {
            let descriptor = (*event.table.0).rd_att;
            let old = event.old.as_ref().filter(|_| op != Op::Insert);
            let new = event.new.as_ref().filter(|_| op != Op::Delete);
            if let Some(old) = old {
                self.old.take_apart(old.tuple, descriptor);
            }
            if let Some(new) = new {
                self.new.take_apart(new.tuple, descriptor);
            }
            let image = match (old.is_some(), self.old_image) {
                (false, _) => Old::None,
                (true, OldImage::Full) => Old::Full,
                (true, OldImage::None) if op == Op::Update && !self.key_changes() => Old::None,
                (true, _) => Old::Key,
            };
            let mut encoder = Encoder::begin(out, op, self.schema_version, image, new.is_some());
            match image {
                Old::None => {}
                Old::Key => self.columns.put_key(&mut encoder, &self.old),
                Old::Full => self.columns.put_row(&mut encoder, &self.old, None),
            }
            if new.is_some() {
                // Where the last write wins, rows here and there may differ: what stays the same here may be another value
                // there, so each write is whole.
                let before = old.filter(|_| self.keeping.is_none()).map(|_| &self.old);
                self.columns.put_row(&mut encoder, &self.new, before);
            }
        }
    }

    /// Writes both keys to see whether they differ.
    fn key_changes(&mut self) -> bool {
        self.key.clear();
        // SAFETY: both rows were taken apart just now, and the settings hold.
        let (old, new) = unsafe {
            let old = put_key(&mut self.columns, &self.old, &mut self.key);
            (old, put_key(&mut self.columns, &self.new, &mut self.key))
        };
        self.key[old] != self.key[new]
    }

    /// Writes what becomes of the versions of an event's rows, right after [`Table::write`] of the same event.
    pub fn write_versions(&mut self, keeping: i32, op: Op, out: &mut Vec<u8>) {
        let _settings = self.columns.settings();
        self.key.clear();
        // SAFETY: the rows that the event has were taken apart just now, and the settings hold.
        let (old, new) = unsafe {
            let old = (op != Op::Insert).then(|| put_key(&mut self.columns, &self.old, &mut self.key));
            (old, (op != Op::Delete).then(|| put_key(&mut self.columns, &self.new, &mut self.key)))
        };
        let entry = |what, key: Range<usize>| {
            let key = number(&self.key[key], &self.key_order);
            entry::Entry { what, place: Place { keeping, key } }
        };
        let stays = old.clone().zip(new.clone()).is_some_and(|(old, new)| self.key[old] == self.key[new]);
        if let Some(old) = old.filter(|_| !stays) {
            entry(entry::What::Deleted, old).put(out);
        }
        if let Some(new) = new {
            entry(entry::What::Live, new).put(out);
        }
    }

    /// Writes the deletion of a row by the texts of its key, which are in the order of the columns' names.
    pub fn write_deleted(&self, key: &[impl AsRef<[u8]>], out: &mut Vec<u8>) {
        let mut values: Vec<&[u8]> = vec![b""; self.key_order.len()];
        for (at, text) in self.key_order.iter().zip(key) {
            values[*at] = text.as_ref();
        }
        let mut encoder = Encoder::begin(out, Op::Delete, self.schema_version, Old::Key, false);
        encoder.image(values.len());
        values.iter().for_each(|text| encoder.text(text));
    }

    /// Writes that the table was emptied.
    pub fn write_truncate(&self, out: &mut Vec<u8>) {
        Encoder::begin(out, Op::Truncate, self.schema_version, Old::None, false);
    }
}

/// Appends the deletion of a row, of which only the key matters, and says where it is.
///
/// # Safety
///
/// As [`Columns::put_row`].
unsafe fn put_key(columns: &mut Columns, row: &Row, out: &mut Vec<u8>) -> Range<usize> {
    let begin = out.len();
    let mut encoder = Encoder::begin(out, Op::Delete, 0, Old::Key, false);
    // SAFETY: see above.
    unsafe { columns.put_key(&mut encoder, row) };
    begin..out.len()
}

/// The number of the key in what [`put_key`] wrote.
fn number(mut key: &[u8], order: &[usize]) -> [u8; KEY_BYTES] {
    let Ok(Change { old: Some(pgquorum_change::OldImage::Key(key)), .. }) = change(&mut key) else {
        unreachable!("this was written as the deletion of a row by its key")
    };
    key.number(order)
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the context is this table's own.
        unsafe { pg_sys::MemoryContextDelete(self.memory) }
    }
}

/// Where the columns of a schema version are in a table: in a partition they may stand in another order.
///
/// # Safety
///
/// `relation` is open.
unsafe fn places(relation: pg_sys::Relation, schema: &Schema) -> Option<Vec<(usize, pg_sys::Oid, bool)>> {
    // SAFETY: see above.
    let attributes = unsafe { attributes(relation) };
    let place = |name: &str| {
        attributes.iter().position(|attribute| {
            // SAFETY: names end with a zero.
            let found = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) };
            !attribute.attisdropped && encoding::to_utf8(found.to_bytes()) == name
        })
    };
    let of = |at: usize, key| (at, attributes[at].atttypid, key);
    schema.columns.iter().map(|column| place(&column.name).map(|at| of(at, column.key))).collect()
}

/// DROP INDEX CONCURRENTLY takes a key away before anybody could refuse it.
#[cold]
fn no_key(schema: &str, name: &str) -> ! {
    Refusal::new(
        ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {schema}.{name} is tracked by pgquorum and has lost its key, by which its rows can be told apart"),
    )
    .detail("A change without a key could not be followed, so it is not made.")
    .hint("Give it a primary key, or ALTER TABLE ... REPLICA IDENTITY USING INDEX; or quorum.untrack it and track it with old_image => 'full'.")
    .raise()
}

/// Records what a tracked table looks like now, since nothing recorded it when that changed.
fn record_schema(root: u32) -> u64 {
    let made = query::write(c"SELECT quorum.record_schema($1)", root);
    let number = made.and_then(|row| row.into_iter().next().flatten()).and_then(|text| text.parse().ok());
    // The transaction's snapshot is older than the tracking.
    number.unwrap_or_else(|| {
        Refusal::new(
            ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access: the table has been tracked and changed since this transaction began",
        )
        .hint("Run the transaction again.")
        .raise()
    })
}
