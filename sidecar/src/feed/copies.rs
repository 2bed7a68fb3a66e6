//! Copies that are read by several clients at the same time, table by table, all in one snapshot whose place in the log
//! is known. A copy has a name, by which any request finds it, and ends by itself when nobody asks for it any more.
//!
//! Bounds: snapshots and readers are counted in `pool`; a copy that nobody reads ends after its time, at most
//! [`TTL_MAX`]; a reader that takes nothing for a minute is cut off.

use super::dump::send;
use super::error::{FeedError, Kind, Result};
use super::outlet::Outlet;
use super::source::{ChannelId, CopyOut, Shared, SharedTable, Source};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// For how long a copy may be left alone.
pub const TTL_DEFAULT: Duration = Duration::from_secs(60);
pub const TTL_MAX: Duration = Duration::from_secs(600);
/// How often copies are looked after.
const LOOK: Duration = Duration::from_millis(200);
/// The line that ends COPY's text format. No row looks like it.
const END: &[u8] = b"\\.\n";

/// The copies of this node.
pub struct Copies {
    source: Arc<dyn Source>,
    all: Mutex<HashMap<String, Arc<Copy>>>,
}

struct Copy {
    id: ChannelId,
    shared: Box<dyn Shared>,
    life: Mutex<Life>,
    readers: AtomicUsize,
    ended: watch::Sender<bool>,
}

struct Life {
    ttl: Duration,
    until: Instant,
}

impl Copy {
    fn renew(&self, ttl: Option<Duration>) -> Duration {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.ttl = ttl.unwrap_or(life.ttl);
        life.until = Instant::now() + life.ttl;
        life.ttl
    }

    fn is_over(&self) -> bool {
        if !self.shared.is_held() {
            return true;
        }
        if self.readers.load(Ordering::Relaxed) > 0 {
            self.renew(None);
        }
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.until <= Instant::now()
    }

    fn describe(&self, name: &str, ttl: Duration) -> Value {
        let tables = self.shared.tables().iter().map(|shared| {
            let schema = &shared.table.schema;
            json!({"schema": schema.schema, "table": schema.table,
                "columns": shared.table.columns().collect::<Vec<_>>(),
                "rows_estimate": shared.rows, "bytes_estimate": shared.bytes})
        });
        let (version, tick) = self.shared.version();
        json!({"id": name, "channel": self.id.channel, "database": self.id.database,
            "database_version": version, "version_tick": tick,
            "position": self.shared.position().to_string(), "origin": self.shared.origin(),
            "tables": tables.collect::<Vec<_>>(), "ttl": humantime::format_duration(ttl).to_string()})
    }
}

impl Copies {
    pub fn new(source: Arc<dyn Source>) -> Arc<Copies> {
        Arc::new(Copies { source, all: Mutex::default() })
    }

