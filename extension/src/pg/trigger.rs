//! The triggers of tracked tables. Entry points that PostgreSQL calls with its own convention: for each row of a large
//! statement the way through a wrapper would cost as much as the capture.

use std::ffi::{CStr, c_void};

use pgquorum_change::Op;
use pgrx::PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED;
use pgrx::prelude::*;

use crate::capture;
use crate::error::Refusal;
use crate::pg::query_objects::find_all_inheritors;
use crate::pg::query_walk::items;

/// A row before or after the event.
pub struct Tuple {
    pub tuple: pg_sys::HeapTuple,
    pub slot: *mut pg_sys::TupleTableSlot,
}

/// The table of a trigger, open while it runs. Made here only.
#[derive(Clone, Copy)]
pub struct OpenTable(pub(super) pg_sys::Relation);

impl OpenTable {
    #[inline]
    pub fn relid(self) -> u32 {
        // SAFETY: the relation is open while the trigger runs.
        unsafe { (*self.0).rd_id.to_u32() }
    }

    /// The number of the file with its rows, which whatever rewrites it changes, and TRUNCATE unless this subtransaction has
    /// made the file; 0: it has none.
    pub fn file(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relfilenode.to_u32() }
    }

    fn is_partitioned(self) -> bool {
        // SAFETY: as above.
        unsafe { (*(*self.0).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE }
    }
}

/// The files that the TRUNCATE whose trigger is running is about to replace with empty ones, or to empty: a table's, or those
/// of all partitions, each with its table's oid.
pub fn files_to_be_emptied(table: OpenTable) -> Vec<(u32, u32)> {
    let mut files = Vec::new();
    let mut add = |table: OpenTable| {
        if table.file() != 0 {
            files.push((table.relid(), table.file()));
        }
    };
    if !table.is_partitioned() {
        add(table);
        return files;
    }
    // SAFETY: the statement has locked all of them before it calls its first trigger, so they are there.
    unsafe {
        let no_lock = pg_sys::NoLock as pg_sys::LOCKMODE;
        let list = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            find_all_inheritors(table.relid().into(), no_lock, std::ptr::null_mut())
        });
        for cell in items(list) {
            let relation = pg_sys::relation_open(cell.oid_value, no_lock);
            add(OpenTable(relation));
            pg_sys::relation_close(relation, no_lock);
        }
    }
    files
}

/// What happened to a row. Made here only; its pointers are valid while the trigger runs.
pub struct RowEvent {
    pub op: Op,
    pub table: OpenTable,
    pub old: Option<Tuple>,
    pub new: Option<Tuple>,
}

/// The name of the memory in which PostgreSQL calls AFTER triggers.
const AFTER_TRIGGERS: &CStr = c"AfterTriggerTupleContext";

/// A TRUNCATE that runs, by the memory that PostgreSQL keeps for it until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation(pg_sys::MemoryContext);

impl Truncation {
    /// The one whose trigger is running; to be called in the trigger's own memory context.
    pub fn running() -> Self {
        // SAFETY: a trigger is called in the context for one row, which the executor's state owns; so does ExecuteTruncateGuts.
        unsafe { Self((*pg_sys::CurrentMemoryContext).parent) }
    }

    /// Has it emptied its tables? It does so to all of them when their BEFORE triggers are through, and calls nothing of users'
    /// until their AFTER triggers. For those PostgreSQL makes memory where it made the statement's own (both in
    /// `ExecuteTruncateGuts`, the latter by `afterTriggerInvokeEvents`). BEFORE triggers run inside the statement's, and what
    /// they run in turn has memory of its own. To be asked only while the statement runs.
    pub fn has_emptied(self) -> bool {
        // SAFETY: the context is alive, so those around it are. PostgreSQL puts the youngest first, and names all of them.
        unsafe {
            let mut younger = (*(*self.0).parent).firstchild;
            while !younger.is_null() && younger != self.0 {
                if CStr::from_ptr((*younger).name) == AFTER_TRIGGERS {
                    return true;
                }
                younger = (*younger).nextchild;
            }
        }
        false
    }

