//! A database for tests: database `postgres` with channel `shop`, whose log is in memory.

mod snapshots;

use super::error::{FeedError, Kind, Result};
use super::position::{After, Position};
use super::source::{
    Answer, Call, ChannelId, DumpTable, LAST, LogRow, Rows, Shared, SharedTable, Snapshot, Source,
};
use bytes::Bytes;
use pgquorum_change::{Chunk, Chunker, Encoder, Header, Old, Op};
use serde_json::{Value, json};
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
    /// What the next requests fail with.
    pub failure: Mutex<Option<Kind>>,
    /// Waits that are under way.
    pub waits: AtomicUsize,
    /// The server brings no row of a copy, as if it was stopped.
    pub copies_hang: AtomicBool,
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
            failure: Mutex::default(),
            waits: AtomicUsize::new(0),
            copies_hang: AtomicBool::new(false),
            snapshots: Arc::default(),
            bytes_read: AtomicUsize::new(0),
            slowness: Mutex::default(),
        }
    }
}

/// A row of table `orders` (version 1) or `notes` (version 2).
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
        if id.channel == "shop" {
            return Ok(());
        }
        Err(FeedError::new(Kind::UnknownChannel, format!("there is no channel {}", id.channel)))
    }

    /// The tick after which to read.
    fn place(&self, after: &str) -> Result<u64> {
        let end = *self.end.borrow();
        let purged = self.log().purged;
        let tick = match after.parse::<After>().unwrap() {
            After::Start => return Ok(purged),
            After::Now => return Ok(end.tick),
            After::Tick(tick) => tick,
            After::At(at) if at.epoch > end.epoch || at.epoch < 5 => {
                return Err(FeedError::new(
                    Kind::PositionUnknownEpoch,
                    format!("{after} is of another history"),
                ));
            }
            After::At(at) => at.tick,
        };
        match tick {
            _ if tick < purged => Err(FeedError::new(Kind::PositionPurged, format!("{after} was purged"))),
            _ if tick > end.tick => {
                Err(FeedError::new(Kind::PositionInFuture, format!("{after} is beyond {end}")))
            }
            _ => Ok(tick),
        }
    }

    fn read_rows(&self, after: u64, max_bytes: usize) -> Result<Rows> {
        let log = self.log();
        let mut found = Rows::default();
        let Some(holder) = log.rows.iter().position(|row| row.ticks.1 > after) else { return Ok(found) };
        // Where the change after `after` begins.
        let mut begin = holder;
        while log.rows[begin].starts_inside && log.rows[begin].ticks.0 > after {
            begin -= 1;
            if log.rows[begin].ticks.1 >= log.rows[begin].ticks.0 {
                break;
            }
        }
        let mut push = |row: &Row| {
            self.bytes_read.fetch_add(row.data.len(), Ordering::Relaxed);
            let Row { epoch, ticks: (first_tick, last_tick), xid, flags, .. } = *row;
            found.push(&LogRow { epoch, first_tick, last_tick, xid, flags }, &row.data);
        };
        let part = usize::try_from(log.rows[begin].part).unwrap();
        if part > 0 {
            push(&log.rows[begin - part]);
        }
        let mut bytes = 0;
        for row in &log.rows[begin..] {
            if bytes > 0 && bytes + row.data.len() > max_bytes {
                break;
            }
            if row.broken {
                let error = FeedError::new(Kind::RecordBroken, "the checksum is wrong");
                if bytes == 0 {
                    return Err(error);
                }
                found.broken = Some(error);
                break;
            }
            bytes += row.data.len();
            push(row);
        }
        Ok(found)
    }

    fn state(&self) -> Value {
        let (end, purged) = (*self.end.borrow(), self.log().purged);
        json!({"channel": "shop", "origin": "berlin", "epoch": end.epoch, "first_tick": purged + 1, "last_tick": end.tick})
    }
}

/// The flag that the chunk's last change goes on in the next one.
fn ends_inside(chunk: &[u8]) -> bool {
    chunk[5] & 0x02 != 0
}

pub fn schema(version: u64) -> Value {
    let table = if version == 1 { "orders" } else { "notes" };
    json!({"id": version, "relid": 16384 + version, "schema_name": "public", "table_name": table, "columns": [
        {"name": "id", "type": "integer", "type_oid": 23, "attnum": 1, "key": true},
        {"name": "note", "type": "text", "type_oid": 25, "attnum": 2, "key": false}]})
}

