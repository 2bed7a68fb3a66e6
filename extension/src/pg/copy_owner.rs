//! COPY with the rights of a table's owner. The rows come over the session's own connection, so no function can wrap it: it is
//! announced, and the hook of utility statements changes the rights for its time.

use std::cell::Cell;

use pgrx::pg_sys;

use super::owner_rights;
use super::single::Single;

/// The owner with whose rights the next statement is run if it is a COPY FROM; 0: nobody.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static NEXT: Single<Cell<u32>> = Single::cell(0);

/// The rights that were in force; `None`: they were not changed.
pub type Outer = Option<owner_rights::Outer>;

/// The utility statement that begins next, if it is a COPY FROM, has the rights of this owner and no more: it cannot change
/// who it is or what the session has set for longer than that, nor leave anything to be done at the commit.
pub fn announce(owner: u32) {
    NEXT.set(owner);
}

/// Is a COPY announced that has not begun?
#[inline]
pub fn is_announced() -> bool {
    NEXT.get() != 0
}

/// An error has come before the COPY. Must not raise anything.
pub fn forget() {
    NEXT.set(0);
}

/// A utility statement begins. What is returned is to be given to [`end`] when it has ended without an error; after an error the
/// end of the transaction or savepoint puts the rights back.
///
/// # Safety
///
/// The statement is that of the hook for utility statements.
pub unsafe fn begin(statement: *const pg_sys::PlannedStmt) -> Outer {
    let owner = NEXT.take();
    if owner == 0 {
        return None;
    }
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let node = (*statement).utilityStmt;
        if node.is_null()
            || (*node).type_ != pg_sys::NodeTag::T_CopyStmt
            || !(*node.cast::<pg_sys::CopyStmt>()).is_from
        {
            return None;
        }
        Some(owner_rights::enter(owner))
    }
}

/// It has ended.
pub fn end(outer: Outer) {
    if let Some(outer) = outer {
        owner_rights::leave(outer);
    }
}
