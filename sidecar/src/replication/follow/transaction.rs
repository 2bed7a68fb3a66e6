//! What a transaction does, as it is told where it begins.

use super::Place;
use crate::feed::{LAST, LogRow};
use crate::replication::collections::Collections;
use crate::replication::error::{Failure, Result};
use pgquorum_change::{Decoder, Op};

/// What the rest of a transaction does to which collection; none: its end is not among these rows.
pub(super) async fn operations(
    collections: &mut Collections,
    rows: &[(LogRow, &[u8])],
    place: &Place<'_>,
) -> Result<Option<Vec<(u64, String, u64)>>> {
    let mut counts: Vec<(u64, String, u64)> = Vec::new();
    let mut decoder = Decoder::new();
    for (row, chunk) in rows {
        let mut changes = decoder.feed(chunk).map_err(|error| broken(row, &error))?;
        let mut tick = row.first_tick + u64::from(changes.first_is_lost);
        while let Some(change) = changes.next().map_err(|error| broken(row, &error))? {
            if tick >= place.at.tick {
                if matches!(change.op, Op::Ddl | Op::Truncate) {
                    return Ok(Some(counts));
                }
                let collection = collections.learn(change.schema_version).await?;
                match counts.iter_mut().find(|(cid, ..)| *cid == collection.cid) {
                    Some((.., count)) => *count += 1,
                    None if collection.has_key() => counts.push((collection.cid, collection.name.clone(), 1)),
                    None => {}
                }
            }
            tick += 1;
        }
        if row.xid == place.xid && row.flags & LAST != 0 {
            return Ok(Some(counts));
        }
    }
    Ok(None)
}

/// A row of the log that does not read as it was written.
pub(super) fn broken(row: &LogRow, why: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!(
        "the log row with ticks {} to {} of transaction {} in epoch {} cannot be read: {why}. Another node may hold a good \
         copy: read there, and check this node's disk",
        row.first_tick, row.last_tick, row.xid, row.epoch
    ))
}
