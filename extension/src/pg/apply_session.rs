//! The session while changes are applied: what it must be, and what is set for the time being.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::formats::{Formats, PlainPath};
use super::process;

/// Why a session cannot apply changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    Nested,
    Isolation,
}

/// Is the transaction one in which changes can be applied?
pub fn check() -> Result<(), Unfit> {
    if process::nesting_level() != 1 {
        return Err(Unfit::Nested);
    }
    // SAFETY: a global of this process.
    if unsafe { pg_sys::XactIsoLevel } > pg_sys::XACT_READ_COMMITTED as i32 {
        return Err(Unfit::Isolation);
    }
    Ok(())
}

/// While it lives, ordinary triggers and foreign keys rest, and values are read in the log's formats.
pub struct Applying {
    role: i32,
    _formats: Formats,
}

impl Applying {
    pub fn begin() -> Self {
        // SAFETY: the variable of a setting, changed while nobody looks at the setting itself. Plans that depend on it are
        // those of views and rules, which are not used here.
        let role = unsafe {
            let before = pg_sys::SessionReplicationRole;
            pg_sys::SessionReplicationRole = pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32;
            before
        };
        Self { role, _formats: Formats::take() }
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::SessionReplicationRole = self.role }
    }
}

/// Says, until the transaction ends, where its changes come from and when they were committed there (microseconds since
/// 1970): that stands in this database's own change log.
pub fn set_origin(origin: &str, commit_us: i64) {
    set_local(c"pgquorum.origin", origin);
    // SAFETY: the function of the type's output, called as SQL would; the formats are the log's, so with a zone.
    let time = unsafe {
        let value = process::pg_time_of_us(commit_us);
        let text =
            pg_sys::OidOutputFunctionCall(pg_sys::F_TIMESTAMPTZ_OUT.into(), pg_sys::Datum::from(value));
        CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    set_local(c"pgquorum.origin_commit_time", &time);
}

fn set_local(name: &CStr, value: &str) {
    let value = CString::new(value).unwrap_or_default();
    // SAFETY: both strings are valid for the call; the names are settings that exist.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// A name as SQL writes it.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", pgrx::spi::quote_identifier(schema), pgrx::spi::quote_identifier(table))
}

/// Runs a statement, and raises what it raises.
pub fn run(statement: &str) {
    if let Err(error) = pgrx::Spi::run(statement) {
        panic!("a statement was not run: {error}");
    }
}

/// While the result lives, names without a schema mean those of this one.
pub fn path_of(schema: &str) -> PlainPath {
    PlainPath::of(&CString::new(pgrx::spi::quote_identifier(schema)).unwrap_or_default())
}
