//! What a reader sees of a channel: its history, its batch rows and its segments.

use std::collections::{BTreeMap, HashSet};

use super::entries::{Transaction, decode};
use super::error::FeedError;
use super::position::{Asked, History, Position, Span};
use super::shared;
use crate::pg::table::{Order, Table, View};
use crate::pg::{process, worker};

/// Columns of a batch table, in order; `sql/feed.sql` makes them.
pub mod batch {
    pub const LAST_TICK: usize = 0;
    pub const FIRST_TICK: usize = 1;
    pub const EPOCH: usize = 2;
    pub const CONFIRMED: usize = 3;
    pub const LOWEST_SEGMENT: usize = 4;
    pub const CUT_AT: usize = 5;
    pub const SNAPSHOT: usize = 6;
    pub const SCAN_SEGMENTS: usize = 7;
    pub const SCAN_BLOCKS: usize = 8;
    pub const ENTRIES: usize = 9;
}

/// A batch table.
#[derive(Clone, Copy, Debug)]
pub struct BatchTable {
    pub number: u32,
    pub oid: u32,
    /// The tick that came next when it was made.
    pub first_tick: u64,
}

/// The newest batch row.
#[derive(Clone, Debug)]
pub struct Newest {
    pub last_tick: u64,
    pub confirmed: u64,
    pub cut_at: Option<pgrx::prelude::TimestampWithTimeZone>,
    pub snapshot: Option<String>,
    pub scan_from: BTreeMap<u32, u32>,
}

/// A channel, as one snapshot sees it.
pub struct ChannelView {
    pub id: i32,
    pub name: String,
    pub history: History,
    pub batches: Vec<BatchTable>,
    /// Number of a segment and its heap.
    pub heaps: BTreeMap<u32, u32>,
    pub newest: Option<Newest>,
    view: View,
}

/// One batch row, decoded.
pub struct PieceRow {
    pub first_tick: u64,
    pub last_tick: u64,
    pub epoch: u64,
    pub transactions: Vec<Transaction>,
}

/// The id of a channel by its name.
pub fn channel_id(name: &str, view: View) -> Option<i32> {
    let table = Table::of_quorum(c"channel")?;
    let (id, of_name) = (table.column(c"id"), table.column(c"name"));
    let mut found = None;
    table.rows(view, Order::Any, |row| {
        if row.text(of_name).as_deref() == Some(name) {
            found = row.integer(id);
        }
        found.is_none()
    });
    found
}

/// Segments of a channel and their heaps.
pub fn heaps(channel: i32, view: View) -> BTreeMap<u32, u32> {
    let mut heaps = BTreeMap::new();
    if let Some(table) = Table::of_quorum(c"log_segment") {
        let (of, number, heap) = (table.column(c"channel"), table.column(c"number"), table.column(c"heap"));
        table.rows(view, Order::Any, |row| {
            if row.integer(of) == Some(channel) {
                heaps.insert(row.small(number), row.oid(heap));
            }
            true
        });
    }
    heaps
}

/// The heaps of all channels.
pub fn all_heaps(view: View) -> HashSet<u32> {
    let mut heaps = HashSet::new();
    if let Some(table) = Table::of_quorum(c"log_segment") {
        let heap = table.column(c"heap");
        table.rows(view, Order::Any, |row| {
            heaps.insert(row.oid(heap));
            true
        });
    }
    heaps
}

/// Batch tables of a channel, oldest first.
pub fn batch_tables(channel: i32, view: View) -> Vec<BatchTable> {
    let mut batches = Vec::new();
    if let Some(table) = Table::of_quorum(c"batch_segment") {
        table.rows(view, Order::Any, |row| {
            if row.integer(0) == Some(channel) {
                batches.push(BatchTable { number: row.small(1), oid: row.oid(2), first_tick: row.number(3) });
            }
            true
        });
    }
    batches.sort_unstable_by_key(|batch| batch.number);
    batches
}

/// The newest batch row of a channel.
pub fn newest(batches: &[BatchTable], view: View) -> Option<Newest> {
    batches.iter().rev().find_map(|batch| {
        let table = Table::open(batch.oid)?;
        let mut newest = None;
        table.rows(view, Order::Descending, |row| {
            let segments = row.integers(batch::SCAN_SEGMENTS).into_iter().map(i32::cast_unsigned);
            let blocks = row.bigints(batch::SCAN_BLOCKS).into_iter().map(|block| block as u32);
            newest = Some(Newest {
                last_tick: row.number(batch::LAST_TICK),
                confirmed: row.number(batch::CONFIRMED),
                cut_at: row.time(batch::CUT_AT),
                snapshot: row.text(batch::SNAPSHOT),
                scan_from: segments.zip(blocks).collect(),
            });
            false
        });
        newest
    })
}

/// One number of a channel from a table of (channel, number).
fn number_of(table: &std::ffi::CStr, channel: i32, view: View) -> Option<u64> {
    let mut found = None;
    Table::of_quorum(table)?.rows(view, Order::Any, |row| {
        if row.integer(0) == Some(channel) {
            found = Some(row.number(1));
        }
        found.is_none()
    });
    found
}

