//! One answer with some changes: at once if there are any, otherwise when they come or the wait is over.

use super::ends::Waiting;
use super::error::Result;
use super::lines::{Form, Lines};
use super::outlet::Outlet;
use super::pieces::Piece;
use super::position::After;
use super::schemas::Schemas;
use super::{ChannelId, Feed};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Where an answer ends although the limit is not reached.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

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
    /// No such channel or table, the position is not to be had, or the first record after it is damaged.
    pub async fn poll(&self, id: &ChannelId, ask: Ask) -> Result<Found> {
        let deadline = Instant::now() + ask.wait;
        let (mut pieces, mut next) = self.settle(id, ask.after).await?;
        let begin = next.as_ref().map_or_else(|| pieces.after(), |piece| piece.after);
        let schemas = Schemas::new(Arc::clone(&self.source), id.clone(), ask.tables).await?;
        let form = Form::Array { left: ask.limit, bytes_max: ANSWER_BYTES_MAX };
        let (mut lines, mut out) = (Lines::new(schemas, form, begin), Outlet::default());
        let mut waiting: Option<Arc<Waiting>> = None;
        let mut more = true;
        loop {
            match next.take() {
                Some(piece) => {
                    if !written(&mut lines, &piece, &mut out).await? {
                        break;
                    }
                }
                // There are no more now; those that were found need not wait for others.
                None if !out.buffer().is_empty() || Instant::now() >= deadline => {
                    more = false;
                    break;
                }
                None => {
                    let waiting = waiting.get_or_insert_with(|| self.ends.wait_for(id));
                    let mut end = waiting.end();
                    // Whatever came before this is found by the next look.
                    end.borrow_and_update();
                    next = pieces.next().await?;
                    if next.is_none() {
                        // A failure to wait shows when the log is read.
                        let _ = tokio::time::timeout_at(deadline, end.changed()).await;
                        next = pieces.next().await?;
                    }
                    continue;
                }
            }
            next = pieces.next().await?;
        }
        if let Some(waiting) = waiting {
            waiting.linger();
        }
        let (position, in_transaction) = (lines.position(), lines.in_transaction());
        Ok(Found { changes: out.into_buffer(), position, more, in_transaction })
    }
}

/// Writes a piece. A record that is damaged fails the request only if nothing was found before it.
async fn written(lines: &mut Lines, piece: &Piece, out: &mut Outlet) -> Result<bool> {
    match lines.piece(piece, out).await {
        Err(_) if !out.buffer().is_empty() => Ok(false),
        other => other,
    }
}
