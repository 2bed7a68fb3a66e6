//! A walk through an analysed tree, node by node. What a node names is looked up in `query_objects`.
//!
//! It runs at every planning. So PostgreSQL's functions are called without pgrx's guards, and all that is found lies in
//! one value without a destructor: an ERROR jumps over the frames. A kind of node that is not known here makes the
//! statement unproven, so that a new version of PostgreSQL brings no wrong proofs.

use std::ffi::{c_int, c_void};

use pg_sys::NodeTag as Tag;
use pgrx::pg_sys;

use crate::statements::proof::{About, Examined};

type Walker = Option<unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool>;

unsafe extern "C-unwind" {
    // nodes/nodeFuncs.h; missing from pgrx's bindings.
    #[cfg_attr(
        any(feature = "pg16", feature = "pg17", feature = "pg18"),
        link_name = "expression_tree_walker_impl"
    )]
    fn expression_tree_walker(node: *mut pg_sys::Node, walker: Walker, context: *mut c_void) -> bool;
    #[cfg_attr(
        any(feature = "pg16", feature = "pg17", feature = "pg18"),
        link_name = "query_tree_walker_impl"
    )]
    fn query_tree_walker(
        query: *mut pg_sys::Query,
        walker: Walker,
        context: *mut c_void,
        flags: c_int,
    ) -> bool;
}

/// What is to be proven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// That the statement can run.
    Run,
    /// That it can be planned, as EXPLAIN does: PostgreSQL calls only STABLE and IMMUTABLE functions then.
    Plan,
}

/// What a walk has found, and where it is.
pub(super) struct Walk {
    pub found: Examined,
    pub mode: Mode,
    /// How deep in row security policies. They come as they were written: views in them are not expanded.
    pub policies: u8,
    /// Types that were looked at.
    pub types: [u32; 32],
    pub type_count: usize,
    /// Which of them were looked at as types of values that are made here; a bit for each.
    pub made_types: u32,
    /// Which of them have input and output functions of their own.
    pub own_types: u32,
    /// There are rows or arrays, which compare what is in them by functions that the tree does not name.
    pub containers: bool,
}

/// Examines a tree.
///
/// # Safety
///
/// The tree is analysed, rewritten and valid, and its relations are locked; in a transaction.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub unsafe fn examine(query: *mut pg_sys::Query, mode: Mode) -> Examined {
    let mut walk = Walk {
        found: Examined::default(),
        mode,
        policies: 0,
        types: [0; 32],
        type_count: 0,
        made_types: 0,
        own_types: 0,
        containers: false,
    };
    // SAFETY: see above.
    unsafe {
        if mode == Mode::Run && (*query).querySource != pg_sys::QuerySource::QSRC_ORIGINAL {
            walk.found.refuse(About::Statement, "is what a rule does when a table is written to");
        }
        visit(query.cast(), (&raw mut walk).cast());
    }
    walk.finish();
    walk.found
}

/// The items of a list.
///
/// # Safety
///
/// The list is null or valid, and stays as it is while the items are used.
pub(super) unsafe fn items<'a>(list: *mut pg_sys::List) -> &'a [pg_sys::ListCell] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: see above; a list has as many elements as it says.
    unsafe { std::slice::from_raw_parts((*list).elements, usize::try_from((*list).length).unwrap_or(0)) }
}

