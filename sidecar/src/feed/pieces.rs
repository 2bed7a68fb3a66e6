//! Reading the log piece by piece.

use super::error::{FeedError, Kind, Result};
use super::position::{After, Position};
use super::source::{ChannelId, Rows, Source};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much is read at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// As much as one answer of the database may be asked to hold, an `integer`: two images of a row of a gigabyte fit.
const PIECE_BYTES_MAX: usize = i32::MAX as usize;
/// Memory for the pieces of all readers that are larger than usual because one change is. A change that is larger still
/// has all of it.
const LARGE_BYTES: usize = 256 * 1024 * 1024;
/// What memory is counted in.
const UNIT_BYTES: usize = 64 * 1024;
/// How long a reader of a large change waits until others are done with theirs.
const LARGE_DEADLINE: Duration = Duration::from_secs(10);

/// Consecutive log rows that hold all changes after `after` up to `to`, and what is needed to read them.
#[derive(Debug)]
pub struct Piece {
    pub after: After,
    pub to: Position,
    pub rows: Rows,
    _memory: Option<Memory>,
}

/// The memory that all readers together have for large pieces.
#[derive(Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    all: u32,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget::of(LARGE_BYTES)
    }
}

impl Budget {
    fn of(bytes: usize) -> Budget {
        let all = units(bytes);
        Budget { units: Arc::new(Semaphore::new(all as usize)), all }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// A large piece's part of the budget.
#[derive(Debug)]
struct Memory {
    units: OwnedSemaphorePermit,
    /// How many large pieces its reader holds.
    held: Arc<AtomicUsize>,
}

impl Memory {
    /// Less than was expected is enough.
    fn shrink(&mut self, bytes: usize) {
        let spare = self.units.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.units.split(spare));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a reader is. Holds nothing between two pieces, no session and no bytes.
pub struct Pieces {
    source: Arc<dyn Source>,
    id: ChannelId,
    after: After,
    budget: Budget,
    large: Arc<AtomicUsize>,
}

impl Pieces {
    pub fn new(source: Arc<dyn Source>, id: ChannelId, after: After, budget: Budget) -> Pieces {
        Pieces { source, id, after, budget, large: Arc::default() }
    }

    /// How many of its large pieces there are now: others may wait for their memory.
    pub fn large(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.large)
    }

    pub fn after(&self) -> After {
        self.after
    }

    /// The next changes; `None`: there are none now.
    ///
    /// # Errors
    /// The position is not to be had, the database does not answer, or others read large changes for long.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        match self.after {
            After::Now => {
                let end = self.source.wait(&self.id, "now", Duration::ZERO).await?;
                self.after = After::At(end);
            }
            // Bound to a history at once: the next one may give the same tick to something else.
            After::Tick(tick) => self.after = After::At(self.source.find(&self.id, tick).await?),
            After::Start | After::At(_) => {}
        }
        let after = self.after.to_string();
        let mut max_bytes = PIECE_BYTES;
        let mut memory: Option<Memory> = None;
        loop {
            let rows = self.source.read(&self.id, &after, max_bytes).await?;
            if let Some(to) = last_change(&rows, self.after) {
                if let Some(memory) = &mut memory {
                    memory.shrink(rows.bytes());
                }
                let piece = Piece { after: self.after, to, rows, _memory: memory };
                self.after = After::At(to);
                return Ok(Some(piece));
            }
            if let Some(error) = rows.broken {
                return Err(error);
            }
            if rows.is_empty() {
                return Ok(None);
            }
            // One change that is larger than a piece.
            if max_bytes >= PIECE_BYTES_MAX {
                return Err(FeedError::new(
                    Kind::RecordBroken,
                    format!("the change after position {after} of channel {} does not end", self.id),
                ));
            }
            max_bytes = (max_bytes * 4).min(PIECE_BYTES_MAX);
            // Never waited for with some of it in hand.
            drop((rows, memory.take()));
            memory = Some(self.take_memory(max_bytes).await?);
        }
    }

    async fn take_memory(&self, bytes: usize) -> Result<Memory> {
        let Budget { units: all_units, all } = &self.budget;
        let mut taken = pin!(Arc::clone(all_units).acquire_many_owned(units(bytes).min(*all)));
        loop {
            match tokio::time::timeout(LARGE_DEADLINE, &mut taken).await {
                Ok(Ok(units)) => {
                    self.large.fetch_add(1, Ordering::Relaxed);
                    return Ok(Memory { units, held: Arc::clone(&self.large) });
                }
                // What it waits for may be its own: its client takes it, or is ended for not doing so.
                Err(_) if self.large.load(Ordering::Relaxed) > 0 => {}
                _ => {
                    return Err(FeedError::new(
                        Kind::Busy,
                        format!(
                            "the next change of channel {} is large, and other readers of this node hold the memory \
                             that there is for such changes; try again, or ask another node",
                            self.id
                        ),
                    ));
                }
            }
        }
    }
}

/// The last change after `after` that ends in these rows.
fn last_change(rows: &Rows, after: After) -> Option<Position> {
    rows.last_change().filter(|last| after.tick().is_none_or(|tick| last.tick > tick))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, insert};
    use super::super::source::LogRow;
    use super::*;

    #[tokio::test]
    async fn large_pieces_share_their_memory() {
        const MB: usize = 1 << 20;
        let fake = Arc::new(Fake::default());
        fake.commit(1, &[insert(1, 1, &"x".repeat(MB * 9 / 10)), insert(1, 2, "small")]);
        let budget = Budget::of(MB);
        let reader = || {
            let source: Arc<dyn Source> = Arc::<Fake>::clone(&fake);
            let id = ChannelId { database: "postgres".to_owned(), channel: "shop".to_owned() };
            Pieces::new(source, id, After::Start, budget.clone())
        };
        let (mut first, mut second) = (reader(), reader());
        let held = first.next().await.unwrap().expect("a piece");
        assert_eq!(first.large().load(Ordering::Relaxed), 1);
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, second.next()).await.is_err(), "both hold a large piece");
        // What is small needs none of it, and a piece that is gone gives it back.
        let mut third = reader();
        third.after = After::At(Position { epoch: 5, tick: 1 });
        assert!(third.next().await.unwrap().is_some());
        drop(held);
        assert_eq!(first.large().load(Ordering::Relaxed), 0);
        assert!(second.next().await.unwrap().is_some());
    }

    #[test]
    fn a_piece_reaches_to_the_last_change_that_ends_in_it() {
        let mut rows = Rows::default();
        let row = |first_tick, last_tick| LogRow { epoch: 5, first_tick, last_tick, xid: 77, flags: 0 };
        let after = |tick| After::At(Position { epoch: 5, tick });
        assert_eq!(last_change(&rows, After::Start), None);
        // The beginning of a long change.
        rows.push(&row(1, 0), b"a");
        assert_eq!(last_change(&rows, After::Start), None);
        rows.push(&row(1, 3), b"b");
        rows.push(&row(4, 3), b"c");
        let end = Position { epoch: 5, tick: 3 };
        assert_eq!(last_change(&rows, After::Start), Some(end));
        assert_eq!(last_change(&rows, after(2)), Some(end));
        assert_eq!(last_change(&rows, after(3)), None);
        assert_eq!(last_change(&rows, After::Tick(2)), Some(end));
    }
}
