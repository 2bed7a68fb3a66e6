//! The text of the utility statement that runs now.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::pg_sys;

use super::encoding;

/// A piece of a query string that lives as long as its statement; null: none.
#[derive(Clone, Copy)]
pub struct Text {
    start: *const c_char,
    length: usize,
}

const NONE: Text = Text { start: std::ptr::null(), length: 0 };

thread_local! {
    static CURRENT: Cell<Text> = const { Cell::new(NONE) };
}

/// A statement begins; what was running before is to be given to [`leave`].
///
/// # Safety
///
/// The arguments are those of the hook for utility statements.
pub unsafe fn enter(statement: *const pg_sys::PlannedStmt, query: *const c_char) -> Text {
    let previous = CURRENT.get();
    // SAFETY: see above: the place is one in the query string; a length of 0 means up to its end.
    unsafe {
        if !query.is_null() {
            let all = CStr::from_ptr(query).to_bytes().len();
            let from = usize::try_from((*statement).stmt_location).unwrap_or(0).min(all);
            let length = match usize::try_from((*statement).stmt_len) {
                Ok(length) if length > 0 => length.min(all - from),
                _ => all - from,
            };
            CURRENT.set(Text { start: query.add(from), length });
        }
    }
    previous
}

/// It has ended without an error.
pub fn leave(previous: Text) {
    CURRENT.set(previous);
}

/// An error has ended statements, of which the texts may be gone.
pub fn forget() {
    CURRENT.set(NONE);
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
