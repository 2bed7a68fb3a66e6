//! The servers of this node and of the leader as a [`Source`]: the extension's functions, with the sessions of the pool.

use super::source::{Answer, Counts, Served, Source};
use crate::feed::{FeedError, Kind, ONLY_READ, Pool, Purpose, Result, Taken, column, said, within};
use futures_util::TryStreamExt;
use serde_json::Value;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::Type;

const STATE: &str = "SELECT quorum.statements_state()";
const SERVED: &str = "SELECT quorum.served_statements()";
/// Query ids have more digits than JavaScript keeps.
const RECORDS: &str = "SELECT (to_jsonb(s) || jsonb_build_object('query_id', s.query_id::text))::text AS json \
                       FROM quorum.readonly_statements s ORDER BY s.hash COLLATE \"C\", s.search_path COLLATE \"C\"";
const DATABASES: &str =
    "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
const COUNTS: &str = "SELECT count(*) FILTER (WHERE s.served), count(*) FILTER (WHERE s.withdrawn IS NOT NULL) \
                      FROM quorum.readonly_statements s";
const TAKE: &str = "SELECT quorum.take_learned($1)::text AS json";
const MARK_UNSENT: &str = "SELECT quorum.mark_unsent()";
const MERGE: &str = "SELECT quorum.merge_statements($1)::int8";

/// The JSON of a query as bytes: in a database without an encoding a statement's text need not be UTF-8, and the server
/// would refuse to send it as text.
fn as_bytes(query: &str) -> String {
    format!(
        "SELECT convert_to(json, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END::name) \
         FROM ({query}) q"
    )
}

/// A little later than the server itself ends a statement: see the feed's sessions.
const DEADLINE: Duration = Duration::from_secs(22);
const MERGE_DEADLINE: Duration = Duration::from_secs(25);
const MERGE_UNKNOWN: &str = "It may have what this node learned: telling it twice does no harm";

/// How often a list is read anew because the state moved meanwhile.
const ATTEMPTS: usize = 3;

async fn state(session: &mut Taken) -> Result<String> {
    column(&session.row(STATE).await?, 0)
}

/// The server of this node.
pub struct Server {
    pool: Arc<Pool>,
}

impl Server {
    /// Nothing is connected before somebody asks.
    pub fn new(pool: Arc<Pool>) -> Server {
        Server { pool }
    }

    async fn read_served(&self, database: &str, known: Option<&str>) -> Result<Option<Served>> {
        let mut session = self.pool.take(database, Purpose::Statements).await?;
        let read = async {
            let mut before = state(&mut session).await?;
            if known == Some(&before) {
                return Ok(None);
            }
            let mut attempt = 1;
            loop {
                let hashes: Option<_> = column(&said(session.query_typed_one(SERVED, &[])).await?, 0)?;
                let after = state(&mut session).await?;
                // What is newer than the state it is shown under is read again at the next look: nothing is missed.
                if after == before || attempt == ATTEMPTS {
                    return Ok(Some(Served { state: before, hashes: hashes.unwrap_or_default() }));
                }
                (before, attempt) = (after, attempt + 1);
            }
        };
        let served = within(DEADLINE, ONLY_READ, read).await;
        self.pool.done(session, served)
    }

    async fn read_records(&self, database: &str) -> Result<String> {
        let session = self.pool.take(database, Purpose::Statements).await?;
        let read = async {
            let none: [(&str, Type); 0] = [];
            let mut rows = pin!(said(session.query_typed_raw(&as_bytes(RECORDS), none)).await?);
            let mut text = String::from("[");
            while let Some(row) = rows.try_next().await.map_err(|error| FeedError::from_database(&error))? {
                if text.len() > 1 {
                    text.push(',');
                }
                text.push_str(&String::from_utf8_lossy(column(&row, 0)?));
            }
            text.push(']');
            Ok(text)
        };
        let records = within(DEADLINE, ONLY_READ, read).await;
        self.pool.done(session, records)
    }

    async fn list_databases(&self) -> Result<Vec<String>> {
        let session = self.pool.take(self.pool.default_database(), Purpose::Read).await?;
        let rows = within(DEADLINE, ONLY_READ, said(session.query_typed(DATABASES, &[]))).await;
        let rows = self.pool.done(session, rows)?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    async fn count(&self, database: &str, stays: bool) -> Result<Counts> {
        let session = self.pool.take(database, Purpose::Visit).await?;
        let row = within(DEADLINE, ONLY_READ, said(session.query_typed_one(COUNTS, &[]))).await;
        let row = match row {
            Ok(row) if !stays => row,
            row => self.pool.done(session, row)?,
        };
        let count = |at| column::<i64>(&row, at).map(|n| n.max(0).cast_unsigned());
        Ok(Counts { served: count(0)?, withdrawn: count(1)? })
    }

    async fn take(&self, database: &str, max: i32) -> Result<Vec<Value>> {
        let session = self.pool.take(database, Purpose::Visit).await?;
        let take = as_bytes(TAKE);
        let taken = async { said(session.query_typed_one(&take, &[(&max, Type::INT4)])).await };
        let row = within(DEADLINE, ONLY_READ, taken).await;
        let row = self.pool.done(session, row)?;
        let Some(json) = column::<Option<&[u8]>>(&row, 0)? else { return Ok(Vec::new()) };
        serde_json::from_str(&String::from_utf8_lossy(json)).map_err(|error| {
            let message = format!("what a server learned should be a JSON array, and is not: {error}");
            FeedError::new(Kind::Internal, message)
        })
    }

    async fn unsend(&self, database: &str) -> Result<()> {
        let session = self.pool.take(database, Purpose::Visit).await?;
        let marked = within(DEADLINE, ONLY_READ, said(session.query_typed(MARK_UNSENT, &[]))).await;
        self.pool.done(session, marked).map(drop)
    }

    async fn tell(&self, leader: SocketAddr, database: &str, learned: Vec<Value>) -> Result<u64> {
        let session = self.pool.elsewhere(leader, database).await?;
        let learned = Value::Array(learned);
        let merged = async { said(session.query_typed_one(MERGE, &[(&learned, Type::JSONB)])).await };
        let row = within(MERGE_DEADLINE, MERGE_UNKNOWN, merged).await;
        let used: Option<i64> = column(&self.pool.done(session, row)?, 0)?;
        Ok(used.unwrap_or(0).max(0).cast_unsigned())
    }
}

impl Source for Server {
    fn served<'a>(&'a self, database: &'a str, known: Option<&'a str>) -> Answer<'a, Option<Served>> {
        Box::pin(self.read_served(database, known))
    }

    fn records<'a>(&'a self, database: &'a str) -> Answer<'a, String> {
        Box::pin(self.read_records(database))
    }

    fn databases(&self) -> Answer<'_, Vec<String>> {
        Box::pin(self.list_databases())
    }

    fn counts<'a>(&'a self, database: &'a str, stays: bool) -> Answer<'a, Counts> {
        Box::pin(self.count(database, stays))
    }

    fn take_learned<'a>(&'a self, database: &'a str, max: i32) -> Answer<'a, Vec<Value>> {
        Box::pin(self.take(database, max))
    }

    fn mark_unsent<'a>(&'a self, database: &'a str) -> Answer<'a, ()> {
        Box::pin(self.unsend(database))
    }

    fn merge<'a>(&'a self, leader: SocketAddr, database: &'a str, learned: Vec<Value>) -> Answer<'a, u64> {
        Box::pin(self.tell(leader, database, learned))
    }
}
