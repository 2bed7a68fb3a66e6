//! New rows of a table that are gathered and inserted together, as COPY does: a page is locked, and an entry of the WAL made,
//! once for many of them. Only where nothing looks at a row while it is inserted; what raises an error raises the same as
//! where rows are inserted one by one.

use std::ffi::c_int;

use pgquorum_change::Image;
use pgrx::pg_sys;

use super::apply_slot::{empty, reset};
use super::apply_target::{Target, memory};
use super::describe::attributes;

/// At most so many rows are inserted together, as by COPY; and so many bytes of slots and of values lie there for them.
const ROWS_MAX: usize = 1000;
const SLOT_BYTES_MAX: usize = 256 * 1024;
const VALUE_BYTES_MAX: usize = 64 * 1024;

/// What the error is at, while rows are inserted; `None`: at one of several.
pub type Trying = Option<u64>;

/// Rows that are gathered.
pub(super) struct Gathered {
    /// A slot for each row that there was at a time.
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    /// The ticks of the changes that the rows are of.
    ticks: Vec<u64>,
    /// How large they were encoded.
    bytes: usize,
    rows_max: usize,
    /// What the values are in.
    memory: pg_sys::MemoryContext,
    /// Columns that must have a value.
    needed: Vec<usize>,
    has_checks: bool,
}

impl Gathered {
    /// `None`: rows of this table are inserted one by one.
    ///
    /// # Safety
    ///
    /// The table is open, and everything about it is known but this.
    pub(super) unsafe fn of(target: &Target) -> Option<Self> {
        // SAFETY: see above.
        unsafe {
            let relation = &*target.relation;
            let columns = attributes(target.relation);
            let is_heap = relation.rd_amhandler.to_u32() == pg_sys::F_HEAP_TABLEAM_HANDLER;
            // What is computed PostgreSQL computes for one row, and its function for that is not for others.
            let computes = columns.iter().any(|column| column.attgenerated != 0);
            if target.needs_owner || !is_heap || computes {
                return None;
            }
            let needed = (0..columns.len())
                .filter(|at| columns[*at].attnotnull && !columns[*at].attisdropped)
                .collect();
            let constraints = (*relation.rd_att).constr;
            let slot = size_of::<pg_sys::VirtualTupleTableSlot>()
                + columns.len() * (size_of::<pg_sys::Datum>() + size_of::<bool>());
            Some(Self {
                slots: Vec::new(),
                ticks: Vec::new(),
                bytes: 0,
                rows_max: (SLOT_BYTES_MAX / slot).clamp(1, ROWS_MAX),
                memory: memory(target.memory, c"pgquorum gathered rows"),
                needed,
                has_checks: !constraints.is_null() && (*constraints).num_check > 0,
            })
        }
    }

    fn is_full(&self) -> bool {
        self.ticks.len() >= self.rows_max || self.bytes >= VALUE_BYTES_MAX
    }
}

impl Target {
    /// Are new rows gathered?
    pub fn gathers(&self) -> bool {
        self.gathered.is_some()
    }

