//! A consistent copy of a channel's tables: one snapshot, whose place in the log is known, and COPY.

use super::copy_text::RowWriter;
use super::error::{FeedError, Kind, Result};
use super::outlet::{FULL_BYTES, Outlet};
use super::pool::Taken;
use super::position::Position;
use super::schemas;
use super::server::{ONLY_READ, column, within};
use super::source::{Answer, ChannelId, DumpTable, Snapshot};
use bytes::Bytes;
use futures_util::{FutureExt, TryStreamExt};
use pgquorum_change::json;
use std::io::Write;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_postgres::CopyOutStream;
use tokio_postgres::types::Type;

/// How often it is begun anew because the log was cut past the snapshot meanwhile, or a table was changed.
const ATTEMPTS_MAX: usize = 20;
/// How long a lock is waited for: whoever asks for one behind this request waits as well.
/// What is held for the client must not be taken from it because it does nothing for a while.
const SETTINGS: &str = "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = 0";
/// How long it may take until the snapshot is there, all attempts together.
const BEGIN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client may take nothing. Its snapshot keeps vacuum from removing rows, so it is not held for ever.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// How long the server may bring no row: a filter may find few in a large table, but a server that hangs brings none.
const ROW_DEADLINE: Duration = Duration::from_secs(600);

/// The tracked tables, with the version that is in force in this snapshot. A partitioned one stands for its partitions;
/// those who inherit are tables of their own. What tells whether a table is still the same comes last.
const TABLES: &str = "SELECT to_jsonb(v), \
     CASE WHEN k.relkind = 'p' THEN '' ELSE 'ONLY ' END || pg_catalog.format('%I.%I', n.nspname, k.relname), \
     CASE WHEN t.filter IS NOT NULL THEN COALESCE(quorum.filter_text(t.filter, t.relid), 'false') END, \
     t.relid, ARRAY(SELECT p.relid::oid FROM pg_catalog.pg_partition_tree(t.relid) AS p ORDER BY 1) \
     FROM quorum.tracked_table t JOIN quorum.channel c ON c.id = t.channel \
     JOIN quorum.schema_version v ON v.id = t.schema_version \
     JOIN pg_catalog.pg_class k ON k.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace \
     WHERE c.name = $1 ORDER BY n.nspname, k.relname";

/// A session that holds the snapshot.
pub(super) struct HeldSnapshot {
    session: Taken,
    position: Position,
    tables: Vec<DumpTable>,
    copy: Option<Copied>,
}

/// What a session's transaction sees, and has locked.
pub(super) struct Placed {
    pub position: Position,
    pub tables: Vec<DumpTable>,
    /// Of each table: it, and its partitions if it has any.
    pub members: Vec<Vec<u32>>,
}

/// A tracked table as the catalogue has it.
#[derive(PartialEq)]
struct Listed {
    version: serde_json::Value,
    /// Quoted, with its schema, as `FROM` and `LOCK TABLE` take it.
    name: String,
    /// In present names, from what capture goes by: the words that were given may mean other columns by now.
    filter: Option<String>,
    relid: u32,
    /// It and its partitions; none if it has none.
    members: Vec<u32>,
}

impl HeldSnapshot {
    pub(super) async fn begin(session: Taken, id: &ChannelId, wanted: &[String]) -> Result<HeldSnapshot> {
        let Placed { position, tables, .. } = place(&session, id, wanted).await?;
        Ok(HeldSnapshot { session, position, tables, copy: None })
    }
}

/// Begins a transaction whose place in the log is known, with these tables of the channel, or all if none is named.
pub(super) async fn place(session: &Taken, id: &ChannelId, wanted: &[String]) -> Result<Placed> {
    within(BEGIN_DEADLINE, ONLY_READ, place_in_time(session, id, wanted)).await
}

async fn place_in_time(session: &Taken, id: &ChannelId, wanted: &[String]) -> Result<Placed> {
    run(session, SETTINGS).await?;
    let (position, listed) = place_snapshot(session, id, wanted).await?;
    let (mut tables, mut members) = (Vec::new(), Vec::new());
    for table in listed {
        let schema = schemas::parse(&table.version)?;
        let filter = table.filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
        tables.push(DumpTable { schema, from: table.name + &filter });
        members.push(std::iter::once(table.relid).chain(table.members).collect());
    }
    for name in wanted {
        if !tables.iter().any(|table| schemas::is_named(&table.schema, name)) {
            let message = format!(
                "channel {} does not track a table {name}; GET /channels/{} lists its tables",
                id.channel, id.channel
            );
            return Err(FeedError::new(Kind::UnknownTable, message));
        }
    }
    Ok(Placed { position, tables, members })
}

