//! Functions of PostgreSQL's that several files call and that have other arguments from some version on.

use std::ffi::c_int;

use pgrx::pg_sys;

/// The index of a table's primary key; invalid: it has none, or a deferrable one.
///
/// # Safety
///
/// The relation is open.
pub(super) unsafe fn primary_key_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: see above.
    #[cfg(not(feature = "pg18"))]
    return unsafe { pg_sys::RelationGetPrimaryKeyIndex(relation) };
    // SAFETY: see above.
    #[cfg(feature = "pg18")]
    return unsafe { pg_sys::RelationGetPrimaryKeyIndex(relation, false) };
}

/// Begins a scan of a table by one of its indexes, with so many keys.
///
/// # Safety
///
/// Both relations are open, and the snapshot outlives the scan.
pub(super) unsafe fn index_beginscan(
    relation: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: c_int,
) -> pg_sys::IndexScanDesc {
    // SAFETY: see above.
    #[cfg(not(feature = "pg18"))]
    return unsafe { pg_sys::index_beginscan(relation, index, snapshot, keys, 0) };
    // SAFETY: see above; nobody counts what it does.
    #[cfg(feature = "pg18")]
    return unsafe { pg_sys::index_beginscan(relation, index, snapshot, std::ptr::null_mut(), keys, 0) };
}
