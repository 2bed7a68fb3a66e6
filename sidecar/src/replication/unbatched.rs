//! Dumps of those who begin no batch. Clients of ArangoDB 1.4 know none: they read the inventory, dump each collection by as
//! many requests as it takes, and follow the log from the end that the inventory told.
//!
//! The tick of a line is the row's number in a snapshot, so all requests of a dump need the same one; rows that come and go
//! between them would move the others. So a dump begins with `from=0` and holds a batch of this one collection, which the
//! next requests of the same reader find again. It goes with the last row, when its reader begins anew, or when nobody
//! asked for it within [`TTL`]. It is younger than the inventory, so its reader meets some changes twice.
//!
//! Bounds: [`OPEN_MAX`] at a time, so that there are places for batches, too; ends of dumps are remembered for as long as a
//! batch would be, [`ENDED_MAX`] at a time.

use super::batches::{Asked, Batches, Dumped, TTL};
use super::error::{BATCH_NOT_FOUND, Failure, Result};
use super::names;
use crate::feed::ChannelId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Dumps without a batch that are under way at a time.
const OPEN_MAX: usize = 2;
/// Ends of dumps that are remembered.
const ENDED_MAX: usize = 256;

/// The dumps without a batch of this node.
pub struct Unbatched {
    batches: Arc<Batches>,
    ttl: Duration,
    places: Arc<Semaphore>,
    all: Mutex<HashMap<Key, Stand>>,
}

/// Who dumps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reader {
    /// A client that says who it is.
    Server(u64),
    /// One that does not: where it asks from, and as whom.
    Sender { from: IpAddr, user: Option<String> },
}

/// Whose dump of which collection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    id: ChannelId,
    reader: Reader,
    collection: String,
}

/// How far a dump is.
enum Stand {
    Open {
        batch: u64,
        _place: OwnedSemaphorePermit,
    },
    /// Its last row was given.
    Ended {
        rows: u64,
        until: Instant,
    },
}

impl Unbatched {
    pub fn new(batches: Arc<Batches>) -> Unbatched {
        let places = Arc::new(Semaphore::new(OPEN_MAX));
        Unbatched { batches, ttl: TTL, places, all: Mutex::default() }
    }

    /// Some rows of a collection; without `from` the first ones.
    ///
    /// # Errors
    /// The dump that goes on is over, there are too many, there is no such collection, or the database does not answer.
    pub async fn dump(
        &self,
        id: &ChannelId,
        reader: Reader,
        collection: &str,
        asked: Asked,
    ) -> Result<Dumped> {
        let from = asked.from.unwrap_or(0);
        let asked = Asked { from: Some(from), ..asked };
        let key = Key { id: id.clone(), reader, collection: collection.to_owned() };
        let batch = if from == 0 { Some(self.begin(&key).await?) } else { self.open(&key, from)? };
        let Some(batch) = batch else { return Ok(Dumped::default()) };
        match self.batches.dump(id, &batch.to_string(), collection, asked).await {
            Ok(dumped) => {
                if !dumped.more {
                    let rows = dumped.last_included.unwrap_or(from);
                    // Up to a row that the reader has named there may be more behind it.
                    self.end(&key, batch, Some(rows).filter(|rows| *rows < asked.to));
                }
                Ok(dumped)
            }
            Err(failure) if failure.number == BATCH_NOT_FOUND => {
                self.end(&key, batch, None);
                Err(over(collection, from))
            }
            Err(failure) => {
                // Who was at the beginning begins anew.
                if from == 0 {
                    self.end(&key, batch, None);
                }
                Err(failure)
            }
        }
    }

    async fn begin(&self, key: &Key) -> Result<u64> {
        let (schema, table) =
            names::table(&key.collection).ok_or_else(|| Failure::no_collection(&key.collection))?;
        self.forget(key);
        let place = self.place()?;
        let tables = [format!("{schema}.{table}")];
        let (batch, _) = self.batches.begin_with(key.id.clone(), &tables, self.ttl).await?;
        let stand = Stand::Open { batch, _place: place };
        let other = self.lock().insert(key.clone(), stand);
        // The same reader has begun twice at the same time.
        if let Some(Stand::Open { batch, .. }) = other {
            self.release(key, batch);
        }
        Ok(batch)
    }

    /// The batch of a dump that goes on; `None`: it was given to its end.
    fn open(&self, key: &Key, from: u64) -> Result<Option<u64>> {
        match self.lock().get(key) {
            Some(Stand::Open { batch, .. }) => Ok(Some(*batch)),
            Some(Stand::Ended { rows, until }) if *rows == from && *until > Instant::now() => Ok(None),
            _ => Err(over(&key.collection, from)),
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit> {
        let mut all = self.lock();
        all.retain(|key, stand| match stand {
            Stand::Open { batch, .. } => self.batches.find(&key.id, &batch.to_string()).is_ok(),
            Stand::Ended { until, .. } => *until > Instant::now(),
        });
        drop(all);
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let seconds = self.ttl.as_secs();
            let message = format!(
                "{OPEN_MAX} dumps without a batch are under way already. Try again when one of them is at its end, or was left \
                 alone for {seconds} s; or begin a batch (POST /_api/replication/batch) and dump with its batchId"
            );
            Failure::new(503, 503, message)
        })
    }