/// Up to which tick the cutter has told standbys that they may show a channel.
pub fn confirmed(channel: i32, view: View) -> u64 {
    number_of(c"channel_confirmed", channel, view).unwrap_or(0)
}

fn spans(channel: i32, view: View) -> Vec<Span> {
    let mut spans = Vec::new();
    if let Some(table) = Table::of_quorum(c"channel_epoch") {
        table.rows(view, Order::Any, |row| {
            if row.integer(0) == Some(channel) {
                spans.push(Span { epoch: row.number(1), first_tick: row.number(2) });
            }
            true
        });
    }
    spans.sort_unstable_by_key(|span| span.epoch);
    spans
}

/// Up to which tick a channel may be shown: what is known to be durable as the cluster promises. That a batch can be seen
/// says less: a standby replays it before that, a server that has crashed recovers it, and a cutter that is told to end
/// leaves its wait for standbys. On the primary the cutter says so in memory as soon as its commit has returned;
/// everywhere it is written down, a moment later.
fn durable(channel: i32, newest: &Newest, view: View) -> u64 {
    let shown = shared::shown(worker::own_database(), channel);
    if shown >= newest.last_tick {
        return newest.last_tick;
    }
    confirmed(channel, view).max(newest.confirmed).max(shown).min(newest.last_tick)
}

impl ChannelView {
    pub fn load(name: &str, view: View) -> Result<Self, FeedError> {
        let id = channel_id(name, view).ok_or_else(|| FeedError::NoChannel(name.to_owned()))?;
        Ok(Self::of(id, name.to_owned(), view))
    }

    pub fn of(id: i32, name: String, view: View) -> Self {
        let batches = batch_tables(id, view);
        let newest = newest(&batches, view);
        let floor = number_of(c"channel_start", id, view).unwrap_or(1);
        let oldest = batches.first().map_or(1, |batch| batch.first_tick).max(floor);
        let last_tick = match &newest {
            // Whoever has pruned everything has set the floor above the last tick.
            None => oldest - 1,
            Some(newest) => durable(id, newest, view),
        };
        let history = History {
            spans: spans(id, view),
            first_tick: oldest.min(last_tick + 1),
            last_tick,
            known_tick: newest.as_ref().map_or(last_tick, |newest| newest.last_tick),
            complete: !process::in_recovery(),
        };
        Self { id, name, history, batches, heaps: heaps(id, view), newest, view }
    }

    /// The tick after which to read.
    pub fn find(&self, asked: &str) -> Result<u64, FeedError> {
        let position = asked.parse::<Asked>().map_err(|_| FeedError::NotAPosition(asked.to_owned()))?;
        self.history.find(position).map_err(|why| FeedError::Unusable {
            channel: self.name.clone(),
            asked: asked.trim().to_owned(),
            start: self.history.start(),
            end: self.history.end(),
            why,
        })
    }

    pub fn position(&self, tick: u64) -> Position {
        self.history.at(tick)
    }

    /// The batch row that holds the change after `after`. `None`: there is none yet.
    pub fn next_piece(&self, after: u64) -> Result<Option<PieceRow>, FeedError> {
        if after >= self.history.last_tick {
            return Ok(None);
        }
        let from = self.batches.partition_point(|batch| batch.first_tick <= after + 1).saturating_sub(1);
        for batch in &self.batches[from..] {
            let Some(table) = Table::open(batch.oid) else {
                return Err(FeedError::PurgedMeanwhile { channel: self.name.clone() });
            };
            if let Some(piece) = self.piece_above(&table, batch.number, after)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn piece_above(&self, table: &Table, number: u32, after: u64) -> Result<Option<PieceRow>, FeedError> {
        let mut found = None;
        let key = i64::try_from(after).unwrap_or(i64::MAX);
        table.rows(self.view, Order::Above(key), |row| {
            found = Some((
                row.number(batch::FIRST_TICK),
                row.number(batch::LAST_TICK),
                row.number(batch::EPOCH),
                row.bytes(batch::ENTRIES).unwrap_or_default(),
            ));
            false
        });
        let Some((first_tick, last_tick, epoch, entries)) = found else { return Ok(None) };
        let decoded = decode(&entries).ok().filter(|transactions| {
            // A row that begins later than expected means that one before it is missing.
            let changes = transactions.iter().map(Transaction::changes).sum::<u64>();
            first_tick <= after + 1 && first_tick + changes == last_tick + 1
        });
        match decoded {
            Some(transactions) => Ok(Some(PieceRow { first_tick, last_tick, epoch, transactions })),
            None => Err(FeedError::DamagedBatch {
                channel: self.name.clone(),
                table: format!("quorum_log.batch_{}_{number}", self.id),
                last_tick,
            }),
        }
    }

    /// The name of a segment's heap.
    pub fn heap_name(&self, segment: u32) -> String {
        format!("quorum_log.log_{}_{segment}", self.id)
    }
}
