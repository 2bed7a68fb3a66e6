//! The settings under which values are turned into text, whatever the session's are.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use pgrx::pg_sys;

use super::single::Single;

unsafe extern "C-unwind" {
    /// utils/bytea.h; missing from pgrx's bindings.
    static mut bytea_output: c_int;
}

static UTC: Single<Cell<*mut pg_sys::pg_tz>> = Single::cell(std::ptr::null_mut());

/// The log's formats while it lives: DateStyle ISO, IntervalStyle postgres, extra_float_digits 1, bytea as hex, times in
/// UTC. Only variables are changed, and back when it is dropped; nobody looks at the settings meanwhile.
pub struct Formats {
    date_style: c_int,
    interval_style: c_int,
    float_digits: c_int,
    bytea: c_int,
    zone: *mut pg_sys::pg_tz,
}

impl Formats {
    pub fn take() -> Self {
        let mut utc = UTC.get();
        // SAFETY: globals of this process, which only settings and this write. GMT is known without any file; zones
        // are never freed.
        unsafe {
            if utc.is_null() {
                utc = pg_sys::pg_tzset(c"GMT".as_ptr());
                UTC.set(utc);
            }
            let saved = Self {
                date_style: pg_sys::DateStyle,
                interval_style: pg_sys::IntervalStyle,
                float_digits: pg_sys::extra_float_digits,
                bytea: bytea_output,
                zone: pg_sys::session_timezone,
            };
            pg_sys::DateStyle = pg_sys::USE_ISO_DATES as c_int;
            pg_sys::IntervalStyle = pg_sys::INTSTYLE_POSTGRES as c_int;
            pg_sys::extra_float_digits = 1;
            bytea_output = 1;
            pg_sys::session_timezone = utc;
            saved
        }
    }
}

impl Drop for Formats {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            pg_sys::DateStyle = self.date_style;
            pg_sys::IntervalStyle = self.interval_style;
            pg_sys::extra_float_digits = self.float_digits;
            bytea_output = self.bytea;
            pg_sys::session_timezone = self.zone;
        }
    }
}

/// Another search path while it lives: `pg_catalog`, for types whose text leaves out schemas that are in the path.
pub struct PlainPath(c_int);

impl PlainPath {
    pub fn take() -> Self {
        Self::of(c"pg_catalog")
    }

    /// Another search path, for who runs statements of others.
    pub fn of(path: &CStr) -> Self {
        // SAFETY: a level of settings is opened and, if anything fails, closed by the abort.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                c"search_path".as_ptr(),
                path.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            Self(level)
        }
    }
}

impl Drop for PlainPath {
    fn drop(&mut self) {
        // After an error the abort closes the level.
        if !std::thread::panicking() {
            // SAFETY: the level that was opened; all that were opened above it are closed too.
            unsafe { pg_sys::AtEOXact_GUC(true, self.0) }
        }
    }
}
