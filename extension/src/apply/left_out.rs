//! What the extension's tables say of changes that were left out.

use pgquorum_change::Position;
use pgrx::pg_sys::BuiltinOid::{
    BYTEAOID as BYTEA, INT4OID as INT4, INT8OID as INT8, TEXTOID as TEXT, TIMESTAMPTZOID as TIMESTAMPTZ,
};
use pgrx::prelude::*;

use super::tables::{Table, oids, run};
use crate::pg::process;

/// A change that is left out, and kept.
pub struct Rejected<'a> {
    pub position: Position,
    pub xid: u64,
    pub op: &'static str,
    pub conflict: &'a str,
    pub code: &'a str,
    pub message: &'a str,
    /// JSON objects.
    pub images: [Option<String>; 3],
    pub origin: Option<&'a str>,
    pub commit_us: i64,
    pub bytes: &'a [u8],
}

pub fn reject(subscription: i32, table: &Table, rejected: &Rejected) {
    let sql = "INSERT INTO quorum.rejected_change (subscription, schema_name, table_name, epoch, tick, transaction, op, conflict,
                   code, message, key, old, new, origin, committed_at, change)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::pg_catalog.jsonb, $12::pg_catalog.jsonb,
                   $13::pg_catalog.jsonb, $14, $15, $16)";
    let [key, old, new] = &rejected.images;
    let arguments = [
        subscription.into(),
        table.schema.as_str().into(),
        table.name.as_str().into(),
        rejected.position.epoch.cast_signed().into(),
        rejected.position.tick.cast_signed().into(),
        rejected.xid.cast_signed().into(),
        rejected.op.into(),
        rejected.conflict.into(),
        rejected.code.into(),
        rejected.message.into(),
        key.as_deref().into(),
        old.as_deref().into(),
        new.as_deref().into(),
        rejected.origin.into(),
        process::time_of_us(u64::try_from(rejected.commit_us).unwrap_or(0)).into(),
        rejected.bytes.into(),
    ];
    let types = oids([
        INT4,
        TEXT,
        TEXT,
        INT8,
        INT8,
        INT8,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TIMESTAMPTZ,
        BYTEA,
    ]);
    run(sql, &types, &arguments, |_| Ok(()));
}

/// What is tried again.
pub struct Kept {
    pub subscription: i32,
    pub change: Vec<u8>,
    pub origin: Option<String>,
    pub committed_at: Option<TimestampWithTimeZone>,
}

/// Locks a rejected change. `None`: there is none of this number.
pub fn kept(id: i64) -> Option<Kept> {
    let sql = "SELECT r.subscription, r.change, r.origin, r.committed_at FROM quorum.rejected_change AS r WHERE r.id = $1 FOR UPDATE";
    let found = run(sql, &oids([INT8]), &[id.into()], |row| {
        Ok(Kept {
            subscription: row.get(1)?.unwrap_or(0),
            change: row.get(2)?.unwrap_or_default(),
            origin: row.get(3)?,
            committed_at: row.get(4)?,
        })
    });
    found.into_iter().next()
}

pub fn forget_kept(id: i64) {
    run("DELETE FROM quorum.rejected_change AS r WHERE r.id = $1", &oids([INT8]), &[id.into()], |_| Ok(()));
}
