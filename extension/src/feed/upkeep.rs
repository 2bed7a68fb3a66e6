//! Rotation of segments, retention, and the end of followers that nobody hears of any more.
//!
//! Old log goes by whole segments: one batch table, and the heaps that no kept batch and no unfinished transaction needs.
//! Nothing is deleted row by row. Nobody is waited for: a table that is being read is dropped another time.

use std::collections::BTreeMap;

use pgrx::prelude::*;

use super::channel::Channel;
use crate::guc;
use crate::log::slots;
use crate::pg::worker::Failure;
use crate::pg::{clock, worker};

const INTERVAL_NS: u64 = 2_000 * clock::NS_PER_MS;
const BLOCK_BYTES: u64 = pg_sys::BLCKSZ as u64;
/// What is kept is cut into about so many segments, so that what is kept too long is a small part of it.
const SEGMENTS: u64 = 8;
/// A channel's own limits do not make segments smaller than this.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// What a channel asks for.
#[derive(Debug, Default)]
struct Limits {
    age_s: Option<f64>,
    rows: Option<u64>,
    bytes: Option<u64>,
    cap_bytes: Option<u64>,
    /// What was purged goes below this tick.
    floor: u64,
    /// The tick of the slowest follower, if there is one.
    slowest: Option<u64>,
}

/// A batch table that could go.
#[derive(Debug)]
struct Old {
    number: u32,
    last_tick: u64,
    /// Seconds since it was closed.
    closed_s: f64,
    /// Bytes of it and its heap.
    bytes: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    NotDue,
    All,
    /// All but old log that could go: somebody keeps a lock.
    AllButOldLog,
}

