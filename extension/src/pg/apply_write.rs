//! Changes of single rows, through the executor's routines for replication.

use std::ffi::c_int;

use pgquorum_change::{Change, Image, OldImage, Value};
use pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED;
use pgrx::pg_sys;

use super::apply_find::{Found, Place};
use super::apply_slot as slot;
use super::apply_target::{Column, Target};
use super::describe::attributes;
use super::owner_rights::AsOwner;
use crate::error::Refusal;

/// Makes what this transaction has done so far visible to what it does next.
pub fn next_command() {
    // SAFETY: in a transaction, not in parallel mode.
    unsafe { pg_sys::CommandCounterIncrement() }
}

/// What a step of a change has set aside.
pub(super) struct Step {
    outer: pg_sys::MemoryContext,
    _owner: Option<AsOwner>,
}

impl Target {
    /// Begins a step of a change: until `finish` the present memory context is that of the row, and the rights are those of
    /// the table's owner, where anybody could notice.
    pub(super) fn begin(&mut self) -> Step {
        // SAFETY: in a transaction with a snapshot; the command is the present one.
        let outer = unsafe {
            (*self.estate).es_snapshot = pg_sys::GetActiveSnapshot();
            (*self.estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            pg_sys::MemoryContextSwitchTo(self.row)
        };
        Step { outer, _owner: self.needs_owner.then(|| AsOwner::new(self.owner())) }
    }

    pub(super) fn finish(&mut self, step: Step) {
        // SAFETY: the context that was the present one.
        unsafe { pg_sys::MemoryContextSwitchTo(step.outer) };
    }

    /// Lets go of what a change needed: pages, values. To be called when it is done, before its savepoint ends.
    pub fn tidy(&mut self) {
        // SAFETY: the slots are the table's own; their values are in the row's memory, which goes after them.
        unsafe {
            slot::empty(self.incoming);
            slot::let_go(self.found);
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            super::apply_indexes::let_go(self.result);
            if self.has_triggers {
                // What triggers were shown stays in these until the next time.
                pg_sys::ExecClearTuple((*self.result).ri_TrigOldSlot);
                pg_sys::ExecClearTuple((*self.result).ri_TrigNewSlot);
            }
            slot::reset(self.row);
            slot::reset((*(*self.estate).es_per_tuple_exprcontext).ecxt_per_tuple_memory);
        }
    }

    /// A writing call, with its triggers.
    fn write(
        &mut self,
        call: impl FnOnce(*mut pg_sys::ResultRelInfo, *mut pg_sys::EState, *mut pg_sys::EPQState),
    ) {
        // SAFETY: within `begin` and `finish`; the queue of triggers is begun and ended here, or by the savepoint.
        unsafe {
            if self.has_triggers {
                pg_sys::AfterTriggerBeginQuery();
            }
            call(self.result, self.estate, self.epq);
            if self.has_triggers {
                pg_sys::AfterTriggerEndQuery(self.estate);
            }
        }
    }

    /// Makes the row of an insert in a slot. False: the image is not whole.
    ///
    /// # Safety
    ///
    /// The slot is a virtual one of this table's rows.
    pub(super) unsafe fn fill_new(&mut self, slot: *mut pg_sys::TupleTableSlot, image: Image) -> bool {
        let mut whole = true;
        let count = self.columns.len();
        check_length(image, count);
        // SAFETY: the slot has room for all columns of the table; values are in the present memory context.
        unsafe {
            let (values, nulls) = slot::cleared(slot);
            for (column, value) in self.columns.iter_mut().zip(image.values()) {
                let Some(place) = column.place else { continue };
                match value {
                    Value::Text(text) => {
                        *values.add(place) = column.input.read(&text, &mut self.room);
                        *nulls.add(place) = false;
                    }
                    Value::Null => column.input.read_null(),
                    Value::Unchanged => whole = false,
                }
            }
            let context = (*self.estate).es_per_tuple_exprcontext;
            for (place, default) in &self.defaults {
                *values.add(*place) = pg_sys::ExecEvalExpr(*default, context, nulls.add(*place));
            }
            slot::filled(slot);
        }
        whole
    }

    /// Makes the row of an update in the slot of new rows: the row that was found, with the values that the source sends.
    fn fill_changed(&mut self, image: Image) {
        let count = self.columns.len();
        check_length(image, count);
        // SAFETY: as in `fill_new`. What is taken over from the found row stays as long as that slot holds its page.
        unsafe {
            pg_sys::slot_getallattrs(self.found);
            let (values, nulls) = slot::cleared(self.incoming);
            let width = slot::width(self.incoming);
            values.copy_from_nonoverlapping((*self.found).tts_values, width);
            nulls.copy_from_nonoverlapping((*self.found).tts_isnull, width);
            for (column, value) in self.columns.iter_mut().zip(image.values()) {
                let Some(place) = column.place else { continue };
                match value {
                    Value::Text(text) => {
                        *values.add(place) = column.input.read(&text, &mut self.room);
                        *nulls.add(place) = false;
                    }
                    Value::Null => {
                        column.input.read_null();
                        *values.add(place) = pg_sys::Datum::null();
                        *nulls.add(place) = true;
                    }
                    Value::Unchanged => {}
                }
            }
            slot::filled(self.incoming);
        }
    }

    /// Inserts a row without looking for others that it may collide with; the table's indexes do, and raise.
    pub fn insert(&mut self, image: Image) {
        let outer = self.begin();
        // SAFETY: the slot of new rows.
        unsafe { self.fill_new(self.incoming, image) };
        self.insert_filled();
        self.finish(outer);
    }

    fn insert_filled(&mut self) {
        let slot = self.incoming;
        // SAFETY: the slot holds a row of this table.
        self.write(|result, estate, _| unsafe { pg_sys::ExecSimpleRelationInsert(result, estate, slot) });
    }

    fn update_filled(&mut self) {
        let (old, new) = (self.found, self.incoming);
        // SAFETY: the slots hold the row that was found, and the one that it becomes.
        self.write(|result, estate, epq| unsafe {
            pg_sys::ExecSimpleRelationUpdate(result, estate, epq, old, new);
        });
    }

    fn delete_found(&mut self) {
        let old = self.found;
        // SAFETY: the slot holds the row that was found.
        self.write(|result, estate, epq| unsafe {
            pg_sys::ExecSimpleRelationDelete(result, estate, epq, old);
        });
    }

    /// Updates the row that a change is about. It raises if others change the row at the same moment.
    pub fn update(&mut self, change: &Change, image: Image) -> Found {
        let outer = self.begin();
        let found = self.find(change, false);
        if found == Found::Row {
            self.fill_changed(image);
            self.update_filled();
        }
        self.finish(outer);
        found
    }

    /// Deletes the row that a change is about; the same holds.
    pub fn delete(&mut self, change: &Change) -> Found {
        let outer = self.begin();
        let found = self.find(change, false);
        if found == Found::Row {
            self.delete_found();
        }
        self.finish(outer);
        found
    }

    // The careful way: one step at a time, for who looks at what is there before anything is written.

    /// Makes the new row: of an insert, or of an update of the row that was found. False: values of it are not known.
    pub fn prepare(&mut self, image: Image, over_found: bool) -> bool {
        let outer = self.begin();
        let whole = if over_found {
            self.fill_changed(image);
            true
        } else {
            // SAFETY: the slot of new rows.
            unsafe { self.fill_new(self.incoming, image) }
        };
        self.finish(outer);
        whole
    }

    /// Where rows are that the new one collides with, but for the one that was found; with the names of the indexes.
    pub fn collisions(&mut self, but_found: bool) -> Vec<(Place, String)> {
        let outer = self.begin();
        let mut found: Vec<(Place, String)> = Vec::new();
        // SAFETY: the slots hold rows; the indexes are open, and what is known of the unique ones is complete.
        unsafe {
            for (oid, list) in &self.unique {
                let mut place = pg_sys::ItemPointerData::default();
                let (result, incoming, estate) = (self.result, self.incoming, self.estate);
                #[cfg(not(feature = "pg18"))]
                let free = pg_sys::ExecCheckIndexConstraints(result, incoming, estate, &mut place, *list);
                #[cfg(feature = "pg18")]
                let free = {
                    // No row of this table is the new one already.
                    let mut itself = pg_sys::ItemPointerData::default();
                    pg_sys::ExecCheckIndexConstraints(
                        result,
                        incoming,
                        estate,
                        &mut place,
                        &mut itself,
                        *list,
                    )
                };
                let place = Place(place);
                if free || (but_found && place == Place((*self.found).tts_tid)) {
                    continue;
                }
                let name = std::ffi::CStr::from_ptr(pg_sys::get_rel_name(*oid));
                found.push((place, name.to_string_lossy().into_owned()));
            }
        }
        self.finish(outer);
        found
    }

    pub fn insert_prepared(&mut self) {
        let outer = self.begin();
        self.insert_filled();
        self.finish(outer);
    }

    pub fn update_prepared(&mut self) {
        let outer = self.begin();
        self.update_filled();
        self.finish(outer);
    }

    pub fn delete_located(&mut self) {
        let outer = self.begin();
        self.delete_found();
        self.finish(outer);
    }

    /// The partition of a new row.
    pub fn route_new(&mut self, image: Image) -> u32 {
        let outer = self.begin();
        // SAFETY: the slot of new rows, which is filled then.
        let leaf = unsafe {
            self.fill_new(self.incoming, image);
            self.partition_of_incoming()
        };
        self.finish(outer);
        self.tidy();
        leaf
    }

    /// The partition in which the row is that a change is about; `None`: its key is not known.
    pub fn route_old(&mut self, change: &Change) -> Option<u32> {
        let (image, key) = match (change.old, change.new) {
            (Some(OldImage::Key(image)), _) => (image, true),
            (Some(OldImage::Full(image)), _) | (None, Some(image)) => (image, false),
            (None, None) => return None,
        };
        let outer = self.begin();
        let known: Vec<usize> = match &self.key {
            Some(found) if key => found.key_columns.clone(),
            _ => (0..self.columns.len()).collect(),
        };
        check_length(image, known.len());
        // SAFETY: as in `fill_new`.
        let leaf = unsafe {
            let (values, nulls) = slot::cleared(self.incoming);
            for (at, value) in known.into_iter().zip(image.values()) {
                let column = &mut self.columns[at];
                if let (Some(place), Value::Text(text)) = (column.place, value) {
                    *values.add(place) = column.input.read(&text, &mut self.room);
                    *nulls.add(place) = false;
                }
            }
            slot::filled(self.incoming);
            self.partition_of_incoming()
        };
        self.finish(outer);
        self.tidy();
        Some(leaf)
    }
}

pub(super) fn check_length(image: Image, expected: usize) {
    if image.len() != expected {
        wrong_length(image.len(), expected);
    }
}

#[cold]
fn wrong_length(found: usize, expected: usize) -> ! {
    Refusal::new(
        ERRCODE_DATA_CORRUPTED,
        format!("a change has {found} values, but its schema version has {expected} columns"),
    )
    .hint("The schema version here is not that of the source: end the subscription and subscribe again.")
    .raise()
}

/// The defaults of columns that the source does not send, by their places.
///
/// # Safety
///
/// As [`Target::of`].
pub(super) unsafe fn defaults(
    relation: pg_sys::Relation,
    columns: &[Column],
) -> Vec<(usize, *mut pg_sys::ExprState)> {
    let mut found = Vec::new();
    // SAFETY: see above.
    unsafe {
        for (at, attribute) in attributes(relation).iter().enumerate() {
            let sent = columns.iter().any(|column| column.place == Some(at));
            if sent || attribute.attisdropped || attribute.attgenerated != 0 {
                continue;
            }
            let default = pg_sys::build_column_default(relation, at as c_int + 1);
            if !default.is_null() {
                let planned = pg_sys::expression_planner(default.cast());
                found.push((at, pg_sys::ExecInitExpr(planned, std::ptr::null_mut())));
            }
        }
    }
    found
}
