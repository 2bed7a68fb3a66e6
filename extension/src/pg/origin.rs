//! The settings that say where changes come from, checked when they are set: at the commit it would be too late.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW;
use pgrx::prelude::*;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use super::{encoding, process};
use crate::error::Refusal;

/// The log has room for an origin of so many bytes, in UTF-8.
const ORIGIN_MAX: usize = 255;

/// Defines both settings; once, from `_PG_init`.
pub fn define(origin: &'static GucSetting<Option<CString>>, time: &'static GucSetting<Option<CString>>) {
    // SAFETY: the hooks are as PostgreSQL wants them, and called from `_PG_init`, where settings may be defined.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"pgquorum.origin",
            c"Where the changes of this session come from, when they are applied from elsewhere.",
            c"Stands in the change log with each transaction, so that changes do not go back to where they came from.",
            origin,
            GucContext::Suset,
            GucFlags::default(),
            Some(check_origin),
            None,
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"pgquorum.origin_commit_time",
            c"When the changes of this session were committed at their origin: a time with time zone.",
            c"",
            time,
            GucContext::Suset,
            GucFlags::default(),
            Some(check_time),
            None,
            None,
        );
    }
}

/// An origin as the log has it; `None`: changes are made here.
pub fn name(origin: &CStr) -> Option<String> {
    (!origin.is_empty()).then(|| encoding::to_utf8(origin.to_bytes()).into_owned())
}

/// A time in microseconds since 1970; `None`: the text is empty. Raises 22007 if it is no time, 22008 if the log cannot
/// say it.
pub fn time_us(text: &CStr) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    let time = process::parse_time_us(text).unwrap_or_else(|| {
        Refusal::new(
            ERRCODE_DATETIME_FIELD_OVERFLOW,
            format!(
                "pgquorum.origin_commit_time is not a time that the change log can hold: {}",
                text.to_string_lossy()
            ),
        )
        .hint("Set it to the time of the commit, for example '2001-02-03 04:05:06+00', or to an empty text.")
        .raise()
    });
    Some(time)
}

/// Can the server's functions be asked about a new value, and is an ERROR of theirs an answer to whoever sets it? Else,
/// as when a configuration file is read, the commit finds what is wrong. Parallel workers get values that were checked.
fn can_ask(source: pg_sys::GucSource::Type) -> bool {
    // SAFETY: reads this process's state.
    unsafe {
        source >= pg_sys::GucSource::PGC_S_INTERACTIVE
            && pg_sys::IsTransactionState()
            && pg_sys::ParallelWorkerNumber < 0
    }
}

/// Called for every new value, in every process.
#[pg_guard]
unsafe extern "C-unwind" fn check_origin(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL hands over a valid pointer to the new value, which may be null; the detail is static.
    unsafe {
        if (*value).is_null() {
            return true;
        }
        let bytes = CStr::from_ptr(*value).to_bytes();
        let length = if can_ask(source) { encoding::to_utf8(bytes).len() } else { bytes.len() };
        if length > ORIGIN_MAX {
            pg_sys::GUC_check_errdetail_string =
                c"An origin is at most 255 bytes long, in UTF-8.".as_ptr().cast_mut();
            return false;
        }
        if !encoding::differs() && std::str::from_utf8(bytes).is_err() {
            pg_sys::GUC_check_errdetail_string = c"It is not valid UTF-8.".as_ptr().cast_mut();
            return false;
        }
        true
    }
}

/// Called for every new value, in every process.
#[pg_guard]
unsafe extern "C-unwind" fn check_time(
    value: *mut *mut c_char,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as above.
    unsafe {
        if (*value).is_null() || !can_ask(source) {
            return true;
        }
        let text = CStr::from_ptr(*value);
        if text.is_empty() || process::parse_time_us(text).is_some() {
            return true;
        }
        pg_sys::GUC_check_errdetail_string =
            c"The change log cannot hold this time: it is infinite or too far away.".as_ptr().cast_mut();
        false
    }
}
