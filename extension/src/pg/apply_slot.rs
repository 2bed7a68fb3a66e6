//! Slots of rows whose values lie elsewhere (`TTSOpsVirtual`), handled without a call into PostgreSQL: there is one or more for each
//! row that is applied.

use pgrx::pg_sys;

/// Empties a slot. Its values are let go of with the memory that they are in.
///
/// # Safety
///
/// The slot is a virtual one.
pub(super) unsafe fn empty(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: see above; what `tts_virtual_clear` does.
    unsafe {
        if (*slot).tts_flags & pg_sys::TTS_FLAG_SHOULDFREE as u16 != 0 {
            // It keeps a copy of its values: PostgreSQL makes one when it writes the row or shows it to a trigger.
            pg_sys::ExecClearTuple(slot);
            return;
        }
        (*slot).tts_nvalid = 0;
        (*slot).tts_flags |= pg_sys::TTS_FLAG_EMPTY as u16;
        // No block and no place in it.
        (*slot).tts_tid = pg_sys::ItemPointerData {
            ip_blkid: pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX },
            ip_posid: 0,
        };
    }
}

/// Empties a slot and gives its values and which of them are NULL: all, so far.
///
/// # Safety
///
/// As [`empty`].
pub(super) unsafe fn cleared(slot: *mut pg_sys::TupleTableSlot) -> (*mut pg_sys::Datum, *mut bool) {
    // SAFETY: see above; there are as many values as the table has columns.
    unsafe {
        empty(slot);
        let count = width(slot);
        let (values, nulls) = ((*slot).tts_values, (*slot).tts_isnull);
        values.write_bytes(0, count);
        nulls.write_bytes(1, count);
        (values, nulls)
    }
}

/// The slot holds a row from now on.
///
/// # Safety
///
/// As [`empty`]; it was emptied, and all values are set.
pub(super) unsafe fn filled(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: see above; what `ExecStoreVirtualTuple` does.
    unsafe {
        (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
        (*slot).tts_nvalid = (*(*slot).tts_tupleDescriptor).natts as pg_sys::AttrNumber;
    }
}

/// How many values it has room for.
///
/// # Safety
///
/// The slot is one of a table's rows.
pub(super) unsafe fn width(slot: *mut pg_sys::TupleTableSlot) -> usize {
    // SAFETY: see above.
    usize::try_from(unsafe { (*(*slot).tts_tupleDescriptor).natts }).unwrap_or(0)
}

/// Lets go of a row that is in a slot of any kind, if there is one.
///
/// # Safety
///
/// The slot is there.
pub(super) unsafe fn let_go(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: see above.
    unsafe {
        if (*slot).tts_flags & pg_sys::TTS_FLAG_EMPTY as u16 == 0 {
            pg_sys::ExecClearTuple(slot);
        }
    }
}

/// Frees all that is in a memory context, if anything is.
///
/// # Safety
///
/// The context is alive, and nothing in it is used any more.
pub(super) unsafe fn reset(memory: pg_sys::MemoryContext) {
    // SAFETY: see above.
    unsafe {
        if !(*memory).isReset || !(*memory).firstchild.is_null() {
            pg_sys::MemoryContextReset(memory);
        }
    }
}
