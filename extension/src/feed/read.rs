//! Reading a channel: log rows as they are (`quorum.read_log`), or as changes (`quorum.changes`, in [`super::changes`]).
//!
//! Memory stays small whatever is read: one batch row and one log row at a time.

use std::collections::VecDeque;

use pgrx::prelude::*;

use super::databases;
use super::entries::Place;
use super::error::FeedError;
use super::steps::{Step, steps};
use super::view::{self, ChannelView};
use crate::pg::datum::FullXid;
use crate::pg::log_scan::ScannedHeap;
use crate::pg::table::View;
use crate::pg::{process, worker};

/// A log row with its ticks.
pub struct LogEntry {
    pub epoch: u64,
    pub first_tick: u64,
    /// One below `first_tick` if no change ends in it.
    pub last_tick: u64,
    pub xid: u64,
    pub flags: u32,
    pub data: Vec<u8>,
    place: Place,
}

/// Goes through the log of a channel from a position on.
pub struct Reading {
    view: ChannelView,
    after: u64,
    epoch: u64,
    queue: VecDeque<Step>,
    /// No row was given yet.
    begins: bool,
    failed: bool,
}

impl Reading {
    pub fn new(channel: &str, after: &str) -> Result<Self, FeedError> {
        let view = ChannelView::load(channel, View::Statement)?;
        if !process::in_recovery() {
            databases::expect_cutter(worker::own_database());
        }
        let after = view.find(after)?;
        Ok(Self { view, after, epoch: 0, queue: VecDeque::new(), begins: true, failed: false })
    }

    pub fn channel(&self) -> &ChannelView {
        &self.view
    }

    /// The next log row; `None` at the end of what is shown.
    pub fn next(&mut self) -> Result<Option<LogEntry>, FeedError> {
        if self.failed {
            return Ok(None);
        }
        let result = self.advance();
        self.failed = result.is_err();
        result
    }

    fn advance(&mut self) -> Result<Option<LogEntry>, FeedError> {
        while self.queue.is_empty() {
            let Some(piece) = self.view.next_piece(self.after)? else { return Ok(None) };
            self.queue = steps(&piece.transactions, piece.first_tick, self.after, self.begins).into();
            self.epoch = piece.epoch;
            self.after = piece.last_tick;
            self.begins = false;
        }
        let Some(step) = self.queue.pop_front() else { return Ok(None) };
        self.fetch(&step).map(Some)
    }

    /// The tick after which it reads next.
    pub fn after(&self) -> u64 {
        self.after
    }

    /// The error for a log row that cannot be read.
    pub fn damaged(&self, entry: &LogEntry, what: &str) -> FeedError {
        self.damaged_at(entry.place, what)
    }

    fn damaged_at(&self, place: Place, what: &str) -> FeedError {
        FeedError::DamagedRow {
            channel: self.view.name.clone(),
            heap: self.view.heap_name(place.segment),
            place,
            what: format!("{}.", capital(what)),
        }
    }