/// Called for each node; goes on below it. Always `false`, which means "go on".
///
/// # Safety
///
/// The node is null or valid; the context is a [`Walk`] that nobody else uses meanwhile.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub(super) unsafe extern "C-unwind" fn visit(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: see above; the tags say what the nodes are. The walk is not used any more when PostgreSQL calls back.
    unsafe {
        if node.is_null() {
            return false;
        }
        let walk = &mut *context.cast::<Walk>();
        match (*node).type_ {
            // What most trees are made of, and what has nothing below it.
            Tag::T_Var => {
                walk.value((*node.cast::<pg_sys::Var>()).vartype.to_u32());
                return false;
            }
            Tag::T_Const => {
                walk.data_type((*node.cast::<pg_sys::Const>()).consttype.to_u32());
                return false;
            }
            Tag::T_Param => {
                walk.data_type((*node.cast::<pg_sys::Param>()).paramtype.to_u32());
                return false;
            }
            Tag::T_SortGroupClause => {
                walk.sorting(&*node.cast());
                return false;
            }
            Tag::T_RangeTblEntry => {
                // Its contents are visited by whoever visits the query.
                walk.entry(&*node.cast());
                return false;
            }
            Tag::T_RangeTblRef | Tag::T_SQLValueFunction | Tag::T_SetToDefault | Tag::T_CTESearchClause => {
                return false;
            }
            Tag::T_Query => {
                walk.query(&*node.cast());
                let flags = pg_sys::QTW_EXAMINE_RTES_BEFORE | pg_sys::QTW_EXAMINE_SORTGROUP;
                return query_tree_walker(node.cast(), Some(visit), context, flags as c_int);
            }
            Tag::T_List
            | Tag::T_TargetEntry
            | Tag::T_FromExpr
            | Tag::T_JoinExpr
            | Tag::T_BoolExpr
            | Tag::T_NullTest
            | Tag::T_BooleanTest
            | Tag::T_NamedArgExpr
            | Tag::T_CaseExpr
            | Tag::T_CaseWhen
            | Tag::T_CoalesceExpr
            | Tag::T_CollateExpr
            | Tag::T_GroupingFunc
            | Tag::T_SubscriptingRef
            | Tag::T_XmlExpr
            | Tag::T_CommonTableExpr => {}
            _ => walk.expression(node),
        }
        expression_tree_walker(node, Some(visit), context)
    }
}

impl Walk {
    fn query(&mut self, query: &pg_sys::Query) {
        if self.mode == Mode::Plan {
            return;
        }
        if query.commandType != pg_sys::CmdType::CMD_SELECT || query.hasModifyingCTE {
            self.found
                .refuse(About::Statement, "writes: it is, or holds, an INSERT, UPDATE, DELETE or MERGE");
        } else if !query.rowMarks.is_null() {
            self.found.refuse(About::Statement, "locks rows (FOR UPDATE, FOR SHARE), which a replica cannot");
        }
    }

    /// An entry of the list of what a query reads from.
    unsafe fn entry(&mut self, entry: &pg_sys::RangeTblEntry) {
        use pg_sys::RTEKind::{RTE_NAMEDTUPLESTORE, RTE_RELATION, RTE_SUBQUERY};
        match entry.rtekind {
            // SAFETY: the relations of the tree are locked.
            RTE_RELATION => unsafe { self.relation(entry.relid.to_u32(), entry.inh) },
            // A view, of which this is what takes its place. Up to PostgreSQL 15 it has an entry of its own inside of that.
            // SAFETY: as above.
            RTE_SUBQUERY => unsafe { self.relation(entry.relid.to_u32(), false) },
            RTE_NAMEDTUPLESTORE => {
                self.found.doubt(About::Statement, "reads rows that only a trigger or a function has");
            }
            _ => {}
        }
    }

    fn sorting(&mut self, clause: &pg_sys::SortGroupClause) {
        for operator in [clause.eqop.to_u32(), clause.sortop.to_u32()] {
            if operator != 0 {
                self.operator(operator, 0);
            }
        }
    }

