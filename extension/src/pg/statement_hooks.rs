//! The places where PostgreSQL calls the learner of statements: planning, running, and commands inside.
//!
//! As in `hooks`, nothing of pgrx guards what is passed on, and the frames here hold nothing with a destructor.

use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use pgrx::pg_sys::{CmdType, NodeTag};
use pgrx::prelude::*;

use super::guard::guarded;
use super::nesting::{enter, is_clients, leave};
use super::{jumble, notices, object_hooks, rewind_files};
use crate::guc::quick;
use crate::statements::proof::{self, Examined};
use crate::statements::recognise::Admitted;
use crate::statements::{is_broken, learn, recognise, settings, table, watch};

unsafe extern "C-unwind" {
    // optimizer/planner.h and executor/executor.h; pgrx's bindings are guarded.
    fn standard_planner(
        query: *mut pg_sys::Query,
        text: *const c_char,
        options: c_int,
        params: pg_sys::ParamListInfo,
    ) -> *mut pg_sys::PlannedStmt;
    fn standard_ExecutorFinish(desc: *mut pg_sys::QueryDesc);
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        desc: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(desc: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;

/// Whether this session's statements are learned.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static SESSION: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const LEARNS: u8 = 1;
const DOES_NOT: u8 = 2;

/// What was counted is given to the table when the session ends.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static FLUSHES: AtomicBool = AtomicBool::new(false);

/// Sessions of the sidecar, which have much to do and say nothing of the users' statements.
const SIDECAR: &CStr = c"pgquorum sidecar";

/// Installs the hooks; once, from `_PG_init`.
pub fn init() {
    // SAFETY: `_PG_init` runs once, in the postmaster, before any other code could read the hooks.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(at_planning);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(at_run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(at_finish);
    }
    notices::init();
}

/// Are statements of this session learned?
#[inline]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn is_on() -> bool {
    // SAFETY: a setting's variable.
    let standard = unsafe { pg_sys::standard_conforming_strings };
    standard && quick(&settings::LEARN) && !is_broken() && table::is_there() && session_learns()
}

#[inline]
fn session_learns() -> bool {
    match SESSION.load(Relaxed) {
        LEARNS => true,
        DOES_NOT => false,
        _ => look_at_session(),
    }
}

#[cold]
fn look_at_session() -> bool {
    // SAFETY: globals of this process; the name is null or a string.
    let learns = unsafe {
        let name = pg_sys::application_name;
        pg_sys::IsUnderPostmaster
            && pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND
            && (name.is_null() || CStr::from_ptr(name) != SIDECAR)
    };
    SESSION.store(if learns { LEARNS } else { DOES_NOT }, Relaxed);
    learns
}

/// The part of a query string that is one statement.
///
/// # Safety
///
/// The text is a string, and the place one in it, as PostgreSQL keeps it with a statement.
unsafe fn part<'a>(text: *const c_char, location: c_int, length: c_int) -> &'a [u8] {
    // SAFETY: see above. A length of 0 means up to the end.
    unsafe {
        let start = text.add(usize::try_from(location).unwrap_or(0)).cast::<u8>();
        match usize::try_from(length) {
            Ok(length) if length > 0 => std::slice::from_raw_parts(start, length),
            _ => CStr::from_ptr(start.cast()).to_bytes(),
        }
    }
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_planning(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: PostgreSQL hands over a valid query for the time of the call; the arguments are passed on as they came.
    unsafe {
        let next = PREVIOUS_PLANNER.unwrap_or(standard_planner);
        if (*query).hasRecursive {
            let shown = rewind_files::without_common_wal(query, text);
            if shown != query {
                return next(shown, text, options, params);
            }
        }
        let watched = (*query).commandType == CmdType::CMD_SELECT
            && is_clients(text)
            && is_on()
            && planning_begins(query, text);
        let outer = enter();
        let planned = next(query, text, options, params);
        leave(outer);
        if watched {
            watch::ended();
        }
        planned
    }
}

/// Nothing with a destructor may be alive in it while the tree is examined, which PostgreSQL's errors jump out of.
///
/// # Safety
///
/// The arguments are the planner's.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe fn planning_begins(query: *mut pg_sys::Query, text: *const c_char) -> bool {
    guarded(false, || {
        if !notices::extension_is_here() {
            return false;
        }
        // SAFETY: the planner's own arguments, which it has not changed yet.
        unsafe {
            let text_of = part(text, (*query).stmt_location, (*query).stmt_len);
            let admitted = match learn::is_worth_looking(text_of) {
                None => return false,
                Some(Admitted::Unseen) => {
                    learn::unseen_planning_begins();
                    return true;
                }
                Some(admitted) => admitted,
            };
            let examined = proof::examine(query);
            flush_at_exit();
            learn::planning_begins(text_of, admitted, &examined, jumble::given_id(query), || {
                jumble::query_id(query, text)
            })
        }
    })
}

#[cfg(not(feature = "pg18"))]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_run(
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: PostgreSQL hands over a valid descriptor for the time of the call, and the arguments are passed on.
    unsafe {
        let next = PREVIOUS_RUN.unwrap_or(standard_ExecutorRun);
        let (watched, first) = (before_run(desc), !(*desc).already_executed);
        let outer = enter();
        next(desc, direction, count, once);
        leave(outer);
        if watched {
            run_ended(first);
        }
    }
}

#[cfg(feature = "pg18")]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_run(
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    // SAFETY: as above.
    unsafe {
        let next = PREVIOUS_RUN.unwrap_or(standard_ExecutorRun);
        let (watched, first) = (before_run(desc), !(*desc).already_executed);
        let outer = enter();
        next(desc, direction, count);
        leave(outer);
        if watched {
            run_ended(first);
        }
    }
}

