//! Which partition a row of a partitioned table belongs to.

use std::ffi::c_void;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::apply_target::{Lasting, Target};

unsafe extern "C-unwind" {
    /// executor/execPartition.h; missing from pgrx's bindings.
    fn ExecSetupPartitionTupleRouting(estate: *mut pg_sys::EState, relation: pg_sys::Relation)
    -> *mut c_void;
    fn ExecFindPartition(
        state: *mut pg_sys::ModifyTableState,
        root: *mut pg_sys::ResultRelInfo,
        routing: *mut c_void,
        slot: *mut pg_sys::TupleTableSlot,
        estate: *mut pg_sys::EState,
    ) -> *mut pg_sys::ResultRelInfo;
    fn ExecCleanupTupleRouting(state: *mut pg_sys::ModifyTableState, routing: *mut c_void);
}

/// What PostgreSQL needs to find partitions. It opens those that it finds, until it is closed.
pub(super) struct Routing {
    state: *mut pg_sys::ModifyTableState,
    routing: *mut c_void,
}

impl Routing {
    /// # Safety
    ///
    /// The table is open and partitioned, its memory the present context, and the transaction's resource owner the
    /// present one.
    pub(super) unsafe fn new(target: &Target) -> Self {
        // SAFETY: see above; a node is zeroed and given its tag.
        unsafe {
            let state: *mut pg_sys::ModifyTableState =
                pg_sys::palloc0(size_of::<pg_sys::ModifyTableState>()).cast();
            (*state).ps.type_ = pg_sys::NodeTag::T_ModifyTableState;
            (*state).ps.state = target.estate;
            (*state).operation = pg_sys::CmdType::CMD_INSERT;
            (*state).resultRelInfo = target.result;
            let (estate, relation) = (target.estate, target.relation);
            let routing = pg_guard_ffi_boundary(|| ExecSetupPartitionTupleRouting(estate, relation));
            Self { state, routing }
        }
    }

    /// # Safety
    ///
    /// Made by this transaction; the transaction's resource owner is the present one.
    pub(super) unsafe fn close(self) {
        // SAFETY: see above.
        unsafe { pg_guard_ffi_boundary(|| ExecCleanupTupleRouting(self.state, self.routing)) }
    }
}

impl Target {
    /// The partition for the row in the slot of new rows, which has at least the columns by which it is found. Raises 23514
    /// if there is none.
    ///
    /// # Safety
    ///
    /// The slot holds a row.
    pub(super) unsafe fn partition_of_incoming(&mut self) -> u32 {
        let Some(routing) = &self.routing else { return self.oid() };
        let (state, handle) = (routing.state, routing.routing);
        let (result, slot, estate) = (self.result, self.incoming, self.estate);
        // SAFETY: see above. What is opened stays open, as the transaction's.
        unsafe {
            let _lasting = Lasting::new(self.memory);
            let leaf = pg_guard_ffi_boundary(|| ExecFindPartition(state, result, handle, slot, estate));
            (*(*leaf).ri_RelationDesc).rd_id.to_u32()
        }
    }
}
