//! The places where PostgreSQL tells of objects: of functions that are executed, and of whatever is made, changed or dropped.
//!
//! As in `hooks`, nothing of pgrx guards what is passed on, and the frames here hold nothing with a destructor.

use std::ffi::{c_int, c_void};

use pgrx::pg_sys::ObjectAccessType;
use pgrx::prelude::*;

use super::changed_objects::{self, Change};
use super::guard::guarded;
use super::statement_hooks::is_on;
use super::{names, nesting};
use crate::statements::{proof, watch, withdraw};

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;

/// Installs the hooks; once, from `_PG_init`.
pub fn init() {
    // SAFETY: `_PG_init` runs once, in the postmaster, before any other code could read the hooks.
    unsafe {
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(at_object);
        pg_sys::RegisterResourceReleaseCallback(Some(at_release), std::ptr::null_mut());
    }
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_object(
    access: ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: c_int,
    argument: *mut c_void,
) {
    // SAFETY: PREVIOUS_ACCESS was written once, in `init`; the arguments are passed on as they came.
    unsafe {
        if let Some(next) = PREVIOUS_ACCESS {
            next(access, class, object, part, argument);
        }
        // By far most are these. A `match` would be a jump through a table, and reading that costs more than all the rest.
        if access == ObjectAccessType::OAT_FUNCTION_EXECUTE {
            // Most are PostgreSQL's own and harmless; that is known soonest.
            if !proof::is_plainly_harmless(object.to_u32())
                && is_on()
                && proof::forbidden_at_run(object.to_u32())
                && !watch::only_gets_ready(nesting::depth())
            {
                forbidden(object);
            }
        } else if access != ObjectAccessType::OAT_NAMESPACE_SEARCH {
            at_change(access, class, object, argument);
        }
    }
}

/// Something is made, changed, dropped or emptied.
///
/// # Safety
///
/// The arguments are those of the hook.
#[inline(never)]
unsafe fn at_change(
    access: ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    argument: *mut c_void,
) {
    use ObjectAccessType::{OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE};
    // SAFETY: a global of this process; what PostgreSQL says with an alteration is of that type.
    unsafe {
        if !matches!(access, OAT_POST_CREATE | OAT_POST_ALTER | OAT_DROP)
            || !changed_objects::concerns(class.to_u32())
            || pg_sys::IsBinaryUpgrade
        {
            return;
        }
        let other = if access == OAT_POST_ALTER && !argument.is_null() {
            (*argument.cast::<pg_sys::ObjectAccessPostAlter>()).auxiliary_id.to_u32()
        } else {
            0
        };
        changed(Change { class: class.to_u32(), object: object.to_u32(), other }, access == OAT_DROP);
    }
}

#[cold]
fn forbidden(function: pg_sys::Oid) {
    guarded((), || {
        watch::saw_forbidden_function(|| {
            let why = proof::why_forbidden(function.to_u32()).unwrap_or("is not for standbys");
            format!("function {} was executed in it, which {why}", names::function(function.to_u32()))
        });
    });
}

#[pg_guard]
extern "C-unwind" fn changed(change: Change, is_drop: bool) {
    if !is_drop {
        withdraw::note(change);
    } else if let Some(change) = changed_objects::before_drop(change) {
        withdraw::note(change);
    }
}

/// A table is about to be altered: PostgreSQL does not tell of all that can be altered (row security, for one).
///
/// # Safety
///
/// The statement is a valid one.
#[pg_guard]
pub unsafe extern "C-unwind" fn alters(statement: *const pg_sys::AlterTableStmt) {
    // SAFETY: see above; the name is looked up as the statement itself does. No lock: what is renamed meanwhile is noted by
    // whoever does that.
    let relation = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            (*statement).relation,
            pg_sys::NoLock as c_int,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        )
    };
    if relation != pg_sys::InvalidOid && unsafe { !pg_sys::IsBinaryUpgrade } {
        withdraw::note(Change::of_relation(relation.to_u32()));
    }
}

/// Resources are given back; for the transaction itself locks come after the notices of what it has changed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_release(
    phase: pg_sys::ResourceReleasePhase::Type,
    _is_commit: bool,
    is_top: bool,
    _argument: *mut c_void,
) {
    if is_top && phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_LOCKS {
        withdraw::after_notices();
    }
}
