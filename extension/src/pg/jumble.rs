//! PostgreSQL's query id, where the server does not compute it for all statements.

use std::ffi::c_char;

use pgrx::pg_sys;

/// The id that the server has computed for a query; 0: none.
///
/// # Safety
///
/// The tree is valid.
pub unsafe fn given_id(query: *const pg_sys::Query) -> u64 {
    // SAFETY: see above.
    unsafe { unsigned((*query).queryId.to_ne_bytes()) }
}

/// The id that `pg_stat_statements` shows for a query. 0: it cannot be told from a tree in which views and row security
/// were put in already; then it is known only where `compute_query_id` is on.
///
/// # Safety
///
/// The arguments are the planner's, which has not changed the tree yet.
pub unsafe fn query_id(query: *mut pg_sys::Query, text: *const c_char) -> u64 {
    // SAFETY: see above. The id that is put into the tree is taken out again, so that nobody reports it; what the function
    // returns is memory of its own.
    unsafe {
        let known = given_id(query);
        if known != 0 || !is_as_written(query) {
            return known;
        }
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let state = pg_sys::JumbleQuery(query, text);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let state = {
            let _ = text;
            pg_sys::JumbleQuery(query)
        };
        let found = (*query).queryId;
        (*query).queryId = 0;
        if !state.is_null() {
            for memory in
                [(*state).jumble.cast(), (*state).clocations.cast(), state.cast::<std::ffi::c_void>()]
            {
                if !memory.is_null() {
                    pg_sys::pfree(memory);
                }
            }
        }
        unsigned(found.to_ne_bytes())
    }
}

/// Signed from PostgreSQL 18 on.
fn unsigned(bytes: [u8; 8]) -> u64 {
    u64::from_ne_bytes(bytes)
}

/// Has nothing of the query been replaced since it was analysed?
///
/// # Safety
///
/// The tree is valid.
unsafe fn is_as_written(query: *const pg_sys::Query) -> bool {
    // SAFETY: see above; the list holds range table entries.
    unsafe {
        if (*query).hasRowSecurity || (*query).hasSubLinks || !(*query).cteList.is_null() {
            return false;
        }
        let list = (*query).rtable;
        let length = if list.is_null() { 0 } else { usize::try_from((*list).length).unwrap_or(0) };
        (0..length).all(|at| {
            let entry = (*(*list).elements.add(at)).ptr_value.cast::<pg_sys::RangeTblEntry>();
            (*entry).rtekind != pg_sys::RTEKind::RTE_SUBQUERY && (*entry).securityQuals.is_null()
        })
    }
}
