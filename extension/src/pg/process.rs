//! This process, the others, and the server as a whole.

use pgrx::pg_sys;
use pgrx::pg_sys::BackendType;

unsafe extern "C-unwind" {
    // access/xlog.h, access/xact.h. They raise nothing, so the guards of pgrx's bindings are left out: some statements and
    // transactions are short.
    fn RecoveryInProgress() -> bool;
    fn GetTopTransactionIdIfAny() -> pg_sys::TransactionId;
    fn GetCurrentTransactionNestLevel() -> i32;
    fn GetCurrentStatementStartTimestamp() -> pg_sys::TimestampTz;
}

/// Is the server in recovery (a standby, or starting)?
#[inline]
pub fn in_recovery() -> bool {
    // SAFETY: reads shared state; allowed in every process attached to shared memory.
    unsafe { RecoveryInProgress() }
}

/// Has the current transaction written, i.e. does it have an xid?
#[inline]
pub fn has_transaction_id() -> bool {
    // SAFETY: reads state of this process; returns the invalid id outside a transaction.
    unsafe { GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// The nesting level of the present savepoint; the transaction itself is 1.
pub fn nesting_level() -> i32 {
    // SAFETY: reads state of this process.
    unsafe { GetCurrentTransactionNestLevel() }
}

/// PostgreSQL counts from 2000-01-01, Unix from 1970.
const UNIX_EPOCH_US: i64 = 946_684_800_000_000;

/// The time.
pub fn now() -> Option<pgrx::prelude::TimestampWithTimeZone> {
    // SAFETY: reads a clock.
    pgrx::prelude::TimestampWithTimeZone::try_from(unsafe { pg_sys::GetCurrentTimestamp() }).ok()
}

/// The time, in microseconds since 1970, as a number that is never negative.
pub fn now_us_unsigned() -> u64 {
    u64::try_from(now_us()).unwrap_or(0)
}

/// When the client's statement began, in microseconds since 1970. Costs no look at a clock.
pub fn statement_us() -> u64 {
    // SAFETY: reads state of this process.
    u64::try_from(unsafe { GetCurrentStatementStartTimestamp() } + UNIX_EPOCH_US).unwrap_or(0)
}

/// When the server was started, in microseconds since 1970.
pub fn server_start_us() -> u64 {
    // SAFETY: a global that the postmaster sets.
    u64::try_from(unsafe { pg_sys::PgStartTime } + UNIX_EPOCH_US).unwrap_or(0)
}

/// A time given in microseconds since 1970; `None`: 0.
pub fn time_of_us(us: u64) -> Option<pgrx::prelude::TimestampWithTimeZone> {
    let since = i64::try_from(us).ok().filter(|us| *us > 0)? - UNIX_EPOCH_US;
    pgrx::prelude::TimestampWithTimeZone::try_from(since).ok()
}

/// A time given in microseconds since 1970, as PostgreSQL counts it.
pub fn pg_time_of_us(us: i64) -> i64 {
    us.saturating_sub(UNIX_EPOCH_US)
}

/// Microseconds since 1970.
pub fn us_of_time(time: pgrx::prelude::TimestampWithTimeZone) -> i64 {
    let since: i64 = time.into();
    since.saturating_add(UNIX_EPOCH_US)
}

/// How far a standby has replayed the WAL.
pub fn replayed_lsn() -> u64 {
    // SAFETY: reads shared state; the out-parameter is optional.
    unsafe { pg_sys::GetXLogReplayRecPtr(std::ptr::null_mut()) }
}

/// The time, in microseconds since 1970.
pub fn now_us() -> i64 {
    // SAFETY: reads a clock.
    unsafe { pg_sys::GetCurrentTimestamp() + UNIX_EPOCH_US }
}

/// A time with time zone, in microseconds since 1970; `None`: it is infinite or too far away. Raises 22007 if the text
/// is no time.
pub fn parse_time_us(text: &std::ffi::CStr) -> Option<i64> {
    // SAFETY: the function of the type's input, called as SQL would.
    let time = unsafe {
        pg_sys::OidInputFunctionCall(
            pg_sys::F_TIMESTAMPTZ_IN.into(),
            text.as_ptr().cast_mut(),
            pg_sys::InvalidOid,
            -1,
        )
    };
    let time = time.value() as i64;
    // The two ends stand for minus and plus infinity.
    let finite = time != i64::MIN && time != i64::MAX;
    time.checked_add(UNIX_EPOCH_US).filter(|_| finite)
}

/// The origin name of a database that was given none, as `quorum.origin_name` has it.
pub fn default_origin() -> String {
    // SAFETY: reads shared state and a global of this process.
    unsafe { format!("{}.{}", pg_sys::GetSystemIdentifier(), pg_sys::MyDatabaseId.to_u32()) }
}

/// Is this a kind of process that the fence is for? Not autovacuum, which changes no row that anybody would
/// miss; not single-user mode and pg_upgrade, where there is no cluster.
pub fn is_fenced_kind() -> bool {
    // SAFETY: plain globals of this process.
    unsafe {
        let kind = pg_sys::MyBackendType;
        pg_sys::IsUnderPostmaster
            && !pg_sys::IsBinaryUpgrade
            && kind != BackendType::B_AUTOVAC_WORKER
            && kind != BackendType::B_AUTOVAC_LAUNCHER
    }
}

/// Is this a background worker, for example one that applies a subscription?
pub fn is_background_worker() -> bool {
    // SAFETY: a global of this process.
    unsafe { pg_sys::MyBackendType == BackendType::B_BG_WORKER }
}

/// The session's database and the user it logged in as, in one number; see [`names_of`].
pub fn database_and_role() -> u64 {
    // SAFETY: globals of this process.
    let (database, role) = unsafe { (pg_sys::MyDatabaseId, pg_sys::GetSessionUserId()) };
    u64::from(database.to_u32()) << 32 | u64::from(role.to_u32())
}

/// What [`database_and_role`] stands for; a name is missing if it was dropped since. In a transaction only.
pub fn names_of(pair: u64) -> (Option<String>, Option<String>) {
    let oid = |bits: u64| pg_sys::Oid::from(u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0));
    // SAFETY: both return null or a string in the present memory context, which lives longer than the copy takes.
    let text = |name: *mut std::ffi::c_char| unsafe {
        (!name.is_null()).then(|| std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    // SAFETY: as above; catalogues are read, which the caller's transaction allows.
    unsafe {
        (text(pg_sys::get_database_name(oid(pair >> 32))), text(pg_sys::GetUserNameFromId(oid(pair), true)))
    }
}

/// Waits up to `milliseconds`, then raises if the statement was cancelled or the session ended.
pub fn wait(milliseconds: i64) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process owns its latch; whoever else waits on it re-checks its condition after a reset.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            i32::try_from(events).unwrap_or(0),
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}

/// Reads the configuration files again, after SIGHUP in a background worker.
pub fn reload_settings() {
    // SAFETY: at the top of the worker's loop, where settings may change.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) }
}

/// Sends SIGTERM to every client session and returns how many there were. Sessions that bypass the fence are not
/// spared: they could write. WAL senders stay: a standby may fetch what is left.
pub fn end_client_sessions() -> usize {
    signal_client_sessions(|_| true)
}

/// SIGTERM to the client sessions that are chosen; how many there were.
pub fn signal_client_sessions(chosen: impl Fn(libc::pid_t) -> bool) -> usize {
    let pids = client_session_pids();
    // SAFETY: signals only; a process that has ended meanwhile is not found. The group is signalled, as
    // pg_terminate_backend does, so that programs started by COPY end too.
    pids.iter().filter(|pid| chosen(**pid) && unsafe { libc::kill(-**pid, libc::SIGTERM) } == 0).count()
}

fn client_session_pids() -> Vec<libc::pid_t> {
    // SAFETY: the snapshot is this process's own copy of the status array; entries are valid until it is cleared.
    unsafe {
        pg_sys::pgstat_clear_backend_activity_snapshot();
        let count = pg_sys::pgstat_fetch_stat_numbackends();
        let pids = (1..=count)
            .map(|index| local_entry(index))
            .filter(|entry| !entry.is_null())
            .map(|entry| &(*entry).backendStatus)
            .filter(|status| status.st_backendType == BackendType::B_BACKEND && status.st_procpid > 0)
            .map(|status| status.st_procpid)
            .collect();
        pg_sys::pgstat_clear_backend_activity_snapshot();
        pids
    }
}

/// # Safety
///
/// `index` is between 1 and the number of entries of the present snapshot.
unsafe fn local_entry(index: i32) -> *mut pg_sys::LocalPgBackendStatus {
    // SAFETY: see above.
    #[cfg(any(feature = "pg14", feature = "pg15"))]
    return unsafe { pg_sys::pgstat_fetch_stat_local_beentry(index) };
    // SAFETY: see above.
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    return unsafe { pg_sys::pgstat_get_local_beentry_by_index(index) };
}

/// Immediate shutdown: SIGQUIT to the postmaster, which takes every process down without waiting for anything.
pub fn stop_server_immediately() {
    // SAFETY: a signal to our parent, whose pid cannot be reused while we are its child.
    unsafe {
        libc::kill(pg_sys::PostmasterPid, libc::SIGQUIT);
    }
}

/// Ends this process without cleaning up anything in shared memory. Only when the postmaster is gone.
pub fn exit_at_once() -> ! {
    // SAFETY: ends the process; handlers do not run, which is the purpose.
    unsafe { libc::_exit(1) }
}
