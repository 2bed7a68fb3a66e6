//! The rights of a table's owner, for what is done with the table.

use std::ffi::c_int;

use pgrx::pg_sys;

/// What was in force before.
#[derive(Clone, Copy)]
pub struct Outer {
    user: pg_sys::Oid,
    context: c_int,
    /// The level of settings that was opened.
    level: c_int,
}

/// From here on the rights are the owner's and no more: what the table calls can neither change who it is nor leave anything to
/// be done at the commit. What it sets holds until [`leave`] only: a `search_path` of the owner's would else be in force where
/// the session goes on with more rights. After an error the end of the savepoint or transaction puts everything back.
pub fn enter(owner: u32) -> Outer {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: in a transaction. What was in force is put back in `leave`, or by the abort.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        pg_sys::SetUserIdAndSecContext(owner.into(), context | restricted as c_int);
        Outer { user, context, level: pg_sys::NewGUCNestLevel() }
    }
}

/// Puts back what was in force, and all settings. Not after an error.
pub fn leave(outer: Outer) {
    // SAFETY: the level that was opened, with all that were opened above it; and who had opened it.
    unsafe {
        pg_sys::AtEOXact_GUC(false, outer.level);
        pg_sys::SetUserIdAndSecContext(outer.user, outer.context);
    }
}

/// The rights of a table's owner while it lives: what its triggers, defaults, constraints, types and indexes call runs with
/// no more.
pub(super) struct AsOwner(Outer);

impl AsOwner {
    pub(super) fn new(owner: u32) -> Self {
        Self(enter(owner))
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        // After an error the abort does it.
        if !std::thread::panicking() {
            leave(self.0);
        }
    }
}

/// Runs something with the rights of a table's owner.
pub fn as_owner<T>(owner: u32, run: impl FnOnce() -> T) -> T {
    let _owner = AsOwner::new(owner);
    run()
}
