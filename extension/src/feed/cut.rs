//! One batch: from what writers left in the log since the last one to a batch row.
//!
//! Which rows can be new? Writers append at the end, from the segment's *frontier* on. In each cut the cutter, in this
//! order, publishes a frontier, reads the slots of writers under way, and takes snapshot B. A transaction that B does not
//! see either had a slot then, which says from which block on it may write, or began later and keeps to the frontier. So
//! the next cut needs to look only from the lower of both on. Rows that are seen again there are known by their
//! transaction: A sees it. Prepared transactions show exactly which blocks they wrote; those are looked at when B sees the
//! transaction. After a restart there are no slots: the last batch row says from where to look, once, and transactions
//! under way that are found there (prepared ones survive a restart) are remembered with their blocks.

use std::collections::BTreeMap;

use pgrx::prelude::*;

use super::channel::{Channel, Epoch, Pending};
use super::entries::{self, Place};
use super::plan::{self, Found, Incomplete, PIECE_ROWS, Piece, Problem};
use super::snapshot::Snapshot;
use crate::log::slots;
use crate::pg::log_scan::{self, LogRow, ScannedHeap, Which};
use crate::pg::table::require_extension;
use crate::pg::{clock, snapshot as pg_snapshot, wal, worker};
use crate::{guc, shmem};

/// So many blocks before the end of a segment stay open to writers, so that its pages get full.
const LAG_BLOCKS: u32 = 16;
/// So long a closed segment is looked at in any case.
const CLOSED_NS: u64 = 5_000 * clock::NS_PER_MS;
const FIRST: u32 = 1;
const LAST: u32 = 2;

/// What came of a cut.
pub enum Outcome {
    /// The channel as it is now, and how many changes are new.
    ///
    /// `finished`: prepared transactions that are over, and the heaps in which they were looked at.
    Cut { channel: Box<Channel>, changes: u64, finished: Vec<(u64, u32)> },
    /// The given snapshot is older than the last batch.
    TooOld,
    /// A table has gone: the channel is to be loaded again.
    Gone,
    /// The log cannot be cut: in words.
    Broken(String),
}

/// Cuts a batch, in a transaction that has no snapshot yet and is to be committed next. `given`: the name of an exported
/// snapshot to cut by.
pub fn cut(channel: &Channel, given: Option<&str>) -> Outcome {
    let next = channel.clone();
    let database = worker::own_database();
    let looked_at_lsn = pg_snapshot::insert_lsn();
    if let Some(name) = given {
        pg_snapshot::import(name);
    }
    let Some(heaps) = open_heaps(channel) else { return Outcome::Gone };
    let finished_segments = if given.is_none() { finished_segments(channel) } else { Vec::new() };
    let (from, writing) = next_start(channel, &heaps, database);
    let prepared = prepared(channel, database);
    let lost = slots::lost();

    let before = Before { looked_at_lsn, heaps, finished_segments, from, writing, prepared, lost };
    let text = pg_snapshot::push();
    let outcome = match text.parse::<Snapshot>() {
        Ok(seen) => cut_by(channel, next, given.is_some(), before, seen),
        Err(_) => Outcome::Broken(format!("PostgreSQL's snapshot is not one: {text}")),
    };
    pg_snapshot::pop();
    outcome
}

/// What was looked at before the snapshot was taken.
struct Before {
    looked_at_lsn: u64,
    heaps: BTreeMap<u32, ScannedHeap>,
    finished_segments: Vec<u32>,
    from: BTreeMap<u32, u32>,
    /// Somebody was writing to the channel.
    writing: bool,
    prepared: Vec<Pending>,
    lost: u64,
}

