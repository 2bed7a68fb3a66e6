//! Which files of this server a `pg_rewind` is shown.
//!
//! Up to PostgreSQL 18 at least, `pg_rewind` copies all WAL of its source, also what both servers have and what was set aside for
//! reuse: up to `max_wal_size` and what is kept for standbys. A node of the cluster that rejoins says in its
//! `application_name` where the histories part, and keeps what it has before that. So it is not shown that part of the
//! WAL, and copies what differs. Anybody else is shown everything.

use std::ffi::{CStr, CString, c_char};

use pgrx::prelude::*;

/// How the sidecar's `pg_rewind` is called; `TIMELINE@LSN` follows, in hexadecimal digits as elsewhere.
const NAME: &str = "pgquorum rewind ";
/// What `pg_rewind` asks for the list of files with, in all versions.
const LISTING: &str = "WITH RECURSIVE files (path, filename, size, isdir) AS (";
/// Its last column, without which it is another question.
const LAST_COLUMN: &str = "AS link_target";

/// The query for the list without what is not to be shown; the same query if it is another one.
///
/// # Safety
///
/// The arguments are the planner's.
#[pg_guard]
pub unsafe extern "C-unwind" fn without_common_wal(
    query: *mut pg_sys::Query,
    text: *const c_char,
) -> *mut pg_sys::Query {
    // SAFETY: the text is a string or null; the trees are PostgreSQL's own, in the memory of the statement.
    unsafe {
        let Some(sql) = replacement(text) else { return query };
        let parsed = pg_sys::raw_parser(sql.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT);
        let statement = first(parsed).cast::<pg_sys::RawStmt>();
        let none = std::ptr::null_mut();
        #[cfg(feature = "pg14")]
        let analysed = pg_sys::parse_analyze(statement, sql.as_ptr(), none, 0, std::ptr::null_mut());
        #[cfg(not(feature = "pg14"))]
        let analysed =
            pg_sys::parse_analyze_fixedparams(statement, sql.as_ptr(), none, 0, std::ptr::null_mut());
        let shown = first(pg_sys::QueryRewrite(analysed)).cast::<pg_sys::Query>();
        (*shown).stmt_location = (*query).stmt_location;
        (*shown).stmt_len = (*query).stmt_len;
        shown
    }
}

/// # Safety
///
/// A list of one node.
unsafe fn first(list: *mut pg_sys::List) -> *mut std::ffi::c_void {
    // SAFETY: see above.
    unsafe { (*(*list).elements).ptr_value }
}

/// # Safety
///
/// The text is a string or null.
unsafe fn replacement(text: *const c_char) -> Option<CString> {
    // SAFETY: the setting is null or a string. It is looked at first: hardly anybody is called like that.
    let name = unsafe {
        if text.is_null() || pg_sys::application_name.is_null() {
            return None;
        }
        CStr::from_ptr(pg_sys::application_name).to_str().ok()?
    };
    let (timeline, parted) = name.strip_prefix(NAME)?.split_once('@')?;
    let (timeline, parted) = (u32::from_str_radix(timeline, 16).ok()?, position(parted)?);
    // SAFETY: see above.
    let text = unsafe { CStr::from_ptr(text) }.to_str().ok()?;
    // SAFETY: a shared position and a setting.
    let (end, segment) = unsafe {
        if pg_sys::RecoveryInProgress() {
            return None;
        }
        (pg_sys::GetXLogInsertRecPtr(), u64::try_from(pg_sys::wal_segment_size).ok()?)
    };
    CString::new(shown(text, (timeline, parted), end, segment)?).ok()
}

/// The same list but for segments of WAL before the one in which `parted` lies, or on a timeline before, or after the one in
/// which `end` lies. `None`: this is not the question for the list.
fn shown(text: &str, parted: (u32, u64), end: u64, segment: u64) -> Option<String> {
    let listing = text.trim().trim_end_matches(';');
    if !listing.starts_with(LISTING) || !listing.contains(LAST_COLUMN) {
        return None;
    }
    let number = |lsn: u64| {
        let (number, per_file) = (lsn / segment, 0x1_0000_0000 / segment);
        format!("{:08X}{:08X}", number / per_file, number % per_file)
    };
    // A segment's name: pg_wal/, eight digits of the timeline, sixteen of its place.
    Some(format!(
        "SELECT path, size, isdir, link_target FROM ({listing}) AS listed (path, size, isdir, link_target) \
         WHERE path !~ '^pg_wal/[0-9A-F]{{24}}$' \
         OR (substr(path, 16) COLLATE \"C\" BETWEEN '{}' AND '{}' AND substr(path, 8, 8) COLLATE \"C\" >= '{:08X}')",
        number(parted.1),
        number(end),
        parted.0
    ))
}

fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |digits: &str| u32::from_str_radix(digits, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn only_the_question_for_the_list_is_replaced() {
        let listing = format!("{LISTING}\n SELECT 1)\nSELECT a, b, c, d {LAST_COLUMN} FROM files\n");
        let sql = shown(&listing, (18, 0x1_0500_0000), 0x1_0AFF_FFFF, 16 << 20).expect("it is the list");
        assert!(sql.contains("BETWEEN '0000000100000005' AND '000000010000000A'"), "{sql}");
        assert!(sql.contains(">= '00000012'") && sql.contains("FROM files) AS"), "{sql}");
        assert_eq!(shown("SELECT 1", (1, 1), 2, 16 << 20), None);
        assert_eq!(shown(LISTING, (1, 1), 2, 16 << 20), None);
    }

    #[test]
    fn positions_are_read() {
        assert_eq!(position("1/A0"), Some(0x1_0000_00A0));
        for text in ["", "1", "1/", "/1", "1/100000000", "x/1", "1/2/3"] {
            assert_eq!(position(text), None, "{text}");
        }
    }
}
