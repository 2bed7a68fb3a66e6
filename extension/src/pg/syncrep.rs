//! The wait of a commit for its standbys (replication/syncrep.c), from inside.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

use super::process;
use super::single::Single;

/// What PostgreSQL says, before it is translated, when it is about to give up a wait.
const CANCELLED: &CStr = c"canceling wait for synchronous replication due to user request";
const TERMINATED: &CStr =
    c"canceling the wait for synchronous replication and terminating connection due to administrator command";

/// `log_min_messages` as it was before [`hear_warnings`].
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static QUIET: Single<Cell<Option<i32>>> = Single::cell(None);
/// Where output goes, as it was when the session was told to end in a wait that then succeeded.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static OUTPUT: Single<Cell<Option<pg_sys::CommandDest::Type>>> = Single::cell(None);

/// What ended one step of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Enough standbys have the transaction.
    Acknowledged,
    NotYet,
    /// The postmaster is gone: no acknowledgement will come.
    ServerDied,
}

/// Is this report PostgreSQL's word that a wait of this session is being given up?
///
/// # Safety
///
/// `report` is what PostgreSQL hands to `emit_log_hook`.
#[inline]
pub unsafe fn gives_up(report: *const pg_sys::ErrorData) -> bool {
    // SAFETY: see above; the process and its entry are read only, and the message's text is a literal or null.
    unsafe {
        if (*report).elevel != pg_sys::WARNING as i32 || !in_wait() || (*report).message_id.is_null() {
            return false;
        }
        let said = CStr::from_ptr((*report).message_id);
        said == CANCELLED || said == TERMINATED
    }
}

/// The last acknowledgement may come while the report is being made: PostgreSQL has looked for it just before.
fn in_wait() -> bool {
    state() != pg_sys::SYNC_REP_NOT_WAITING
}

/// Have enough standbys the transaction whose wait this is?
pub fn is_acknowledged() -> bool {
    state() == pg_sys::SYNC_REP_WAIT_COMPLETE
}

fn state() -> u32 {
    // SAFETY: this process's own entry, null before the process has one; walsenders change the field.
    unsafe {
        if pg_sys::MyProc.is_null() {
            return pg_sys::SYNC_REP_NOT_WAITING;
        }
        u32::try_from((&raw const (*pg_sys::MyProc).syncRepState).read_volatile()).unwrap_or(0)
    }
}

/// Waits until something happens, at most this long. Shows as the wait that it is in `pg_stat_activity`.
pub fn wait(milliseconds: i64) -> Waited {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_POSTMASTER_DEATH;
    // SAFETY: this process owns its latch. It is reset before the state is looked at, so no wake-up is missed.
    unsafe {
        pg_sys::ResetLatch(pg_sys::MyLatch);
        if is_acknowledged() {
            return Waited::Acknowledged;
        }
        let happened = pg_sys::WaitLatch(
            pg_sys::MyLatch,
            i32::try_from(events).unwrap_or(0),
            milliseconds,
            pg_sys::WaitEventIPC::WAIT_EVENT_SYNC_REP,
        );
        if happened.unsigned_abs() & pg_sys::WL_POSTMASTER_DEATH != 0 {
            return Waited::ServerDied;
        }
    }
    Waited::NotYet
}

/// Was this session told to end (SIGTERM), not only to give up the statement?
pub fn told_to_end() -> bool {
    // SAFETY: a flag of this process, set by a signal handler.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// The cancel requests that arrived were for the commit, which is over: none of them hits what comes next. If the
/// session was told to end, PostgreSQL closes its output now; the answer to this commit still goes out.
pub fn acknowledged() {
    // SAFETY: globals of this process.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        if told_to_end() {
            OUTPUT.set(Some(pg_sys::whereToSendOutput));
        }
    }
}

/// The client knows no more of this session, so it ends as soon as its commit is done.
pub fn end_session_after() {
    // SAFETY: flags that the handler of SIGTERM sets too.
    unsafe {
        pg_sys::ProcDiePending = 1;
        pg_sys::InterruptPending = 1;
    }
}

/// From here to [`after_transaction`] warnings are reported, whatever `log_min_messages` says: a wait that is given up
/// is known by its warning.
#[inline]
pub fn hear_warnings() {
    // SAFETY: a setting's variable, changed for this process while nobody looks at the setting itself.
    unsafe {
        let present = pg_sys::log_min_messages;
        // LOG stands above ERROR there, though its number is lower.
        if present > pg_sys::WARNING as i32 || present == pg_sys::LOG as i32 {
            QUIET.set(QUIET.get().or(Some(present)));
            pg_sys::log_min_messages = pg_sys::WARNING as i32;
        }
    }
}

/// At the end of a transaction: everything is as it was before its commit.
#[inline]
pub fn after_transaction() {
    if let Some(level) = QUIET.take() {
        // SAFETY: as above.
        unsafe { pg_sys::log_min_messages = level }
    }
    if let Some(output) = OUTPUT.take() {
        // SAFETY: the value that it had before; the connection is still open.
        unsafe { pg_sys::whereToSendOutput = output }
    }
}

/// SIGTERM to every client session whose commit waits for standbys; how many there were.
pub fn end_waiting_sessions() -> usize {
    process::signal_client_sessions(|pid| {
        // SAFETY: takes the lock of the process array; the entry is read only, and never unmapped.
        let entry = unsafe { pg_sys::BackendPidGetProc(pid) };
        // SAFETY: as above. If the wait ends just now the session ends after a commit that is safe.
        !entry.is_null() && unsafe { (*entry).syncRepState } == pg_sys::SYNC_REP_WAITING as i32
    })
}
