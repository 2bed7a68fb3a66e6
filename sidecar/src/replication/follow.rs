//! One answer with lines of the log, from a tick to another one, up to a number of bytes.

use super::collections::Collections;
use super::error::{Failure, Result};
use super::lines::{Dialect, Lines, Row};
use super::log::Log;
use super::tick::{Step, Tick};
use crate::feed::{After, ChannelId, Feed, FeedError, Kind, LAST, LogRow, Piece, Pieces, Position, Source};
use pgquorum_change::{Change, Decoder, Op};
use std::sync::Arc;
use transaction::broken;

/// Set in the flags of a transaction's first log row.
const FIRST: u32 = 1;

/// How far the log of a transaction is looked through for what it does, before it is written that it begins.
const COUNTED_BYTES: usize = 256 * 1024;

/// What is left out is written as transactions without changes: one ends after so many, so that readers get on in a long one.
const LEFT_OUT: u64 = 256;
/// How many bytes of log are left out in one answer, beside what is written.
const LEFT_OUT_BYTES: usize = 16 << 20;

/// What a reader asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// It has everything up to here.
    pub from: Tick,
    /// It wants nothing behind this.
    pub to: Tick,
    /// Looked at when at least one line was written; none is split.
    pub chunk_bytes: usize,
    pub dialect: Dialect,
    /// Changes of transactions with these origins are left out: the reader made them itself.
    pub except: Vec<String>,
    /// Whole documents are shown as the columns of their table.
    pub in_columns: bool,
}

/// What it gets.
#[derive(Debug)]
pub struct Followed {
    pub lines: Vec<u8>,
    /// The tick of the last line.
    pub last_included: Option<Tick>,
    /// Everything up to here was looked at.
    pub last_scanned: Tick,
    /// The end of the log.
    pub last: Tick,
    /// There is more already.
    pub more: bool,
    /// Nothing between `from` and the first line is missing.
    pub from_present: bool,
}

/// Reads the log of a database.
///
/// # Errors
/// The database does not answer, or what comes first cannot be read.
pub async fn follow(feed: &Feed, id: &ChannelId, log: &Log, wanted: Wanted) -> Result<Followed> {
    let mut answer = Followed {
        lines: Vec::new(),
        last_included: None,
        last_scanned: wanted.from,
        last: log.last()?,
        more: false,
        from_present: wanted.from == Tick(0) && !log.exists(),
    };
    if !log.exists() {
        return Ok(answer);
    }
    // Whoever asks will come again: new changes are made readable at once for a while.
    feed.attend(id);
    let Some(begun) = begin(feed, id, log, wanted.from).await? else { return Ok(answer) };
    let Begun { mut pieces, first, present } = begun;
    let lines = Lines::new(wanted.dialect, log.server, &id.database, log.database);
    let (from, to, in_columns) = (wanted.from, wanted.to, wanted.in_columns);
    let out = Out { wanted, bytes: Vec::new(), last: None, past: false };
    let (source, id) = (feed.shared_source(), id.clone());
    let collections = Collections::new(Arc::clone(&source), id.clone()).in_columns(in_columns);
    let mut writer = Writer {
        source,
        id,
        lines,
        collections,
        out,
        open: None,
        except: false,
        left_out: 0,
        row: Row::default(),
        scanned: from,
    };
    // Where the log is read from its start, nothing before that may be shown.
    let floor = log.first_change().saturating_sub(1);
    let mut next = first;
    let read = async {
        while let Some(piece) = next.take() {
            let seen = piece.after.tick().unwrap_or(floor);
            if !writer.piece(&piece, seen).await? {
                return Ok(false);
            }
            next = pieces.next().await?;
        }
        Ok(true)
    };
    let read: Result<bool> = read.await;
    let Writer { out, scanned, .. } = writer;
    match read {
        Ok(true) => answer.last_scanned = scanned.max(answer.last).min(to),
        Ok(false) => {
            answer.last_scanned = scanned;
            answer.more = !out.past && scanned < answer.last;
        }
        // What came before is good, and the next answer says why there is no more.
        Err(_) if out.last.is_some() => {
            answer.last_scanned = scanned;
            answer.more = true;
        }
        Err(failure) => return Err(failure),
    }
    answer.last = answer.last.max(scanned);
    answer.from_present = present;
    answer.last_included = out.last;
    answer.lines = out.bytes;
    Ok(answer)
}

