//! A table that changes are applied to: opened once in a transaction, with all that each change needs.
//!
//! What is opened here belongs to the transaction and outlives savepoints. What a single change opens (scans, pinned pages)
//! belongs to the savepoint in which it is applied, and is let go of before that ends: see `apply_write`.

use std::ffi::CStr;

use pgquorum_change::Schema;
use pgrx::pg_sys;

use super::apply_key::{Key, key_index, unique_indexes};
use super::apply_state::executor_state;
use super::apply_value::{Input, in_server_encoding};
use super::apply_write::defaults;
use super::describe::attributes;
use super::encoding;
use super::owner_rights::AsOwner;
use super::worker::lock;

/// Why changes cannot be applied to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// SQLSTATE.
    pub code: &'static str,
    pub message: String,
}

/// A column that the source sends.
pub(super) struct Column {
    /// Position in the table, from 0; `None`: it is computed here.
    pub place: Option<usize>,
    pub input: Input,
}

/// An open table. Not closed by being dropped: after an abort PostgreSQL has done that.
pub struct Target {
    pub(super) relation: pg_sys::Relation,
    owner: pg_sys::Oid,
    /// All that lives as long as this.
    pub(super) memory: pg_sys::MemoryContext,
    /// What one change needs.
    pub(super) row: pg_sys::MemoryContext,
    pub(super) estate: *mut pg_sys::EState,
    pub(super) result: *mut pg_sys::ResultRelInfo,
    pub(super) epq: *mut pg_sys::EPQState,
    /// The new row.
    pub(super) incoming: *mut pg_sys::TupleTableSlot,
    /// The row that was found here.
    pub(super) found: *mut pg_sys::TupleTableSlot,
    pub(super) columns: Vec<Column>,
    /// Columns that the source does not send and that have a default.
    pub(super) defaults: Vec<(usize, *mut pg_sys::ExprState)>,
    /// `None`: a partitioned table, whose rows are in its partitions.
    pub(super) key: Option<Key>,
    /// Indexes that a new row may collide in, each as a list of its own.
    pub(super) unique: Vec<(pg_sys::Oid, *mut pg_sys::List)>,
    pub(super) has_triggers: bool,
    /// Rows are found and written with the rights of the table's owner, as code of others may run meanwhile.
    pub(super) needs_owner: bool,
    /// New rows that are to be inserted together; `None`: each is inserted by itself.
    pub(super) gathered: Option<super::apply_gather::Gathered>,
    /// How keys are numbered; empty: they are not.
    pub(super) parts: Vec<super::apply_number::Part>,
    pub(super) room: Vec<u8>,
    pub(super) routing: Option<super::apply_route::Routing>,
    /// Which rows are wanted; `None`: all.
    pub(super) filter: Option<super::apply_filter::RowFilter>,
}

/// Things that are opened now belong to the transaction until this is dropped.
pub(super) struct Lasting(pg_sys::ResourceOwner, pg_sys::MemoryContext);

impl Lasting {
    pub(super) fn new(memory: pg_sys::MemoryContext) -> Self {
        // SAFETY: in a transaction; both are put back when dropped, or by the abort.
        unsafe {
            let owner = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
            Self(owner, pg_sys::MemoryContextSwitchTo(memory))
        }
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        // SAFETY: as above. While a panic unwinds, whoever catches it puts them back as well.
        unsafe {
            pg_sys::CurrentResourceOwner = self.0;
            pg_sys::MemoryContextSwitchTo(self.1);
        }
    }
}

