//! Read-only statements: what this node's server has learned of them, for drivers and proxies that ask over HTTP, and how
//! what a standby learned gets to the leader.
//!
//! - [`Source`] is what is asked of a database; `server` asks the ones beside this node and beside the leader.
//! - [`Statements`] holds the list of each database that is asked for, ready to be sent. Every question is answered by a
//!   look at the server that began after it came, and questions that come together share one: a statement that was
//!   withdrawn before somebody asked is not in his answer.
//! - [`rounds`] go from database to database: on a standby they carry what it learned to the leader, everywhere they
//!   count for those who watch.
//!
//! Bounds: lists of 64 databases, one look a database at a time, copies of all records for 8 clients.

mod carry;
#[cfg(test)]
pub mod fake;
mod rounds;
mod server;
mod source;
#[cfg(test)]
mod tests;

pub use rounds::{Tally, rounds};
pub use server::Server;
pub use source::{Counts, Source};

use crate::feed::{FeedError, Kind, Result};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use source::Served;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How often the server is looked at while somebody waits for its list to change.
const LOOK: Duration = Duration::from_millis(200);
/// Databases whose lists are kept.
const DATABASES_MAX: usize = 64;
/// Clients that are sent all records at the same time: 10,000 of them are some 15 MB.
const RECORDS_MAX: usize = 8;

/// The hashes of the statements that are served, ready to be sent.
#[derive(Debug)]
pub struct List {
    /// A JSON array of hashes.
    pub body: Bytes,
    /// Names what is in it: on every node, and in every run of this program, the same hashes of a database have the same.
    pub tag: String,
    /// The server's state that it belongs to.
    state: String,
}

impl List {
    fn new(database: &str, served: &Served) -> List {
        let mut body = String::with_capacity(served.hashes.len() * 19 + 2);
        body.push('[');
        for hash in &served.hashes {
            if body.len() > 1 {
                body.push(',');
            }
            body.push_str(&serde_json::Value::from(hash.as_str()).to_string());
        }
        body.push(']');
        let mut digest = Sha256::new();
        digest.update(database);
        digest.update([0]);
        digest.update(&body);
        let tag = digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        List { body: Bytes::from(body), tag, state: served.state.clone() }
    }
}

/// The lists of this node.
pub struct Statements {
    source: Arc<dyn Source>,
    databases: Mutex<HashMap<String, Kept>>,
    records: Arc<Semaphore>,
    tally: Tally,
}

struct Kept {
    database: Arc<Database>,
    asked: Instant,
}

#[derive(Default)]
struct Database {
    /// Locked while the server is looked at, so that one look serves all who ask meanwhile.
    last: tokio::sync::Mutex<Last>,
}

#[derive(Default)]
struct Last {
    list: Option<Arc<List>>,
    /// When the last look began, and what it brought.
    look: Option<(Instant, Result<Arc<List>>)>,
}

/// All records of a database, counted until the last byte is sent.
struct Records {
    text: String,
    _turn: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Records {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Statements {
    pub fn new(source: Arc<dyn Source>) -> Statements {
        let records = Arc::new(Semaphore::new(RECORDS_MAX));
        Statements { source, databases: Mutex::default(), records, tally: Tally::default() }
    }

    /// What the rounds have counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The list as it is now; if the client has it `already`, as soon as it is another one, at the latest after `wait`.
    ///
    /// # Errors
    /// No such database, the extension is not there or knows nothing of statements, or the server does not answer.
    pub async fn list(
        &self,
        database: &str,
        already: impl Fn(&List) -> bool,
        wait: Duration,
    ) -> Result<Arc<List>> {
        let begin = Instant::now();
        let kept = self.database(database);
        let mut list = self.look(database, &kept, begin).await?;
        while already(&list) {
            let left = wait.saturating_sub(begin.elapsed());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(left.min(LOOK)).await;
            // Others who wait looked meanwhile. But the last word is not older than the wait.
            let last = left <= LOOK;
            let since = if last { Instant::now() } else { Instant::now() - LOOK };
            list = self.look(database, &kept, since).await?;
        }
        Ok(list)
    }

    /// All records of a database, as a JSON array of objects.
    ///
    /// # Errors
    /// As [`Statements::list`]; or too many clients are sent records already.
    pub async fn records(&self, database: &str) -> Result<Bytes> {
        let turn = Arc::clone(&self.records).try_acquire_owned().map_err(|_| {
            let message =
                format!("{RECORDS_MAX} clients are sent all records already; try again, or ask another node");
            FeedError::new(Kind::Busy, message)
        })?;
        let text = self.source.records(database).await?;
        Ok(Bytes::from_owner(Records { text, _turn: turn }))
    }

    fn database(&self, name: &str) -> Arc<Database> {
        let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = Instant::now();
        if let Some(kept) = databases.get_mut(name) {
            kept.asked = asked;
            return Arc::clone(&kept.database);
        }
        if databases.len() == DATABASES_MAX {
            let oldest = databases.iter().min_by_key(|(_, kept)| kept.asked).map(|(name, _)| name.clone());
            oldest.map(|name| databases.remove(&name));
        }
        let database = Arc::<Database>::default();
        databases.insert(name.to_owned(), Kept { database: Arc::clone(&database), asked });
        database
    }

    /// A look at the server that did not begin before `since`.
    async fn look(&self, name: &str, database: &Database, since: Instant) -> Result<Arc<List>> {
        let mut last = database.last.lock().await;
        if let Some((begun, found)) = &last.look
            && *begun >= since
        {
            return found.clone();
        }
        let begun = Instant::now();
        let known = last.list.as_ref().map(|list| list.state.as_str());
        let found = match self.source.served(name, known).await {
            Ok(None) => last.list.clone().ok_or_else(|| {
                FeedError::new(Kind::Internal, "the server's state is said to be known, and it is not")
            }),
            Ok(Some(served)) => Ok(Arc::new(List::new(name, &served))),
            Err(error) => Err(error),
        };
        if let Ok(list) = &found {
            last.list = Some(Arc::clone(list));
        }
        last.look = Some((begun, found.clone()));
        found
    }
}
