//! The change log for readers over HTTP: who is where, what comes next, how it is written.
//!
//! - [`Source`] is what is asked of a database; `server` asks the one beside this node, with the sessions of `pool`.
//! - `ends` waits for channels: one session each, for all readers together. On a node that does not lead it also makes
//!   the leader know that somebody waits.
//! - `pieces` reads the log in bounded pieces from any position; `lines` and `frames` write them as JSON or as they
//!   are; `stream` ties these together for a client that stays, `poll` for one that asks again and again.
//! - `dump` copies tables under a snapshot whose position is known, for one client; `copies` for many at the same time,
//!   in a snapshot that `shared` holds.
//!
//! Bounds: a reader holds two pieces and a few buffers, whatever its client takes; pieces that are large because one
//! change is have a budget for all readers together; sessions are counted in `pool`.

mod copies;
mod copy_text;
mod dump;
mod ends;
mod error;
#[cfg(test)]
pub mod fake;
mod frames;
mod lines;
mod outlet;
mod pieces;
mod poll;
mod pool;
mod position;
mod schemas;
mod server;
mod shared;
pub mod source;
mod stream;
#[cfg(test)]
mod tests;

pub use copies::{Copies, TTL_DEFAULT, TTL_MAX};
pub use copy_text::{RowWriter, fields, unescape};
pub use ends::Leadership;
pub use error::{FeedError, Kind, Result};
pub use pieces::{Piece, Pieces};
pub use poll::{Ask, Found};
pub use pool::{Pool, Purpose, Taken};
pub use position::{After, Position};
pub use server::{ONLY_READ, Server, column, said, within};
pub use source::{Call, ChannelId, CopyOut, Given, LAST, LogRow, Shared, Source};

use bytes::Bytes;
use ends::Ends;
use lines::{Form, Lines};
use pieces::Budget;
use schemas::Schemas;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::{Format, Stream};
use tokio::sync::mpsc;

/// How long a node that does not lead may be behind a position that its reader brings from another node.
const CATCH_UP: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);

/// How a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Ndjson,
    Events,
    Binary,
}

/// The channels of this node's server.
#[derive(Clone)]
pub struct Feed {
    source: Arc<dyn Source>,
    leadership: Arc<dyn Leadership>,
    ends: Arc<Ends>,
    budget: Budget,
    copies: Arc<Copies>,
}

impl Feed {
    pub fn new(source: Arc<dyn Source>, leadership: Arc<dyn Leadership>) -> Feed {
        let ends = Arc::new(Ends::new(Arc::clone(&source), Arc::clone(&leadership)));
        let copies = Copies::new(Arc::clone(&source));
        Feed { source, leadership, ends, budget: Budget::default(), copies }
    }

    /// Copies that several clients read at the same time.
    pub fn copies(&self) -> &Arc<Copies> {
        &self.copies
    }

    /// The leader that this node hears of.
    pub fn leader(&self) -> Option<u64> {
        self.leadership.leader()
    }

    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    pub fn shared_source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.source)
    }

    /// Makes new changes of a channel readable at once for a while, as for those who wait: somebody will ask again.
    pub fn attend(&self, id: &ChannelId) {
        self.ends.wait_for(id).linger();
    }

    /// Starts a stream of these tables' changes, of all if none is named.
    ///
    /// # Errors
    /// No such channel or table, or the position is not to be had.
    pub async fn stream(
        &self,
        id: ChannelId,
        after: After,
        tables: Vec<String>,
        wire: Wire,
    ) -> Result<mpsc::Receiver<Bytes>> {
        let (pieces, first) = self.settle(&id, after).await?;
        let begin = first.as_ref().map_or_else(|| pieces.after(), |piece| piece.after);
        let format = match wire {
            Wire::Binary => Format::Frames,
            Wire::Ndjson | Wire::Events => {
                let form = if wire == Wire::Events { Form::Events } else { Form::Ndjson };
                let schemas = Schemas::new(Arc::clone(&self.source), id.clone(), tables).await?;
                Format::Lines(Box::new(Lines::new(schemas, form, begin)))
            }
        };
        Ok(self.start(&id, Some(pieces), first, format))
    }

    /// Starts a stream that says where the channel ends, and nothing else.
    ///
    /// # Errors
    /// No such channel, or the database does not answer.
    pub async fn heartbeats(&self, id: ChannelId, wire: Wire) -> Result<mpsc::Receiver<Bytes>> {
        let end = self.source.wait(&id, "now", Duration::ZERO).await?;
        let format = match wire {
            Wire::Binary => Format::Frames,
            Wire::Ndjson | Wire::Events => {
                let form = if wire == Wire::Events { Form::Events } else { Form::Ndjson };
                let schemas = Schemas::new(Arc::clone(&self.source), id.clone(), Vec::new()).await?;
                Format::Lines(Box::new(Lines::new(schemas, form, After::At(end))))
            }
        };
        Ok(self.start(&id, None, None, format))
    }

    fn start(
        &self,
        id: &ChannelId,
        pieces: Option<Pieces>,
        first: Option<Piece>,
        format: Format,
    ) -> mpsc::Receiver<Bytes> {
        let waiting = self.ends.wait_for(id);
        Stream { pieces, first, format, waiting, leadership: Arc::clone(&self.leadership) }.start()
    }

    /// Starts a copy of these tables, of all if none is named.
    ///
    /// # Errors
    /// No such channel or table, or the database does not answer.
    pub async fn dump(&self, id: &ChannelId, tables: &[String]) -> Result<mpsc::Receiver<Bytes>> {
        Ok(dump::start(self.source.dump(id, tables).await?))
    }

    /// Reads the first piece, so that a position that is not to be had is known before anything is answered. A standby
    /// may be a moment behind the node that a reader comes from.
    ///
    /// # Errors
    /// No such channel, the position is not to be had, or the database does not answer.
    pub async fn settle(&self, id: &ChannelId, after: After) -> Result<(Pieces, Option<Piece>)> {
        let mut pieces = Pieces::new(Arc::clone(&self.source), id.clone(), after, self.budget.clone());
        let deadline = Instant::now() + CATCH_UP;
        loop {
            match pieces.next().await {
                Ok(first) => return Ok((pieces, first)),
                Err(error)
                    if matches!(error.kind, Kind::PositionInFuture | Kind::PositionUnknownEpoch)
                        && !self.leadership.leads()
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
