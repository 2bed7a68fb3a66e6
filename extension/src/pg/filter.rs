//! Row filters, as CREATE PUBLICATION ... WHERE knows them: a condition on one row, with built-in functions whose
//! result depends on nothing else.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::PgSqlErrorCode::{ERRCODE_FEATURE_NOT_SUPPORTED, ERRCODE_SYNTAX_ERROR};
use pgrx::pg_sys;

use crate::error::Refusal;

unsafe extern "C-unwind" {
    // parser/parse_clause.h, nodes/nodeFuncs.h, catalog/partition.h; missing from pgrx's bindings.
    fn transformWhereClause(
        pstate: *mut pg_sys::ParseState,
        clause: *mut pg_sys::Node,
        kind: pg_sys::ParseExprKind::Type,
        construct: *const c_char,
    ) -> *mut pg_sys::Node;
    #[cfg_attr(
        any(feature = "pg16", feature = "pg17", feature = "pg18"),
        link_name = "expression_tree_walker_impl"
    )]
    fn expression_tree_walker(node: *mut pg_sys::Node, walker: Walker, context: *mut c_void) -> bool;
    fn map_partition_varattnos(
        expr: *mut pg_sys::List,
        varno: std::ffi::c_int,
        to: pg_sys::Relation,
        from: pg_sys::Relation,
    ) -> *mut pg_sys::List;
}

type Walker = Option<unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool>;

/// A filter as it is stored, and the columns it looks at.
pub struct Parsed {
    pub tree: String,
    pub columns: Vec<i16>,
}

/// What a walk through an expression on a table finds.
struct Found {
    table: pg_sys::Oid,
    columns: Vec<i16>,
    objection: Option<&'static str>,
}

/// Parses and checks a filter of a table, in the server's encoding; raises what is wrong with it.
pub fn parse(table: pg_sys::Oid, text: &[u8]) -> Parsed {
    let Ok(source) = CString::new(text) else { syntax_error() };
    // SAFETY: PostgreSQL's own steps from a text to an expression, on the memory of this statement. The node's tags
    // say what they are; lists are checked for their length before an item is taken.
    unsafe {
        let raw = pg_sys::raw_parser(source.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let clause = only_expression(raw).unwrap_or_else(|| syntax_error());
        let relation = pg_sys::relation_open(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_sourcetext = source.as_ptr();
        let item = pg_sys::addRangeTableEntryForRelation(
            state,
            relation,
            pg_sys::AccessShareLock as i32,
            std::ptr::null_mut(),
            false,
            false,
        );
        pg_sys::addNSItemToQuery(state, item, false, true, true);
        let expression = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            transformWhereClause(
                state,
                clause,
                pg_sys::ParseExprKind::EXPR_KIND_WHERE,
                c"tracking filter".as_ptr(),
            )
        });
        pg_sys::assign_expr_collations(state, expression);
        let mut found = Found { table, columns: Vec::new(), objection: None };
        inspect(expression, (&raw mut found).cast());
        if let Some(objection) = found.objection {
            Refusal::new(ERRCODE_FEATURE_NOT_SUPPORTED, format!("this cannot be a filter: {objection}"))
                .detail("A filter looks at one row only and always says the same of it: columns, constants, built-in immutable functions and operators.")
                .raise();
        }
        let tree = CStr::from_ptr(pg_sys::nodeToString(expression.cast())).to_string_lossy().into_owned();
        pg_sys::relation_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        found.columns.sort_unstable();
        found.columns.dedup();
        Parsed { tree, columns: found.columns }
    }
}

fn syntax_error() -> ! {
    Refusal::new(ERRCODE_SYNTAX_ERROR, "a filter is one condition, as it would stand behind WHERE").raise()
}

