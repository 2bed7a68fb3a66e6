//! Batches: snapshots of all collections that clients dump one after the other, in as many answers as they like.
//!
//! A dump reads a table in the order of its key, in a session of its own that stays between two answers. The tick of a line
//! is the row's number in that order, so a client may go on after any line: at the session's place at once, elsewhere by
//! reading the table from its beginning.
//!
//! Bounds: snapshots and sessions are counted in the feed's pool; a batch has at most [`OPEN_MAX`] open dumps, and ends
//! when nobody asked for it within its ttl.

use super::collections::{Collection, Collections};
use super::error::{Failure, Result};
use super::lines::dumped;
use super::names;
use super::tick::Tick;
use crate::feed::{ChannelId, CopyOut, RowWriter, Shared, Source, fields, unescape};
use pgquorum_change::Schema;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// For how long a batch may be left alone, unless its client says so, and at most.
pub const TTL: Duration = Duration::from_secs(60);
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// Dumps of one batch that are held open.
const OPEN_MAX: usize = 2;
/// How often batches are looked after.
const LOOK: Duration = Duration::from_millis(200);

/// The batches of this node.
pub struct Batches {
    source: Arc<dyn Source>,
    all: Mutex<HashMap<u64, Arc<Batch>>>,
}

pub struct Batch {
    id: ChannelId,
    shared: Box<dyn Shared>,
    tick: Tick,
    life: Mutex<Life>,
    /// Requests that are under way.
    busy: AtomicUsize,
    dumps: tokio::sync::Mutex<Vec<Dump>>,
    ended: watch::Sender<bool>,
}

struct Life {
    ttl: Duration,
    until: Instant,
}

/// How far a collection was dumped.
struct Dump {
    collection: String,
    rows: u64,
    /// Its session; `None`: the dump is at its end, or another one has taken its place.
    cursor: Option<Cursor>,
    complete: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// After so many rows; `None`: after those that it was given already.
    pub from: Option<u64>,
    /// Up to this row.
    pub to: u64,
    pub chunk_bytes: usize,
    /// With ticks in the lines.
    pub ticks: bool,
    /// Whole documents are shown as the columns of their table.
    pub in_columns: bool,
}

/// What it gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    pub lines: Vec<u8>,
    /// The number of the last row.
    pub last_included: Option<u64>,
    pub more: bool,
}

impl Batch {
    fn renew(&self, ttl: Option<Duration>) {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.ttl = ttl.unwrap_or(life.ttl);
        life.until = Instant::now() + life.ttl;
    }

    fn is_over(&self) -> bool {
        if !self.shared.is_held() {
            return true;
        }
        if self.busy.load(Ordering::Relaxed) > 0 {
            self.renew(None);
        }
        self.life.lock().unwrap_or_else(PoisonError::into_inner).until <= Instant::now()
    }

    /// The place in the log that it shows.
    pub fn tick(&self) -> Tick {
        self.tick
    }

    /// Whether it has a table that is called so.
    pub fn has(&self, collection: &str) -> bool {
        self.table(collection).is_some()
    }

    fn table(&self, collection: &str) -> Option<usize> {
        let named = |schema: &Schema| names::collection(&schema.schema, &schema.table) == collection;
        self.shared.tables().iter().position(|shared| named(&shared.table.schema))
    }
}

/// A request that is under way.
struct Busy<'b>(&'b Batch);