pub(super) async fn run(session: &Taken, statements: &str) -> Result<()> {
    session.batch_execute(statements).await.map_err(|error| FeedError::from_database(&error))
}

/// The channel's tables; those of these names, if any is given.
async fn list(session: &Taken, id: &ChannelId, wanted: &[String]) -> Result<Vec<Listed>> {
    let rows = session.query_typed(TABLES, &[(&id.channel, Type::TEXT)]).await;
    let mut found = Vec::new();
    for row in &rows.map_err(|error| FeedError::from_database(&error))? {
        let version = column(row, 0)?;
        let schema = schemas::parse(&version)?;
        if wanted.is_empty() || wanted.iter().any(|name| schemas::is_named(&schema, name)) {
            let (name, filter) = (column(row, 1)?, column(row, 2)?);
            let (relid, members) = (column(row, 3)?, column(row, 4)?);
            found.push(Listed { version, name, filter, relid, members });
        }
    }
    Ok(found)
}

/// Takes locks on the tables, then a snapshot that the log is cut at. Without the locks a table that is emptied, or
/// written anew by ALTER TABLE, between the snapshot and its copy would look empty.
async fn place_snapshot(
    session: &Taken,
    id: &ChannelId,
    wanted: &[String],
) -> Result<(Position, Vec<Listed>)> {
    let mut attempt = 1;
    loop {
        let listed = list(session, id, wanted).await?;
        match attempt_at(session, id, wanted, &listed).await {
            Ok(Some(position)) => return Ok((position, listed)),
            // A table was tracked, changed or dropped before all were locked, or another cut came between.
            Ok(None) if attempt < ATTEMPTS_MAX => {}
            Err(error)
                if matches!(error.kind, Kind::SnapshotTooOld | Kind::UnknownTable)
                    && attempt < ATTEMPTS_MAX => {}
            Ok(None) => {
                let message = "the channel's tables are being changed again and again; try again in a moment";
                return Err(FeedError::new(Kind::Locked, message));
            }
            // No batch could be cut now, the message says why.
            Err(FeedError { kind: Kind::Refused, message }) => {
                return Err(FeedError::new(Kind::Locked, message));
            }
            Err(error) => return Err(error),
        }
        attempt += 1;
        run(session, "ROLLBACK").await?;
    }
}

/// One attempt; none: the tables are others than those that were listed.
async fn attempt_at(
    session: &Taken,
    id: &ChannelId,
    wanted: &[String],
    listed: &[Listed],
) -> Result<Option<Position>> {
    let names: Vec<&str> = listed.iter().map(|table| table.name.as_str()).collect();
    // LOCK TABLE takes no snapshot.
    let lock = match names.as_slice() {
        [] => String::new(),
        names => format!("; LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")),
    };
    run(session, &format!("BEGIN ISOLATION LEVEL REPEATABLE READ{lock}")).await.map_err(|error| {
        match error.kind {
            Kind::Locked => FeedError::new(
                Kind::Locked,
                format!(
                    "somebody else holds a lock on a table of channel {id} that lets nobody read it ({}). pg_locks and \
                     pg_stat_activity tell who; try again when that has ended",
                    error.message
                ),
            ),
            _ => error,
        }
    })?;
    let placed = session.query_typed_one("SELECT quorum.dump_start($1)", &[(&id.channel, Type::TEXT)]).await;
    let text: String = column(&placed.map_err(|error| FeedError::from_database(&error))?, 0)?;
    let position = text
        .parse()
        .map_err(|_| FeedError::new(Kind::Internal, format!("the snapshot's position is {text:?}")))?;
    Ok((list(session, id, wanted).await? == listed).then_some(position))
}

impl Snapshot for HeldSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    fn tables(&self) -> &[DumpTable] {
        &self.tables
    }

    fn open(&mut self, table: usize) -> Answer<'_, ()> {
        Box::pin(async move {
            let table = &self.tables[table];
            self.copy = Some(Copied::begin(&self.session, &table.copy(table.columns())).await?);
            Ok(())
        })
    }

    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            match &mut self.copy {
                Some(copy) => copy.next().await,
                None => Ok(None),
            }
        })
    }
}

/// What a session's COPY brings.
pub(super) struct Copied(Pin<Box<CopyOutStream>>);