/// The batch up to the active snapshot, which was `given` by a session or taken just now.
fn cut_by(channel: &Channel, mut next: Channel, given: bool, before: Before, seen: Snapshot) -> Outcome {
    let Before { looked_at_lsn, heaps, finished_segments, from, writing, prepared, lost } = before;
    if !seen.includes(&channel.seen) {
        return match given {
            true => Outcome::TooOld,
            false => Outcome::Broken(format!(
                "the present snapshot {seen} lacks transactions that the last batch had, by its snapshot {}. Was an old copy of the data directory put back, or WAL reset?",
                channel.seen
            )),
        };
    }
    let look_at_all = channel.fresh || lost != channel.lost;
    let (found, under_way) = collect(channel, &heaps, &seen, &prepared, look_at_all);

    let pieces = match plan::plan(found, channel.last_tick + 1, PIECE_ROWS) {
        Ok(pieces) => pieces,
        Err(incomplete) => return Outcome::Broken(describe(&incomplete, channel)),
    };
    let (over, waiting): (Vec<Pending>, Vec<Pending>) =
        prepared.iter().partition(|entry| seen.sees(entry.xid));
    let known = channel.pending.iter().copied().filter(|entry| !seen.sees(entry.xid));
    next.pending = merge(known.chain(under_way));
    // A given snapshot was taken before the slots were read, so what they say does not hold for it.
    if !given {
        next.scan_from = from;
        next.fresh = false;
        next.lost = lost;
        // Whoever has written the record of its commit, and waits for the disk or for standbys, is seen later without
        // any more WAL.
        let perhaps_committed = writing || !waiting.is_empty() || !next.pending.is_empty();
        next.looked_at_lsn = if perhaps_committed { 0 } else { looked_at_lsn };
        for number in &finished_segments {
            next.heaps.remove(number);
            next.scan_from.remove(number);
            next.closed.remove(number);
        }
        next.blocks = heaps.get(&channel.current.number).map_or(0, ScannedHeap::blocks);
    }
    let mut changes = 0;
    if let Some(last) = pieces.last() {
        changes = last.last_tick - channel.last_tick;
        next.last_tick = last.last_tick;
        next.seen = seen;
        let remembered: Vec<Pending> = next.pending.iter().copied().chain(waiting).collect();
        write(&mut next, &pieces, &remembered);
    }
    let finished = match given {
        false => over.iter().map(|entry| (entry.xid, channel.heaps[&entry.segment])).collect(),
        true => Vec::new(),
    };
    Outcome::Cut { channel: Box::new(next), changes, finished }
}

/// Closed segments that get no rows any more; whatever they have, this cut sees. Writers look after they have locked a
/// heap whether it is still the current one; the time is for one that was stopped just before it took its lock.
fn finished_segments(channel: &Channel) -> Vec<u32> {
    let before_ns = clock::boottime_ns().saturating_sub(CLOSED_NS);
    let old =
        channel.closed.iter().filter(|(_, since_ns)| **since_ns <= before_ns).map(|(number, _)| *number);
    old.filter(|number| log_scan::has_no_writers(channel.heaps[number])).collect()
}

fn open_heaps(channel: &Channel) -> Option<BTreeMap<u32, ScannedHeap>> {
    channel.heaps.iter().map(|(number, oid)| Some((*number, ScannedHeap::open(*oid)?))).collect()
}

/// Publishes the frontiers, reads the slots, and says from where the next cut must look, and whether somebody is writing.
fn next_start(
    channel: &Channel,
    heaps: &BTreeMap<u32, ScannedHeap>,
    database: u32,
) -> (BTreeMap<u32, u32>, bool) {
    let (mut from, mut writing) = (BTreeMap::new(), false);
    for (number, heap) in heaps {
        let (oid, blocks) = (channel.heaps[number], heap.blocks());
        let wanted = blocks.saturating_sub(1 + LAG_BLOCKS);
        let present = slots::frontier(database, oid);
        // One behind the end is not of this table: of a dropped one that had its number, or from before it was cut short.
        if wanted > present || present > blocks {
            slots::publish_frontier(database, oid, wanted);
        }
        // Where there was no room for it, writers know none.
        from.insert(*number, slots::frontier(database, oid).min(wanted));
    }
    for writer in slots::active(database) {
        for (number, block) in &mut from {
            if writer.heap == slots::ANY_HEAP || writer.heap == channel.heaps[number] {
                *block = writer.first_block.min(*block);
                writing = true;
            }
        }
    }
    (from, writing)
}