    /// Takes a new row in, of the change at this tick that is so large. If that is as many as there may be, they are inserted.
    /// False: the image is not whole.
    pub fn gather(&mut self, image: Image, tick: u64, bytes: usize, trying: &mut Trying) -> bool {
        let Some(gathered) = &mut self.gathered else { return false };
        let memory = gathered.memory;
        let slot = match gathered.slots.get(gathered.ticks.len()) {
            Some(slot) => *slot,
            None => {
                // SAFETY: in a transaction; the slot and the description of its row live as long as the table is open.
                let slot = unsafe {
                    let outer = pg_sys::MemoryContextSwitchTo(self.memory);
                    let descriptor = (*self.incoming).tts_tupleDescriptor;
                    let kind = &raw const pg_sys::TTSOpsVirtual;
                    let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, kind);
                    pg_sys::MemoryContextSwitchTo(outer);
                    slot
                };
                gathered.slots.push(slot);
                slot
            }
        };
        // SAFETY: the slot is one of this table's rows; values stay in memory until the row is inserted.
        let outer = unsafe { pg_sys::MemoryContextSwitchTo(memory) };
        // SAFETY: see above.
        let whole = unsafe { self.fill_new(slot, image) };
        if whole {
            // SAFETY: the slot holds a row now.
            unsafe { self.check(slot) };
        }
        // SAFETY: the context that was the present one.
        unsafe { pg_sys::MemoryContextSwitchTo(outer) };
        let Some(gathered) = self.gathered.as_mut().filter(|_| whole) else { return false };
        gathered.ticks.push(tick);
        gathered.bytes += bytes;
        if gathered.is_full() {
            self.insert_gathered(trying);
        }
        true
    }

    /// Raises what a constraint says against a row.
    ///
    /// # Safety
    ///
    /// The slot holds a row of this table.
    unsafe fn check(&mut self, slot: *mut pg_sys::TupleTableSlot) {
        let Some(gathered) = &self.gathered else { return };
        // SAFETY: see above; there are as many values as the table has columns.
        unsafe {
            let lacks = gathered.needed.iter().any(|at| *(*slot).tts_isnull.add(*at));
            if gathered.has_checks || lacks {
                pg_sys::ExecConstraints(self.result, slot, self.estate);
            }
        }
    }

    /// Inserts the rows that were gathered, and says meanwhile which one it is at.
    pub fn insert_gathered(&mut self, trying: &mut Trying) {
        let Some(gathered) = &mut self.gathered else { return };
        if gathered.ticks.is_empty() {
            return;
        }
        let before = *trying;
        // SAFETY: in a transaction with a snapshot; the slots hold rows of this table, which is a heap. Where they are is in the
        // slots when they are in the table, as its indexes want it. Nobody else uses the memory that is freed.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(gathered.memory);
            let command = pg_sys::GetCurrentCommandId(true);
            (*self.estate).es_snapshot = pg_sys::GetActiveSnapshot();
            (*self.estate).es_output_cid = command;
            pg_sys::CheckCmdReplicaIdentity(self.relation, pg_sys::CmdType::CMD_INSERT);
            let slots = gathered.slots.as_mut_ptr();
            let count = gathered.ticks.len();
            *trying = None;
            let nowhere = std::ptr::null_mut();
            pg_sys::heap_multi_insert(self.relation, slots, count as c_int, command, 0, nowhere);
            if (*self.result).ri_NumIndices > 0 {
                for (slot, tick) in gathered.slots.iter().zip(&gathered.ticks) {
                    *trying = Some(*tick);
                    insert_index_entries(self.result, *slot, self.estate);
                }
            }
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            super::apply_indexes::let_go(self.result);
            pg_sys::MemoryContextSwitchTo(outer);
            if gathered.bytes >= VALUE_BYTES_MAX {
                // A slot keeps a copy of its row until its next one, which may not come.
                for slot in &gathered.slots[..count] {
                    empty(*slot);
                }
            }
            reset(gathered.memory);
            reset((*(*self.estate).es_per_tuple_exprcontext).ecxt_per_tuple_memory);
        }
        gathered.ticks.clear();
        gathered.bytes = 0;
        *trying = before;
    }
}

/// # Safety
///
/// The slot holds a row that is in the table, whose indexes are open.
unsafe fn insert_index_entries(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
) {
    // What is to be looked at again later, in deferrable indexes, is what their triggers look at, which rest.
    let (conflict, arbiters) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: see above.
    #[cfg(any(feature = "pg14", feature = "pg15"))]
    unsafe {
        pg_sys::ExecInsertIndexTuples(result, slot, estate, false, false, conflict, arbiters);
    }
    // SAFETY: see above.
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    unsafe {
        pg_sys::ExecInsertIndexTuples(result, slot, estate, false, false, conflict, arbiters, false);
    }
}