/// The expression, if nothing else was parsed: no FROM, no second column, no ORDER BY, …
///
/// # Safety
///
/// The list is what the parser made of an expression.
unsafe fn only_expression(raw: *mut pg_sys::List) -> Option<*mut pg_sys::Node> {
    // SAFETY: see above.
    unsafe {
        if raw.is_null() || (*raw).length != 1 {
            return None;
        }
        let statement = (*(*(*raw).elements).ptr_value.cast::<pg_sys::RawStmt>()).stmt;
        if (*statement).type_ != pg_sys::NodeTag::T_SelectStmt {
            return None;
        }
        let select = &*statement.cast::<pg_sys::SelectStmt>();
        let alone = [
            select.distinctClause,
            select.fromClause,
            select.groupClause,
            select.windowClause,
            select.valuesLists,
            select.sortClause,
            select.lockingClause,
        ];
        let nodes = [select.whereClause, select.havingClause, select.limitOffset, select.limitCount];
        let plain = alone.iter().all(|list| list.is_null())
            && nodes.iter().all(|node| node.is_null())
            && select.withClause.is_null()
            && select.op == pg_sys::SetOperation::SETOP_NONE
            && !select.targetList.is_null()
            && (*select.targetList).length == 1;
        plain.then(|| (*(*(*select.targetList).elements).ptr_value.cast::<pg_sys::ResTarget>()).val)
    }
}

/// Does an expression on a table, or a list of them, need nothing but what filters may use? Null is one that is not there.
///
/// # Safety
///
/// The expression is analysed, and the table is open.
pub(super) unsafe fn is_plain(table: pg_sys::Oid, expression: *mut pg_sys::Node) -> bool {
    let mut found = Found { table, columns: Vec::new(), objection: None };
    // SAFETY: see above.
    unsafe { inspect(expression, (&raw mut found).cast()) };
    found.objection.is_none()
}

/// Called for every node of an expression; goes on below it unless something must be objected to.
unsafe extern "C-unwind" fn inspect(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    use pg_sys::NodeTag as Tag;
    // SAFETY: PostgreSQL hands over nodes of the expression and the context that it was given. The frame holds nothing
    // with a destructor.
    unsafe {
        if node.is_null() {
            return false;
        }
        let found = &mut *context.cast::<Found>();
        let objection = match (*node).type_ {
            Tag::T_Var => {
                let column = (*node.cast::<pg_sys::Var>()).varattno;
                found.columns.push(column);
                match column {
                    ..1 => Some("it uses a system column or the whole row"),
                    _ if is_virtual(found.table, column) => {
                        Some("it uses a column that is computed when it is read, so that rows do not have it")
                    }
                    _ => None,
                }
            }
            Tag::T_SubLink | Tag::T_Query => Some("it has a subquery"),
            Tag::T_Param => Some("it has a parameter"),
            Tag::T_OpExpr
            | Tag::T_DistinctExpr
            | Tag::T_NullIfExpr
            | Tag::T_ScalarArrayOpExpr
            | Tag::T_FuncExpr
            | Tag::T_CoerceViaIO
            | Tag::T_ArrayCoerceExpr
            | Tag::T_RowCompareExpr
            | Tag::T_Const
            | Tag::T_BoolExpr
            | Tag::T_RelabelType
            | Tag::T_CollateExpr
            | Tag::T_CaseExpr
            | Tag::T_CaseWhen
            | Tag::T_CaseTestExpr
            | Tag::T_ArrayExpr
            | Tag::T_RowExpr
            | Tag::T_CoalesceExpr
            | Tag::T_MinMaxExpr
            | Tag::T_NullTest
            | Tag::T_BooleanTest
            | Tag::T_List => None,
            _ => Some("it has a kind of expression that filters do not take"),
        };
        found.objection = found.objection.or(objection);
        if found.objection.is_none() && (*node).type_ != Tag::T_List {
            let made = pg_sys::FirstNormalObjectId;
            if pg_sys::check_functions_in_node(node, Some(is_fickle), context) {
                found.objection = Some("it uses a function that is not built in, or not immutable");
            } else if pg_sys::exprType(node).to_u32() >= made || pg_sys::exprCollation(node).to_u32() >= made
            {
                found.objection = Some("it uses a type or collation that is not built in");
            }
        }
        found.objection.is_some()
            || pg_sys::ffi::pg_guard_ffi_boundary(|| expression_tree_walker(node, Some(inspect), context))
    }
}

