//! What setting sequences needs beside SQL, which has no lock for them.

use pgrx::prelude::*;

use crate::error::Refusal;
use crate::pg::sequence;

/// Keeps others from taking numbers from a sequence until the transaction ends, and waits for transactions that have taken
/// some. How long it waits says `lock_timeout`, which the function has for itself.
///
/// Errors: 42809 it is no sequence; 55P03 after `lock_timeout`.
#[pg_extern]
pub fn lock_sequence(sequence: pg_sys::Oid) {
    if !sequence::lock(sequence) {
        Refusal::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("relation {} is not a sequence", sequence.to_u32()),
        )
        .raise();
    }
}
