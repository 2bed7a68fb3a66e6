//! `default_transaction_read_only` of this session: set by the fence, and taken back.
//!
//! Our value has the source "interactive", which PostgreSQL itself does not use. It ranks above everything that
//! comes after authentication (database, role, start-up options), which so lands in the reset value, and below a
//! SET of the user, which so replaces it. That is how "the user has chosen a value" is known.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::settings;

const NAME: &CStr = c"default_transaction_read_only";
const OUR_SOURCE: pg_sys::GucSource::Type = pg_sys::GucSource::PGC_S_INTERACTIVE;

/// Makes the session's transactions read-only by default.
pub fn make_read_only() {
    set(c"on");
}

/// Is the present value the one that [`make_read_only`] has set?
pub fn read_only_is_ours() -> bool {
    // SAFETY: the record is static data of the server.
    record().is_some_and(|record| unsafe { (*record).gen_.source } == OUR_SOURCE)
}

/// Gives the session the value it would have had without us. Transactional: undone if the transaction aborts.
pub fn reset_read_only() {
    let Some(record) = record() else { return };
    // SAFETY: as above. With no value PostgreSQL takes the reset value and its source. PGC_SUSET is not needed:
    // the setting is anybody's.
    unsafe {
        debug_assert!(!(*record).variable.is_null());
        pg_sys::SetConfigOption(
            NAME.as_ptr(),
            std::ptr::null(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// The same in an abort, where settings made now would be undone and nothing may fail: only the variable is written,
/// so that the next transaction can write. Its commit then does the rest (source, report to the client).
pub fn reset_read_only_in_abort() {
    if let Some(record) = record() {
        // SAFETY: `variable` points to DefaultXactReadOnly, a plain flag that StartTransaction copies.
        unsafe { *(*record).variable = (*record).reset_val }
    }
}

fn set(value: &'static CStr) {
    // SAFETY: both strings are static; the context is the one of an ordinary user's SET.
    unsafe {
        pg_sys::SetConfigOption(NAME.as_ptr(), value.as_ptr(), pg_sys::GucContext::PGC_USERSET, OUR_SOURCE);
    }
}

/// The server's record of the setting. Only for sessions that were made read-only, so a search will do.
fn record() -> Option<*mut pg_sys::config_bool> {
    settings::find(NAME, pg_sys::config_type::PGC_BOOL).map(|record| record.cast())
}
