//! `synchronous_standby_names` takes no value but the sidecar's.
//!
//! PostgreSQL lets every waiting commit go as a success when that setting becomes empty, and by the new rule when it
//! changes. So the setting's own check is asked only after ours. A value that is refused in a reload changes nothing:
//! each process keeps what it has. The sidecar's value comes in `pgquorum.acknowledgement_rule`, which stands before
//! it in the same file, so every process that reads the one has read the other.

use std::ffi::{CStr, c_char, c_void};

use pgrx::PgSqlErrorCode::{ERRCODE_CANT_CHANGE_RUNTIME_PARAM, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE};
use pgrx::pg_sys;

use super::settings;
use crate::error::Refusal;
use crate::guc;

const NAME: &CStr = c"synchronous_standby_names";

static mut PREVIOUS_CHECK: pg_sys::GucStringCheckHook = None;

/// Puts our check before PostgreSQL's, and refuses to start with another value than the sidecar's. Once, in the
/// postmaster, from `_PG_init`, after our settings are defined.
pub fn init() {
    let found = settings::find(NAME, pg_sys::config_type::PGC_STRING);
    // SAFETY: the record is static data of the server; nothing else runs while libraries are loaded.
    let present = unsafe {
        let record = found.expect("PostgreSQL has synchronous_standby_names").cast::<pg_sys::config_string>();
        PREVIOUS_CHECK = (*record).check_hook;
        (*record).check_hook = Some(check);
        text(*(*record).variable)
    };
    if guc::FENCE.get() && !is_the_rule(present) {
        let rule = guc::ACKNOWLEDGEMENT_RULE.get();
        let rule =
            rule.map_or_else(|| "not set".to_owned(), |rule| format!("\"{}\"", rule.to_string_lossy()));
        Refusal::new(
            ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("synchronous_standby_names is \"{}\", which is not what the sidecar set", present.to_string_lossy()),
        )
        .detail(format!("With it commits could be acknowledged that no other node has. The sidecar's value is {rule}."))
        .hint("Take synchronous_standby_names out of postgresql.conf, postgresql.auto.conf and the command line; the sidecar keeps it in pgquorum.conf.")
        .raise();
    }
}

/// Called for every new value, in every process. Without a guard of pgrx: nothing here can raise an error.
unsafe extern "C-unwind" fn check(
    value: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL hands over a valid pointer to the new value, which may be null; the texts that are set on
    // refusal are static and only read. PREVIOUS_CHECK was written once, in `init`.
    unsafe {
        let wanted = text(*value);
        // A parallel worker begins with the built-in value of every setting, and then takes its leader's.
        let begins = pg_sys::InitializingParallelWorker;
        if guc::FENCE.get() && !begins && wanted != text(pg_sys::SyncRepStandbyNames) && !is_the_rule(wanted)
        {
            pg_sys::GUC_check_errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM as i32);
            pg_sys::GUC_check_errmsg_string =
                c"synchronous_standby_names is kept by the cluster and stays as it is".as_ptr().cast_mut();
            pg_sys::GUC_check_errdetail_string =
                c"With another value, commits could be acknowledged that no other node has."
                    .as_ptr()
                    .cast_mut();
            pg_sys::GUC_check_errhint_string =
                c"Change how many standbys acknowledge with: pgquorum config set replication-factor"
                    .as_ptr()
                    .cast_mut();
            return false;
        }
        PREVIOUS_CHECK.is_none_or(|next| next(value, extra, source))
    }
}

fn is_the_rule(value: &CStr) -> bool {
    guc::ACKNOWLEDGEMENT_RULE.get().is_some_and(|rule| rule.as_c_str() == value)
}

/// # Safety
///
/// `value` is null or a string that lives as long as it is used.
unsafe fn text<'a>(value: *const c_char) -> &'a CStr {
    // SAFETY: see above.
    if value.is_null() { c"" } else { unsafe { CStr::from_ptr(value) } }
}
