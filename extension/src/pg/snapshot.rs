//! The snapshot by which a batch is cut, and WAL positions that go with it.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::table::c_string;

unsafe extern "C-unwind" {
    /// replication/walsender.h; missing from pgrx's bindings.
    static max_wal_senders: std::ffi::c_int;
}

/// Makes the transaction's snapshot the active one and returns it as the text of a `pg_snapshot`. Ended by [`pop`].
pub fn push() -> String {
    // SAFETY: in a transaction that has no active snapshot yet; the function looks at the active one and takes no
    // arguments; its result and the text are in the present memory context.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let snapshot = pgrx::direct_function_call_as_datum(pg_sys::pg_current_snapshot, &[]);
        let text = pg_sys::OidOutputFunctionCall(
            pg_sys::Oid::from(pg_sys::F_PG_SNAPSHOT_OUT),
            snapshot.unwrap_or(pg_sys::Datum::null()),
        );
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// Ends what [`push`] began.
pub fn pop() {
    // SAFETY: pairs with `push`.
    unsafe { pg_sys::PopActiveSnapshot() }
}

/// Makes this transaction, which has no snapshot yet, see what another session's exported snapshot sees. Raises if that
/// session's transaction is over.
pub fn import(name: &str) {
    let name = c_string(name);
    // SAFETY: at the beginning of a transaction; the name is a valid string and outlives the call.
    unsafe {
        pg_sys::XactIsoLevel = pg_sys::XACT_REPEATABLE_READ as i32;
        pg_sys::ImportSnapshot(name.as_ptr());
    }
}

/// Lets other sessions take this transaction's snapshot, until it ends. Raises in a subtransaction.
pub fn export() -> String {
    // SAFETY: in a transaction with an active snapshot; the name is a string of its own.
    unsafe {
        let name = pg_sys::ExportSnapshot(pg_sys::GetActiveSnapshot());
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Does this transaction keep one snapshot for all its statements?
pub fn keeps_one() -> bool {
    // SAFETY: a global of this process.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// How far WAL has been written by all sessions. Nothing was committed since it had this value.
pub fn insert_lsn() -> u64 {
    // SAFETY: reads shared state of a primary.
    unsafe { pg_sys::GetXLogInsertRecPtr() }
}

/// Do standbys stream from this server?
pub fn has_standbys() -> bool {
    // SAFETY: the array lies in shared memory and has as many entries as the setting says; only the pid is read.
    unsafe {
        let control = pg_sys::WalSndCtl;
        if control.is_null() {
            return false;
        }
        let first = (&raw const (*control).walsnds).cast::<pg_sys::WalSnd>();
        (0..max_wal_senders.unsigned_abs() as usize).any(|index| (*first.add(index)).pid != 0)
    }
}
