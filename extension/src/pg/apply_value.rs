//! Text as the source has written it into values of the types that columns have here.

use std::ffi::c_int;

use pgrx::PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
use pgrx::pg_sys;

use crate::error::Refusal;

/// Types whose values are made without calling their input function, because that is most of what a row costs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Short {
    Integer { lowest: i64, highest: i64 },
    Text,
    No,
}

/// How the values of a column are read.
pub struct Input {
    function: pg_sys::FmgrInfo,
    parameter: pg_sys::Oid,
    modifier: i32,
    short: Short,
}

impl Input {
    /// # Safety
    ///
    /// In a transaction; `memory` lives as long as the result is used.
    pub unsafe fn new(data_type: pg_sys::Oid, modifier: i32, memory: pg_sys::MemoryContext) -> Self {
        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        let mut info = pg_sys::FmgrInfo::default();
        // SAFETY: reads the catalogues; raises if the type has gone.
        unsafe {
            pg_sys::getTypeInputInfo(data_type, &mut function, &mut parameter);
            pg_sys::fmgr_info_cxt(function, &mut info, memory);
        }
        let short = match data_type {
            pg_sys::INT2OID => Short::Integer { lowest: i16::MIN.into(), highest: i16::MAX.into() },
            pg_sys::INT4OID => Short::Integer { lowest: i32::MIN.into(), highest: i32::MAX.into() },
            pg_sys::INT8OID => Short::Integer { lowest: i64::MIN, highest: i64::MAX },
            pg_sys::TEXTOID => Short::Text,
            pg_sys::VARCHAROID if modifier < 0 => Short::Text,
            _ => Short::No,
        };
        Self { function: info, parameter, modifier, short }
    }

    /// The value of a text in UTF-8, in the present memory context. Raises what the type's input function raises.
    ///
    /// # Safety
    ///
    /// The memory that [`Input::new`] was given is still there; the session has the log's formats.
    pub unsafe fn read(&mut self, text: &[u8], room: &mut Vec<u8>) -> pg_sys::Datum {
        if let Short::Integer { lowest, highest } = self.short
            && let Some(number) = integer(text)
            && (lowest..=highest).contains(&number)
        {
            return pg_sys::Datum::from(number);
        }
        // SAFETY: the text is as long as it says, or ends with a zero; what comes back is in the present memory context.
        unsafe {
            let text = in_server_encoding(text);
            if self.short == Short::Text {
                let length = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
                return pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), length));
            }
            room.clear();
            room.extend_from_slice(text);
            room.push(0);
            pg_sys::InputFunctionCall(
                &mut self.function,
                room.as_mut_ptr().cast(),
                self.parameter,
                self.modifier,
            )
        }
    }

    /// What the type says of a NULL: a domain may refuse it.
    ///
    /// # Safety
    ///
    /// As [`Input::read`].
    pub unsafe fn read_null(&mut self) {
        if !self.function.fn_strict {
            // SAFETY: an input function that takes NULLs gives one back for a null pointer, or raises.
            unsafe {
                pg_sys::InputFunctionCall(
                    &mut self.function,
                    std::ptr::null_mut(),
                    self.parameter,
                    self.modifier,
                );
            }
        }
    }
}

/// Digits of a number that surely fits 64 bits; `None`: let the input function see.
fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut number = 0_i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i64::from(digit - b'0');
    }
    Some(if negative { -number } else { number })
}

/// A text of the log in the encoding of the database. Raises 22021 if it has no place there.
///
/// # Safety
///
/// In a transaction. The result is valid as long as the text and the present memory context.
pub unsafe fn in_server_encoding(text: &[u8]) -> &[u8] {
    if text.contains(&0) {
        Refusal::new(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "a value holds a character with the code 0")
            .raise();
    }
    if text.is_ascii() {
        return text;
    }
    // SAFETY: PostgreSQL checks the bytes, and gives them back as they are or a copy that ends with a zero.
    unsafe {
        let length = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
        let start = text.as_ptr().cast();
        let result = pg_sys::pg_any_to_server(start, length, pg_sys::pg_enc::PG_UTF8 as c_int);
        if std::ptr::eq(result, start) { text } else { std::ffi::CStr::from_ptr(result).to_bytes() }
    }
}

#[cfg(test)]
mod unit {
    use super::integer;

    #[test]
    fn plain_numbers_are_read_and_all_else_is_left() {
        for (text, number) in [("0", 0), ("-7", -7), ("123456789012345678", 123_456_789_012_345_678)] {
            assert_eq!(integer(text.as_bytes()), Some(number));
        }
        for text in ["", "-", "+1", " 1", "1 ", "1e3", "0x1", "1234567890123456789", "--1"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }
}
