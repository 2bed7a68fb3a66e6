//! A database for tests: database `postgres` with channel `shop`, whose log is in memory.

mod answers;
mod neighbours;
mod reading;
mod snapshots;

use super::error::{FeedError, Kind, Result};
use super::position::Position;
use super::source::{Call, ChannelId, LAST};
use pgquorum_change::{Chunk, Chunker, Encoder, Header, Old, Op};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// 2026-01-02 03:04:05.000006 UTC.
pub const COMMIT_US: i64 = 1_767_323_045_000_006;

pub struct Fake {
    log: Mutex<Log>,
    end: watch::Sender<Position>,
    /// What was asked to be changed.
    pub calls: Mutex<Vec<(String, Call)>>,
    /// What functions that change nothing say, by their names.
    pub says: Mutex<BTreeMap<&'static str, Value>>,
    /// What one of them says after the next change.
    pub later: Mutex<Option<(&'static str, Value)>>,
    /// A subscription as the database keeps it.
    pub subscription: Mutex<Option<Value>>,
    /// Subscriptions that are made, shown and ended; `None`: there is always one.
    pub kept: Mutex<Option<Vec<Value>>>,
    /// What it knows of other clusters; `None`: it has a name and a route.
    pub neighbours: Mutex<Option<Value>>,
    /// The channel's version.
    pub version: Mutex<u64>,
    /// What the next requests fail with.
    pub failure: Mutex<Option<Kind>>,
    /// Waits that are under way.
    pub waits: AtomicUsize,
    /// The server brings no row of a copy, as if it was stopped.
    pub copies_hang: AtomicBool,
    /// There is no channel `_logger`.
    pub unknown_logger: AtomicBool,
    /// It is stopped.
    pub stopped_logger: AtomicBool,
    /// Snapshots that are held.
    pub snapshots: Arc<AtomicUsize>,
    /// Bytes of chunks that were read.
    pub bytes_read: AtomicUsize,
    /// How long reading takes.
    pub slowness: Mutex<Duration>,
}

#[derive(Default)]
struct Log {
    rows: Vec<Row>,
    /// Changes up to this tick are gone.
    purged: u64,
    followers: Vec<Value>,
}

#[derive(Clone)]
struct Row {
    epoch: u64,
    ticks: (u64, u64),
    xid: u64,
    part: u32,
    flags: u32,
    starts_inside: bool,
    /// The server does not read it.
    broken: bool,
    data: Vec<u8>,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake {
            log: Mutex::default(),
            end: watch::channel(Position { epoch: 5, tick: 0 }).0,
            calls: Mutex::default(),
            says: Mutex::default(),
            later: Mutex::default(),
            subscription: Mutex::default(),
            kept: Mutex::default(),
            neighbours: Mutex::default(),
            version: Mutex::new(1),
            failure: Mutex::default(),
            waits: AtomicUsize::new(0),
            copies_hang: AtomicBool::new(false),
            unknown_logger: AtomicBool::new(false),
            stopped_logger: AtomicBool::new(false),
            snapshots: Arc::default(),
            bytes_read: AtomicUsize::new(0),
            slowness: Mutex::default(),
        }
    }
}

/// The version of a table for whole documents, `people`, which only those find who ask for it.
pub const DOCUMENTS: u64 = 3;

/// A row of table `orders` (version 1), `notes` (version 2) or `people` ([`DOCUMENTS`]).
pub fn insert(version: u64, id: u64, note: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Insert, version, Old::None, true);
    encoder.image(2);
    encoder.text(id.to_string().as_bytes());
    encoder.text(note.as_bytes());
    out
}

impl Fake {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Writes a transaction; returns the end.
    pub fn commit(&self, xid: u64, changes: &[Vec<u8>]) -> Position {
        self.commit_from(xid, None, changes)
    }

