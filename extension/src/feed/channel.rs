//! What the cutter knows of a channel: its last batch, and from where it must look for new log rows.
//!
//! All of it can be had from the tables again; keeping it spares reading them at each cut. The cutter is the only one that
//! adds batches, so it stays true as long as the cutter lives and its commits succeed.

use std::collections::BTreeMap;

use super::snapshot::Snapshot;
use super::view::{self, Newest};
use crate::pg::clock;
use crate::pg::table::{Order, Table, View};

/// A transaction that had written log rows and was under way or prepared when they were found after a restart. No slot
/// says where its rows are, so its blocks are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub xid: u64,
    pub segment: u32,
    pub first_block: u32,
    pub last_block: u32,
}

/// An epoch and how it is known that it still is the present one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub number: u64,
    /// `lease:N` or `timeline:N`.
    pub source: String,
}

/// The segment that writers use now.
#[derive(Clone, Debug)]
pub struct Current {
    pub number: u32,
    pub first_tick: u64,
    /// The oldest segment that its batches point into.
    pub lowest_segment: u32,
}

#[derive(Clone, Debug)]
pub struct Channel {
    pub id: i32,
    pub name: String,
    /// What the last batch saw (A).
    pub seen: Snapshot,
    pub last_tick: u64,
    /// Up to here it is known to be durable.
    pub confirmed: u64,
    /// Up to here standbys have been told so.
    pub told: u64,
    pub epoch: Option<Epoch>,
    /// Segments that may get or hold rows for later batches: their heaps.
    pub heaps: BTreeMap<u32, u32>,
    /// Closed segments to which somebody may still add, and since when they are closed, as far as this cutter knows
    /// (`CLOCK_BOOTTIME`).
    pub closed: BTreeMap<u32, u64>,
    pub current: Current,
    /// From which block on to look, by segment.
    pub scan_from: BTreeMap<u32, u32>,
    pub pending: Vec<Pending>,
    /// Nothing is known of transactions under way yet: the first look is at everything from `scan_from` on.
    pub fresh: bool,
    /// How many prepared transactions had been lost sight of at the last look.
    pub lost: u64,
    /// WAL position before the last look; nothing is new while it stays. 0: something may be, whatever WAL says.
    pub looked_at_lsn: u64,
    /// Blocks of the current segment at the last look.
    pub blocks: u32,
}

impl Channel {
    /// Reads it from the tables. `None`: it was dropped. In a transaction.
    ///
    /// # Errors
    /// The tables contradict each other: in words.
    pub fn load(id: i32, name: String) -> Result<Option<Self>, String> {
        let heaps = view::heaps(id, View::Now);
        let batches = view::batch_tables(id, View::Now);
        let (Some(last), Some((&newest_segment, _))) = (batches.last(), heaps.last_key_value()) else {
            return Ok(None);
        };
        let newest = view::newest(&batches, View::Now);
        let (now_ns, told) = (clock::boottime_ns(), view::confirmed(id, View::Now));
        let seen = match newest.as_ref().and_then(|newest| newest.snapshot.as_deref()) {
            Some(text) => {
                text.parse().map_err(|_| format!("the snapshot of the last batch is not one: {text}"))?
            }
            None => Snapshot::empty(),
        };
        let scan_from = scan_from(&heaps, newest.as_ref());
        let open: BTreeMap<u32, u32> = heaps
            .iter()
            .filter(|(number, _)| scan_from.contains_key(number))
            .map(|(n, heap)| (*n, *heap))
            .collect();
        Ok(Some(Self {
            id,
            name,
            seen,
            last_tick: newest.as_ref().map_or(last.first_tick - 1, |newest| newest.last_tick),
            confirmed: newest.as_ref().map_or(told, |newest| newest.confirmed.max(told)),
            told,
            epoch: latest_epoch(id),
            closed: open
                .keys()
                .filter(|number| **number != newest_segment)
                .map(|number| (*number, now_ns))
                .collect(),
            heaps: open,
            current: Current {
                number: last.number,
                first_tick: last.first_tick,
                lowest_segment: lowest_segment(last.oid).unwrap_or(last.number),
            },
            scan_from,
            pending: Vec::new(),
            fresh: true,
            lost: 0,
            looked_at_lsn: 0,
            blocks: 0,
        }))
    }

    /// The segments and blocks that a restart must look at: what is told to the next batch row.
    pub fn restart_from(&self, pending: &[Pending]) -> BTreeMap<u32, u32> {
        let mut from = self.scan_from.clone();
        for entry in pending {
            from.entry(entry.segment)
                .and_modify(|block| *block = entry.first_block.min(*block))
                .or_insert(entry.first_block);
        }
        from
    }
}

/// What the last batch row says, and the whole of segments that are newer than it.
fn scan_from(heaps: &BTreeMap<u32, u32>, newest: Option<&Newest>) -> BTreeMap<u32, u32> {
    let known = newest.map(|newest| &newest.scan_from);
    let newest_known = known.and_then(|known| known.last_key_value()).map_or(0, |(number, _)| *number);
    heaps
        .keys()
        .filter_map(|number| match known.and_then(|known| known.get(number)) {
            Some(block) => Some((*number, *block)),
            None if *number > newest_known => Some((*number, 0)),
            // All of it was in batches before.
            None => None,
        })
        .collect()
}

fn latest_epoch(channel: i32) -> Option<Epoch> {
    let mut latest: Option<Epoch> = None;
    Table::of_quorum(c"channel_epoch")?.rows(View::Now, Order::Any, |row| {
        let number = row.number(1);
        if row.integer(0) == Some(channel) && latest.as_ref().is_none_or(|latest| latest.number < number) {
            latest = Some(Epoch { number, source: row.text(3).unwrap_or_default() });
        }
        true
    });
    latest
}

fn lowest_segment(batch_table: u32) -> Option<u32> {
    let mut lowest: Option<u32> = None;
    Table::open(batch_table)?.rows(View::Now, Order::Any, |row| {
        let segment = row.small(view::batch::LOWEST_SEGMENT);
        lowest = Some(lowest.map_or(segment, |lowest| lowest.min(segment)));
        true
    });
    lowest
}

/// The channels of this database, by id.
pub fn all() -> BTreeMap<i32, String> {
    let mut channels = BTreeMap::new();
    if let Some(table) = Table::of_quorum(c"channel") {
        let (id, name) = (table.column(c"id"), table.column(c"name"));
        table.rows(View::Now, Order::Any, |row| {
            if let (Some(id), Some(name)) = (row.integer(id), row.text(name)) {
                channels.insert(id, name);
            }
            true
        });
    }
    channels
}