    /// Has [`capture::truncation_ended`] called when it is over, however it ends.
    pub fn at_end(self) {
        // SAFETY: the context is alive, and what is called when it goes lies in it.
        unsafe {
            let size = size_of::<pg_sys::MemoryContextCallback>();
            let callback: *mut pg_sys::MemoryContextCallback =
                pg_sys::MemoryContextAllocZero(self.0, size).cast();
            (*callback).func = Some(truncation_ended);
            (*callback).arg = self.0.cast();
            pg_sys::MemoryContextRegisterResetCallback(self.0, callback);
        }
    }
}

unsafe extern "C-unwind" fn truncation_ended(context: *mut c_void) {
    capture::truncation_ended(Truncation(context.cast()));
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pgquorum_capture_row() -> &'static pg_sys::Pg_finfo_record {
    &pg_sys::Pg_finfo_record { api_version: 1 }
}

#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pgquorum_capture_truncate() -> &'static pg_sys::Pg_finfo_record {
    &pg_sys::Pg_finfo_record { api_version: 1 }
}

/// AFTER INSERT OR UPDATE OR DELETE ... FOR EACH ROW.
///
/// # Safety
///
/// Called by PostgreSQL.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pgquorum_capture_row(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: PostgreSQL hands over valid trigger data for an event of this kind, with the tuples that it has.
    unsafe {
        let Some(data) = trigger_data(fcinfo) else { protocol_violated() };
        let event = data.tg_event;
        if event & pg_sys::TRIGGER_EVENT_ROW == 0 || event & pg_sys::TRIGGER_EVENT_TIMINGMASK != 0 {
            protocol_violated();
        }
        let first = || Some(Tuple { tuple: data.tg_trigtuple, slot: data.tg_trigslot });
        let (op, old, new) = match event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => (Op::Insert, None, first()),
            pg_sys::TRIGGER_EVENT_DELETE => (Op::Delete, first(), None),
            pg_sys::TRIGGER_EVENT_UPDATE => {
                (Op::Update, first(), Some(Tuple { tuple: data.tg_newtuple, slot: data.tg_newslot }))
            }
            _ => protocol_violated(),
        };
        capture::row(&RowEvent { op, table: OpenTable(data.tg_relation), old, new });
    }
    pg_sys::Datum::from(0)
}

/// BEFORE TRUNCATE ... FOR EACH STATEMENT.
///
/// # Safety
///
/// Called by PostgreSQL.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pgquorum_capture_truncate(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: as above.
    unsafe {
        let Some(data) = trigger_data(fcinfo) else { protocol_violated() };
        if data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK != pg_sys::TRIGGER_EVENT_TRUNCATE {
            protocol_violated();
        }
        capture::truncate(OpenTable(data.tg_relation));
    }
    pg_sys::Datum::from(0)
}

/// # Safety
///
/// `fcinfo` is what PostgreSQL called a function with.
unsafe fn trigger_data<'a>(fcinfo: pg_sys::FunctionCallInfo) -> Option<&'a pg_sys::TriggerData> {
    // SAFETY: see above; the node's tag says what it is.
    unsafe {
        let context = (*fcinfo).context;
        (!context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData)
            .then(|| &*context.cast::<pg_sys::TriggerData>())
    }
}

#[cold]
fn protocol_violated() -> ! {
    Refusal::new(
        ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        "this function serves the triggers that quorum.track makes, and no others",
    )
    .raise()
}

/// Gives all rows of a table as deleted: they go with a TRUNCATE that is not one of the whole tracked table.
pub fn for_each_row(table: OpenTable, mut take: impl FnMut(&RowEvent)) {
    // SAFETY: the relation is open and locked by the statement; scan, slot and snapshot end here, or by the abort.
    unsafe {
        let relation = table.0;
        if (*(*relation).rd_rel).relkind as u8 != pg_sys::RELKIND_RELATION {
            return;
        }
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            snapshot,
            0,
            std::ptr::null_mut(),
        );
        // Emptied after each row: its values as text would else pile up until the statement ends.
        let memory = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            c"pgquorum row of a truncated partition".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            take(&RowEvent { op: Op::Delete, table, old: Some(Tuple { tuple, slot }), new: None });
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextReset(memory);
            pgrx::check_for_interrupts!();
        }
        pg_sys::MemoryContextDelete(memory);
        pg_sys::systable_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::UnregisterSnapshot(snapshot);
    }
}