/// What went wrong. What is left is done the next time.
#[derive(Debug)]
pub enum Trouble {
    Failed(Failure),
    /// What is known of the channel does not hold any more.
    Stale(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Looks after a channel, about every two seconds; a full segment is closed at once.
///
/// # Errors
/// A transaction failed.
pub fn run(database: u32, channel: &mut Channel, now_ns: u64, last_ns: &mut u64) -> Result<Kept, Trouble> {
    let due = now_ns >= *last_ns + INTERVAL_NS;
    let bytes = u64::from(channel.blocks) * BLOCK_BYTES;
    if !due && bytes < segment_bytes_max() {
        return Ok(Kept::NotDue);
    }
    *last_ns = now_ns;
    let id = channel.id;
    let (limits, opened_s) = worker::with_snapshot(move || (limits(id), opened_s(id)))?;
    if is_full(&limits, channel, bytes, opened_s) {
        rotate(channel)?;
    }
    worker::with_snapshot(expire_followers)?;
    Ok(drop_old(database, channel, &limits)?)
}

fn segment_bytes_max() -> u64 {
    u64::try_from(guc::SEGMENT_SIZE_MB.get()).unwrap_or(64) << 20
}

fn is_full(limits: &Limits, channel: &Channel, bytes: u64, opened_s: f64) -> bool {
    let changes = (channel.last_tick + 1).saturating_sub(channel.current.first_tick);
    if bytes == 0 || changes == 0 && bytes < segment_bytes_max() {
        return false;
    }
    let by_bytes = [limits.bytes, limits.cap_bytes].into_iter().flatten().min();
    let bytes_max = by_bytes.map_or(u64::MAX, |limit| (limit / SEGMENTS).max(SEGMENT_BYTES_MIN));
    let rows_max = limits.rows.map_or(u64::MAX, |rows| (rows / SEGMENTS).max(1000));
    let age_max_s = limits.age_s.map_or(f64::MAX, |age_s| (age_s / SEGMENTS as f64).max(1.0));
    bytes >= bytes_max.min(segment_bytes_max()) || changes >= rows_max || opened_s >= age_max_s
}

fn rotate(channel: &mut Channel) -> Result<(), Trouble> {
    let (id, number) = (channel.id, channel.current.number.cast_signed());
    let lowest = channel.current.lowest_segment.cast_signed();
    worker::with_snapshot(move || {
        run_sql("SELECT quorum.open_segment($1)", &[id.into()]);
        run_sql(
            "UPDATE quorum.batch_segment SET lowest_segment = $3 WHERE channel = $1 AND number = $2",
            &[id.into(), number.into(), lowest.into()],
        );
    })?;
    let name = channel.name.clone();
    let loaded = worker::with_snapshot(move || Channel::load(id, name)).and_then(|loaded| Ok(loaded?));
    let loaded = loaded.and_then(|loaded| loaded.ok_or_else(|| Failure::from("it was dropped".to_owned())));
    // Batches must not go into the table of the segment that was closed.
    let loaded = loaded.map_err(Trouble::Stale)?;
    channel.closed.insert(channel.current.number, clock::boottime_ns());
    channel.current = loaded.current;
    channel.blocks = 0;
    if let Some(heap) = loaded.heaps.get(&channel.current.number) {
        channel.heaps.insert(channel.current.number, *heap);
        channel.scan_from.insert(channel.current.number, 0);
    }
    // Its writers are to be seen at once, whatever the WAL says.
    channel.looked_at_lsn = 0;
    Ok(())
}

/// Drops what may go, oldest first, each batch table in a transaction of its own.
fn drop_old(database: u32, channel: &Channel, limits: &Limits) -> Result<Kept, Failure> {
    let id = channel.id;
    let old = worker::with_snapshot(move || closed_batch_tables(id))?;
    let mut bytes_after: u64 = old.iter().map(|old| old.bytes).sum();
    bytes_after += u64::from(channel.blocks) * BLOCK_BYTES;
    for old in old {
        // The newest batch row says where a restart goes on, so its table stays.
        if old.last_tick >= channel.last_tick || !may_go(&old, limits, channel.last_tick, bytes_after) {
            break;
        }
        let asks_followers = !must_go(&old, limits, bytes_after);
        bytes_after = bytes_after.saturating_sub(old.bytes);
        match worker::with_snapshot(|| drop_one(channel, &old, asks_followers)) {
            Ok(Some(heaps)) => heaps.iter().for_each(|heap| slots::forget_heap(database, *heap)),
            // Somebody needs it since.
            Ok(None) => break,
            // Somebody reads it, or registers as a follower now.
            Err(failure) if failure.is_locked() => return Ok(Kept::AllButOldLog),
            Err(failure) => return Err(failure),
        }
    }
    Ok(Kept::All)
}

/// May a batch table go? `bytes_with` are the log's bytes with it.
fn may_go(old: &Old, limits: &Limits, last_tick: u64, bytes_with: u64) -> bool {
    if must_go(old, limits, bytes_with) {
        return true;
    }
    if limits.slowest.is_some_and(|slowest| slowest < old.last_tick) {
        return false;
    }
    let age = limits.age_s.map(|age_s| old.closed_s >= age_s);
    let rows = limits.rows.map(|rows| last_tick - old.last_tick >= rows);
    let bytes = limits.bytes.map(|bytes| bytes_with - old.bytes >= bytes);
    let promises = [age, rows, bytes];
    // Without any promise the log is kept until it is purged.
    promises.iter().any(Option::is_some) && promises.into_iter().flatten().all(|kept| kept)
}

/// Does it go whoever has not read it?
fn must_go(old: &Old, limits: &Limits, bytes_with: u64) -> bool {
    limits.cap_bytes.is_some_and(|cap| bytes_with > cap) || old.last_tick < limits.floor
}

/// Drops a batch table and the heaps that nothing needs any more; returns those. `None`: a follower has not read it,
/// and `asks_followers`.
fn drop_one(channel: &Channel, old: &Old, asks_followers: bool) -> Option<Vec<u32>> {
    let (id, number) = (channel.id, old.number.cast_signed());
    // Batches that stay may point into older heaps; so may transactions that are not over.
    let needed = Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.min(b.lowest_segment) FROM quorum.batch_segment AS b WHERE b.channel = $1 AND b.number > $2",
                Some(1),
                &[id.into(), number.into()],
            )?
            .first()
            .get_one::<i32>()
    });
    let needed =
        needed.unwrap_or(None).map_or(u32::MAX, i32::cast_unsigned).min(channel.current.lowest_segment);
    let open = channel.heaps.keys().next().copied().unwrap_or(0);
    let below = needed.min(open).cast_signed();
    let dropped = Spi::connect_mut(|client| {
        client
            .update(
                "SELECT quorum.drop_segments($1, $2, $3, $4)",
                Some(1),
                &[id.into(), number.into(), below.into(), asks_followers.into()],
            )?
            .first()
            .get_one::<Vec<pg_sys::Oid>>()
    });
    match dropped {
        Ok(heaps) => heaps.map(|heaps| heaps.iter().map(|heap| heap.to_u32()).collect()),
        Err(error) => panic!("old log cannot be dropped: {error}"),
    }
}

