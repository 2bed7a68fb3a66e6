//! Errors with an SQLSTATE of our own.
//!
//! pgrx knows PostgreSQL's codes only, and turns any other one into "internal error" when an error passes one of its
//! guards. So these are raised past them, as the last thing that a function does.

use std::ffi::CString;

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    /// utils/elog.h; pgrx's binding is guarded.
    fn ThrowErrorData(edata: *mut pg_sys::ErrorData);
}

/// Raises an ERROR with a code of five characters (digits and capitals). The frames above it within this extension are
/// jumped over: what is alive in them is not dropped, so it may be memory, and nothing that must be given back.
pub fn error(code: [u8; 5], message: String, detail: String, hint: String) -> ! {
    let mut report = pg_sys::ErrorData {
        elevel: pg_sys::elog::PgLogLevel::ERROR as i32,
        output_to_server: true,
        output_to_client: true,
        sqlerrcode: sqlstate(code),
        message: kept(message),
        detail: kept(detail),
        hint: kept(hint),
        ..Default::default()
    };
    // SAFETY: the report holds null or strings in the present memory context, which PostgreSQL copies; it then
    // jumps to its own handler. This frame holds nothing with a destructor any more.
    unsafe { ThrowErrorData(&mut report) };
    unreachable!("an ERROR report does not return")
}

/// PostgreSQL's encoding of the five characters, six bits each.
fn sqlstate(code: [u8; 5]) -> i32 {
    code.iter().rev().fold(0, |sum, byte| sum << 6 | i32::from(byte.wrapping_sub(b'0') & 0x3f))
}

/// A copy in PostgreSQL's memory; null for an empty text.
fn kept(text: String) -> *mut std::ffi::c_char {
    if text.is_empty() {
        return std::ptr::null_mut();
    }
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // SAFETY: copies a valid string.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

#[cfg(test)]
mod unit {
    #[test]
    fn codes_are_encoded_as_postgresql_does() {
        let known = pgrx::PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION as i32;
        assert_eq!(super::sqlstate(*b"25006"), known);
        assert_eq!(super::sqlstate(*b"42P01"), pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE as i32);
    }
}
