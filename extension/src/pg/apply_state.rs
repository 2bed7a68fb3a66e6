//! What the executor knows of a table that changes are applied to.

use std::ffi::c_int;

use pgrx::pg_sys;

use super::apply_target::Column;
use super::worker::lock;

/// An executor's state with the table as its only one, all of whose columns an update sets.
///
/// # Safety
///
/// As [`super::apply_target::Target::of`].
pub(super) unsafe fn executor_state(
    relation: pg_sys::Relation,
    columns: &[Column],
) -> (*mut pg_sys::EState, *mut pg_sys::ResultRelInfo) {
    // SAFETY: see above. Nodes are zeroed and given their tags.
    unsafe {
        let estate = pg_sys::CreateExecutorState();
        let entry: *mut pg_sys::RangeTblEntry = pg_sys::palloc0(size_of::<pg_sys::RangeTblEntry>()).cast();
        (*entry).type_ = pg_sys::NodeTag::T_RangeTblEntry;
        (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
        (*entry).relid = (*relation).rd_id;
        (*entry).relkind = (*(*relation).rd_rel).relkind;
        (*entry).rellockmode = lock::ROW_EXCLUSIVE;
        take_as_only_one(estate, entry, relation, columns);
        let result: *mut pg_sys::ResultRelInfo = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
        (*result).type_ = pg_sys::NodeTag::T_ResultRelInfo;
        pg_sys::InitResultRelInfo(result, relation, 1, std::ptr::null_mut(), 0);
        // Where the queue of triggers looks for it.
        (*estate).es_opened_result_relations =
            pg_sys::lappend((*estate).es_opened_result_relations, result.cast());
        (estate, result)
    }
}

/// The number of a column, which is given from 0, in a set of columns.
fn number(at: usize) -> c_int {
    at as c_int + 1 - pg_sys::FirstLowInvalidHeapAttributeNumber
}

/// Makes the entry the executor's only one, with the columns that an update sets.
///
/// # Safety
///
/// The state is new, and the entry is one for the relation, which is open.
#[cfg(any(feature = "pg14", feature = "pg15"))]
unsafe fn take_as_only_one(
    estate: *mut pg_sys::EState,
    entry: *mut pg_sys::RangeTblEntry,
    relation: pg_sys::Relation,
    columns: &[Column],
) {
    // SAFETY: see above.
    unsafe {
        for place in columns.iter().filter_map(|column| column.place) {
            (*entry).updatedCols = pg_sys::bms_add_member((*entry).updatedCols, number(place));
        }
        for (at, attribute) in super::describe::attributes(relation).iter().enumerate() {
            if attribute.attgenerated != 0 {
                (*entry).extraUpdatedCols = pg_sys::bms_add_member((*entry).extraUpdatedCols, number(at));
            }
        }
        pg_sys::ExecInitRangeTable(estate, pg_sys::lappend(std::ptr::null_mut(), entry.cast()));
    }
}

/// The same; from PostgreSQL 16 on the columns stand beside the entry, and the executor finds those that are computed.
///
/// # Safety
///
/// As above.
#[cfg(not(any(feature = "pg14", feature = "pg15")))]
unsafe fn take_as_only_one(
    estate: *mut pg_sys::EState,
    entry: *mut pg_sys::RangeTblEntry,
    _relation: pg_sys::Relation,
    columns: &[Column],
) {
    // SAFETY: see above.
    unsafe {
        let mut rights: *mut pg_sys::List = std::ptr::null_mut();
        let of_entry = pg_sys::addRTEPermissionInfo(&mut rights, entry);
        for place in columns.iter().filter_map(|column| column.place) {
            (*of_entry).updatedCols = pg_sys::bms_add_member((*of_entry).updatedCols, number(place));
        }
        let entries = pg_sys::lappend(std::ptr::null_mut(), entry.cast());
        #[cfg(not(feature = "pg18"))]
        pg_sys::ExecInitRangeTable(estate, entries, rights);
        // None of its entries is pruned.
        #[cfg(feature = "pg18")]
        pg_sys::ExecInitRangeTable(estate, entries, rights, pg_sys::bms_make_singleton(1));
    }
}
