//! Changing rows of the extension's tables without SQL.

use std::ops::Deref;

use pgrx::IntoDatum;
use pgrx::pg_sys;

use super::table::{Row, Snapshot, Table, View};

/// A row that can get new values.
pub struct NewRow {
    row: Row,
    replaced: Vec<bool>,
}

impl NewRow {
    /// A value of the column's type; `None` is NULL.
    pub fn set<T: IntoDatum>(&mut self, column: usize, value: Option<T>) {
        let datum = value.and_then(IntoDatum::into_datum);
        self.row.put(column, datum);
        self.replaced[column] = true;
    }
}

impl Deref for NewRow {
    type Target = Row;

    fn deref(&self) -> &Row {
        &self.row
    }
}

impl Table {
    /// Adds a row. Columns that `fill` does not set are NULL; other constraints than unique ones are not looked at, and no
    /// triggers fire. The table is open for writing.
    pub fn insert(&self, fill: impl FnOnce(&mut NewRow)) {
        let relation = self.relation();
        // SAFETY: the relation is open; the values are of its columns' types.
        unsafe {
            let mut row = Row::of(relation);
            let columns = row.columns();
            (0..columns).for_each(|column| row.put(column, None));
            let mut new = NewRow { row, replaced: vec![false; columns] };
            fill(&mut new);
            let (values, nulls) = new.row.parts();
            let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values, nulls);
            pg_sys::CatalogTupleInsert(relation, tuple);
            pg_sys::heap_freetuple(tuple);
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Shows each row, as it is now, to `change`, which gives it new values and says whether it has. The table is locked
    /// so that nobody else changes these rows meanwhile: else an ERROR is raised. Constraints are not looked at, and no
    /// triggers fire.
    pub fn replace(&self, mut change: impl FnMut(&mut NewRow) -> bool) {
        let snapshot = Snapshot::take(View::Now);
        let relation = self.relation();
        let mut any = false;
        // SAFETY: a sequential scan of an open relation by a snapshot that outlives it; its rows stay where they are while
        // the scan is at them, and the snapshot does not see the new ones. A new row is made of the old one's values and
        // has its columns' types.
        unsafe {
            let descriptor = (*relation).rd_att;
            let no_keys = std::ptr::null_mut();
            let scan =
                pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot.get(), 0, no_keys);
            let row = Row::of(relation);
            let columns = row.columns();
            let mut new = NewRow { row, replaced: vec![false; columns] };
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                new.row.fill(tuple, relation);
                new.replaced.fill(false);
                if !change(&mut new) {
                    continue;
                }
                let (values, nulls) = new.row.parts();
                let changed =
                    pg_sys::heap_modify_tuple(tuple, descriptor, values, nulls, new.replaced.as_mut_ptr());
                pg_sys::CatalogTupleUpdate(relation, &raw mut (*tuple).t_self, changed);
                pg_sys::heap_freetuple(changed);
                any = true;
            }
            pg_sys::systable_endscan(scan);
            if any {
                pg_sys::CommandCounterIncrement();
            }
        }
    }
}