    pub fn commit_from(&self, xid: u64, origin: Option<&str>, changes: &[Vec<u8>]) -> Position {
        let end = *self.end.borrow();
        let mut tick = end.tick;
        let mut rows: Vec<Row> = Vec::new();
        let mut inside = false;
        let mut store = |chunk: Chunk| {
            let ticks = (tick + 1, tick + u64::from(chunk.changes));
            tick = ticks.1;
            rows.push(Row {
                epoch: end.epoch,
                ticks,
                xid,
                part: chunk.part,
                flags: u32::from(chunk.part == 0) | if chunk.last { LAST } else { 0 },
                starts_inside: inside,
                broken: false,
                data: chunk.data.to_vec(),
            });
            inside = ends_inside(chunk.data);
            Ok::<(), ()>(())
        };
        let header = Header { origin, origin_commit_us: origin.map(|_| 0), commit_us: COMMIT_US };
        let mut chunker = Chunker::new(&header);
        for change in changes {
            chunker.push(change, &mut store).unwrap();
        }
        chunker.finish(&mut store).unwrap();
        self.log().rows.extend(rows);
        let end = Position { tick, ..end };
        self.end.send_replace(end);
        end
    }

    /// A new history begins at the present end.
    pub fn fail_over(&self) {
        self.end.send_modify(|end| end.epoch += 1);
    }

    /// Changes up to this tick go.
    pub fn purge(&self, tick: u64) {
        let mut log = self.log();
        log.purged = tick;
        log.rows.retain(|row| row.ticks.1 > tick);
    }

    /// Damages the row that holds this tick: the server fails at it, or it was damaged on the way here.
    pub fn damage(&self, tick: u64, in_the_server: bool) {
        let mut log = self.log();
        let row = log.rows.iter_mut().find(|row| row.ticks.1 >= tick).unwrap();
        if in_the_server {
            row.broken = true;
        } else {
            *row.data.last_mut().unwrap() ^= 1;
        }
    }

    fn admit(&self, database: &str) -> Result<()> {
        if let Some(kind) = *self.failure.lock().unwrap() {
            return Err(FeedError::new(kind, "the database fails as it was told to"));
        }
        match database {
            "postgres" => Ok(()),
            "bare" => Err(FeedError::new(Kind::NoExtension, "schema quorum does not exist")),
            _ => Err(FeedError::new(Kind::UnknownDatabase, format!("database {database} does not exist"))),
        }
    }

    fn channel(&self, id: &ChannelId) -> Result<()> {
        self.admit(&id.database)?;
        if is_known(&id.channel) {
            return Ok(());
        }
        Err(FeedError::new(Kind::UnknownChannel, format!("there is no channel {}", id.channel)))
    }

    /// Epochs with their first ticks.
    fn epochs(&self) -> Vec<[u64; 2]> {
        let mut epochs = vec![[5, 1]];
        for row in &self.log().rows {
            if row.epoch > epochs.last().map_or(0, |last| last[0]) {
                epochs.push([row.epoch, row.ticks.0]);
            }
        }
        epochs
    }

    fn state(&self) -> Value {
        let (end, purged) = (*self.end.borrow(), self.log().purged);
        json!({"channel": "shop", "origin": "berlin", "epoch": end.epoch, "first_tick": purged + 1, "last_tick": end.tick,
            "database_version": *self.version.lock().unwrap(), "delta_version": end.tick,
            "stopped_at": self.stopped_logger.load(Ordering::Relaxed).then_some("2026-01-02 03:04:05+00")})
    }
}

/// The channel of most tests, and the one that the replication interface reads.
fn is_known(channel: &str) -> bool {
    matches!(channel, "shop" | "_logger")
}

/// The flag that the chunk's last change goes on in the next one.
fn ends_inside(chunk: &[u8]) -> bool {
    chunk[5] & 0x02 != 0
}

pub fn schema(version: u64) -> Value {
    if version == DOCUMENTS {
        return json!({"id": version, "relid": 16384 + version, "schema_name": "public", "table_name": "people", "columns": [
            {"name": "_key", "type": "text", "type_oid": 25, "attnum": 1, "key": true},
            {"name": "data", "type": "jsonb", "type_oid": 3802, "attnum": 2, "key": false}]});
    }
    let table = if version == 1 { "orders" } else { "notes" };
    json!({"id": version, "relid": 16384 + version, "schema_name": "public", "table_name": table, "columns": [
        {"name": "id", "type": "integer", "type_oid": 23, "attnum": 1, "key": true},
        {"name": "note", "type": "text", "type_oid": 25, "attnum": 2, "key": false}]})
}
