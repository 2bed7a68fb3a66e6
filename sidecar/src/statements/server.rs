//! The server of this node as a [`Source`]: the extension's functions, with the sessions of the pool.

use super::source::{Answer, Served, Source};
use crate::feed::{FeedError, ONLY_READ, Pool, Purpose, Result, column, said, within};
use futures_util::TryStreamExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::Type;

const STATE: &str = "SELECT quorum.statements_state()";
const SERVED: &str = "SELECT quorum.served_statements()";
/// Query ids have more digits than JavaScript keeps.
const RECORDS: &str = "SELECT (to_jsonb(s) || jsonb_build_object('query_id', s.query_id::text))::text AS json \
                       FROM quorum.readonly_statements s ORDER BY s.hash COLLATE \"C\", s.search_path COLLATE \"C\"";
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

/// How often a list is read anew because the state moved meanwhile.
const ATTEMPTS: usize = 3;

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
        let session = self.pool.take(database, Purpose::Statements).await?;
        let read = async {
            let state = async || column::<String>(&said(session.query_typed_one(STATE, &[])).await?, 0);
            let mut before = state().await?;
            if known == Some(&before) {
                return Ok(None);
            }
            let mut attempt = 1;
            loop {
                let hashes: Option<_> = column(&said(session.query_typed_one(SERVED, &[])).await?, 0)?;
                let after = state().await?;
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
}

impl Source for Server {
    fn served<'a>(&'a self, database: &'a str, known: Option<&'a str>) -> Answer<'a, Option<Served>> {
        Box::pin(self.read_served(database, known))
    }

    fn records<'a>(&'a self, database: &'a str) -> Answer<'a, String> {
        Box::pin(self.read_records(database))
    }
}
