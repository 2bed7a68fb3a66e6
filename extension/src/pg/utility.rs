//! Utility statements that can be read-only: SHOW, EXPLAIN without ANALYZE, DECLARE CURSOR. And a statement's text, taken
//! through PostgreSQL's own steps.

use std::ffi::{CStr, c_void};

use pg_sys::NodeTag as Tag;
use pgrx::pg_sys;

use super::query_walk::{self, Mode, items};
use crate::statements::functions::SETTINGS;
use crate::statements::proof::{About, Examined, Reason};

unsafe extern "C-unwind" {
    // rewrite/rewriteHandler.h, nodes/nodes.h; pgrx's bindings are guarded.
    fn QueryRewrite(query: *mut pg_sys::Query) -> *mut pg_sys::List;
    fn copyObjectImpl(node: *const c_void) -> *mut c_void;
}

/// See [`crate::statements::proof::examine_utility`].
///
/// # Safety
///
/// As there.
pub unsafe fn examine(statement: *mut pg_sys::Node) -> Examined {
    // SAFETY: see above; the tags say what the nodes are.
    unsafe {
        match (*statement).type_ {
            Tag::T_VariableShowStmt => show(&*statement.cast()),
            Tag::T_ExplainStmt => explain(&*statement.cast()),
            Tag::T_DeclareCursorStmt => {
                inner((*statement.cast::<pg_sys::DeclareCursorStmt>()).query, Mode::Run)
            }
            _ => Examined::refused(Reason::statement(
                "is none of those that can be read-only: SELECT, VALUES, TABLE, SHOW, EXPLAIN without ANALYZE, DECLARE CURSOR",
            )),
        }
    }
}

/// # Safety
///
/// The statement is valid.
unsafe fn show(statement: &pg_sys::VariableShowStmt) -> Examined {
    // SAFETY: see above.
    let name = unsafe { CStr::from_ptr(statement.name) }.to_bytes();
    let tells = SETTINGS.iter().any(|setting| setting.as_bytes().eq_ignore_ascii_case(name));
    if tells {
        return Examined::refused(Reason::statement("asks whether this server is a replica"));
    }
    Examined::default()
}

/// # Safety
///
/// The statement is valid.
unsafe fn explain(statement: &pg_sys::ExplainStmt) -> Examined {
    // SAFETY: see above; options have names.
    unsafe {
        for cell in items(statement.options) {
            let option = &*cell.ptr_value.cast::<pg_sys::DefElem>();
            // Whatever its value is: a statement's hash may leave it out.
            if CStr::from_ptr(option.defname).to_bytes() == b"analyze" {
                return Examined::refused(Reason::statement(
                    "is an EXPLAIN with ANALYZE, which runs what it explains",
                ));
            }
        }
        inner(statement.query, Mode::Plan)
    }
}

/// The statement inside of another: analysed, not rewritten.
///
/// # Safety
///
/// The tree is valid; in a transaction.
unsafe fn inner(query: *mut pg_sys::Node, mode: Mode) -> Examined {
    // SAFETY: see above. The rewriter changes the tree, so it gets a copy, as from those who run such statements; like
    // them it relies on the locks that the analysis took.
    unsafe {
        if (*query).type_ != Tag::T_Query || !(*query.cast::<pg_sys::Query>()).utilityStmt.is_null() {
            return Examined::refused(Reason::statement(
                "explains a statement that is not planned by itself",
            ));
        }
        rewritten(copyObjectImpl(query.cast()).cast(), mode)
    }
}

/// Rewrites an analysed tree and examines what comes out.
///
/// # Safety
///
/// The tree is valid, the caller's own, and its relations are locked; in a transaction.
pub unsafe fn rewritten(query: *mut pg_sys::Query, mode: Mode) -> Examined {
    let mut found = Examined::default();
    // SAFETY: see above.
    unsafe {
        let writes = (*query).commandType != pg_sys::CmdType::CMD_SELECT;
        let queries = items(QueryRewrite(query));
        if writes && mode == Mode::Run {
            found.refuse(About::Statement, "writes: it is an INSERT, UPDATE, DELETE or MERGE");
        }
        for cell in queries {
            found.add(&query_walk::examine(cell.ptr_value.cast(), mode));
        }
    }
    found
}

/// Why a text is not one statement.
pub enum NotOne {
    Empty,
    Several,
}

/// Parses, analyses and rewrites a statement, and examines it. Raises what is wrong with it.
pub fn examine_text(text: &CStr) -> Result<Examined, NotOne> {
    // SAFETY: PostgreSQL's own steps from a text to a tree, on the memory of this statement.
    unsafe {
        let raw = items(pg_sys::pg_parse_query(text.as_ptr()));
        let [statement] = raw else {
            return Err(if raw.is_empty() { NotOne::Empty } else { NotOne::Several });
        };
        let query = analysed(statement.ptr_value.cast(), text);
        Ok(pg_sys::ffi::pg_guard_ffi_boundary(|| match (*query).utilityStmt {
            none if none.is_null() => rewritten(query, Mode::Run),
            utility => examine(utility),
        }))
    }
}

/// # Safety
///
/// The statement is what was parsed of the text; in a transaction.
unsafe fn analysed(statement: *mut pg_sys::RawStmt, text: &CStr) -> *mut pg_sys::Query {
    let (mut types, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: see above; PostgreSQL finds out what types the parameters have.
    #[cfg(feature = "pg14")]
    unsafe {
        pg_sys::parse_analyze_varparams(statement, text.as_ptr(), &mut types, &mut count)
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg14"))]
    unsafe {
        let environment = std::ptr::null_mut();
        pg_sys::parse_analyze_varparams(statement, text.as_ptr(), &mut types, &mut count, environment)
    }
}
