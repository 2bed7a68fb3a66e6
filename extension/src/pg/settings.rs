//! The server's own records of its settings.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The record of a setting, if it exists and has this type. Allocates nothing and raises nothing.
pub fn find(name: &CStr, kind: pg_sys::config_type::Type) -> Option<*mut pg_sys::config_generic> {
    // SAFETY: the record lives as long as the process.
    by_name(name).filter(|record| unsafe { (**record).vartype } == kind)
}

/// A linear search.
#[cfg(any(feature = "pg14", feature = "pg15"))]
fn by_name(name: &CStr) -> Option<*mut pg_sys::config_generic> {
    // SAFETY: the array holds as many valid records as the server says, and lives as long as it is used here; names are
    // never null.
    unsafe {
        let count = usize::try_from(pg_sys::GetNumConfigOptions()).unwrap_or(0);
        let records = std::slice::from_raw_parts(pg_sys::get_guc_variables(), count);
        records.iter().copied().find(|record| CStr::from_ptr((**record).name) == name)
    }
}

#[cfg(not(any(feature = "pg14", feature = "pg15")))]
fn by_name(name: &CStr) -> Option<*mut pg_sys::config_generic> {
    // SAFETY: a look into a table; no placeholder is made, and a name that is not there is no error.
    let record = unsafe { pg_sys::find_option(name.as_ptr(), false, true, 0) };
    (!record.is_null()).then_some(record)
}
