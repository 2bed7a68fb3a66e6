//! One answer with some changes: at once if there are any, otherwise when they come or the wait is over.

use super::ends::Waiting;
use super::error::Result;
use super::lines::{Form, Lines};
use super::outlet::Outlet;
use super::pieces::{Piece, Pieces};
use super::position::After;
use super::schemas::Schemas;
use super::{ChannelId, Feed};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where an answer ends although the limit is not reached.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long changes that are not wanted are passed over in one answer, or as long as the reader waits.
const PASSING_MAX: Duration = Duration::from_secs(5);

/// What a reader asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub after: After,
    /// At most so many changes.
    pub limit: usize,
    /// How long to wait for one.
    pub wait: Duration,
    /// Of these tables; of all if empty.
    pub tables: Vec<String>,
}

/// What it gets.
#[derive(Debug)]
pub struct Found {
    /// JSON objects, separated by commas.
    pub changes: Vec<u8>,
    /// After what to ask next.
    pub position: After,
    /// There may be more already.
    pub more: bool,
    /// The position lies inside a transaction: the rest of it comes next.
    pub in_transaction: bool,
}

impl Feed {
    /// Some changes.
    ///
    /// # Errors
    /// No such channel or table, the position is not to be had, or what comes first after it cannot be read.
    pub async fn poll(&self, id: &ChannelId, ask: Ask) -> Result<Found> {
        let now = Instant::now();
        let (deadline, last_moment) = (now + ask.wait, now + ask.wait.max(PASSING_MAX));
        let (mut pieces, first) = self.settle(id, ask.after).await?;
        let begin = first.as_ref().map_or_else(|| pieces.after(), |piece| piece.after);
        let schemas = Schemas::new(Arc::clone(&self.source), id.clone(), ask.tables).await?;
        let form = Form::Array { left: ask.limit, bytes_max: ANSWER_BYTES_MAX };
        let (mut lines, mut out) = (Lines::new(schemas, form, begin), Outlet::default());
        let mut waiting = None;
        let gathered = async {
            let mut next = first;
            loop {
                match next.take() {
                    Some(piece) => {
                        if !lines.piece(&piece, &mut out).await? || Instant::now() >= last_moment {
                            return Ok(true);
                        }
                    }
                    // There are no more now; those that were found need not wait for others.
                    None if !out.buffer().is_empty() || Instant::now() >= deadline => return Ok(false),
                    None => {
                        next = self.await_piece(id, &mut pieces, &mut waiting, deadline).await?;
                        continue;
                    }
                }
                next = pieces.next().await?;
            }
        };
        let gathered: Result<bool> = gathered.await;
        if let Some(waiting) = waiting {
            waiting.linger();
        }
        let (position, in_transaction) = (lines.position(), lines.in_transaction());
        let more = match gathered {
            // What came before is good, and the next answer says why there is no more.
            Err(_) if position != begin => true,
            gathered => gathered?,
        };
        Ok(Found { changes: out.into_buffer(), position, more, in_transaction })
    }

    /// The next piece, or none at the deadline.
    async fn await_piece(
        &self,
        id: &ChannelId,
        pieces: &mut Pieces,
        waiting: &mut Option<Arc<Waiting>>,
        deadline: Instant,
    ) -> Result<Option<Piece>> {
        let mut end = waiting.get_or_insert_with(|| self.ends.wait_for(id)).end();
        // Whatever came before this is found by the first look.
        end.borrow_and_update();
        if let Some(piece) = pieces.next().await? {
            return Ok(Some(piece));
        }
        // A failure to wait shows when the log is read.
        let _ = tokio::time::timeout_at(deadline, end.changed()).await;
        pieces.next().await
    }
}