impl<'b> Busy<'b> {
    fn new(batch: &'b Batch) -> Busy<'b> {
        batch.busy.fetch_add(1, Ordering::Relaxed);
        Busy(batch)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.renew(None);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Batches {
    pub fn new(source: Arc<dyn Source>) -> Arc<Batches> {
        Arc::new(Batches { source, all: Mutex::default() })
    }

    /// Begins a batch of all collections of a database; its id.
    ///
    /// # Errors
    /// There is no log, there are too many batches, or the database does not answer.
    pub async fn begin(self: &Arc<Self>, id: ChannelId, ttl: Duration) -> Result<(u64, Arc<Batch>)> {
        self.begin_with(id, &[], ttl).await
    }

    /// The same of some tables, each with its schema; of all if none is named.
    ///
    /// # Errors
    /// As [`Batches::begin`], or there is no such table in the channel.
    pub async fn begin_with(
        self: &Arc<Self>,
        id: ChannelId,
        tables: &[String],
        ttl: Duration,
    ) -> Result<(u64, Arc<Batch>)> {
        let shared = self.source.share(&id, tables).await?;
        let tick = Tick::end(shared.position())?;
        let batch = Arc::new(Batch {
            id,
            shared,
            tick,
            life: Mutex::new(Life { ttl, until: Instant::now() + ttl }),
            busy: AtomicUsize::new(0),
            dumps: tokio::sync::Mutex::default(),
            ended: watch::channel(false).0,
        });
        // Clients take it for a number of 64 bits, some of them for one with a sign.
        let number = (rand::random::<u64>() >> 1) | 1;
        self.lock().insert(number, Arc::clone(&batch));
        let (batches, watched) = (Arc::downgrade(self), Arc::downgrade(&batch));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let (Some(batches), Some(batch)) = (batches.upgrade(), watched.upgrade()) else { return };
                if batch.is_over() {
                    batches.remove(number);
                    return;
                }
            }
        });
        Ok((number, batch))
    }

    /// A batch of this database by its id, as it stands in a path or a query.
    ///
    /// # Errors
    /// It is gone.
    pub fn find(&self, id: &ChannelId, text: &str) -> Result<Arc<Batch>> {
        let number = text.parse::<u64>().ok();
        let all = self.lock();
        let found =
            number.and_then(|number| all.get(&number)).filter(|batch| batch.id == *id && !batch.is_over());
        found.cloned().ok_or_else(|| Failure::no_batch(text))
    }

    /// How many batches of a database there are.
    pub fn count(&self, database: &str) -> usize {
        self.lock().values().filter(|batch| batch.id.database == database && !batch.is_over()).count()
    }

    /// Keeps a batch for another while.
    ///
    /// # Errors
    /// It is gone.
    pub fn renew(&self, id: &ChannelId, text: &str, ttl: Duration) -> Result<()> {
        self.find(id, text)?.renew(Some(ttl));
        Ok(())
    }

    /// Ends a batch, and the dumps that are under way.
    ///
    /// # Errors
    /// It is gone.
    pub fn end(&self, id: &ChannelId, text: &str) -> Result<()> {
        self.find(id, text)?;
        if let Ok(number) = text.parse() {
            self.remove(number);
        }
        Ok(())
    }

    /// Some rows of a collection.
    ///
    /// # Errors
    /// The batch is gone or has no such collection, or the database does not answer.
    pub async fn dump(&self, id: &ChannelId, text: &str, collection: &str, asked: Asked) -> Result<Dumped> {
        let batch = self.find(id, text)?;
        let table = batch.table(collection).ok_or_else(|| Failure::no_collection(collection))?;
        let _busy = Busy::new(&batch);
        let mut ended = batch.ended.subscribe();
        tokio::select! {
            dumped = self.read(&batch, table, collection, asked) => dumped,
            _ = ended.wait_for(|ended| *ended) => Err(Failure::no_batch(text)),
        }
    }

    async fn read(&self, batch: &Batch, table: usize, collection: &str, asked: Asked) -> Result<Dumped> {
        let collections = Collections::new(Arc::clone(&self.source), batch.id.clone());
        let mut collections = collections.in_columns(asked.in_columns);
        let known = collections.learn(batch.shared.tables()[table].table.schema.id).await?;
        if !known.has_key() {
            return Err(Failure::no_collection(collection));
        }
        let mut dumps = batch.dumps.lock().await;
        let at = match dumps.iter().position(|dump| dump.collection == collection) {
            Some(at) => at,
            None => {
                let collection = collection.to_owned();
                dumps.push(Dump { collection, rows: 0, cursor: None, complete: false });
                dumps.len() - 1
            }
        };
        let from = asked.from.unwrap_or(dumps[at].rows);
        if from == dumps[at].rows && dumps[at].complete {
            return Ok(Dumped::default());
        }
        // Whoever goes away in the middle leaves the dump where it was: its cursor is not put back.
        let cursor = dumps[at].cursor.take().filter(|cursor| cursor.rows == from);
        let mut cursor = match cursor {
            Some(cursor) => cursor,
            None => {
                let open = dumps.iter().filter(|dump| dump.cursor.is_some()).count();
                if open >= OPEN_MAX
                    && let Some(other) = dumps.iter_mut().find(|dump| dump.cursor.is_some())
                {
                    other.cursor = None;
                }
                Cursor::open(&*batch.shared, table, from).await?
            }
        };
        let writer = LineWriter { of: known, tick: batch.tick, ticks: asked.ticks };
        let dumped = cursor.chunk(&writer, &asked).await?;
        let dump = &mut dumps[at];
        dump.rows = cursor.rows;
        dump.complete = cursor.complete;
        dump.cursor = Some(cursor).filter(|cursor| !cursor.complete);
        Ok(dumped)
    }

