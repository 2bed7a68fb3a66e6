//! What the applier of the replication interface (`sql/applier.sql`) needs beside SQL: to write into a table with no more rights
//! than the table's owner has.

use pgrx::PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
use pgrx::prelude::*;

use crate::error::Refusal;
use crate::pg::{apply_target, owner_rights};

/// Runs one statement that writes into a table, with the rights of the table's owner: what its triggers, defaults,
/// constraints and types call runs with no more. The lines are the statement's `$1`. Gives the number of rows.
///
/// Errors: 42P01 there is no such table; else what the statement raises.
#[pg_extern]
fn applier_write(relation: pg_sys::Oid, statement: &str, lines: Vec<Option<String>>) -> i64 {
    let Some(owner) = apply_target::owner_of(relation.to_u32()) else {
        Refusal::new(ERRCODE_UNDEFINED_TABLE, format!("the table with oid {} was dropped", relation.to_u32()))
            .raise()
    };
    let written = owner_rights::as_owner(owner, || {
        Spi::connect_mut(|client| client.update(statement, None, &[lines.into()]).map(|rows| rows.len()))
    });
    match written {
        Ok(rows) => i64::try_from(rows).unwrap_or(i64::MAX),
        Err(error) => panic!("a statement of the applier was not run: {error}"),
    }
}
