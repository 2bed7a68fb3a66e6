//! Attempts within a transaction: what has failed is undone, and the transaction goes on.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::worker::{Failure, failure};

/// Runs `body` in a savepoint. If it gives an error of its own, or PostgreSQL raises one in it, what it has done is undone.
/// The outer result is PostgreSQL's.
pub fn attempt<T, E>(body: impl FnOnce() -> Result<T, E>) -> Result<Result<T, E>, Failure> {
    // SAFETY: in a transaction. Memory context and resource owner are put back, as PL/pgSQL does around its blocks.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.0);
        before
    };
    let run = move || {
        let result = body();
        if result.is_ok() {
            // SAFETY: pairs with the above. An ERROR in it leaves the savepoint to be rolled back.
            unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        }
        Ok(result)
    };
    let result =
        PgTryBuilder::new(AssertUnwindSafe(run)).catch_others(|error| Err(failure(&error))).execute();
    // SAFETY: as above; the error's state was cleared when it was caught.
    unsafe {
        if !matches!(result, Ok(Ok(_))) {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}
