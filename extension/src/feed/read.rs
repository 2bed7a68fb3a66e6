//! Reading a channel: log rows as they are (`quorum.read_log`), packed for the network (`quorum.read_packed`, in
//! [`super::packed`]), or as changes (`quorum.changes`, in [`super::changes`]).
//!
//! Memory stays small whatever is read: one batch row and one log row, or one pack, at a time.

use std::collections::VecDeque;

use pgquorum_change::LogRow;
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
    pub row: LogRow,
    pub data: Vec<u8>,
    place: Place,
}

/// The heap that was read last, with the number of its segment. Kept within one call of the reading function only: what
/// is open when a query ends in the middle would be closed twice.
#[derive(Default)]
pub struct Heap(Option<(u32, ScannedHeap)>);

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
        let copied = |row: &LogRow, data: &[u8]| (*row, data.to_vec());
        let next = self.next_in(&mut Heap::default(), copied)?;
        Ok(next.map(|(place, (row, data))| LogEntry { row, data, place }))
    }

    /// Shows the next log row to `look`, which must not call into PostgreSQL; returns where it is and what `look` said.
    /// `None` at the end of what is shown.
    pub fn next_in<T>(
        &mut self,
        heap: &mut Heap,
        look: impl FnOnce(&LogRow, &[u8]) -> T,
    ) -> Result<Option<(Place, T)>, FeedError> {
        if self.failed {
            return Ok(None);
        }
        let result = self.advance(heap, look);
        self.failed = result.is_err();
        result
    }

    fn advance<T>(
        &mut self,
        heap: &mut Heap,
        look: impl FnOnce(&LogRow, &[u8]) -> T,
    ) -> Result<Option<(Place, T)>, FeedError> {
        while self.queue.is_empty() {
            let Some(piece) = self.view.next_piece(self.after)? else { return Ok(None) };
            self.queue = steps(&piece.transactions, piece.first_tick, self.after, self.begins).into();
            self.epoch = piece.epoch;
            self.after = piece.last_tick;
            self.begins = false;
        }
        let Some(step) = self.queue.pop_front() else { return Ok(None) };
        self.fetch(&step, heap, look).map(|seen| Some((step.place, seen)))
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

    fn fetch<T>(
        &self,
        step: &Step,
        heap: &mut Heap,
        look: impl FnOnce(&LogRow, &[u8]) -> T,
    ) -> Result<T, FeedError> {
        let Place { segment, block, offset } = step.place;
        if !matches!(heap.0, Some((number, _)) if number == segment) {
            let oid = self.view.heaps.get(&segment);
            heap.0 = oid.and_then(|oid| ScannedHeap::open(*oid)).map(|opened| (segment, opened));
        }
        let Some((_, heap)) = &heap.0 else {
            return Err(FeedError::PurgedMeanwhile { channel: self.view.name.clone() });
        };
        let checked = heap.fetch(block, offset, |found, data| {
            if found.xid != step.xid {
                return Err(format!(
                    "the row is of transaction {}, and should be of {}",
                    found.xid, step.xid
                ));
            }
            // Also checks the checksum over all of it.
            let header = pgquorum_change::header(data).map_err(|error| error.to_string())?;
            if header.is_some() != (found.part == 0) {
                return Err("the row's columns contradict its record".to_owned());
            }
            let (first_tick, last_tick) = step.ticks.of(u64::from(found.changes));
            let row = LogRow { epoch: self.epoch, first_tick, last_tick, xid: found.xid, flags: found.flags };
            Ok(look(&row, data))
        });
        checked
            .unwrap_or_else(|| Err("the row is missing".to_owned()))
            .map_err(|what| self.damaged_at(step.place, &what))
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
        let LogEntry { row, data, .. } = entry;
        bytes += data.len() as u64;
        complete |= row.last_tick > after && row.ends_a_change();
        Some((
            signed(row.epoch),
            signed(row.first_tick),
            signed(row.last_tick),
            FullXid(row.xid),
            row.flags.cast_signed(),
            data,
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
