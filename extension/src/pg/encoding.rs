//! Texts in the encoding of the database, which is UTF-8 for us.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;

/// Is this database's encoding another one, which can be converted? `SQL_ASCII` stands for none.
#[inline]
pub fn differs() -> bool {
    // SAFETY: reads a global of this process.
    let encoding = unsafe { GetDatabaseEncoding() };
    encoding != pg_sys::pg_enc::PG_UTF8 as c_int && encoding != pg_sys::pg_enc::PG_SQL_ASCII as c_int
}

unsafe extern "C-unwind" {
    /// mb/pg_wchar.h; it raises nothing, so the guard of pgrx's binding is left out.
    fn GetDatabaseEncoding() -> c_int;
}

/// A text that is to be UTF-8 already, whatever it is made of: what is not, and zeroes, are replaced.
pub fn valid_utf8(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace('\0', "\u{FFFD}")
}

/// A name or text of the server in UTF-8. In a transaction only. In a `SQL_ASCII` database, bytes that are no UTF-8 are
/// replaced.
pub fn to_utf8(text: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(if differs() && !text.is_ascii() { converted(text) } else { text })
}

/// Converts a text; not in `SQL_ASCII` databases. Valid as long as the present memory context and the text.
#[cold]
pub fn converted(text: &[u8]) -> &[u8] {
    // SAFETY: PostgreSQL gives back the text itself or a new one, ended by a zero, in the present memory context.
    unsafe {
        let length = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
        let start = text.as_ptr().cast::<c_char>();
        let result = pg_sys::pg_server_to_any(start, length, pg_sys::pg_enc::PG_UTF8 as c_int);
        if std::ptr::eq(result, start) { text } else { CStr::from_ptr(result).to_bytes() }
    }
}

/// A text in the encoding of the database. In a transaction only. Raises 22P05 if that has no such characters.
pub fn in_server(text: &str) -> Vec<u8> {
    if !differs() || text.is_ascii() {
        return text.as_bytes().to_vec();
    }
    // SAFETY: as in `converted`.
    unsafe {
        let length = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
        let start = text.as_ptr().cast::<c_char>();
        let result = pg_sys::pg_any_to_server(start, length, pg_sys::pg_enc::PG_UTF8 as c_int);
        if std::ptr::eq(result, start) {
            return text.as_bytes().to_vec();
        }
        CStr::from_ptr(result).to_bytes().to_vec()
    }
}