/// Counts a wait as long as it lasts.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Source for Fake {
    fn default_database(&self) -> &str {
        "postgres"
    }

    fn states<'a>(&'a self, database: &'a str, channel: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(if channel.is_none_or(|name| name == "shop") { vec![self.state()] } else { vec![] })
        })
    }

    fn tables<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            Ok(vec![json!({"channel": "shop", "schema": "public", "table": "orders"})])
        })
    }

    fn schemas<'a>(&'a self, id: &'a ChannelId, version: Option<u64>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            let known = [1, 2].into_iter().filter(|one| version.is_none_or(|v| v == *one));
            Ok(if id.channel == "shop" { known.map(schema).collect() } else { vec![] })
        })
    }

    fn followers<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(&id.database)?;
            Ok(self.log().followers.clone())
        })
    }

    fn wait<'a>(&'a self, id: &'a ChannelId, after: &'a str, timeout: Duration) -> Answer<'a, Position> {
        Box::pin(async move {
            self.channel(id)?;
            let after = self.place(after)?;
            self.waits.fetch_add(1, Ordering::Relaxed);
            let _counted = Counted(&self.waits);
            let mut end = self.end.subscribe();
            let _ = tokio::time::timeout(timeout, end.wait_for(|end| end.tick > after)).await;
            Ok(*self.end.borrow())
        })
    }

    fn read<'a>(&'a self, id: &'a ChannelId, after: &'a str, max_bytes: usize) -> Answer<'a, Rows> {
        Box::pin(async move {
            self.channel(id)?;
            let slowness = *self.slowness.lock().unwrap();
            if !slowness.is_zero() {
                tokio::time::sleep(slowness).await;
            }
            self.read_rows(self.place(after)?, max_bytes)
        })
    }

    fn find<'a>(&'a self, id: &'a ChannelId, tick: u64) -> Answer<'a, Position> {
        Box::pin(async move {
            self.channel(id)?;
            let tick = self.place(&tick.to_string())?;
            let log = self.log();
            let holder = log.rows.iter().rfind(|row| row.ticks.0 <= tick);
            Ok(Position { epoch: holder.map_or(5, |row| row.epoch), tick })
        })
    }

    fn subscriptions<'a>(&'a self, database: &'a str, name: Option<&'a str>) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            let known = name.is_none_or(|name| name == "mirror");
            Ok(if known { vec![json!({"name": "mirror", "state": "following"})] } else { vec![] })
        })
    }

    fn subscription_tables<'a>(&'a self, database: &'a str, _name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(vec![json!({"schema": "public", "table": "orders", "state": "following"})])
        })
    }

    fn conflicts<'a>(&'a self, database: &'a str, _name: &'a str) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            Ok(vec![
                json!({"table": "orders", "conflict": "insert_exists", "resolution": "rejected", "count": 2}),
            ])
        })
    }

    fn rejected<'a>(
        &'a self,
        database: &'a str,
        _name: &'a str,
        after: u64,
        limit: u64,
    ) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            let all = [17, 19].into_iter().filter(|id| *id > after);
            Ok(all.take(limit as usize).map(|id| json!({"id": id, "op": "insert"})).collect())
        })
    }

    fn subscription<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Option<Value>> {
        Box::pin(async move {
            self.admit(database)?;
            // Nobody answers there.
            let row = json!({"id": 1, "name": name, "enabled": true, "remote": ["http://127.0.0.1:9"], "channel": "shop",
                "policy": "error", "ddl": "ignore", "on_purged": "stop", "forward": false, "copy": "error", "jobs": 2,
                "secret": "s3cret"});
            Ok((name == "mirror").then_some(row))
        })
    }

    fn sequences<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>> {
        Box::pin(async move {
            self.channel(id)?;
            Ok(vec![json!({"schema": "public", "table": "orders", "column": "id", "last_value": 7})])
        })
    }

    fn call<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, String> {
        Box::pin(async move {
            self.admit(database)?;
            let text = |name| {
                let found = call.arguments.iter().find(|one| one.name == name);
                found.map(|one| format!("{:?}", one.value)).unwrap_or_default()
            };
            if call.function == "register_follower" {
                self.log().followers.push(json!({"name": "cache", "tick": 0}));
            } else if call.function.ends_with("follower") && !text("name").contains("cache") {
                return Err(FeedError::new(Kind::UnknownChannel, "there is no such follower"));
            }
            self.calls.lock().unwrap().push((database.to_owned(), call));
            Ok(String::new())
        })
    }

    fn dump<'a>(&'a self, id: &'a ChannelId, _tables: &'a [String]) -> Answer<'a, Box<dyn Snapshot>> {
        Box::pin(async move {
            self.channel(id)?;
            let schema = super::schemas::parse(&schema(1))?;
            let tables = vec![DumpTable { schema, from: String::new() }];
            // COPY's lines may come in any pieces.
            let copy = ["1\ta\n2\t", "\\N\n3\tc\\n\n"].map(Bytes::from).to_vec();
            self.snapshots.fetch_add(1, Ordering::Relaxed);
            let (held, hangs) = (Arc::clone(&self.snapshots), self.copies_hang.load(Ordering::Relaxed));
            let copied = snapshots::Copied { position: *self.end.borrow(), tables, copy, hangs, held };
            Ok(Box::new(copied) as Box<dyn Snapshot>)
        })
    }

    fn share<'a>(&'a self, id: &'a ChannelId, _tables: &'a [String]) -> Answer<'a, Box<dyn Shared>> {
        Box::pin(async move {
            self.channel(id)?;
            let table = DumpTable { schema: super::schemas::parse(&schema(1))?, from: String::new() };
            let tables = vec![SharedTable { table, rows: Some(2), bytes: 8192 }];
            self.snapshots.fetch_add(1, Ordering::Relaxed);
            let (held, hangs) = (Arc::clone(&self.snapshots), self.copies_hang.load(Ordering::Relaxed));
            Ok(Box::new(snapshots::Together { position: *self.end.borrow(), tables, hangs, held })
                as Box<dyn Shared>)
        })
    }
}
