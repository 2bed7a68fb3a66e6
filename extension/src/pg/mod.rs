//! The border to PostgreSQL: every `unsafe` call, wrapped so that the rest of the crate needs none.

use std::ffi::CStr;

use pgrx::PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
use pgrx::pg_sys;

use crate::error::Refusal;

mod apply_calls;
pub mod apply_filter;
pub mod apply_find;
pub mod apply_gather;
#[cfg(any(feature = "pg17", feature = "pg18"))]
mod apply_indexes;
mod apply_key;
pub mod apply_number;
mod apply_route;
pub mod apply_session;
mod apply_slot;
mod apply_state;
pub mod apply_target;
mod apply_value;
pub mod apply_write;
pub mod catalog;
pub mod changed_objects;
pub mod client;
pub mod clock;
pub mod columns;
pub mod commit_level;
mod compat;
pub mod condition;
pub mod copy_owner;
pub mod datum;
pub mod describe;
pub mod encoding;
pub mod filter;
mod formats;
pub mod guard;
pub mod hooks;
pub mod judged;
mod jumble;
pub mod log_guard;
pub mod log_heap;
pub mod log_scan;
pub mod login;
pub mod names;
pub mod nesting;
pub mod notices;
pub mod object_hooks;
pub mod origin;
pub mod owner_rights;
pub mod plans;
pub mod process;
pub mod query;
mod query_objects;
mod query_types;
pub mod query_walk;
pub mod raise;
pub mod relcache;
pub mod rewind_files;
pub mod savepoint;
pub mod search_path;
pub mod sequence;
pub mod session;
mod settings;
pub mod shared;
pub mod single;
pub mod snapshot;
pub mod spill;
pub mod standby_names;
pub mod statement;
pub mod statement_hooks;
pub mod statement_rows;
pub mod syncrep;
pub mod table;
mod table_change;
pub mod tables;
pub mod tracking;
pub mod trigger;
pub mod utility;
pub mod version_rows;
pub mod wal;
mod whole_database;
pub mod worker;

/// Raises 55000 unless the library is being loaded by `shared_preload_libraries`: shared memory and hooks of
/// every session cannot be had later.
pub fn require_preload() {
    // SAFETY: a plain flag of this process; nothing writes to it while libraries are loaded.
    if unsafe { !pg_sys::process_shared_preload_libraries_in_progress } {
        Refusal::new(
            ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pgquorum must be loaded when the server starts",
        )
        .hint("Put shared_preload_libraries = 'pgquorum' into postgresql.conf (after a comma if there are other libraries) and restart the server.")
        .raise();
    }
}

/// Makes unknown settings under `prefix` an error. To be called after all of them are defined.
pub fn reserve_guc_prefix(prefix: &'static CStr) {
    // SAFETY: the string is static; called from `_PG_init`, where settings may be defined.
    #[cfg(not(feature = "pg14"))]
    unsafe {
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr());
    }
    // SAFETY: as above; PostgreSQL 14 can only warn.
    #[cfg(feature = "pg14")]
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr());
    }
}
