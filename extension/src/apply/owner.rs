//! What copying and restoring a table needs: statements with the rights of the table's owner, as changes are written.

use pgrx::prelude::*;

use super::error::ApplyError;
use crate::pg::{apply_session, apply_target, copy_owner, owner_rights};

/// The next statement of this session, a COPY into this table, is run with the rights of the table's owner.
#[pg_extern]
fn copy_as_owner(relation: pg_sys::Oid) {
    copy_owner::announce(owner_of(relation));
}

/// Runs a statement with the rights of a table's owner.
#[pg_extern]
pub fn run_as_owner(relation: pg_sys::Oid, statement: &str) {
    owner_rights::as_owner(owner_of(relation), || apply_session::run(statement));
}

fn owner_of(relation: pg_sys::Oid) -> u32 {
    apply_target::owner_of(relation.to_u32())
        .unwrap_or_else(|| ApplyError::NoTable(relation.to_u32()).raise())
}
