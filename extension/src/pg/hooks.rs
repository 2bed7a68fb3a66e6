//! The places where PostgreSQL calls us: end of transaction, utility statements, authentication, reports.
//!
//! Each hook calls its predecessor, and `crate::fence`, `crate::commit_wait` or `crate::capture` for what it is about.
//!
//! Invariant: the hooks through which all utility statements, log-ins and reports go have no guard of pgrx around what they
//! pass on. A guard turns every ERROR into a Rust panic and back, and on the way loses what an `ErrorReport` has no
//! field for: position, context, and the names of table, column and constraint. Their frames hold nothing with a
//! destructor, so that PostgreSQL may jump over them. Our own checks are guarded functions of their own.

use std::ffi::{c_char, c_int, c_void};

use pgrx::prelude::*;

use super::guard::guarded;
use super::{copy_owner, log_guard, nesting, process, statement, statement_hooks, syncrep, whole_database};
use crate::capture::{self, Savepoint};
use crate::statements::{databases, table, watch, withdraw};
use crate::{apply, barrier, commit_wait, feed, fence};

type AuthenticationHook = Option<unsafe extern "C-unwind" fn(*mut pg_sys::Port, c_int)>;

unsafe extern "C-unwind" {
    /// libpq/auth.h; missing from pgrx's bindings.
    static mut ClientAuthentication_hook: AuthenticationHook;

    /// tcop/utility.h; pgrx's binding is guarded.
    fn standard_ProcessUtility(
        pstmt: *mut pg_sys::PlannedStmt,
        query_string: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        query_env: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// 25006, what PostgreSQL says to whoever tries to write where that is refused.
const READ_ONLY: c_int = PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION as c_int;
const ERROR: c_int = PgLogLevel::ERROR as c_int;

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_AUTHENTICATION: AuthenticationHook = None;
static mut PREVIOUS_REPORT: pg_sys::emit_log_hook_type = None;

/// Installs the hooks; once, from `_PG_init`.
pub fn init() {
    // SAFETY: `_PG_init` runs once, in the postmaster, before any other code could read the hooks.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_savepoint), std::ptr::null_mut());
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(at_utility);
        PREVIOUS_AUTHENTICATION = ClientAuthentication_hook;
        ClientAuthentication_hook = Some(at_authentication);
        PREVIOUS_REPORT = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(at_report);
    }
}

/// Most transactions have nothing that concerns us, and then nothing here can raise an error: they are spared pgrx's guard,
/// which costs more than all the rest.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT if nothing_concerns_us() && fence::lets_pass() => {
            let _ = capture::before_commit();
            syncrep::hear_warnings();
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT if nothing_concerns_us() => {
            syncrep::after_transaction();
            capture::after_end();
            guarded((), || nesting::after_transaction(true));
        }
        _ => see_to_transaction_end(event),
    }
}

#[inline]
fn nothing_concerns_us() -> bool {
    !(capture::is_dirty()
        || apply::is_applying()
        || barrier::must_look()
        || feed::wait::has_made_channel()
        || withdraw::has_changed_something())
}

#[pg_guard]
extern "C-unwind" fn see_to_transaction_end(event: pg_sys::XactEvent::Type) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            apply::before_commit();
            // Before the lease is looked at: it may wait for a lock.
            withdraw::before_commit(event == pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE);
            barrier::before_commit();
            fence::before_commit();
            if capture::before_commit() {
                fence::after_log();
            }
            syncrep::hear_warnings();
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            syncrep::after_transaction();
            apply::after_end();
            capture::after_end();
            feed::wait::after_transaction(true);
            guarded((), withdraw::after_commit);
            guarded((), || nesting::after_transaction(true));
        }
        pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            syncrep::after_transaction();
            apply::after_end();
            capture::after_prepare();
            feed::wait::after_transaction(true);
            guarded((), withdraw::after_prepare);
            guarded((), || nesting::after_transaction(true));
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            syncrep::after_transaction();
            apply::after_end();
            capture::after_abort();
            fence::after_abort();
            feed::wait::after_transaction(false);
            guarded((), withdraw::after_abort);
            guarded((), || nesting::after_transaction(false));
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_savepoint(
    event: pg_sys::SubXactEvent::Type,
    _savepoint: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    let what = match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_START_SUB => Savepoint::Started,
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => Savepoint::Released,
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => Savepoint::RolledBack,
        _ => return,
    };
    let level = process::nesting_level();
    capture::at_savepoint(what, level);
    guarded((), || nesting::at_savepoint(what, level));
}