impl Copied {
    pub(super) async fn begin(session: &Taken, statement: &str) -> Result<Copied> {
        let copy = tokio::time::timeout(ROW_DEADLINE, session.copy_out(statement)).await;
        let copy = copy.map_err(|_| no_row())?.map_err(|error| FeedError::from_database(&error))?;
        Ok(Copied(Box::pin(copy)))
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        // Most rows are there already: for them no clock is read.
        let next = match self.0.as_mut().try_next().now_or_never() {
            Some(next) => next,
            None => {
                let next = tokio::time::timeout(ROW_DEADLINE, self.0.as_mut().try_next()).await;
                next.map_err(|_| no_row())?
            }
        };
        next.map_err(|error| FeedError::from_database(&error))
    }
}

fn no_row() -> FeedError {
    let message = format!(
        "the database brought nothing for {ROW_DEADLINE:?}; a copy holds a snapshot and locks, so it ends. See whether \
         the server is stopped or its disk hangs"
    );
    FeedError::new(Kind::TimedOut, message)
}

/// Starts to write a snapshot as lines; the client reads from what is returned, and ends it by dropping that.
pub fn start(snapshot: Box<dyn Snapshot>) -> mpsc::Receiver<Bytes> {
    let (mut out, client) = Outlet::new();
    let gone = out.gone();
    tokio::spawn(async move {
        // Nobody need wait for the next row to see that the client has gone.
        let written = tokio::select! {
            written = write(snapshot, &mut out) => written,
            () = gone => return,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "a copy of a channel ends");
            let buffer = out.buffer();
            let _ = write!(buffer, "{{\"type\":\"error\",\"code\":\"{}\",\"message\":", error.kind.code());
            json::string(buffer, error.message.as_bytes());
            buffer.extend_from_slice(b"}\n");
            // The client may have gone; then nobody misses the line.
            let _ = send(&mut out, true).await;
        }
    });
    client
}

async fn write(mut snapshot: Box<dyn Snapshot>, out: &mut Outlet) -> Result<()> {
    let position = snapshot.position();
    let tables = snapshot.tables().to_vec();
    let _ = writeln!(
        out.buffer(),
        "{{\"type\":\"dump\",\"position\":\"{position}\",\"tables\":{}}}",
        tables.len()
    );
    let mut all = 0_u64;
    for (at, table) in tables.iter().enumerate() {
        snapshot.open(at).await?;
        label(out.buffer(), "table", table);
        out.buffer().extend_from_slice(b"}\n");
        let mut count = 0_u64;
        let (mut writer, mut rest) = (RowWriter::default(), Vec::new());
        while let Some(bytes) = snapshot.next().await? {
            rest.extend_from_slice(&bytes);
            let mut begin = 0;
            while let Some(length) = rest[begin..].iter().position(|b| *b == b'\n') {
                let buffer = out.buffer();
                label(buffer, "row", table);
                buffer.extend_from_slice(b",\"new\":");
                writer.object(&rest[begin..begin + length], &table.schema, buffer)?;
                buffer.extend_from_slice(b"}\n");
                begin += length + 1;
                count += 1;
            }
            rest.drain(..begin);
            send(out, false).await?;
        }
        label(out.buffer(), "table_end", table);
        let _ = writeln!(out.buffer(), ",\"rows\":{count}}}");
        all += count;
    }
    let _ = writeln!(out.buffer(), "{{\"type\":\"end\",\"position\":\"{position}\",\"rows\":{all}}}");
    send(out, true).await
}

fn label(out: &mut Vec<u8>, kind: &str, table: &DumpTable) {
    let _ = write!(out, "{{\"type\":\"{kind}\",\"schema\":");
    json::string(out, table.schema.schema.as_bytes());
    out.extend_from_slice(b",\"table\":");
    json::string(out, table.schema.table.as_bytes());
}

pub(super) async fn send(out: &mut Outlet, all: bool) -> Result<()> {
    if !all && out.buffer().len() < FULL_BYTES {
        return Ok(());
    }
    let sent = async { if all { out.flush().await } else { out.flush_full().await } };
    match tokio::time::timeout(CLIENT_PATIENCE, sent).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(FeedError::new(Kind::TimedOut, "the client has gone")),
        Err(_) => {
            let message = format!(
                "the client took nothing for {CLIENT_PATIENCE:?}; a copy holds a snapshot, so it ends"
            );
            Err(FeedError::new(Kind::TimedOut, message))
        }
    }
}