/// Prepared transactions that wrote to this channel, by what the slots say.
fn prepared(channel: &Channel, database: u32) -> Vec<Pending> {
    let by_heap: BTreeMap<u32, u32> = channel.heaps.iter().map(|(number, oid)| (*oid, *number)).collect();
    let all = slots::prepared(database).into_iter();
    all.filter_map(|(xid, written)| {
        let segment = *by_heap.get(&written.heap)?;
        Some(Pending { xid, segment, first_block: written.first_block, last_block: written.last_block })
    })
    .collect()
}

/// One entry for each transaction and segment.
fn merge(pending: impl Iterator<Item = Pending>) -> Vec<Pending> {
    let mut merged: BTreeMap<(u64, u32), Pending> = BTreeMap::new();
    for new in pending {
        let entry = merged.entry((new.xid, new.segment)).or_insert(new);
        entry.first_block = entry.first_block.min(new.first_block);
        entry.last_block = entry.last_block.max(new.last_block);
    }
    merged.into_values().collect()
}

/// The rows of the batch; and, with `look_at_all`, the transactions under way that were found.
fn collect(
    channel: &Channel,
    heaps: &BTreeMap<u32, ScannedHeap>,
    seen: &Snapshot,
    prepared: &[Pending],
    look_at_all: bool,
) -> (Vec<Found>, Vec<Pending>) {
    let (mut found, mut under_way) = (Vec::new(), Vec::new());
    let restart_from = channel.restart_from(&channel.pending);
    for (number, heap) in heaps {
        let start = channel.scan_from.get(number).copied().unwrap_or(0);
        let start =
            if look_at_all { restart_from.get(number).copied().unwrap_or(0).min(start) } else { start };
        heap.scan(start, u32::MAX, Which::Visible, |row| {
            if !channel.seen.sees(row.xid) {
                found.push(as_found(*number, &row));
            }
        });
        if look_at_all {
            heap.scan(start, u32::MAX, Which::All, |row| {
                if !seen.sees(row.xid) {
                    under_way.push(Pending {
                        xid: row.xid,
                        segment: *number,
                        first_block: row.block,
                        last_block: row.block,
                    });
                }
            });
        }
    }
    for entry in prepared.iter().chain(&channel.pending).filter(|entry| seen.sees(entry.xid)) {
        let Some(heap) = heaps.get(&entry.segment) else { continue };
        heap.scan(entry.first_block, entry.last_block.saturating_add(1), Which::Visible, |row| {
            if row.xid == entry.xid && !channel.seen.sees(row.xid) {
                found.push(as_found(entry.segment, &row));
            }
        });
    }
    (found, merge(under_way.into_iter()))
}

fn as_found(segment: u32, row: &LogRow) -> Found {
    Found {
        order_lsn: row.order_lsn,
        xid: row.xid,
        part: row.part,
        changes: row.changes,
        first: row.flags & FIRST != 0,
        last: row.flags & LAST != 0,
        place: Place { segment, block: row.block, offset: row.offset },
    }
}

fn describe(incomplete: &Incomplete, channel: &Channel) -> String {
    let Incomplete { xid, segment, problem } = incomplete;
    let problem = match problem {
        Problem::MissingPart(part) => format!("its part {part} is missing"),
        Problem::NoEnd => "its last part is missing".to_owned(),
        Problem::EndsInsideAChange => "it ends inside a change".to_owned(),
        Problem::TwoOrders => "its parts contradict each other".to_owned(),
    };
    format!(
        "transaction {xid} is not whole in quorum_log.log_{}_{segment}: {problem}. Nothing is shown beyond the last batch until this is repaired",
        channel.id
    )
}

