//! `synchronous_commit`: what it is at commit, and who sets it.

use std::ffi::{CStr, c_int, c_void};

use pg_sys::SyncCommitLevel::{
    SYNCHRONOUS_COMMIT_LOCAL_FLUSH, SYNCHRONOUS_COMMIT_OFF, SYNCHRONOUS_COMMIT_REMOTE_FLUSH,
};
use pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
use pgrx::pg_sys;

use super::settings;
use crate::weak_commits;

const NAME: &CStr = c"synchronous_commit";

static mut PREVIOUS_CHECK: pg_sys::GucEnumCheckHook = None;

/// Puts our check before PostgreSQL's. Once, from `_PG_init`.
pub fn init() {
    let found = settings::find(NAME, pg_sys::config_type::PGC_ENUM);
    // SAFETY: the record is static data of the server; nothing else runs while libraries are loaded.
    unsafe {
        let record = found.expect("PostgreSQL has synchronous_commit").cast::<pg_sys::config_enum>();
        PREVIOUS_CHECK = (*record).check_hook;
        (*record).check_hook = Some(check);
    }
}

/// Does a commit of this session return before its standbys have it on disk, though the cluster waits for them?
#[inline]
pub fn is_weak() -> bool {
    // SAFETY: a setting's variable of this process.
    is_weak_level(unsafe { pg_sys::synchronous_commit })
}

#[inline]
fn is_weak_level(level: c_int) -> bool {
    level < SYNCHRONOUS_COMMIT_REMOTE_FLUSH as c_int && commits_wait()
}

/// Does the cluster's rule name standbys?
fn commits_wait() -> bool {
    // SAFETY: a setting's variable of this process: null or a string.
    unsafe { !pg_sys::SyncRepStandbyNames.is_null() && *pg_sys::SyncRepStandbyNames != 0 }
}

/// The present level as users write it.
pub fn name() -> &'static str {
    // SAFETY: a setting's variable of this process.
    match unsafe { pg_sys::synchronous_commit } as u32 {
        SYNCHRONOUS_COMMIT_OFF => "off",
        SYNCHRONOUS_COMMIT_LOCAL_FLUSH => "local",
        SYNCHRONOUS_COMMIT_REMOTE_FLUSH => "on",
        pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_REMOTE_APPLY => "remote_apply",
        _ => "remote_write",
    }
}

/// Called for every new value. Only what a session sets for itself is refused here: when values of a role, a database
/// or the start of a connection arrive, it is not known yet what the role may do. Without a guard of pgrx: nothing
/// here can raise an error.
unsafe extern "C-unwind" fn check(
    value: *mut c_int,
    extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL hands over a valid pointer to the new value; the texts are static and only read; the others
    // are globals of this process. PREVIOUS_CHECK was written once, in `init`.
    unsafe {
        // A parallel worker takes over what its leader has, in any order.
        let own = source == pg_sys::GucSource::PGC_S_SESSION && !pg_sys::InitializingParallelWorker;
        if own && is_weak_level(*value) && !weak_commits::allowed() {
            pg_sys::GUC_check_errcode(ERRCODE_INSUFFICIENT_PRIVILEGE as i32);
            pg_sys::GUC_check_errmsg_string =
                c"synchronous_commit below \"on\" is not allowed in this cluster".as_ptr().cast_mut();
            pg_sys::GUC_check_errdetail_string =
                c"A failover could take back what was committed with it.".as_ptr().cast_mut();
            pg_sys::GUC_check_errhint_string = weak_commits::ALLOW_HINT.as_ptr().cast_mut();
            return false;
        }
        PREVIOUS_CHECK.is_none_or(|next| next(value, extra, source))
    }
}
