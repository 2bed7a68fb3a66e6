//! What the SQL side needs of this one: `sql/versions.sql`.

use pgquorum_change::{Stamp, Verdict};
use pgrx::prelude::*;

use super::{Reader, judge, origins};

/// The version of a row, by the number of its key.
#[pg_extern]
fn version_of_key(
    relation: pg_sys::Oid,
    key: pgrx::Uuid,
) -> TableIterator<'static, (name!(commit_us, i64), name!(origin, Option<Vec<u8>>), name!(deleted, bool))> {
    let found = Reader::open(relation.to_u32()).and_then(|reader| reader.find(&key));
    let row =
        found.map(|version| (version.commit_us, version.origin.map(String::into_bytes), version.deleted));
    TableIterator::new(row)
}

/// What would become of a write of a row from elsewhere. `here` is the name of this database as an origin.
#[pg_extern]
fn judge_write(
    relation: pg_sys::Oid,
    key: pgrx::Uuid,
    commit_us: i64,
    origin: &[u8],
    here: &[u8],
) -> &'static str {
    let local = Reader::open(relation.to_u32()).and_then(|reader| reader.find(&key));
    let (origin, here) = (String::from_utf8_lossy(origin), String::from_utf8_lossy(here));
    match judge(local.as_ref(), &here, Stamp { commit_us, origin: &origin }) {
        Verdict::Remote => "remote",
        Verdict::Local => "local",
        Verdict::Same => "same",
        Verdict::FromTheFuture { .. } => "future",
    }
}

/// The number of an origin, which gets one if it has none.
#[pg_extern]
fn origin_number(name: &[u8]) -> i16 {
    origins::number(&String::from_utf8_lossy(name))
}