    fn fetch(&self, step: &Step) -> Result<LogEntry, FeedError> {
        let place = step.place;
        let damaged = |what: &str| self.damaged_at(place, what);
        let heap = self.view.heaps.get(&place.segment).and_then(|oid| ScannedHeap::open(*oid));
        let Some(heap) = heap else {
            return Err(FeedError::PurgedMeanwhile { channel: self.view.name.clone() });
        };
        let Some((row, data)) = heap.fetch(place.block, place.offset) else {
            return Err(damaged("the row is missing"));
        };
        if row.xid != step.xid {
            let found = format!("the row is of transaction {}, and should be of {}", row.xid, step.xid);
            return Err(damaged(&found));
        }
        // Also checks the checksum over all of it.
        match pgquorum_change::header(&data) {
            Err(error) => return Err(damaged(&error.to_string())),
            Ok(header) if header.is_some() != (row.part == 0) => {
                return Err(damaged("the row's columns contradict its record"));
            }
            Ok(_) => {}
        }
        let (first_tick, last_tick) = step.ticks.of(u64::from(row.changes));
        Ok(LogEntry { epoch: self.epoch, first_tick, last_tick, xid: row.xid, flags: row.flags, data, place })
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The log of a channel after a position, for programs that decode it (crate `pgquorum-change`): log rows in the order
/// of their ticks.
///
/// A row holds the ends of the changes `first_tick` to `last_tick`; where no change ends, `first_tick` is that of the
/// change under way and `last_tick` one below. When `after` lies inside a transaction, the transaction's first row and the
/// row in which the change `after` ends come first: the reader drops changes up to `after`. Stops when `max_bytes` of
/// data were given and at least one change after `after` is complete.
///
/// Errors: 42704 no such channel, 22023 not a position, PQ001 purged, PQ002 of another history, PQ003 in the future,
/// XX001 a damaged row.
#[pg_extern]
#[allow(clippy::type_complexity)]
fn read_log(
    channel: &str,
    after: &str,
    max_bytes: default!(i32, "1048576"),
) -> TableIterator<
    'static,
    (
        name!(epoch, i64),
        name!(first_tick, i64),
        name!(last_tick, i64),
        name!(xid, FullXid),
        name!(flags, i32),
        name!(data, Vec<u8>),
    ),
> {
    let mut reading = match Reading::new(channel, after) {
        Ok(reading) => reading,
        Err(error) => error.raise(),
    };
    let after = reading.after;
    let max_bytes = u64::try_from(max_bytes).unwrap_or(0);
    let (mut bytes, mut complete) = (0, false);
    TableIterator::new(std::iter::from_fn(move || {
        if complete && bytes >= max_bytes {
            return None;
        }
        let entry = match reading.next() {
            Ok(entry) => entry?,
            Err(error) => error.raise(),
        };
        bytes += entry.data.len() as u64;
        complete |= entry.last_tick > after && entry.last_tick >= entry.first_tick;
        Some((
            signed(entry.epoch),
            signed(entry.first_tick),
            signed(entry.last_tick),
            FullXid(entry.xid),
            entry.flags.cast_signed(),
            entry.data,
        ))
    }))
}

/// Ticks and epochs came from `bigint`.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The ends of a channel by its id: no row if it does not exist.
#[pg_extern]
#[allow(clippy::type_complexity)]
fn channel_ends(
    channel: i32,
) -> TableIterator<
    'static,
    (
        name!(epoch, i64),
        name!(first_tick, i64),
        name!(last_tick, i64),
        name!(start_position, String),
        name!(end_position, String),
        name!(last_cut_at, Option<TimestampWithTimeZone>),
        name!(pending_transactions, Option<i64>),
    ),
> {
    let view = ChannelView::of(channel, String::new(), View::Statement);
    if view.batches.is_empty() {
        return TableIterator::empty();
    }
    let end = view.history.end();
    TableIterator::once((
        signed(end.epoch),
        signed(view.history.first_tick),
        signed(view.history.last_tick),
        view.history.start().to_string(),
        end.to_string(),
        view.newest.and_then(|newest| newest.cut_at),
        (!process::in_recovery()).then(pending_transactions),
    ))
}

fn pending_transactions() -> i64 {
    use crate::log::slots;
    let database = worker::own_database();
    let mut xids: Vec<u64> = slots::active(database).iter().map(|active| active.xid).collect();
    xids.extend(slots::prepared(database).iter().map(|(xid, _)| *xid));
    xids.sort_unstable();
    xids.dedup();
    i64::try_from(xids.len()).unwrap_or(i64::MAX)
}

/// Checks a position and gives it as epoch and tick. Errors: as `quorum.read_log`.
#[pg_extern]
fn find_position(
    channel: &str,
    position: &str,
) -> TableIterator<'static, (name!(epoch, i64), name!(tick, i64))> {
    // After a call like purge() in the same transaction, what it changed counts.
    let view = match ChannelView::load(channel, View::Statement) {
        Ok(view) => view,
        Err(error) => error.raise(),
    };
    match view.find(position) {
        Ok(tick) => TableIterator::once((signed(view.position(tick).epoch), signed(tick))),
        Err(error) => {
            drop(view);
            error.raise()
        }
    }
}

/// Internal. The newest tick of a channel now, whether it is shown already or not, and whatever the caller's snapshot
/// sees. NULL: it has no batch.
#[pg_extern]
fn newest_tick(channel: i32) -> Option<i64> {
    let batches = view::batch_tables(channel, View::Now);
    view::newest(&batches, View::Now).map(|newest| signed(newest.last_tick))
}