/// A reader at its place.
struct Begun {
    pieces: Pieces,
    first: Option<Piece>,
    present: bool,
}

/// Goes to the place; none: it is beyond the end of the log.
async fn begin(feed: &Feed, id: &ChannelId, log: &Log, from: Tick) -> Result<Option<Begun>> {
    let asked = if from == Tick(0) { log.start() } else { from.read_after() };
    let failed = match feed.settle(id, After::At(asked)).await {
        Ok((pieces, first)) => {
            let present = from != Tick(0) || log.first_change() <= 1;
            return Ok(Some(Begun { pieces, first, present }));
        }
        Err(error) => error,
    };
    let instead = match failed.kind {
        Kind::PositionPurged => After::Start,
        // Of a history that was given up: what came in its stead begins with the next epoch.
        Kind::PositionUnknownEpoch => match log.after_epoch(from.epoch()) {
            Some(position) => After::At(position),
            None => return Ok(None),
        },
        Kind::PositionInFuture => return Ok(None),
        _ => return Err(failed.into()),
    };
    let settled = match feed.settle(id, instead).await {
        Err(FeedError { kind: Kind::PositionPurged, .. }) => feed.settle(id, After::Start).await,
        settled => settled,
    };
    let (pieces, first) = settled?;
    Ok(Some(Begun { pieces, first, present: false }))
}

/// Lines between two ticks.
struct Out {
    wanted: Wanted,
    bytes: Vec<u8>,
    last: Option<Tick>,
    /// A line was behind the second tick.
    past: bool,
}

impl Out {
    fn wants(&self, tick: Tick) -> bool {
        tick > self.wanted.from && tick <= self.wanted.to
    }

    fn put(&mut self, tick: Tick, write: impl FnOnce(&mut Vec<u8>)) {
        self.past |= tick > self.wanted.to;
        if self.wants(tick) {
            write(&mut self.bytes);
            self.last = Some(tick);
        }
    }
}

struct Writer {
    source: Arc<dyn Source>,
    id: ChannelId,
    lines: Lines,
    collections: Collections,
    out: Out,
    /// The transaction whose beginning was written, and whose end was not.
    open: Option<u64>,
    /// The transaction is one that is left out.
    except: bool,
    /// Bytes of log that were left out.
    left_out: usize,
    row: Row,
    scanned: Tick,
}

/// A change and what surrounds it.
struct Place<'p> {
    at: Position,
    xid: u64,
    /// The transaction ends with it.
    last: bool,
    /// It is the only one of its transaction.
    alone: bool,
    /// The rows from the transaction's first one on, as far as they are there.
    rows: &'p [(LogRow, &'p [u8])],
}

impl Writer {
    /// Writes the lines of a piece's changes behind `seen`; false: enough.
    async fn piece(&mut self, piece: &Piece, seen: u64) -> Result<bool> {
        let rows: Vec<(LogRow, &[u8])> = piece.rows.iter().collect();
        let mut decoder = Decoder::new();
        let (mut first_row, mut first_tick) = (0, None);
        for (index, (row, chunk)) in rows.iter().enumerate() {
            if row.flags & FIRST != 0 {
                (first_row, first_tick) = (index, Some(row.first_tick));
            }
            let mut changes = decoder.feed(chunk).map_err(|error| broken(row, &error))?;
            if let Some(header) = &changes.header {
                let except = &self.out.wanted.except;
                self.except = header.origin.is_some_and(|origin| except.iter().any(|one| one == origin));
            }
            if self.except {
                self.left_out += chunk.len();
            }
            let mut tick = row.first_tick + u64::from(changes.first_is_lost);
            while let Some(change) = changes.next().map_err(|error| broken(row, &error))? {
                if tick > seen {
                    let last = row.flags & LAST != 0 && tick == row.last_tick;
                    let place = Place {
                        at: Position { epoch: row.epoch, tick },
                        xid: row.xid,
                        last,
                        alone: last && first_tick == Some(tick),
                        rows: &rows[first_row..],
                    };
                    self.change(&change, &place).await?;
                    if self.out.past {
                        return Ok(false);
                    }
                    self.scanned =
                        Tick::new(place.at, if last { Step::End } else { Step::Change })?.max(self.scanned);
                    let enough = self.out.bytes.len() >= self.out.wanted.chunk_bytes;
                    if (enough || self.left_out > LEFT_OUT_BYTES) && self.out.last.is_some() {
                        return Ok(false);
                    }
                }
                tick += 1;
            }
        }
        Ok(true)
    }