    /// Begins a copy of these tables, of all if none is named.
    ///
    /// # Errors
    /// No such channel or table, too many copies, or the database does not answer.
    pub async fn begin(self: &Arc<Self>, id: ChannelId, tables: &[String], ttl: Duration) -> Result<Value> {
        let shared = self.source.share(&id, tables).await?;
        let life = Mutex::new(Life { ttl, until: Instant::now() + ttl });
        let (readers, ended) = (AtomicUsize::new(0), watch::channel(false).0);
        let copy = Arc::new(Copy { id, shared, life, readers, ended });
        // Whoever guesses it could read the tables.
        let name: String = rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let described = copy.describe(&name, ttl);
        self.lock().insert(name.clone(), Arc::clone(&copy));
        let (copies, watched) = (Arc::downgrade(self), Arc::downgrade(&copy));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let (Some(copies), Some(copy)) = (copies.upgrade(), watched.upgrade()) else { return };
                if copy.is_over() {
                    copies.remove(&name);
                    return;
                }
            }
        });
        Ok(described)
    }

    /// Keeps a copy for another while.
    ///
    /// # Errors
    /// It is gone.
    pub fn renew(&self, id: &ChannelId, name: &str, ttl: Option<Duration>) -> Result<Value> {
        let copy = self.find(id, name)?;
        let ttl = copy.renew(ttl);
        Ok(copy.describe(name, ttl))
    }

    /// Ends a copy, and those who read it.
    ///
    /// # Errors
    /// It is gone.
    pub fn end(&self, id: &ChannelId, name: &str) -> Result<()> {
        self.find(id, name)?;
        self.remove(name);
        Ok(())
    }

    /// Begins to read a table of a copy, `schema.table`: these columns, or all, of the rows that fulfil the condition. What is
    /// returned ends with [`END`] if it is whole.
    ///
    /// # Errors
    /// The copy is gone, or has no such table or column; the condition is none that filters take; or too many tables are read
    /// at the same time.
    pub async fn read(
        &self,
        id: &ChannelId,
        name: &str,
        table: &str,
        columns: Option<&[String]>,
        condition: Option<&str>,
    ) -> Result<mpsc::Receiver<Bytes>> {
        let copy = self.find(id, name)?;
        // Whoever asks for what is not in it reads nothing, and does not keep it.
        let statement = statement(&copy, table, columns, condition).await?;
        // Counted before the database is asked, which may take longer than is left.
        let reader = Reader::new(&copy);
        let rows = copy.shared.open(&statement).await?;
        let (mut out, client) = Outlet::new();
        let (gone, mut ended) = (out.gone(), copy.ended.subscribe());
        tokio::spawn(async move {
            let _counted = reader;
            let written = tokio::select! {
                written = write(rows, &mut out) => written,
                () = gone => return,
                // The sender gone means the same as its signal.
                _ = ended.wait_for(|ended| *ended) => return,
            };
            if let Err(error) = written {
                tracing::warn!(%error, "a copy of a table ends before its end");
            }
        });
        Ok(client)
    }

    fn find(&self, id: &ChannelId, name: &str) -> Result<Arc<Copy>> {
        let found = self.lock().get(name).filter(|copy| copy.id == *id).map(Arc::clone);
        found.ok_or_else(|| {
            let message = format!(
                "this node has no copy {name} of channel {}: it was left alone for longer than its ttl, was ended, or was \
                 begun at a leader that leads no more. Begin a new one with POST /channels/{}/copies",
                id.channel, id.channel
            );
            FeedError::new(Kind::CopyGone, message)
        })
    }

    fn remove(&self, name: &str) {
        if let Some(copy) = self.lock().remove(name) {
            copy.ended.send_replace(true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Copy>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a reader as long as it reads.
struct Reader(Arc<Copy>);

impl Reader {
    fn new(copy: &Arc<Copy>) -> Reader {
        copy.readers.fetch_add(1, Ordering::Relaxed);
        Reader(Arc::clone(copy))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.renew(None);
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn statement(
    copy: &Copy,
    table: &str,
    columns: Option<&[String]>,
    condition: Option<&str>,
) -> Result<String> {
    let named = |shared: &&SharedTable| {
        let schema = &shared.table.schema;
        table.strip_prefix(schema.schema.as_str()).and_then(|rest| rest.strip_prefix('.'))
            == Some(&schema.table)
    };
    let Some(shared) = copy.shared.tables().iter().find(named) else {
        let message =
            format!("this copy has no table {table}; write schema.table, as in the answer that began it");
        return Err(FeedError::new(Kind::UnknownTable, message));
    };
    let all: Vec<&str> = shared.table.columns().collect();
    let wanted = columns.map_or_else(|| all.clone(), |names| names.iter().map(String::as_str).collect());
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        let message = format!("table {table} has no column {unknown} in this copy");
        return Err(FeedError::new(Kind::UnknownColumn, message));
    }
    Ok(match condition {
        None => shared.table.copy(wanted.into_iter()),
        Some(text) => {
            let condition = copy.shared.condition(shared, text).await?;
            shared.table.copy_where(wanted.into_iter(), &condition)
        }
    })
}

async fn write(mut rows: Box<dyn CopyOut>, out: &mut Outlet) -> Result<()> {
    while let Some(bytes) = rows.next().await? {
        out.buffer().extend_from_slice(&bytes);
        send(out, false).await?;
    }
    out.buffer().extend_from_slice(END);
    send(out, true).await
}
