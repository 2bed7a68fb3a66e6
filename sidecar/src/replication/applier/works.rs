//! Which appliers run: those of all databases that are to, on the leader, as long as it leads.
//!
//! Databases are visited by who looks after subscriptions ([`crate::follow::oversee`]); this is told what is found there.

use super::here::Here;
use super::runner::{self, Row};
use crate::feed::{FeedError, Kind, ONLY_READ, Result, column, said, within};
use crate::postgres::PostgresConfig;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const DEADLINE: Duration = Duration::from_secs(22);
const APPLIER: &str = "SELECT to_jsonb(a) FROM quorum.applier a";
const START: &str = "SELECT quorum.applier_start()::text";

/// The work of this node.
pub struct Appliers {
    config: PostgresConfig,
    running: BTreeMap<String, Running>,
}

struct Running {
    generation: i64,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Appliers {
    pub fn new(config: PostgresConfig) -> Appliers {
        Appliers { config, running: BTreeMap::new() }
    }

    /// Whether there is one that works in a database.
    pub fn works_in(&self, database: &str) -> bool {
        self.running.contains_key(database)
    }

    /// Looks into a database, in a session there, and begins and ends what is to be begun and ended. `first`: for the first time
    /// since this node leads, so one with `autoStart` is started.
    ///
    /// # Errors
    /// The database does not answer. What works goes on.
    pub async fn look(&mut self, database: &str, session: &Client, first: bool) -> Result<()> {
        let mut row = read(session).await?;
        if first && row.as_ref().is_some_and(Row::starts_by_itself) {
            tracing::info!(database, "the applier is started, as its autoStart says");
            within(DEADLINE, ONLY_READ, said(session.query_typed(START, &[]))).await?;
            row = read(session).await?;
        }
        let Some(row) = row.filter(|row| row.running) else {
            self.forget(database);
            return Ok(());
        };
        let known = self.running.get(database);
        if known.is_some_and(|known| known.generation == row.generation && !known.task.is_finished()) {
            return Ok(());
        }
        // The one before it ends first.
        self.forget(database);
        tracing::info!(database, "the applier works");
        let generation = row.generation;
        let here = Here::new(self.config.clone(), database);
        let task = tokio::spawn(runner::run(here, row));
        self.running.insert(database.to_owned(), Running { generation, task });
        Ok(())
    }

    /// There is nothing to run in this database any more.
    pub fn forget(&mut self, database: &str) {
        self.running.remove(database);
    }

    /// Another node leads.
    pub fn clear(&mut self) {
        self.running.clear();
    }
}

/// The row of the applier; `None`: this version of the extension has none.
async fn read(session: &Client) -> Result<Option<Row>> {
    let rows = within(DEADLINE, ONLY_READ, said(session.query_typed(APPLIER, &[]))).await;
    let rows = match rows {
        Err(error) if error.kind == Kind::NoExtension => return Ok(None),
        rows => rows?,
    };
    let row = rows.first().map(|row| column::<Value>(row, 0)).transpose()?;
    let read = |row| Row::read(row).map_err(|fault| FeedError::new(Kind::Internal, fault.message));
    row.map(read).transpose()
}
