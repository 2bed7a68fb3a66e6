//! The source.

use super::at;
use crate::feed::Position;
use crate::follow::frames::written::{heartbeat_frame, piece_frame, row_frame};
use crate::follow::source::{Answer, Bytestream, Channel, CopyBegun, Source};
use crate::follow::subscription::TableName;
use crate::follow::trouble::{Result, Trouble};
use crate::follow::versions::Version;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// What the source is, and what was asked of it.
#[derive(Default)]
pub struct FakeSource {
    pub inner: Mutex<SourceState>,
}

#[derive(Default)]
pub struct SourceState {
    pub tables: Vec<TableName>,
    /// Transactions: the tick of the last change, and the frames.
    pub log: Vec<(u64, Vec<u8>)>,
    pub purged: u64,
    pub version: Version,
    pub change_bytes: Option<u64>,
    /// What the next requests fail with.
    pub failures: VecDeque<Trouble>,
    /// The next copies of tables break off.
    pub broken_copies: usize,
    pub followers: BTreeMap<String, Position>,
    pub copies: usize,
    /// Of the tables that were copied.
    pub filters: Vec<Option<String>>,
    pub schemas: usize,
    pub streams: Vec<Position>,
}

impl FakeSource {
    pub fn lock(&self) -> MutexGuard<'_, SourceState> {
        self.inner.lock().unwrap()
    }

    /// A transaction of so many changes.
    pub fn commit(&self, changes: u64) {
        let mut state = self.lock();
        let first = state.end().tick + 1;
        let last = first + changes - 1;
        let row = row_frame(5, (first, last), last, 3, b"chunk");
        state.log.push((last, [piece_frame(first - 1, at(last)), row].concat()));
    }

    fn fails(&self) -> Result<()> {
        self.lock().failures.pop_front().map_or(Ok(()), Err)
    }
}

impl SourceState {
    fn end(&self) -> Position {
        at(self.log.last().map_or(0, |(tick, _)| *tick))
    }
}

struct Given(VecDeque<Bytes>);

impl Bytestream for Given {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async { Ok(self.0.pop_front()) })
    }
}

/// The log from some position on, for ever.
struct Log {
    source: Arc<FakeSource>,
    after: u64,
}

impl Bytestream for Log {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.source.fails()?;
            let state = self.source.lock();
            let mut bytes = Vec::new();
            let after = self.after;
            for (tick, frames) in state.log.iter().filter(|(tick, _)| *tick > after) {
                bytes.extend_from_slice(frames);
                self.after = *tick;
            }
            let end = state.end();
            bytes.extend(heartbeat_frame(&[end.epoch, end.tick, 1]));
            Ok(Some(Bytes::from(bytes)))
        })
    }
}

/// The source with a way to itself for its streams.
#[derive(Clone)]
pub struct Shared(pub Arc<FakeSource>);

impl Source for Shared {
    fn channel(&self) -> Answer<'_, Channel> {
        Box::pin(async {
            self.0.fails()?;
            let state = self.0.lock();
            let (end, version, tables) = (state.end(), state.version, state.tables.clone());
            let change_bytes = state.change_bytes;
            Ok(Channel { origin: "berlin".to_owned(), end, version, change_bytes, tables })
        })
    }

    fn schemas(&self) -> Answer<'_, Value> {
        Box::pin(async {
            self.0.lock().schemas += 1;
            Ok(json!([]))
        })
    }

    fn end(&self) -> Answer<'_, Position> {
        Box::pin(async {
            self.0.fails()?;
            Ok(self.0.lock().end())
        })
    }

    fn position_at(&self, time_us: i64) -> Answer<'_, Position> {
        Box::pin(async move { Ok(at(time_us.cast_unsigned())) })
    }

    fn begin_copy<'a>(&'a self, tables: &'a [TableName]) -> Answer<'a, CopyBegun> {
        Box::pin(async move {
            self.0.fails()?;
            let mut state = self.0.lock();
            state.copies += 1;
            let columns = vec!["id".to_owned(), "note".to_owned()];
            let tables = tables.iter().map(|table| (table.clone(), columns.clone())).collect();
            let (id, position, version) = ("c1".to_owned(), state.end(), state.version);
            Ok(CopyBegun { id, position, version, origin: "berlin".to_owned(), tables })
        })
    }

    fn renew_copy<'a>(&'a self, _id: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn end_copy<'a>(&'a self, _id: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn copy<'a>(
        &'a self,
        _id: &'a str,
        _table: &'a TableName,
        columns: &'a [String],
        filter: Option<&'a str>,
    ) -> Answer<'a, Box<dyn Bytestream>> {
        Box::pin(async move {
            assert_eq!(columns, ["note"]);
            let mut state = self.0.lock();
            state.filters.push(filter.map(str::to_owned));
            let parts: &[&'static str] =
                if state.broken_copies > 0 { &["a\nb", "\n"] } else { &["a\nb", "\n\\.", "\n"] };
            state.broken_copies = state.broken_copies.saturating_sub(1);
            Ok(Box::new(Given(parts.iter().copied().map(Bytes::from).collect())) as Box<dyn Bytestream>)
        })
    }

    fn stream(&self, after: Position) -> Answer<'_, Box<dyn Bytestream>> {
        Box::pin(async move {
            self.0.fails()?;
            let mut state = self.0.lock();
            assert!(!state.followers.is_empty(), "the log is read before it is kept");
            state.streams.push(after);
            if after.tick < state.purged {
                return Err(Trouble::from_source(410, "position_purged", "gone"));
            }
            Ok(Box::new(Log { source: Arc::clone(&self.0), after: after.tick }) as Box<dyn Bytestream>)
        })
    }

    fn register<'a>(&'a self, follower: &'a str, after: Option<Position>) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut state = self.0.lock();
            if after.is_some_and(|after| after.tick < state.purged) {
                return Err(Trouble::from_source(410, "position_purged", "gone"));
            }
            let after = after.unwrap_or(state.end());
            state.followers.insert(follower.to_owned(), after);
            Ok(())
        })
    }

    fn move_to<'a>(&'a self, follower: &'a str, position: Position) -> Answer<'a, bool> {
        Box::pin(async move {
            let mut state = self.0.lock();
            let known = state.followers.contains_key(follower);
            if known {
                state.followers.insert(follower.to_owned(), position);
            }
            Ok(known)
        })
    }

    fn forget<'a>(&'a self, follower: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.0.lock().followers.remove(follower);
            Ok(())
        })
    }

    fn leave(&self) {}
}
