//! A snapshot that several sessions read: one holds it and exports it, the others take it over for a table each.

use super::dump::{Copied, Placed, place, run};
use super::error::{FeedError, Kind, Result};
use super::pool::{Pool, Purpose, Taken};
use super::position::Position;
use super::server::{ONLY_READ, column, said, within};
use super::source::{Answer, ChannelId, CopyOut, Shared, SharedTable};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::{ToSql, Type};

const EXPORT: &str = "SELECT pg_export_snapshot(), quorum.origin_name(), c.database_version, c.version_tick \
                      FROM quorum.channel c WHERE c.name = $1";
/// A partitioned table has no rows of its own.
const SIZE: &str = "SELECT CASE WHEN bool_and(k.reltuples >= 0) THEN sum(k.reltuples)::int8 END, \
                    coalesce(sum(pg_table_size(k.oid)), 0)::int8 \
                    FROM pg_class k WHERE k.oid = ANY ($1) AND k.relkind <> 'p'";
/// It may look at what a row shows, whoever computes it.
const CONDITION: &str = "SELECT quorum.filter_text(f.tree, $1) \
                         FROM quorum.parse_filter($1, convert_to($2, getdatabaseencoding())) f";
/// How long the small questions may take, each.
const ASK_DEADLINE: Duration = Duration::from_secs(20);

/// A session whose transaction is exported, and has locked the tables.
pub(super) struct SharedSnapshot {
    pool: Arc<Pool>,
    database: String,
    session: Taken,
    /// The snapshot's name.
    name: String,
    position: Position,
    origin: String,
    version: (u64, u64),
    tables: Vec<SharedTable>,
}

impl SharedSnapshot {
    pub(super) async fn begin(pool: &Arc<Pool>, id: &ChannelId, wanted: &[String]) -> Result<SharedSnapshot> {
        let session = pool.take(&id.database, Purpose::Hold).await?;
        let Placed { position, tables, members } = place(&session, id, wanted).await?;
        let values: [(&(dyn ToSql + Sync), Type); 1] = [(&id.channel, Type::TEXT)];
        let row = within(ASK_DEADLINE, ONLY_READ, said(session.query_typed_one(EXPORT, &values))).await?;
        let (name, origin) = (column(&row, 0)?, column(&row, 1)?);
        let number = |at| column::<i64>(&row, at).map(|n| u64::try_from(n).unwrap_or(0));
        let version = (number(2)?, number(3)?);
        let mut sized = Vec::with_capacity(tables.len());
        for (table, members) in tables.into_iter().zip(members) {
            let values: [(&(dyn ToSql + Sync), Type); 1] = [(&members, Type::OID_ARRAY)];
            let asked = session.query_typed_one(SIZE, &values);
            let row = within(ASK_DEADLINE, ONLY_READ, said(asked)).await?;
            let count = |count: i64| u64::try_from(count).unwrap_or(0);
            let (rows, bytes) = (column::<Option<i64>>(&row, 0)?.map(count), count(column(&row, 1)?));
            // The table itself comes first.
            let relid = members.first().copied().unwrap_or_default();
            sized.push(SharedTable { table, relid, rows, bytes });
        }
        let (pool, database) = (Arc::clone(pool), id.database.clone());
        Ok(SharedSnapshot { pool, database, session, name, position, origin, version, tables: sized })
    }

    async fn check(&self, table: &SharedTable, text: &str) -> Result<String> {
        let session = self.pool.take(&self.database, Purpose::Read).await?;
        let values: [(&(dyn ToSql + Sync), Type); 2] = [(&table.relid, Type::OID), (&text, Type::TEXT)];
        let row = within(ASK_DEADLINE, ONLY_READ, said(session.query_typed_one(CONDITION, &values))).await;
        column(&self.pool.done(session, row)?, 0)
    }

    async fn read(&self, statement: &str) -> Result<Box<dyn CopyOut>> {
        let session = self.pool.take(&self.database, Purpose::Copy).await?;
        // The name is the server's own: hexadecimal digits and hyphens.
        let begin = format!(
            "SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
             SET TRANSACTION SNAPSHOT '{}'",
            self.name
        );
        within(ASK_DEADLINE, ONLY_READ, run(&session, &begin)).await.map_err(|error| {
            match self.is_held() {
                true => error,
                false => FeedError::new(
                    Kind::CopyGone,
                    "the session that held the copy's snapshot has ended; begin a new copy",
                ),
            }
        })?;
        let copy = Copied::begin(&session, statement).await?;
        Ok(Box::new(Reading { copy, _session: session }))
    }
}

impl Shared for SharedSnapshot {
    fn position(&self) -> Position {
        self.position
    }

    fn origin(&self) -> &str {
        &self.origin
    }

    fn version(&self) -> (u64, u64) {
        self.version
    }

    fn tables(&self) -> &[SharedTable] {
        &self.tables
    }

    fn is_held(&self) -> bool {
        !self.session.is_closed()
    }

    fn condition<'a>(&'a self, table: &'a SharedTable, text: &'a str) -> Answer<'a, String> {
        Box::pin(self.check(table, text))
    }

    fn open<'a>(&'a self, statement: &'a str) -> Answer<'a, Box<dyn CopyOut>> {
        Box::pin(self.read(statement))
    }
}

/// A table that is being read in a session of its own.
struct Reading {
    copy: Copied,
    _session: Taken,
}

impl CopyOut for Reading {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(self.copy.next())
    }
}
