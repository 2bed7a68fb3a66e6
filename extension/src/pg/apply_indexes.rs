//! What indexes keep from one row to the next. From PostgreSQL 17 on one that is a BRIN index keeps pages pinned, for as long as a
//! statement lasts; here tables are open longer than the savepoint that such a pin belongs to.

use pgrx::pg_sys;

use super::apply_slot::reset;
use super::apply_target::memory;

/// The indexes that keep something which must be let go of, with what is known of them.
///
/// # Safety
///
/// The indexes of the table are open.
unsafe fn keeping(
    result: *mut pg_sys::ResultRelInfo,
) -> impl Iterator<Item = (pg_sys::Relation, *mut pg_sys::IndexInfo)> {
    // SAFETY: see above; there are so many of both.
    unsafe {
        let count = usize::try_from((*result).ri_NumIndices).unwrap_or(0);
        let (indexes, infos) = ((*result).ri_IndexRelationDescs, (*result).ri_IndexRelationInfo);
        (0..count)
            .map(move |at| (*indexes.add(at), *infos.add(at)))
            .filter(|(index, _)| (*(**index).rd_indam).aminsertcleanup.is_some())
    }
}

/// Gives these indexes a memory of their own: not all that they make is freed with the rest.
///
/// # Safety
///
/// The indexes were opened just now, and the parent lives as long as they are open.
pub(super) unsafe fn set_apart(result: *mut pg_sys::ResultRelInfo, parent: pg_sys::MemoryContext) {
    // SAFETY: see above.
    unsafe {
        for (_, info) in keeping(result) {
            (*info).ii_Context = memory(parent, c"pgquorum index");
        }
    }
}

/// Lets go of what they keep. To be called before the savepoint ends in which a row was written.
///
/// # Safety
///
/// The indexes are open, and were set apart.
pub(super) unsafe fn let_go(result: *mut pg_sys::ResultRelInfo) {
    // SAFETY: see above.
    unsafe {
        for (index, info) in keeping(result) {
            if !(*info).ii_AmCache.is_null() {
                pg_sys::index_insert_cleanup(index, info);
                (*info).ii_AmCache = std::ptr::null_mut();
                reset((*info).ii_Context);
            }
        }
    }
}

/// Forgets what they kept: it went with a savepoint.
///
/// # Safety
///
/// The indexes are open.
pub(super) unsafe fn forget(result: *mut pg_sys::ResultRelInfo) {
    // SAFETY: see above.
    unsafe {
        for (_, info) in keeping(result) {
            (*info).ii_AmCache = std::ptr::null_mut();
        }
    }
}
