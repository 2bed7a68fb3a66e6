//! A consistent copy of a channel's tables: one snapshot, whose place in the log is known, and COPY.

use super::copy_text::RowWriter;
use super::error::{FeedError, Kind, Result};
use super::outlet::Outlet;
use super::pool::Taken;
use super::position::Position;
use super::schemas;
use super::server::column;
use super::source::{Answer, ChannelId, DumpTable, Snapshot};
use bytes::Bytes;
use futures_util::TryStreamExt;
use pgquorum_change::json;
use std::io::Write;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_postgres::CopyOutStream;
use tokio_postgres::types::Type;

/// How often a snapshot is taken anew because the log was cut past it meanwhile.
const ATTEMPTS_MAX: usize = 20;
/// How long a client may take nothing. Its snapshot keeps vacuum from removing rows, so it is not held for ever.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// The tracked tables, with the version that is in force in this snapshot. A partitioned one stands for its partitions;
/// those who inherit are tables of their own.
const TABLES: &str = "SELECT to_jsonb(v), \
     CASE WHEN k.relkind = 'p' THEN '' ELSE 'ONLY ' END || pg_catalog.format('%I.%I', n.nspname, k.relname), \
     t.filter_sql \
     FROM quorum.tracked_table t JOIN quorum.channel c ON c.id = t.channel \
     JOIN quorum.schema_version v ON v.id = t.schema_version \
     JOIN pg_catalog.pg_class k ON k.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace \
     WHERE c.name = $1 ORDER BY n.nspname, k.relname";

/// A session that holds the snapshot.
pub(super) struct HeldSnapshot {
    session: Taken,
    position: Position,
    tables: Vec<DumpTable>,
    copy: Option<Pin<Box<CopyOutStream>>>,
}

impl HeldSnapshot {
    pub(super) async fn begin(session: Taken, id: &ChannelId, wanted: &[String]) -> Result<HeldSnapshot> {
        let position = place_snapshot(&session, id).await?;
        let failed = |error: tokio_postgres::Error| FeedError::from_database(&error);
        let rows = session.query_typed(TABLES, &[(&id.channel, Type::TEXT)]).await.map_err(failed)?;
        let mut tables = Vec::new();
        for row in &rows {
            let (stored, name): (serde_json::Value, String) = (column(row, 0)?, column(row, 1)?);
            let filter: Option<String> = column(row, 2)?;
            let schema = schemas::parse(&stored)?;
            if !wanted.is_empty() && !wanted.iter().any(|name| schemas::is_named(&schema, name)) {
                continue;
            }
            let columns: Vec<String> = schema.columns.iter().map(|column| quoted(&column.name)).collect();
            let filter = filter.map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
            let query = format!("SELECT {} FROM {name}{filter}", columns.join(", "));
            tables.push(DumpTable { schema, query });
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
        Ok(HeldSnapshot { session, position, tables, copy: None })
    }
}

/// Takes a snapshot that the log is cut at.
async fn place_snapshot(session: &Taken, id: &ChannelId) -> Result<Position> {
    let failed = |error: tokio_postgres::Error| FeedError::from_database(&error);
    let mut attempt = 1;
    loop {
        session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.map_err(failed)?;
        let placed =
            session.query_typed_one("SELECT quorum.dump_start($1)", &[(&id.channel, Type::TEXT)]).await;
        match placed.map_err(failed) {
            Ok(row) => {
                let text: String = column(&row, 0)?;
                return text.parse().map_err(|_| {
                    FeedError::new(Kind::Internal, format!("the snapshot's position is {text:?}"))
                });
            }
            Err(error) if error.kind == Kind::SnapshotTooOld && attempt < ATTEMPTS_MAX => attempt += 1,
            // No batch could be cut now, the message says why.
            Err(FeedError { kind: Kind::Refused, message }) => {
                return Err(FeedError::new(Kind::Locked, message));
            }
            Err(error) => return Err(error),
        }
        session.batch_execute("ROLLBACK").await.map_err(failed)?;
    }
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
            let query = format!("COPY ({}) TO STDOUT", self.tables[table].query);
            let copy = self.session.copy_out(&query).await;
            self.copy = Some(Box::pin(copy.map_err(|error| FeedError::from_database(&error))?));
            Ok(())
        })
    }

    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            let Some(copy) = &mut self.copy else { return Ok(None) };
            copy.as_mut().try_next().await.map_err(|error| FeedError::from_database(&error))
        })
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Starts to write a snapshot as lines; the client reads from what is returned, and ends it by dropping that.
pub fn start(snapshot: Box<dyn Snapshot>) -> mpsc::Receiver<Bytes> {
    let (mut out, client) = Outlet::new();
    tokio::spawn(async move {
        if let Err(error) = write(snapshot, &mut out).await {
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

async fn send(out: &mut Outlet, all: bool) -> Result<()> {
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
