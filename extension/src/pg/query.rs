//! Look-ups in the extension's own tables from inside a trigger or a commit, whatever session it is.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys;

use super::encoding;

/// The values of a row as text.
pub type Values = Vec<Option<String>>;

/// The first row that a query of one number gives, by the extension's rights and in the state of this moment: the
/// transaction's own snapshot may be older than the trigger that asks.
///
/// The query names everything with its schema and has no operator, since the session's `search_path` holds for it.
pub fn newest(query: &'static CStr, argument: u32) -> Option<Values> {
    as_owner(|| {
        // SAFETY: the snapshot is popped again below; after an error the abort does it.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        let found = first_row(query, argument, true);
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() };
        found
    })
}

/// Is there an extension of this name in the database?
pub fn has_extension(name: &'static CStr) -> bool {
    // SAFETY: reads the catalogue.
    unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) != pg_sys::InvalidOid }
}

/// As [`newest`], for a query that writes.
pub fn write(query: &'static CStr, argument: u32) -> Option<Values> {
    as_owner(|| {
        // SAFETY: as in `newest`; the snapshot is needed where no statement runs, and harmless elsewhere.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let found = first_row(query, argument, false);
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() };
        found
    })
}

/// Runs with the rights of the superuser that every server has. After an error the abort takes them back.
fn as_owner<T>(run: impl FnOnce() -> T) -> T {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: the previous user is put back below, or by the abort.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(
            pg_sys::BOOTSTRAP_SUPERUSERID.into(),
            context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as c_int | pg_sys::SECURITY_NOFORCE_RLS as c_int,
        );
    }
    let result = run();
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result
}

fn first_row(query: &'static CStr, argument: u32, read_only: bool) -> Option<Values> {
    // SAFETY: connected for the time of the query; texts are copied before its memory goes with the connection.
    unsafe {
        pg_sys::SPI_connect();
        let (mut kind, mut value) = (pg_sys::OIDOID, pg_sys::Datum::from(argument));
        let done = pg_sys::SPI_execute_with_args(
            query.as_ptr(),
            1,
            &mut kind,
            &mut value,
            std::ptr::null(),
            read_only,
            1,
        );
        assert!(done == pg_sys::SPI_OK_SELECT as c_int, "a query of pgquorum's own tables gave {done}");
        let table = pg_sys::SPI_tuptable;
        let found = (pg_sys::SPI_processed > 0).then(|| {
            let row = *(*table).vals;
            let columns = 1..=(*(*table).tupdesc).natts;
            columns
                .map(|column| {
                    let text = pg_sys::SPI_getvalue(row, (*table).tupdesc, column);
                    (!text.is_null()).then(|| encoding::to_utf8(CStr::from_ptr(text).to_bytes()).into_owned())
                })
                .collect()
        });
        pg_sys::SPI_finish();
        found
    }
}
