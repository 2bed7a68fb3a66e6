//! Background workers that work in transactions, and survive their errors.

use std::panic::{AssertUnwindSafe, UnwindSafe};

use pgrx::PgSqlErrorCode::{ERRCODE_DATA_CORRUPTED, ERRCODE_LOCK_NOT_AVAILABLE};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BackgroundWorkerStatus, DynamicBackgroundWorker};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

use super::table::require_extension;

unsafe extern "C-unwind" {
    /// tcop/tcopprot.h. Handlers must be C functions; pgrx's bindings are guards around them.
    fn die(signal: std::ffi::c_int);
    /// postmaster/interrupt.h.
    fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
}

/// What a worker does first. SIGTERM ends it as it ends a session, also while its commit waits for standbys; pgrx's own
/// handler would let that wait go on, and with it the server's shutdown.
pub fn attach_signals() {
    // SAFETY: at the beginning of a worker, which runs in a process of its own; both handlers may interrupt anything.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        use pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        use pg_sys::pqsignal_be as pqsignal;

        pqsignal(pg_sys::SIGHUP as i32, Some(SignalHandlerForConfigReload));
        pqsignal(pg_sys::SIGTERM as i32, Some(die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Reads the configuration files again if that was asked for.
pub fn reload_if_asked() {
    // SAFETY: a flag of this process that the handler of SIGHUP sets.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Connects to a database as the cluster's superuser; 0: to none, so that only what all databases share can be read.
pub fn connect(database: u32) {
    // SAFETY: once, in a worker that asked for a connection.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(database), pg_sys::InvalidOid, 0);
    }
}

/// Sets a setting of this worker, above what the configuration says.
pub fn set(name: &std::ffi::CStr, value: &std::ffi::CStr) {
    // SAFETY: both strings are valid for the call; the names are settings that exist.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Settings for a worker that writes, whatever the configuration, the database or the role say.
pub fn set_for_writing(lock_timeout: &std::ffi::CStr) {
    for (name, value) in [
        (c"search_path", c"pg_catalog, pg_temp"),
        // Compiling a statement takes longer than any of ours runs.
        (c"jit", c"off"),
        (c"statement_timeout", c"0"),
        (c"lock_timeout", lock_timeout),
        (c"idle_in_transaction_session_timeout", c"0"),
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", c"0"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
    ] {
        set(name, value);
    }
}

/// Why a transaction was rolled back.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: PgSqlErrorCode,
    /// With detail and hint.
    pub message: String,
}

impl Failure {
    /// The code as text.
    pub fn sqlstate(&self) -> String {
        let code = self.code as i32;
        (0..5).map(|at| char::from((code >> (6 * at) & 0x3f) as u8 + b'0')).collect()
    }

    /// Did somebody keep a lock longer than this worker waits, or was it not to wait?
    pub fn is_locked(&self) -> bool {
        self.code == ERRCODE_LOCK_NOT_AVAILABLE
    }
}

/// What the tables say cannot be.
impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { code: ERRCODE_DATA_CORRUPTED, message }
    }
}

/// Runs `body` in a transaction of its own and commits it. An ERROR, also one of the commit, rolls everything back and
/// is returned; nothing of it has happened then.
pub fn transaction<R>(body: impl FnOnce() -> R) -> Result<R, Failure> {
    let attempt = move || {
        // SAFETY: outside a transaction, in a worker with a connection.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
        }
        let result = body();
        // SAFETY: in the transaction begun above.
        unsafe { pg_sys::CommitTransactionCommand() };
        Ok(result)
    };
    caught(AssertUnwindSafe(attempt))
}

/// The same with a snapshot, which SQL needs, and only while the extension is in the database.
pub fn with_snapshot<R>(body: impl FnOnce() -> R) -> Result<R, Failure> {
    transaction(|| {
        require_extension();
        // SAFETY: in a transaction; the snapshot is taken back before its end.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        let result = body();
        // SAFETY: pairs with the above.
        unsafe { pg_sys::PopActiveSnapshot() };
        result
    })
}

