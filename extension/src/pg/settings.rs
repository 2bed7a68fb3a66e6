//! The server's own records of its settings.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The record of a setting, if it exists and has this type. A linear search.
pub fn find(name: &CStr, kind: pg_sys::config_type::Type) -> Option<*mut pg_sys::config_generic> {
    // SAFETY: the array holds as many valid records as the server says, and lives as long as it is used here.
    let records = unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let (first, count) = (pg_sys::get_guc_variables(), pg_sys::GetNumConfigOptions());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let (first, count) = {
            let mut count = 0;
            (pg_sys::get_guc_variables(&mut count), count)
        };
        std::slice::from_raw_parts(first, usize::try_from(count).unwrap_or(0))
    };
    // SAFETY: as above; names are never null.
    records
        .iter()
        .copied()
        .find(|record| unsafe { CStr::from_ptr((**record).name) == name && (**record).vartype == kind })
}
