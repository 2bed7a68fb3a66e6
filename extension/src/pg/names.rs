//! Names of objects, for people: with their schema unless they are PostgreSQL's own, in UTF-8; the OID where an object
//! is gone.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::{catalog, encoding};

/// With the types of its arguments.
pub fn function(oid: u32) -> String {
    let flags = if catalog::is_pinned(oid) { 0 } else { pg_sys::FORMAT_PROC_FORCE_QUALIFY };
    // SAFETY: reads the catalogue; gives a string of its own.
    unsafe { text(pg_sys::format_procedure_extended(oid.into(), flags as pg_sys::bits16)) }
}

/// With the types of its operands.
pub fn operator(oid: u32) -> String {
    let flags = if catalog::is_pinned(oid) { 0 } else { pg_sys::FORMAT_OPERATOR_FORCE_QUALIFY };
    // SAFETY: as above.
    unsafe { text(pg_sys::format_operator_extended(oid.into(), flags as pg_sys::bits16)) }
}

pub fn data_type(oid: u32) -> String {
    let flags = pg_sys::FORMAT_TYPE_FORCE_QUALIFY | pg_sys::FORMAT_TYPE_ALLOW_INVALID;
    // SAFETY: as above.
    unsafe { text(pg_sys::format_type_extended(oid.into(), -1, flags as pg_sys::bits16)) }
}

/// With a word for its kind.
pub fn relation(oid: u32) -> String {
    // SAFETY: as above; both names are null where there is no such object.
    let name = unsafe {
        let name = pg_sys::get_rel_name(oid.into());
        if name.is_null() {
            return format!("relation {oid}");
        }
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid.into()));
        text(pg_sys::quote_qualified_identifier(schema, name))
    };
    // SAFETY: as above.
    let kind = match unsafe { pg_sys::get_rel_relkind(oid.into()) } as u8 {
        pg_sys::RELKIND_VIEW => "view",
        pg_sys::RELKIND_MATVIEW => "materialized view",
        pg_sys::RELKIND_SEQUENCE => "sequence",
        pg_sys::RELKIND_FOREIGN_TABLE => "foreign table",
        _ => "table",
    };
    format!("{kind} {name}")
}

/// # Safety
///
/// The text is null or ends with a zero.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: see above.
    encoding::to_utf8(unsafe { CStr::from_ptr(text) }.to_bytes()).into_owned()
}