/// Runs `body` in a savepoint of the present transaction. An ERROR in it undoes what it has done, and is returned.
pub fn in_savepoint<R>(body: impl FnOnce() -> R) -> Result<R, Failure> {
    // SAFETY: in a transaction. Memory context and resource owner are put back, as PL/pgSQL does around its blocks.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.0);
        before
    };
    let attempt = move || {
        let result = body();
        // SAFETY: pairs with the above.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        Ok(result)
    };
    let result =
        PgTryBuilder::new(AssertUnwindSafe(attempt)).catch_others(|error| Err(failure(&error))).execute();
    // SAFETY: as above; the error's state was cleared when it was caught.
    unsafe {
        if result.is_err() {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

/// `lock_timeout` as it was, put back when dropped.
pub struct LockTimeout(i32);

/// Until the result is dropped, locks are waited for at most so many milliseconds, whatever the session has set.
pub fn wait_at_most(milliseconds: i32) -> LockTimeout {
    // SAFETY: the variable of a setting, changed for this process while nobody looks at the setting itself.
    unsafe {
        let before = pg_sys::LockTimeout;
        if before == 0 || before > milliseconds {
            pg_sys::LockTimeout = milliseconds;
        }
        LockTimeout(before)
    }
}

impl Drop for LockTimeout {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::LockTimeout = self.0 }
    }
}

/// Runs a query that takes one text, of ASCII characters only, and whose result is not wanted. In a transaction, and only
/// where the extension is known to be there.
pub fn run_sql(query: &'static std::ffi::CStr, argument: &str) {
    // SAFETY: connected for the time of the query, with a snapshot of this moment; the text is copied into its memory.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::SPI_connect();
        let length = i32::try_from(argument.len()).unwrap_or(0);
        let text = pg_sys::cstring_to_text_with_len(argument.as_ptr().cast(), length);
        let (mut kind, mut value) = (pg_sys::TEXTOID, pg_sys::Datum::from(text));
        let done = pg_sys::SPI_execute_with_args(
            query.as_ptr(),
            1,
            &mut kind,
            &mut value,
            std::ptr::null(),
            false,
            0,
        );
        assert!(done == pg_sys::SPI_OK_SELECT as i32, "a query of pgquorum's own gave {done}");
        pg_sys::SPI_finish();
        pg_sys::PopActiveSnapshot();
    }
}

fn caught<R>(attempt: impl FnOnce() -> Result<R, Failure> + UnwindSafe) -> Result<R, Failure> {
    let result = PgTryBuilder::new(attempt).catch_others(|error| Err(failure(&error))).execute();
    if result.is_err() {
        // SAFETY: whatever state the transaction is in, this ends it; the error's state was cleared when it was caught.
        unsafe { pg_sys::AbortOutOfAnyTransaction() };
    }
    result
}

pub(super) fn failure(error: &CaughtError) -> Failure {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = error;
    let more = [report.detail(), report.hint()].into_iter().flatten();
    let message = more.fold(report.message().to_owned(), |text, more| format!("{text}. {more}"));
    Failure { code: report.sql_error_code(), message }
}

/// To be called after a commit that waits for standbys, before anything is made of its return: a worker that was told to
/// end, or whose server has died, gives up that wait as if it had been acknowledged. It ends here.
pub fn end_if_told() {
    // SAFETY: globals of this process. After the server's death PostgreSQL sets the first one only.
    unsafe {
        if pg_sys::ProcDiePending != 0 {
            pg_sys::InterruptPending = 1;
        }
    }
    pgrx::check_for_interrupts!();
}

/// A worker that this process has started.
pub struct Running(DynamicBackgroundWorker);

impl Running {
    /// Starts a worker of this library for a database; `name` is also its type. `None`: `max_worker_processes` are in use.
    pub fn start(name: &str, function: &str, database: u32) -> Option<Self> {
        // SAFETY: a global of this process.
        let own_pid = unsafe { pg_sys::MyProcPid };
        let started = BackgroundWorkerBuilder::new(name)
            .set_type(name)
            .set_library("pgquorum")
            .set_function(function)
            .set_argument(Some(pg_sys::Datum::from(database)))
            .set_notify_pid(own_pid)
            .set_restart_time(None)
            .enable_spi_access()
            .load_dynamic();
        started.ok().map(Self)
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.0.pid(), Err(BackgroundWorkerStatus::Stopped | BackgroundWorkerStatus::PostmasterDied))
    }
}

/// This process's number.
pub fn own_pid() -> i32 {
    // SAFETY: a global of this process.
    unsafe { pg_sys::MyProcPid }
}