fn limits(channel: i32) -> Limits {
    let row = Spi::connect(|client| {
        let row = client
            .select(
                "SELECT pg_catalog.date_part('epoch', c.retain_age), c.retain_rows, c.retain_bytes, c.cap_bytes,
                        coalesce(s.first_tick, 0), (SELECT pg_catalog.min(f.tick) FROM quorum.follower AS f WHERE f.channel = c.id)
                 FROM quorum.channel AS c LEFT JOIN quorum.channel_start AS s ON s.channel = c.id WHERE c.id = $1",
                Some(1),
                &[channel.into()],
            )?
            .first();
        let number = |column: usize| Ok::<_, spi::Error>(row.get::<i64>(column)?.map(i64::unsigned_abs));
        Ok::<_, spi::Error>(Limits {
            age_s: row.get::<f64>(1)?,
            rows: number(2)?,
            bytes: number(3)?,
            cap_bytes: number(4)?,
            floor: number(5)?.unwrap_or(0),
            slowest: number(6)?,
        })
    });
    row.unwrap_or_default()
}

/// How long the current segment has been open, in seconds.
fn opened_s(channel: i32) -> f64 {
    let age = Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - s.opened_at)
                 FROM quorum.log_segment AS s WHERE s.channel = $1 AND s.closed_at IS NULL",
                Some(1),
                &[channel.into()],
            )?
            .first()
            .get_one::<f64>()
    });
    age.ok().flatten().unwrap_or(0.0)
}

fn closed_batch_tables(channel: i32) -> Vec<Old> {
    let found = Spi::connect(|client| {
        let rows = client.select(
            "SELECT b.number, pg_catalog.lead(b.first_tick) OVER (ORDER BY b.number) - 1,
                    pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - s.closed_at),
                    pg_catalog.pg_total_relation_size(b.batches::pg_catalog.regclass)
                        + coalesce(pg_catalog.pg_total_relation_size(s.heap::pg_catalog.regclass), 0)
             FROM quorum.batch_segment AS b LEFT JOIN quorum.log_segment AS s ON s.channel = b.channel AND s.number = b.number
             WHERE b.channel = $1 ORDER BY b.number",
            None,
            &[channel.into()],
        )?;
        let mut found = BTreeMap::new();
        for row in rows {
            let (number, last_tick) = (row.get::<i32>(1)?, row.get::<i64>(2)?);
            if let (Some(number), Some(last_tick)) = (number, last_tick) {
                let old = Old {
                    number: number.cast_unsigned(),
                    last_tick: last_tick.unsigned_abs(),
                    closed_s: row.get::<f64>(3)?.unwrap_or(0.0),
                    bytes: row.get::<i64>(4)?.unwrap_or(0).unsigned_abs(),
                };
                found.insert(number, old);
            }
        }
        Ok::<_, spi::Error>(found)
    });
    found.unwrap_or_default().into_values().collect()
}

fn expire_followers() {
    let due = Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.count(*) FROM quorum.follower AS f WHERE f.seen_at + f.ttl < pg_catalog.clock_timestamp()",
                Some(1),
                &[],
            )?
            .first()
            .get_one::<i64>()
    });
    if due.ok().flatten().is_some_and(|due| due > 0) {
        run_sql("SELECT quorum.expire_followers()", &[]);
    }
}

fn run_sql(sql: &str, arguments: &[pgrx::datum::DatumWithOid]) {
    if let Err(error) = Spi::connect_mut(|client| client.update(sql, None, arguments).map(|_| ())) {
        panic!("{sql}: {error}");
    }
}

#[cfg(test)]
#[path = "../tests/feed_upkeep_unit.rs"]
mod unit;