/// Where this server's history is counted: the cluster's epoch, or outside a cluster the timeline.
fn source_of_epoch() -> (u64, String) {
    if guc::FENCE.get() {
        let epoch = shmem::lease().epoch();
        (epoch, format!("lease:{epoch}"))
    } else {
        let timeline = wal::flushed().timeline.unsigned_abs();
        (u64::from(timeline), format!("timeline:{timeline}"))
    }
}

/// The epoch of a batch that is cut now, and whether it is a new one. Epochs only grow, also when a server joins or
/// leaves a cluster, whose epochs have nothing to do with timelines.
fn epoch_now(last: Option<&Epoch>) -> (Epoch, bool) {
    let (number, source) = source_of_epoch();
    match last {
        Some(last) if last.source == source => (last.clone(), false),
        Some(last) => (Epoch { number: number.max(last.number + 1), source }, true),
        None => (Epoch { number, source }, true),
    }
}

/// Writes the batch rows, in the transaction that cuts.
fn write(channel: &mut Channel, pieces: &[Piece], remembered: &[Pending]) {
    require_extension();
    let (epoch, is_new) = epoch_now(channel.epoch.as_ref());
    let restart_from = channel.restart_from(remembered);
    let segments: Vec<i32> = restart_from.keys().map(|number| number.cast_signed()).collect();
    let blocks: Vec<i64> = restart_from.values().map(|block| i64::from(*block)).collect();
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let insert = format!(
        "INSERT INTO quorum_log.batch_{}_{} (last_tick, first_tick, epoch, confirmed, lowest_segment, cut_at, \
         snapshot, scan_segments, scan_blocks, entries) VALUES ($1, $2, $3, $4, $5, pg_catalog.clock_timestamp(), $6, $7, $8, $9)",
        channel.id, channel.current.number
    );
    let written = Spi::connect_mut(|client| {
        if is_new {
            client.update(
                "INSERT INTO quorum.channel_epoch (channel, epoch, first_tick, source) VALUES ($1, $2, $3, $4)",
                None,
                &[
                    channel.id.into(),
                    signed(epoch.number).into(),
                    signed(pieces[0].first_tick).into(),
                    epoch.source.as_str().into(),
                ],
            )?;
        }
        for (index, piece) in pieces.iter().enumerate() {
            // Only what the last row says is needed: the rows of a batch come and go together.
            let last = index + 1 == pieces.len();
            client.update(
                &insert,
                None,
                &[
                    signed(piece.last_tick).into(),
                    signed(piece.first_tick).into(),
                    signed(epoch.number).into(),
                    signed(channel.confirmed).into(),
                    piece.lowest_segment.cast_signed().into(),
                    last.then(|| channel.seen.to_string()).into(),
                    last.then(|| segments.clone()).into(),
                    last.then(|| blocks.clone()).into(),
                    entries::encode(&piece.transactions).into(),
                ],
            )?;
        }
        Ok::<(), spi::Error>(())
    });
    if let Err(error) = written {
        panic!("a batch row cannot be written: {error}");
    }
    let lowest = pieces.iter().map(|piece| piece.lowest_segment).min();
    channel.current.lowest_segment = channel.current.lowest_segment.min(lowest.unwrap_or(u32::MAX));
    channel.epoch = Some(epoch);
}

/// Tells standbys, in a transaction of its own, that the channel may be shown up to a tick.
pub fn confirm(channel: i32, tick: u64) {
    let tick = i64::try_from(tick).unwrap_or(i64::MAX);
    let updated = Spi::connect_mut(|client| {
        client
            .update(
                "UPDATE quorum.channel_confirmed SET tick = $2 WHERE channel = $1",
                None,
                &[channel.into(), tick.into()],
            )
            .map(|_| ())
    });
    if let Err(error) = updated {
        panic!("a batch cannot be confirmed: {error}");
    }
}