/// This session's database.
pub fn own_database() -> u32 {
    // SAFETY: a global of this process.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Is there such a server process?
pub fn lives(pid: i32) -> bool {
    // SAFETY: looks into the process array under its lock.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Wakes a server process from its wait, if it is there.
pub fn wake(pid: i32) {
    // SAFETY: entries of the process array are never unmapped; waking another process by mistake does no harm.
    unsafe {
        let entry = if pid == 0 { std::ptr::null_mut() } else { pg_sys::BackendPidGetProc(pid) };
        if !entry.is_null() {
            pg_sys::SetLatch(&raw mut (*entry).procLatch);
        }
    }
}

/// The address of this process's latch, for [`set_latch`] in any process. In a process that shares memory.
pub fn own_latch() -> usize {
    // SAFETY: a global of this process, set before a worker's main function runs.
    unsafe { pg_sys::MyLatch }.expose_provenance()
}

/// Wakes the process that [`own_latch`] was called in, or the one that has its place by now: every process looks what
/// there is to do when it is woken. 0: nobody. Unlike [`wake`] it reaches workers without a database, which are not in the
/// array of processes that is searched by number.
pub fn set_latch(latch: usize) {
    if latch != 0 {
        // SAFETY: the latch of a process that shares memory lies in the process array, which is at the same address in all
        // of them and never unmapped. (PostgreSQL keeps such addresses in shared memory itself, of the WAL receiver, say.)
        unsafe { pg_sys::SetLatch(std::ptr::with_exposed_provenance_mut(latch)) };
    }
}

/// Databases that take connections, by their oid. In a transaction.
pub fn databases() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: a sequential scan of a shared catalogue, closed again; its rows are of the struct's shape.
    unsafe {
        pg_sys::GetTransactionSnapshot();
        let table = pg_sys::table_open(pg_sys::DatabaseRelationId, lock::ACCESS_SHARE);
        let scan = pg_sys::systable_beginscan(
            table,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            let database = pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_database>();
            if (*database).datallowconn {
                found.push((*database).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock::ACCESS_SHARE);
    }
    found
}

/// What only one process of a database does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Job {
    /// Cutting batches; until the process ends.
    Cutter = 0,
    /// Saving learned statements; until the process ends.
    Saver = 1,
    /// Withdrawing learned statements; until the transaction ends.
    Withdrawer = 2,
    /// Giving numbers to origins; until the transaction ends.
    NamingOrigins = 3,
    /// Applying changes where the last write wins; until the transaction ends.
    Weighing = 4,
}

/// Takes, until this process ends, the right to do a job in its database; false: another process has it.
pub fn be_the_only_one(job: Job) -> bool {
    // SAFETY: the tag is complete; a session lock needs no transaction, and does not wait.
    let got = unsafe { pg_sys::LockAcquire(&tag(job), lock::EXCLUSIVE, true, true) };
    got != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Waits for the right to do a job, which this transaction then has until it ends.
pub fn be_next(job: Job) {
    // SAFETY: the tag is complete; in a transaction.
    unsafe { pg_sys::LockAcquire(&tag(job), lock::EXCLUSIVE, false, false) };
}

/// The same with others who do it by this function, and not by [`be_next`].
pub fn be_with_others(job: Job) {
    // SAFETY: as in `be_next`.
    unsafe { pg_sys::LockAcquire(&tag(job), lock::SHARE, false, false) };
}

/// Locks a table until the transaction ends, if nobody is in the way; false: somebody is.
pub fn lock_if_free(table: u32, level: i32) -> bool {
    // SAFETY: in a transaction; does not wait.
    unsafe { pg_sys::ConditionalLockRelationOid(table.into(), level) }
}

fn tag(job: Job) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: own_database(),
        // A kind of lock that PostgreSQL keeps for users and does not use itself; advisory locks are another one. Of
        // the locks that outlive transactions only users' locks are given back when the process ends.
        locktag_field2: pg_sys::ExtensionRelationId.to_u32(),
        locktag_field3: job as u32,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_USERLOCK as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    }
}

/// Levels of table locks.
pub mod lock {
    use pgrx::pg_sys;

    pub const NONE: i32 = pg_sys::NoLock as i32;
    pub const ACCESS_SHARE: i32 = pg_sys::AccessShareLock as i32;
    pub const ROW_EXCLUSIVE: i32 = pg_sys::RowExclusiveLock as i32;
    pub const SHARE_ROW_EXCLUSIVE: i32 = pg_sys::ShareRowExclusiveLock as i32;
    pub const SHARE: i32 = pg_sys::ShareLock as i32;
    pub const EXCLUSIVE: i32 = pg_sys::ExclusiveLock as i32;
}
