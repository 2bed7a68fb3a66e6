//! Numbers from a sequence of the extension's, whatever rights the session has; the lock of a sequence.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::worker::lock as modes;

unsafe extern "C-unwind" {
    /// commands/sequence.h; missing from pgrx's bindings.
    fn nextval_internal(relid: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// Takes the lock of `ALTER SEQUENCE`, which keeps `nextval` out, until the transaction ends. False: it is no sequence.
pub fn lock(sequence: pg_sys::Oid) -> bool {
    // SAFETY: looks into the catalogues' caches; locks whatever stands behind the number, and its errors are passed on.
    unsafe {
        if pg_sys::get_rel_relkind(sequence) as u8 != pg_sys::RELKIND_SEQUENCE {
            return false;
        }
        pg_sys::LockRelationOid(sequence, modes::SHARE_ROW_EXCLUSIVE);
        // It may have been dropped while this waited.
        pg_sys::get_rel_relkind(sequence) as u8 == pg_sys::RELKIND_SEQUENCE
    }
}

/// The next number of a sequence in schema `quorum`. `None`: there is no such sequence.
pub fn next(name: &CStr) -> Option<i64> {
    // SAFETY: looks into the catalogues' caches; the sequence is one if it is there, and its errors are passed on.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"quorum".as_ptr(), true);
        let oid = pg_sys::get_relname_relid(name.as_ptr(), schema);
        let is_sequence =
            oid != pg_sys::InvalidOid && pg_sys::get_rel_relkind(oid) as u8 == pg_sys::RELKIND_SEQUENCE;
        is_sequence.then(|| pg_sys::ffi::pg_guard_ffi_boundary(|| nextval_internal(oid, false)))
    }
}