    async fn change(&mut self, change: &Change<'_>, place: &Place<'_>) -> Result<()> {
        let has_key = self.collections.learn(change.schema_version).await?.has_key();
        if change.op == Op::Ddl || (change.op == Op::Truncate && !self.except) {
            // It stands alone: what comes before and after it are transactions of their own to the reader.
            if let Some(xid) = self.open.take() {
                let before = Position { tick: place.at.tick.saturating_sub(1), ..place.at };
                let tick = Tick::end(before)?;
                self.out.put(tick, |bytes| self.lines.commit(bytes, tick, xid));
            }
            return match change.ddl.map_or(&b""[..], |ddl| ddl.tag) {
                // Of the log as a whole, whichever table it is written by.
                tag @ (b"STOP" | b"START") => self.logger(tag == b"STOP", place.at),
                _ if has_key => self.about(change, place.at).await,
                _ => Ok(()),
            };
        }
        if has_key {
            self.begin(place).await?;
            if !self.except {
                self.row(change, place)?;
            }
        }
        if (place.last || (self.except && place.at.tick.is_multiple_of(LEFT_OUT)))
            && let Some(xid) = self.open.take()
        {
            let tick = Tick::end(place.at)?;
            self.out.put(tick, |bytes| self.lines.commit(bytes, tick, xid));
        }
        Ok(())
    }

    /// The first line of a transaction, unless it is one change.
    async fn begin(&mut self, place: &Place<'_>) -> Result<()> {
        if (place.alone && !self.except) || self.open.is_some() {
            return Ok(());
        }
        self.open = Some(place.xid);
        let tick = Tick::new(place.at, Step::Begin)?;
        if !self.out.wants(tick) {
            return Ok(());
        }
        let mut operations = match self.except {
            true => Some(Vec::new()),
            false => transaction::operations(&mut self.collections, place.rows, place).await?,
        };
        if operations.is_none() {
            // The piece ends before the transaction. Wherever a reader begins, it is told the same.
            let before = Position { tick: place.at.tick.saturating_sub(1), ..place.at }.to_string();
            let rows = self.source.read(&self.id, &before, COUNTED_BYTES).await?;
            let rows: Vec<(LogRow, &[u8])> = rows.iter().collect();
            operations = transaction::operations(&mut self.collections, &rows, place).await?;
        }
        self.out.put(tick, |bytes| self.lines.begin(bytes, tick, place.xid, operations.as_deref()));
        Ok(())
    }

    fn row(&mut self, change: &Change, place: &Place) -> Result<()> {
        let Writer { lines, collections, out, row, .. } = self;
        let Some(collection) = collections.get(change.schema_version) else { return Ok(()) };
        let (tid, step) = if place.alone { (0, Step::End) } else { (place.xid, Step::Change) };
        let (old_tick, tick) = (Tick::new(place.at, Step::OldKey)?, Tick::new(place.at, step)?);
        if !out.wants(old_tick) && !out.wants(tick) {
            out.past |= old_tick > out.wanted.to;
            return Ok(());
        }
        row.read(change, &collection.schema).map_err(|_| incomplete(&collection.name, tick))?;
        match (&row.old_key, &row.new_key) {
            (Some(old), None) => out.put(tick, |bytes| lines.removal(bytes, tick, tid, collection, old)),
            (old, Some(new)) => {
                // A document keeps its key, so one with another key is another document.
                if let Some(old) = old.as_ref().filter(|old| *old != new) {
                    out.put(old_tick, |bytes| lines.removal(bytes, old_tick, tid, collection, old));
                }
                out.put(tick, |bytes| lines.upsert(bytes, tick, tid, collection, new, &row.object));
            }
            (None, None) => {}
        }
        Ok(())
    }
}

fn incomplete(collection: &str, tick: Tick) -> Failure {
    Failure::internal(format!(
        "the change at tick {tick} of collection {collection} left large values alone, and they are not in the log, because \
         the table is not tracked with old_image 'full'. Track it anew: SELECT quorum.untrack('{collection}'), then \
         quorum.track('{collection}', channel => '_logger', old_image => 'full'). A reader goes on with a new batch, or, \
         without this change, with from={tick}"
    ))
}

mod about;
mod transaction;

#[cfg(test)]
mod tests;