#[allow(clippy::too_many_arguments)]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query_string: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL hands over a valid statement for the time of the call, and the arguments are passed on as
    // they came. PREVIOUS_UTILITY was written once, in `init`.
    unsafe {
        let next = PREVIOUS_UTILITY.unwrap_or(standard_ProcessUtility);
        if is_transaction_statement(pstmt) {
            if finishes_prepared(pstmt) {
                before_finish_prepared();
            }
            // BEGIN and COMMIT come with every few statements. Nothing runs inside them: what a COMMIT brings about comes after
            // it. Inside what is watched they are commands like others, and what was announced is for this one, or for none.
            if !watch::is_active() && !statement::is_announced() {
                return next(
                    pstmt,
                    query_string,
                    read_only_tree,
                    context,
                    params,
                    query_env,
                    dest,
                    completion,
                );
            }
        } else if log_guard::concerns(pstmt) {
            before_upkeep(pstmt);
        }
        let dropped = if whole_database::concerns(pstmt) { before_whole_database(pstmt) } else { 0 };
        let learned = statement_hooks::utility_begins(pstmt, query_string);
        let outer = statement::enter(pstmt, query_string);
        let rights = copy_owner::begin(pstmt);
        next(pstmt, query_string, read_only_tree, context, params, query_env, dest, completion);
        copy_owner::end(rights);
        statement::leave(outer);
        statement_hooks::utility_ended(learned);
        if dropped != 0 {
            after_drop(dropped);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_upkeep(pstmt: *mut pg_sys::PlannedStmt) {
    // SAFETY: as in `at_utility`.
    unsafe { log_guard::check(pstmt) }
}

/// The database that is there no more when the statement has ended; 0: none.
#[pg_guard]
unsafe extern "C-unwind" fn before_whole_database(pstmt: *mut pg_sys::PlannedStmt) -> u32 {
    // SAFETY: as in `at_utility`.
    let Some(meant) = (unsafe { whole_database::meant(pstmt) }) else { return 0 };
    databases::make_way(meant.database);
    if meant.drops { meant.database } else { 0 }
}

/// Its files are gone, whatever becomes of the transaction.
#[pg_guard]
extern "C-unwind" fn after_drop(database: u32) {
    if table::is_there() {
        table::forget(database, None);
    }
    databases::forget(database);
}

#[pg_guard]
extern "C-unwind" fn before_finish_prepared() {
    fence::before_finish_prepared();
    syncrep::hear_warnings();
}

/// # Safety
///
/// `pstmt` points to a valid utility statement.
#[inline]
unsafe fn is_transaction_statement(pstmt: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let node = (*pstmt).utilityStmt;
        !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_TransactionStmt
    }
}

/// # Safety
///
/// `pstmt` points to a valid transaction statement.
#[inline]
unsafe fn finishes_prepared(pstmt: *mut pg_sys::PlannedStmt) -> bool {
    use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let kind = (*(*pstmt).utilityStmt.cast::<pg_sys::TransactionStmt>()).kind;
        kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED
    }
}

unsafe extern "C-unwind" fn at_authentication(port: *mut pg_sys::Port, status: c_int) {
    // SAFETY: PREVIOUS_AUTHENTICATION was written once, in `init`; the arguments are passed on as they came.
    unsafe {
        if let Some(next) = PREVIOUS_AUTHENTICATION {
            next(port, status);
        }
    }
    if i64::from(status) == i64::from(pg_sys::STATUS_OK) {
        after_authentication();
    }
}

#[pg_guard]
extern "C-unwind" fn after_authentication() {
    barrier::after_authentication();
    fence::after_authentication();
}

unsafe extern "C-unwind" fn at_report(report: *mut pg_sys::ErrorData) {
    // SAFETY: PREVIOUS_REPORT was written once, in `init`; PostgreSQL hands over its own report, in which the two
    // outputs may be turned off.
    unsafe {
        if syncrep::gives_up(report) && commit_wait::goes_on() {
            until_acknowledged((*report).output_to_client);
            (*report).output_to_server = false;
            (*report).output_to_client = false;
        }
        if (*report).sqlerrcode == READ_ONLY && (*report).elevel >= ERROR {
            watch::was_refused();
        }
        if let Some(next) = PREVIOUS_REPORT {
            next(report);
        }
    }
}

#[pg_guard]
extern "C-unwind" fn until_acknowledged(tell_client: bool) {
    commit_wait::until_acknowledged(tell_client);
}