    /// Ends a dump's batch; `rows`: how many there were, if all were given.
    fn end(&self, key: &Key, batch: u64, rows: Option<u64>) {
        self.release(key, batch);
        let mut all = self.lock();
        // It may have been begun anew meanwhile.
        if !matches!(all.get(key), Some(Stand::Open { batch: now, .. }) if *now == batch) {
            return;
        }
        all.remove(key);
        if let Some(rows) = rows {
            let ended = all.values().filter(|stand| matches!(stand, Stand::Ended { .. })).count();
            if ended >= ENDED_MAX {
                all.retain(|_, stand| matches!(stand, Stand::Open { .. }));
            }
            all.insert(key.clone(), Stand::Ended { rows, until: Instant::now() + self.ttl });
        }
    }

    /// Ends whatever a reader has of a collection.
    fn forget(&self, key: &Key) {
        let stand = self.lock().remove(key);
        if let Some(Stand::Open { batch, .. }) = stand {
            self.release(key, batch);
        }
    }

    fn release(&self, key: &Key, batch: u64) {
        // It may have ended by itself, which is what is wanted.
        let _ = self.batches.end(&key.id, &batch.to_string());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Stand>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn over(collection: &str, from: u64) -> Failure {
    let message = format!(
        "there is no dump of collection {collection} that goes on behind row {from}: it was left alone for too long, was begun \
         anew, or was begun at a leader that leads no more. Begin with from=0; with a batch (POST /_api/replication/batch) it \
         is kept for as long as you say"
    );
    Failure::new(404, BATCH_NOT_FOUND, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::fake::Fake;
    use std::sync::atomic::Ordering;

    const ALL: Asked = Asked { from: None, to: u64::MAX, chunk_bytes: 1, ticks: true, in_columns: false };

    fn id() -> ChannelId {
        ChannelId { database: "postgres".to_owned(), channel: "_logger".to_owned() }
    }

    fn at(from: u64) -> Asked {
        Asked { from: Some(from), ..ALL }
    }

    /// Tables of two rows.
    fn unbatched() -> (Arc<Fake>, Unbatched) {
        let fake = Arc::new(Fake::default());
        (Arc::clone(&fake), Unbatched::new(Batches::new(fake)))
    }

    async fn await_held(fake: &Fake, count: usize) {
        let held = async {
            while fake.snapshots.load(Ordering::Relaxed) != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), held).await.expect("as many snapshots");
    }

    #[tokio::test]
    async fn a_dump_has_one_snapshot_from_its_first_row_to_its_last() {
        let (fake, unbatched) = unbatched();
        let dump = async |asked: Asked| unbatched.dump(&id(), Reader::Server(7), "orders", asked).await;
        let first = dump(ALL).await.unwrap();
        assert_eq!((first.last_included, first.more), (Some(1), true));
        await_held(&fake, 1).await;
        let second = dump(at(1)).await.unwrap();
        assert_eq!((second.last_included, second.more), (Some(2), false));
        await_held(&fake, 0).await;
        // Who goes on until nothing comes is told that nothing comes; who has lost the last answer begins anew.
        assert_eq!(dump(at(2)).await.unwrap(), Dumped::default());
        assert_eq!(dump(at(1)).await.unwrap_err().number, 1600);
        assert_eq!(dump(ALL).await.unwrap(), first);
        // Beginning anew is another snapshot, in place of the one before.
        assert_eq!(dump(at(0)).await.unwrap(), first);
        await_held(&fake, 1).await;
        assert_eq!(dump(at(1)).await.unwrap(), second);
        // What is behind the row up to which it was asked for is not said to be nothing.
        assert_eq!(dump(Asked { to: 1, ..ALL }).await.unwrap().last_included, Some(1));
        assert_eq!(dump(at(1)).await.unwrap_err().number, 1600);
        await_held(&fake, 0).await;
    }

    #[tokio::test]
    async fn readers_have_dumps_of_their_own_and_only_some_at_a_time() {
        let (fake, mut unbatched) = unbatched();
        unbatched.ttl = Duration::from_secs(2);
        let from = IpAddr::from([127, 0, 0, 1]);
        let ann = Reader::Sender { from, user: Some("ann".to_owned()) };
        let dump = async |reader: &Reader, asked: Asked| {
            unbatched.dump(&id(), reader.clone(), "orders", asked).await
        };
        assert_eq!(dump(&ann, at(1)).await.unwrap_err().number, 1600, "it was never begun");
        dump(&ann, ALL).await.unwrap();
        let nobody = Reader::Sender { from, user: None };
        assert_eq!(dump(&nobody, at(1)).await.unwrap_err().number, 1600, "it is somebody else's");
        dump(&nobody, ALL).await.unwrap();
        let refused = dump(&Reader::Server(7), ALL).await.unwrap_err();
        assert_eq!((refused.code, refused.number), (503, 503));
        assert!(refused.message.contains("POST /_api/replication/batch"), "{}", refused.message);
        // Those that nobody asks for end, and make place for others.
        await_held(&fake, 0).await;
        assert_eq!(dump(&ann, at(1)).await.unwrap_err().number, 1600);
        assert!(dump(&Reader::Server(7), ALL).await.unwrap().more);
    }

    #[tokio::test]
    async fn what_fails_at_the_beginning_holds_nothing() {
        let (fake, unbatched) = unbatched();
        for collection in ["nothing", "a.b.c", "public.orders"] {
            for _ in 0..=OPEN_MAX {
                let failed = unbatched.dump(&id(), Reader::Server(7), collection, ALL).await.unwrap_err();
                assert_eq!(failed.number, 1203, "{collection}");
            }
        }
        await_held(&fake, 0).await;
    }
}