    fn remove(&self, number: u64) {
        if let Some(batch) = self.lock().remove(&number) {
            batch.ended.send_replace(true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Batch>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table that is read in a batch's snapshot.
struct Cursor {
    copy: Box<dyn CopyOut>,
    /// COPY's lines, of which those before `begin` were taken.
    buffer: Vec<u8>,
    begin: usize,
    /// Rows that were taken.
    rows: u64,
    complete: bool,
}

impl Cursor {
    /// Reads a table, and goes behind its first rows.
    async fn open(shared: &dyn Shared, table: usize, skip: u64) -> Result<Cursor> {
        let statement = shared.tables()[table].table.copy_in_order();
        let copy = shared.open(&statement).await?;
        let mut cursor = Cursor { copy, buffer: Vec::new(), begin: 0, rows: 0, complete: false };
        while cursor.rows < skip {
            let Some(line) = cursor.line().await? else {
                return Err(Failure::bad(format!(
                    "from is {skip}, but the collection has {} rows in this batch; from is the tick of a line of the same \
                     dump, or 0",
                    cursor.rows
                )));
            };
            cursor.take(&line);
        }
        Ok(cursor)
    }

    async fn chunk(&mut self, writer: &LineWriter<'_>, asked: &Asked) -> Result<Dumped> {
        let mut dumped = Dumped::default();
        let mut rows = RowWriter::default();
        loop {
            let Some(line) = self.line().await? else {
                self.complete = true;
                return Ok(dumped);
            };
            if self.rows >= asked.to {
                return Ok(dumped);
            }
            if dumped.lines.len() >= asked.chunk_bytes && dumped.last_included.is_some() {
                dumped.more = true;
                return Ok(dumped);
            }
            writer.write(&self.buffer[line.clone()], self.rows + 1, &mut rows, &mut dumped.lines)?;
            self.take(&line);
            dumped.last_included = Some(self.rows);
        }
    }

    /// Where the next line is, without its end; none: there are no more.
    async fn line(&mut self) -> Result<Option<Range<usize>>> {
        let mut looked = self.begin;
        loop {
            if let Some(length) = self.buffer[looked..].iter().position(|b| *b == b'\n') {
                return Ok(Some(self.begin..looked + length));
            }
            self.buffer.drain(..self.begin);
            self.begin = 0;
            looked = self.buffer.len();
            match self.copy.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self, line: &Range<usize>) {
        self.begin = line.end + 1;
        self.rows += 1;
    }
}

/// How the rows of one table are written.
struct LineWriter<'w> {
    of: &'w Collection,
    tick: Tick,
    ticks: bool,
}

impl LineWriter<'_> {
    fn write(&self, line: &[u8], number: u64, rows: &mut RowWriter, out: &mut Vec<u8>) -> Result<()> {
        let (mut key, mut object, mut value) = (String::new(), Vec::new(), Vec::new());
        for (field, column) in fields(line).zip(&self.of.schema.columns) {
            if column.key {
                unescape(field, &mut value);
                names::key_value(&mut key, &value);
            }
        }
        rows.object(line, &self.of.schema, &mut object)?;
        dumped(out, self.ticks.then_some(number), self.of, &key, self.tick, &object);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