pub(super) fn memory(parent: pg_sys::MemoryContext, name: &'static CStr) -> pg_sys::MemoryContext {
    // SAFETY: the parent is alive and the name static.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            name.as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

/// The schemas in which nothing may be written by following somebody.
const OWN_SCHEMAS: [&str; 5] = ["pg_catalog", "information_schema", "pg_toast", "quorum", "quorum_log"];

/// The table with the name that a schema version says, locked for writing. `None`: there is none.
pub fn find(schema: &Schema) -> Option<u32> {
    // SAFETY: in a transaction; names are copied into the memory of the statement. The lock is the transaction's.
    unsafe {
        let _lasting = Lasting::new(pg_sys::CurrentMemoryContext);
        let name = |text: &str| {
            let text = in_server_encoding(text.as_bytes());
            pg_sys::pnstrdup(text.as_ptr().cast(), text.len())
        };
        let range = pg_sys::makeRangeVar(name(&schema.schema), name(&schema.table), -1);
        let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
        let oid = pg_sys::RangeVarGetRelidExtended(
            range,
            lock::ROW_EXCLUSIVE,
            missing_ok,
            None,
            std::ptr::null_mut(),
        );
        (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
    }
}

/// The owner of a table that is locked. `None`: it has gone.
pub fn owner_of(oid: u32) -> Option<u32> {
    // SAFETY: opened and closed again; the lock is there already.
    unsafe {
        let relation = pg_sys::try_table_open(oid.into(), lock::ROW_EXCLUSIVE);
        if relation.is_null() {
            return None;
        }
        let owner = (*(*relation).rd_rel).relowner.to_u32();
        pg_sys::table_close(relation, lock::NONE);
        Some(owner)
    }
}

impl Target {
    /// Opens a table, or a partition of it, for changes of this schema version.
    pub fn open(oid: u32, schema: &Schema) -> Result<Self, Fault> {
        let name = || format!("{}.{}", schema.schema, schema.table);
        if OWN_SCHEMAS.contains(&schema.schema.as_str()) {
            let message = format!("table {} is one of the system's or of pgquorum's own", name());
            return Err(Fault { code: "42501", message });
        }
        // SAFETY: in a transaction. What is opened is closed in `close`, or by the abort.
        unsafe {
            let memory = memory(pg_sys::TopTransactionContext, c"pgquorum applied table");
            let lasting = Lasting::new(memory);
            let relation = pg_sys::try_table_open(oid.into(), lock::ROW_EXCLUSIVE);
            if relation.is_null() {
                return Err(missing(&name()));
            }
            let opened = {
                // What can be computed beforehand is: also that runs with no more rights.
                let _owner = AsOwner::new((*(*relation).rd_rel).relowner.to_u32());
                Self::of(relation, schema, memory)
            };
            if opened.is_err() {
                pg_sys::table_close(relation, lock::NONE);
                drop(lasting);
                pg_sys::MemoryContextDelete(memory);
            }
            opened
        }
    }

    /// # Safety
    ///
    /// The relation is open, `memory` is the present context, and the transaction's resource owner the present one.
    unsafe fn of(
        relation: pg_sys::Relation,
        schema: &Schema,
        memory: pg_sys::MemoryContext,
    ) -> Result<Self, Fault> {
        // SAFETY: see above.
        unsafe {
            let kind = (*(*relation).rd_rel).relkind as u8;
            if kind != pg_sys::RELKIND_RELATION && kind != pg_sys::RELKIND_PARTITIONED_TABLE {
                let message = format!("{}.{} is not an ordinary table here", schema.schema, schema.table);
                return Err(Fault { code: "42809", message });
            }
            let partitioned = kind == pg_sys::RELKIND_PARTITIONED_TABLE;
            let columns = columns(relation, schema, memory)?;
            let key_index = key_index(relation, schema, &columns)?;
            let descriptor = pg_sys::CreateTupleDescCopyConstr((*relation).rd_att);
            let (estate, result) = executor_state(relation, &columns);
            if !partitioned {
                pg_sys::ExecOpenIndices(result, true);
                #[cfg(any(feature = "pg17", feature = "pg18"))]
                super::apply_indexes::set_apart(result, memory);
            }
            let epq: *mut pg_sys::EPQState = pg_sys::palloc0(size_of::<pg_sys::EPQState>()).cast();
            let (no_plan, no_marks) = (std::ptr::null_mut(), std::ptr::null_mut());
            #[cfg(any(feature = "pg14", feature = "pg15"))]
            pg_sys::EvalPlanQualInit(epq, estate, no_plan, no_marks, -1);
            #[cfg(not(any(feature = "pg14", feature = "pg15")))]
            pg_sys::EvalPlanQualInit(epq, estate, no_plan, no_marks, -1, std::ptr::null_mut());
            let triggers = (*result).ri_TrigDesc;
            if !triggers.is_null() {
                // Made here, since they hold on to the table's description and would else belong to a savepoint.
                pg_sys::ExecGetTriggerOldSlot(estate, result);
                pg_sys::ExecGetTriggerNewSlot(estate, result);
            }
            // Made here for the same reason.
            pg_sys::MakePerTupleExprContext(estate);
            let mut target = Self {
                relation,
                owner: (*(*relation).rd_rel).relowner,
                memory,
                row: self::memory(memory, c"pgquorum applied row"),
                estate,
                result,
                epq,
                incoming: pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsVirtual),
                found: pg_sys::MakeSingleTupleTableSlot(descriptor, pg_sys::table_slot_callbacks(relation)),
                defaults: defaults(relation, &columns),
                columns,
                key: None,
                unique: Vec::new(),
                has_triggers: !triggers.is_null(),
                needs_owner: true,
                gathered: None,
                parts: Vec::new(),
                room: Vec::new(),
                routing: None,
                filter: None,
            };
            if partitioned {
                target.routing = Some(super::apply_route::Routing::new(&target));
            } else {
                target.unique = unique_indexes(result);
            }
            target.key = Some(Key::new(key_index, schema, &target.columns));
            target.needs_owner = super::apply_calls::needs_owner(&target);
            target.gathered = super::apply_gather::Gathered::of(&target);
            Ok(target)
        }
    }

    pub fn oid(&self) -> u32 {
        // SAFETY: the relation is open.
        unsafe { (*self.relation).rd_id.to_u32() }
    }

    pub fn owner(&self) -> u32 {
        self.owner.to_u32()
    }

    /// As people read it.
    pub fn name(&self) -> String {
        super::names::relation(self.oid())
    }

    pub fn is_partitioned(&self) -> bool {
        self.routing.is_some()
    }

    /// Closes the table; the lock stays. After an error that was caught since it was opened, `clean` is false: what it
    /// held for the change that failed is gone already.
    pub fn close(mut self, clean: bool) {
        // SAFETY: opened by this transaction and not closed since.
        unsafe {
            if clean {
                self.tidy();
            } else if self.has_triggers {
                forget((*self.result).ri_TrigOldSlot);
                forget((*self.result).ri_TrigNewSlot);
            }
            // Where nothing has failed there is nothing left.
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            super::apply_indexes::forget(self.result);
            let lasting = Lasting::new(self.memory);
            if let Some(routing) = self.routing.take() {
                routing.close();
            }
            if let Some(key) = self.key.take() {
                pg_sys::index_close(key.index, lock::NONE);
            }
            pg_sys::ExecCloseIndices(self.result);
            if clean {
                pg_sys::EvalPlanQualEnd(self.epq);
            }
            // The slots of triggers hold on to the table's description.
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.relation, lock::NONE);
            drop(lasting);
            pg_sys::MemoryContextDelete(self.memory);
        }
    }
}

