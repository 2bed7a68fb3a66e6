//! The utility statement that runs now: its text, and whether it is one of ours.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::encoding;
use super::single::Single;

/// A piece of a query string that lives as long as its statement; null: none.
#[derive(Clone, Copy)]
pub struct Statement {
    start: *const c_char,
    length: usize,
    /// It is one of ours.
    own: bool,
}

const NONE: Statement = Statement { start: std::ptr::null(), length: 0, own: false };

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static CURRENT: Single<Cell<Statement>> = Single::cell(NONE);
/// The statement that begins next is ours.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static NEXT_IS_OWN: Single<Cell<bool>> = Single::cell(false);

/// A statement begins; what was running before is to be given to [`leave`].
///
/// # Safety
///
/// The arguments are those of the hook for utility statements.
pub unsafe fn enter(statement: *const pg_sys::PlannedStmt, query: *const c_char) -> Statement {
    let previous = CURRENT.get();
    let own = NEXT_IS_OWN.take();
    // SAFETY: see above: the place is one in the query string; a length of 0 means up to its end.
    unsafe {
        if !query.is_null() {
            let all = CStr::from_ptr(query).to_bytes().len();
            let from = usize::try_from((*statement).stmt_location).unwrap_or(0).min(all);
            let length = match usize::try_from((*statement).stmt_len) {
                Ok(length) if length > 0 => length.min(all - from),
                _ => all - from,
            };
            CURRENT.set(Statement { start: query.add(from), length, own });
        }
    }
    previous
}

/// It has ended without an error.
pub fn leave(previous: Statement) {
    CURRENT.set(previous);
}

/// An error has ended statements, of which the texts may be gone.
pub fn forget() {
    CURRENT.set(NONE);
    NEXT_IS_OWN.set(false);
    super::copy_owner::forget();
}

/// The utility statement that begins next is ours, and our event triggers are to let it pass. What others do while it
/// runs, in event triggers of theirs, is not ours.
pub fn next_is_own() {
    NEXT_IS_OWN.set(true);
}

/// Was something said of the utility statement that begins next, here or in `copy_owner`?
#[inline]
pub fn is_announced() -> bool {
    NEXT_IS_OWN.get() || super::copy_owner::is_announced()
}

/// Is the statement that runs now one that [`next_is_own`] announced?
pub fn is_own() -> bool {
    CURRENT.get().own
}

/// The statement's text; empty: none runs.
pub fn text() -> String {
    let text = CURRENT.get();
    if text.start.is_null() {
        return String::new();
    }
    // SAFETY: set by `enter`, and its statement still runs: its end, good or bad, replaces the value.
    let bytes = unsafe { std::slice::from_raw_parts(text.start.cast::<u8>(), text.length) };
    encoding::to_utf8(bytes).trim().to_owned()
}
