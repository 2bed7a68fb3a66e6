//! Numbers from a sequence of the extension's, whatever rights the session has.

use std::ffi::CStr;

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    /// commands/sequence.h; missing from pgrx's bindings.
    fn nextval_internal(relid: pg_sys::Oid, check_permissions: bool) -> i64;
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