    /// The kinds of nodes that are looked at before what is below them.
    unsafe fn expression(&mut self, node: *mut pg_sys::Node) {
        // SAFETY: the tag says what the node is.
        unsafe {
            match (*node).type_ {
                Tag::T_OpExpr | Tag::T_DistinctExpr | Tag::T_NullIfExpr => {
                    let operation = &*node.cast::<pg_sys::OpExpr>();
                    self.operator(operation.opno.to_u32(), operation.opfuncid.to_u32());
                    self.value(operation.opresulttype.to_u32());
                }
                Tag::T_ScalarArrayOpExpr => {
                    let operation = &*node.cast::<pg_sys::ScalarArrayOpExpr>();
                    self.operator(operation.opno.to_u32(), operation.opfuncid.to_u32());
                }
                Tag::T_FuncExpr => {
                    let call = &*node.cast::<pg_sys::FuncExpr>();
                    if call.funcformat == pg_sys::CoercionForm::COERCE_EXPLICIT_CALL {
                        self.call(call.funcid.to_u32(), items(call.args).len());
                        self.value(call.funcresulttype.to_u32());
                    } else {
                        self.function(call.funcid.to_u32());
                        self.data_type(call.funcresulttype.to_u32());
                    }
                }
                Tag::T_Aggref => {
                    let call = &*node.cast::<pg_sys::Aggref>();
                    let arguments = items(call.args).len() + items(call.aggdirectargs).len();
                    self.call(call.aggfnoid.to_u32(), arguments);
                    self.value(call.aggtype.to_u32());
                }
                Tag::T_WindowFunc => {
                    let call = &*node.cast::<pg_sys::WindowFunc>();
                    self.call(call.winfnoid.to_u32(), items(call.args).len());
                    self.value(call.wintype.to_u32());
                }
                Tag::T_WindowClause => {
                    let clause = &*node.cast::<pg_sys::WindowClause>();
                    for function in [clause.startInRangeFunc.to_u32(), clause.endInRangeFunc.to_u32()] {
                        if function != 0 {
                            self.function(function);
                        }
                    }
                }
                Tag::T_RowCompareExpr => {
                    let comparison = &*node.cast::<pg_sys::RowCompareExpr>();
                    items(comparison.opnos).iter().for_each(|cell| {
                        self.operator(cell.oid_value.to_u32(), 0);
                    });
                }
                Tag::T_SetOperationStmt => {
                    let operation = &*node.cast::<pg_sys::SetOperationStmt>();
                    items(operation.groupClauses)
                        .iter()
                        .for_each(|cell| self.sorting(&*cell.ptr_value.cast::<pg_sys::SortGroupClause>()));
                }
                Tag::T_CTECycleClause => {
                    self.operator((*node.cast::<pg_sys::CTECycleClause>()).cycle_mark_neop.to_u32(), 0);
                }
                Tag::T_TableSampleClause => {
                    self.function((*node.cast::<pg_sys::TableSampleClause>()).tsmhandler.to_u32());
                }
                // What turns values into others, and rows into columns.
                Tag::T_CoerceViaIO => {
                    self.data_type((*node.cast::<pg_sys::CoerceViaIO>()).resulttype.to_u32());
                }
                Tag::T_CoerceToDomain => {
                    self.data_type((*node.cast::<pg_sys::CoerceToDomain>()).resulttype.to_u32());
                }
                Tag::T_RelabelType => {
                    self.value((*node.cast::<pg_sys::RelabelType>()).resulttype.to_u32());
                }
                Tag::T_ArrayCoerceExpr => {
                    self.value((*node.cast::<pg_sys::ArrayCoerceExpr>()).resulttype.to_u32());
                }
                Tag::T_ConvertRowtypeExpr => {
                    self.value((*node.cast::<pg_sys::ConvertRowtypeExpr>()).resulttype.to_u32());
                }
                Tag::T_CaseTestExpr => self.value((*node.cast::<pg_sys::CaseTestExpr>()).typeId.to_u32()),
                Tag::T_FieldSelect => self.value((*node.cast::<pg_sys::FieldSelect>()).resulttype.to_u32()),
                Tag::T_ArrayExpr => self.value((*node.cast::<pg_sys::ArrayExpr>()).array_typeid.to_u32()),
                Tag::T_RowExpr => self.value((*node.cast::<pg_sys::RowExpr>()).row_typeid.to_u32()),
                Tag::T_MinMaxExpr => {
                    let expression = &*node.cast::<pg_sys::MinMaxExpr>();
                    self.containers |= expression.minmaxtype.to_u32() >= pg_sys::FirstNormalObjectId;
                    self.value(expression.minmaxtype.to_u32());
                }
                Tag::T_SubLink => {
                    let kind = (*node.cast::<pg_sys::SubLink>()).subLinkType;
                    self.containers |= kind == pg_sys::SubLinkType::ARRAY_SUBLINK;
                }
                Tag::T_RangeTblFunction => {
                    let columns = (*node.cast::<pg_sys::RangeTblFunction>()).funccoltypes;
                    items(columns).iter().for_each(|cell| self.data_type(cell.oid_value.to_u32()));
                }
                Tag::T_TableFunc => {
                    let columns = (*node.cast::<pg_sys::TableFunc>()).coltypes;
                    items(columns).iter().for_each(|cell| self.data_type(cell.oid_value.to_u32()));
                }
                Tag::T_NextValueExpr if self.mode == Mode::Run => {
                    self.found.refuse(About::Statement, "draws from a sequence");
                }
                // Parts of statements that write, which EXPLAIN plans.
                Tag::T_NextValueExpr
                | Tag::T_OnConflictExpr
                | Tag::T_InferenceElem
                | Tag::T_WithCheckOption
                | Tag::T_FieldStore
                | Tag::T_CurrentOfExpr
                    if self.mode == Mode::Plan => {}
                #[cfg(not(feature = "pg14"))]
                Tag::T_MergeAction if self.mode == Mode::Plan => {}
                _ => self.found.doubt(About::Statement, "holds something that the proof does not know"),
            }
        }
    }
}
