//! Finding the rows that changes are about, whoever else is changing them.

use std::ffi::c_int;

use pgquorum_change::{Change, OldImage, Value};
use pgrx::pg_sys;

use super::apply_target::Target;
use super::apply_write::check_length;
use super::compat::index_beginscan;

/// Where a row is.
#[derive(Clone, Copy)]
pub struct Place(pub(super) pg_sys::ItemPointerData);

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        let number = |place: &Self| (place.0.ip_blkid.bi_hi, place.0.ip_blkid.bi_lo, place.0.ip_posid);
        number(self) == number(other)
    }
}

/// What `find` found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Row,
    Nothing,
}

impl Target {
    /// Puts the key of a change into the scan keys; false: a value of it is not known, so no row can be found.
    fn fill_key(&mut self, change: &Change) -> bool {
        let Self { key, columns, room, .. } = self;
        let Some(key) = key else { return false };
        let (image, is_key) = match (change.old, change.new) {
            (Some(OldImage::Key(image)), _) => (image, true),
            (Some(OldImage::Full(image)), _) | (None, Some(image)) => (image, false),
            (None, None) => return false,
        };
        let map = if is_key { &key.of_key } else { &key.of_row };
        check_length(image, map.len());
        let mut known = 0;
        for (at, (value, place)) in image.values().zip(map).enumerate() {
            let (Some(place), Value::Text(text)) = (place, value) else { continue };
            let column = if is_key { key.key_columns[at] } else { at };
            // SAFETY: in the row's memory, which is the present one.
            key.scan[*place].sk_argument = unsafe { columns[column].input.read(&text, room) };
            known += 1;
        }
        known == key.scan.len()
    }

    /// Looks for the row that a change is about and leaves it in the slot of found rows. With `lock`, nobody else changes it
    /// until the transaction ends.
    pub(super) fn find(&mut self, change: &Change, lock: bool) -> Found {
        if !self.fill_key(change) {
            return Found::Nothing;
        }
        let Some(key) = &mut self.key else { return Found::Nothing };
        let count = c_int::try_from(key.scan.len()).unwrap_or(0);
        // SAFETY: table and index are open; the scan is ended here, or by the savepoint. The snapshot is ours.
        unsafe {
            let mut snapshot = pg_sys::SnapshotData {
                snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
                ..Default::default()
            };
            let scan = index_beginscan(self.relation, key.index, &mut snapshot, count);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let found = loop {
                pg_sys::index_rescan(scan, key.scan.as_mut_ptr(), count, std::ptr::null_mut(), 0);
                pgrx::check_for_interrupts!();
                if !pg_sys::index_getnext_slot(scan, forward, self.found) {
                    // While somebody updates it, such a scan may see neither version of a row; this one sees one.
                    if lock && is_there(self.relation, key.index, &mut key.scan) {
                        continue;
                    }
                    break Found::Nothing;
                }
                let other =
                    if snapshot.xmin == pg_sys::InvalidTransactionId { snapshot.xmax } else { snapshot.xmin };
                if other != pg_sys::InvalidTransactionId {
                    pg_sys::ExecClearTuple(self.found);
                    let nobody = std::ptr::null_mut();
                    pg_sys::XactLockTableWait(
                        other,
                        std::ptr::null_mut(),
                        nobody,
                        pg_sys::XLTW_Oper::XLTW_None,
                    );
                    continue;
                }
                if !lock || lock_row(self.relation, self.found) {
                    break Found::Row;
                }
            };
            pg_sys::index_endscan(scan);
            if found == Found::Nothing {
                pg_sys::ExecClearTuple(self.found);
            }
            found
        }
    }

    /// Looks for the row and locks it.
    pub fn find_locked(&mut self, change: &Change) -> Found {
        let outer = self.begin();
        let found = self.find(change, true);
        self.finish(outer);
        found
    }

    /// Is the row that a change is about here, by what is committed and what this transaction has done? Waits for nobody.
    pub fn is_here(&mut self, change: &Change) -> bool {
        let outer = self.begin();
        let known = self.fill_key(change);
        let found = self.key.as_mut().is_some_and(|key| {
            // SAFETY: table and index are open; the keys were filled just now.
            known && unsafe { is_there(self.relation, key.index, &mut key.scan) }
        });
        self.finish(outer);
        found
    }

    /// Takes a row into the slot of found rows by its place and locks it; false: it has gone.
    pub fn find_at(&mut self, place: Place) -> bool {
        let outer = self.begin();
        // SAFETY: the row was there a moment ago; the snapshot sees what is there now.
        let found = unsafe {
            pg_sys::ExecClearTuple(self.found);
            let mut at = place.0;
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let seen = pg_sys::table_tuple_fetch_row_version(self.relation, &mut at, snapshot, self.found);
            pg_sys::UnregisterSnapshot(snapshot);
            seen && lock_row(self.relation, self.found)
        };
        self.finish(outer);
        found
    }
}

/// Is there a row with this key, by what is committed now?
///
/// # Safety
///
/// Table and index are open.
unsafe fn is_there(
    relation: pg_sys::Relation,
    index: pg_sys::Relation,
    keys: &mut [pg_sys::ScanKeyData],
) -> bool {
    let count = c_int::try_from(keys.len()).unwrap_or(0);
    // SAFETY: see above; scan, slot and snapshot end here, or with the savepoint.
    unsafe {
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
        let scan = index_beginscan(relation, index, snapshot, count);
        pg_sys::index_rescan(scan, keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
        let found = pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot);
        pg_sys::index_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::UnregisterSnapshot(snapshot);
        found
    }
}

/// Locks the row in the slot against changes; false: somebody has changed it meanwhile, so look again.
///
/// # Safety
///
/// The relation is open and the slot holds a row of it.
unsafe fn lock_row(relation: pg_sys::Relation, slot: *mut pg_sys::TupleTableSlot) -> bool {
    // SAFETY: see above; the snapshot is taken back.
    unsafe {
        let mut failure = pg_sys::TM_FailureData::default();
        let mut place = (*slot).tts_tid;
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let result = pg_sys::table_tuple_lock(
            relation,
            &mut place,
            snapshot,
            slot,
            pg_sys::GetCurrentCommandId(false),
            pg_sys::LockTupleMode::LockTupleExclusive,
            pg_sys::LockWaitPolicy::LockWaitBlock,
            0,
            &mut failure,
        );
        pg_sys::UnregisterSnapshot(snapshot);
        result == pg_sys::TM_Result::TM_Ok
    }
}