/// Is this column computed whenever it is read?
fn is_virtual(table: pg_sys::Oid, column: i16) -> bool {
    // SAFETY: looks into the catalogue's cache.
    #[cfg(feature = "pg18")]
    return unsafe { pg_sys::get_attgenerated(table, column) } as u8 == pg_sys::ATTRIBUTE_GENERATED_VIRTUAL;
    #[cfg(not(feature = "pg18"))]
    {
        let _ = (table, column);
        false
    }
}

unsafe extern "C-unwind" fn is_fickle(function: pg_sys::Oid, _context: *mut c_void) -> bool {
    // SAFETY: reads the catalogue.
    unsafe {
        function.to_u32() >= pg_sys::FirstNormalObjectId
            || pg_sys::func_volatile(function) as u8 != pg_sys::PROVOLATILE_IMMUTABLE
    }
}

/// Do the columns that a stored filter looks at still have the types that it was parsed with?
pub fn holds(table: pg_sys::Oid, tree: &str) -> bool {
    struct Context {
        table: pg_sys::Oid,
        holds: bool,
    }
    unsafe extern "C-unwind" fn look(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
        // SAFETY: as in `inspect`.
        unsafe {
            if node.is_null() {
                return false;
            }
            if (*node).type_ == pg_sys::NodeTag::T_Var {
                let (var, context) = (&*node.cast::<pg_sys::Var>(), &mut *context.cast::<Context>());
                context.holds &= pg_sys::get_atttype(context.table, var.varattno) == var.vartype;
            }
            pg_sys::ffi::pg_guard_ffi_boundary(|| expression_tree_walker(node, Some(look), context))
        }
    }
    let Ok(tree) = CString::new(tree) else { return false };
    let mut context = Context { table, holds: true };
    // SAFETY: the tree is what `parse` stored.
    unsafe {
        look(pg_sys::stringToNode(tree.as_ptr()).cast(), (&raw mut context).cast());
    }
    context.holds
}

/// A filter, ready to be asked about rows of one table or partition.
pub struct Filter {
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
}

impl Filter {
    /// # Safety
    ///
    /// `relation` is open, `root` is the table that the filter was parsed for, and `memory` outlives the result.
    pub unsafe fn new(
        tree: &str,
        relation: pg_sys::Relation,
        root: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
    ) -> Self {
        let tree = CString::new(tree).unwrap_or_default();
        // SAFETY: see above; all that is made lives in `memory`.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(memory);
            let mut expression = pg_sys::stringToNode(tree.as_ptr()).cast::<pg_sys::Node>();
            if (*relation).rd_id != root {
                let parent = pg_sys::relation_open(root, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
                let list = pg_sys::lappend(std::ptr::null_mut(), expression.cast());
                let mapped =
                    pg_sys::ffi::pg_guard_ffi_boundary(|| map_partition_varattnos(list, 1, relation, parent));
                expression = (*(*mapped).elements).ptr_value.cast();
                pg_sys::relation_close(parent, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            }
            let executor = pg_sys::CreateExecutorState();
            let context = pg_sys::MakePerTupleExprContext(executor);
            let state = pg_sys::ExecPrepareExpr(expression.cast(), executor);
            pg_sys::MemoryContextSwitchTo(before);
            Self { state, context }
        }
    }

    /// # Safety
    ///
    /// The slot holds a row of the table that the filter was made for.
    pub unsafe fn takes(&self, row: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: see above; what the expression allocates is freed when the trigger returns.
        unsafe {
            (*self.context).ecxt_scantuple = row;
            let evaluate = (*self.state).evalfunc;
            let mut null = false;
            let result = pg_sys::ffi::pg_guard_ffi_boundary(|| match evaluate {
                Some(evaluate) => evaluate(self.state, self.context, &mut null),
                None => pg_sys::Datum::from(0),
            });
            !null && result.value() & 0xff != 0
        }
    }
}