/// Triggers fire here.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe extern "C-unwind" fn at_finish(desc: *mut pg_sys::QueryDesc) {
    // SAFETY: as above.
    unsafe {
        let next = PREVIOUS_FINISH.unwrap_or(standard_ExecutorFinish);
        let outer = enter();
        next(desc);
        leave(outer);
    }
}

/// # Safety
///
/// The descriptor is valid.
#[inline]
unsafe fn before_run(desc: *mut pg_sys::QueryDesc) -> bool {
    // SAFETY: see above; a descriptor that runs has a plan.
    unsafe {
        let plan = (*desc).plannedstmt;
        let writes = || (*plan).hasModifyingCTE || !(*plan).rowMarks.is_null();
        if (*desc).operation == CmdType::CMD_SELECT {
            if is_clients((*desc).sourceText) {
                return is_on() && !writes() && run_begins(desc);
            }
            if watch::is_active() && writes() {
                inside(desc);
            }
        } else if watch::is_active() && !is_clients((*desc).sourceText) {
            inside(desc);
        }
        false
    }
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
unsafe fn run_begins(desc: *mut pg_sys::QueryDesc) -> bool {
    guarded(false, || {
        // SAFETY: as in `before_run`.
        let text = unsafe {
            let plan = (*desc).plannedstmt;
            part((*desc).sourceText, (*plan).stmt_location, (*plan).stmt_len)
        };
        notices::extension_is_here() && {
            flush_at_exit();
            learn::run_begins(text)
        }
    })
}

fn run_ended(first: bool) {
    let clean = watch::ended();
    if first {
        guarded((), || learn::count_run(clean));
    }
}

/// A statement that runs inside the one that is watched, and does not only read.
#[cold]
unsafe fn inside(desc: *mut pg_sys::QueryDesc) {
    // SAFETY: as in `before_run`.
    let (operation, writes_in_with) = unsafe { ((*desc).operation, (*(*desc).plannedstmt).hasModifyingCTE) };
    let why = match operation {
        CmdType::CMD_SELECT if writes_in_with => "a statement inside it writes in its WITH",
        CmdType::CMD_SELECT => "a statement inside it locks rows",
        CmdType::CMD_INSERT => "a statement inside it is an INSERT",
        CmdType::CMD_UPDATE => "a statement inside it is an UPDATE",
        CmdType::CMD_DELETE => "a statement inside it is a DELETE",
        _ => "a statement inside it writes",
    };
    guarded((), || watch::saw(why));
}

/// What [`utility_begins`] leaves for [`utility_ended`].
#[derive(Clone, Copy)]
pub struct Utility {
    outer: u32,
    learned: bool,
}

/// A utility statement is about to run.
///
/// # Safety
///
/// The arguments are those of the hook for utility statements.
#[inline]
pub unsafe fn utility_begins(pstmt: *mut pg_sys::PlannedStmt, text: *const c_char) -> Utility {
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let node = (*pstmt).utilityStmt;
        let tag = if node.is_null() { NodeTag::T_Invalid } else { (*node).type_ };
        let served = matches!(
            tag,
            NodeTag::T_VariableShowStmt | NodeTag::T_ExplainStmt | NodeTag::T_DeclareCursorStmt
        );
        let learned = served && is_clients(text) && is_on() && begin_utility(pstmt, text);
        if watch::is_active() && !is_harmless(tag) {
            command_inside(node);
        }
        if tag == NodeTag::T_AlterTableStmt {
            object_hooks::alters(node.cast());
        }
        Utility { outer: enter(), learned }
    }
}

/// It has ended without an error.
#[inline]
pub fn utility_ended(utility: Utility) {
    leave(utility.outer);
    if utility.learned {
        end_utility();
    }
}

/// Commands that functions may run and that change nothing by themselves; what runs inside them is seen as well.
fn is_harmless(tag: NodeTag) -> bool {
    matches!(
        tag,
        NodeTag::T_VariableShowStmt
            | NodeTag::T_ExplainStmt
            | NodeTag::T_DeclareCursorStmt
            | NodeTag::T_FetchStmt
            | NodeTag::T_ClosePortalStmt
            | NodeTag::T_DoStmt
            | NodeTag::T_CallStmt
    )
}

unsafe fn begin_utility(pstmt: *mut pg_sys::PlannedStmt, text: *const c_char) -> bool {
    guarded(false, || {
        if !notices::extension_is_here() {
            return false;
        }
        // SAFETY: as in `utility_begins`.
        unsafe {
            let examined: Examined = proof::examine_utility((*pstmt).utilityStmt);
            flush_at_exit();
            learn::utility_begins(part(text, (*pstmt).stmt_location, (*pstmt).stmt_len), &examined)
        }
    })
}

fn end_utility() {
    guarded((), learn::utility_ended);
}

#[cold]
unsafe fn command_inside(node: *mut pg_sys::Node) {
    guarded((), || {
        // SAFETY: the node is a valid statement; the name is a literal.
        let name = unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(pg_sys::CreateCommandTag(node))) };
        watch::saw(&format!("a command inside it is {}", name.to_string_lossy()));
    });
}

#[inline]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
fn flush_at_exit() {
    if !FLUSHES.load(Relaxed) {
        FLUSHES.store(true, Relaxed);
        // SAFETY: once in this process, which has its place in shared memory.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: c_int, _argument: pg_sys::Datum) {
    guarded((), recognise::flush_all);
}