/// Empties a slot whose page was let go of with a savepoint.
///
/// # Safety
///
/// The slot is one of a table's rows.
unsafe fn forget(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: see above; the kind of a slot says what it consists of.
    unsafe {
        if std::ptr::eq((*slot).tts_ops, &raw const pg_sys::TTSOpsBufferHeapTuple) {
            (*slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).buffer = pg_sys::InvalidBuffer as i32;
        }
        (*slot).tts_flags = pg_sys::TTS_FLAG_EMPTY as u16;
    }
}

#[cold]
pub fn missing(name: &str) -> Fault {
    Fault { code: "42P01", message: format!("there is no table {name} here") }
}

/// # Safety
///
/// The relation is open.
unsafe fn columns(
    relation: pg_sys::Relation,
    schema: &Schema,
    memory: pg_sys::MemoryContext,
) -> Result<Vec<Column>, Fault> {
    // SAFETY: see above.
    let attributes = unsafe { attributes(relation) };
    let place = |name: &str| {
        attributes.iter().position(|attribute| {
            // SAFETY: names end with a zero.
            let found = unsafe { CStr::from_ptr(attribute.attname.data.as_ptr()) };
            !attribute.attisdropped && encoding::to_utf8(found.to_bytes()) == name
        })
    };
    let mut columns = Vec::with_capacity(schema.columns.len());
    let mut lacking = Vec::new();
    for column in &schema.columns {
        let Some(at) = place(&column.name) else {
            lacking.push(column.name.as_str());
            continue;
        };
        let attribute = &attributes[at];
        // SAFETY: the type is that of a column of an open table.
        let input = unsafe { Input::new(attribute.atttypid, attribute.atttypmod, memory) };
        let computed = attribute.attgenerated != 0;
        columns.push(Column { place: (!computed).then_some(at), input });
    }
    if lacking.is_empty() {
        return Ok(columns);
    }
    let message = format!(
        "table {}.{} lacks columns that it has at the source: {}",
        schema.schema,
        schema.table,
        lacking.join(", ")
    );
    Err(Fault { code: "42703", message })
}
