//! The end of a transaction: its buffers become rows of the log.

use std::cell::{Cell, RefCell};

use pgquorum_change::{Chunker, Header};
use pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;

use super::buffer::Buffer;
use super::{Buffers, CAPTURE, CLOSED, DIRTY, LEVEL, VERSIONS, forget_made_versions};
use crate::error::Refusal;
use crate::guc;
use crate::log::slots;
use crate::pg::log_heap::{self, Identity, LogHeap, RowBuffer};
use crate::pg::relcache::{self, Changes};
use crate::pg::single::Single;
use crate::pg::spill::SpillFile;
use crate::pg::{origin, process, statement, tracking};
use crate::versions;

/// Made by the first transaction that needs it.
static WRITER: Single<RefCell<Option<Writer>>> = Single::new(None);
/// The log tables that channels grow in.
static SEGMENTS: Single<RefCell<Vec<Segment>>> = Single::new(Vec::new());
/// What this transaction has written; for its preparation.
static WRITTEN: Single<RefCell<Vec<slots::Written>>> = Single::new(Vec::new());
static XID: Single<Cell<u64>> = Single::cell(0);

/// Room that is kept between transactions.
#[derive(Default)]
struct Writer {
    chunker: Chunker,
    row: RowBuffer,
}

#[derive(Clone, Copy)]
struct Segment {
    channel: i32,
    heap: u32,
}

/// At pre-commit and pre-prepare: true if the log was written. An ERROR is legal here.
#[inline]
pub fn before_commit() -> bool {
    let dirty = DIRTY.get();
    if dirty {
        write();
    }
    CLOSED.set(true);
    dirty
}

fn write() {
    // Taken out, so that nothing is borrowed while rows are inserted; after an error they are gone with the
    // transaction.
    let mut buffers = CAPTURE.with(|capture| {
        capture.refresh();
        std::mem::take(&mut capture.buffers)
    });
    let name = guc::text(&guc::ORIGIN).and_then(|name| origin::name(&name));
    let mut header = Header {
        origin: name.as_deref(),
        origin_commit_us: guc::text(&guc::ORIGIN_COMMIT_TIME).and_then(|time| origin::time_us(&time)),
        commit_us: process::now_us(),
    };
    if let Some(entries) = buffers.filled().find(|buffer| buffer.channel == VERSIONS) {
        header.commit_us = versions::commit::keep(&mut |take| entries.changes(take), &header);
    }
    let mut identity = None;
    for buffer in buffers.filled().filter(|buffer| buffer.channel != VERSIONS) {
        let Some(heap) = open_segment(buffer.channel) else {
            // Dropped by this transaction itself; nobody else could have, since it holds locks on the tables.
            continue;
        };
        let identity = *identity.get_or_insert_with(|| {
            let identity = Identity::now();
            XID.set(identity.xid);
            identity
        });
        write_channel(buffer, heap, identity, &header);
    }
    buffers.written();
    keep(buffers);
}

/// The buffer's memory serves the next transaction.
fn keep(mut buffers: Buffers) {
    buffers.clear();
    CAPTURE.with(|capture| capture.buffers = buffers);
}

fn write_channel(buffer: &mut Buffer<SpillFile>, mut heap: LogHeap, identity: Identity, header: &Header) {
    let frontier = slots::begin(identity.xid, log_heap::database(), heap.oid());
    heap.keep_behind(frontier, buffer.channel);
    WRITER.with(|writer| {
        let Writer { chunker, row } = writer.get_or_insert_default();
        chunker.begin(header);
        let mut store = |chunk: pgquorum_change::Chunk| {
            heap.insert(identity, &chunk, row);
            Ok::<(), std::convert::Infallible>(())
        };
        buffer.changes(|change| {
            let Ok(()) = chunker.push(change, &mut store);
        });
        let Ok(()) = chunker.finish(&mut store);
    });
    if let Some(written) = heap.written() {
        WRITTEN.with(|all| all.push(written));
    }
    heap.close();
}

/// Opens the table in which a channel's log grows; `None`: there is no such channel any more.
fn open_segment(channel: i32) -> Option<LogHeap> {
    loop {
        let known = SEGMENTS.look(|all| all.iter().find(|s| s.channel == channel).copied());
        let segment = match known {
            Some(segment) => segment,
            None => look_up(channel)?,
        };
        let heap = LogHeap::open(segment.heap);
        // Opening takes a lock, and with it come the notices: was the segment closed meanwhile?
        if let Some(changes) = relcache::changes() {
            CAPTURE.with(|capture| capture.forget(&changes));
        }
        let still = SEGMENTS.look(|all| all.iter().any(|s| s.heap == segment.heap));
        match heap {
            Some(heap) if still => return Some(heap),
            Some(heap) => heap.close(),
            None => SEGMENTS.with(Vec::clear),
        }
    }
}

#[cold]
fn look_up(channel: i32) -> Option<Segment> {
    // Watched before it is read: a change in between is noticed the next time.
    let watch = |segments| {
        relcache::watch(segments);
    };
    let heap = match tracking::segment(channel, watch) {
        tracking::Segment::Open(heap) => heap,
        tracking::Segment::NoChannel => return None,
        tracking::Segment::Missing => no_segment(channel),
    };
    let segment = Segment { channel, heap };
    SEGMENTS.with(|all| all.push(segment));
    Some(segment)
}

fn no_segment(channel: i32) -> ! {
    Refusal::new(ERRCODE_INTERNAL_ERROR, format!("the log of channel {channel} has no segment to write to"))
        .hint("SELECT quorum.open_segment(...) opens one. Until then transactions on the channel's tables cannot commit.")
        .raise()
}

/// After notices of changed tables. Which of them was the list of segments does not matter: they are few.
pub fn forget_segments(_changes: &Changes) {
    SEGMENTS.with(Vec::clear);
}

/// After a commit or abort, when others see what became of the transaction. Must not raise anything.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn after_end() {
    LEVEL.set(1);
    CLOSED.set(false);
    statement::forget();
    if DIRTY.take() {
        slots::end();
        clear();
    }
}

/// After the transaction was prepared: what it wrote is shown until it has been read. Must not raise anything.
pub fn after_prepare() {
    if DIRTY.get() {
        WRITTEN.look(|all| slots::hand_over(XID.get(), log_heap::database(), all));
    }
    // It may yet be rolled back.
    versions::origins::forget();
    after_end();
}

fn clear() {
    XID.set(0);
    let _ = WRITTEN.try_with(Vec::clear);
    let _ = CAPTURE.try_with(|capture| {
        capture.buffers.clear();
        capture.emptied.clear();
    });
}

/// After an abort. Must not raise anything.
pub fn after_abort() {
    forget_made_versions();
    versions::origins::forget();
    after_end();
}
