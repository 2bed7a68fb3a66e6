//! Reading the log piece by piece.

use super::error::{FeedError, Kind, Result};
use super::position::{After, Position};
use super::source::{ChannelId, LogRow, Rows, Source};
use std::sync::Arc;

/// How much is read at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// As much as one answer of the database may be asked to hold: more than the largest change.
const PIECE_BYTES_MAX: usize = 1 << 30;

/// Consecutive log rows that hold all changes after `after` up to `to`, and what is needed to read them.
#[derive(Debug)]
pub struct Piece {
    pub after: After,
    pub to: Position,
    pub rows: Rows,
}

/// Where a reader is. Holds nothing between two pieces, no session and no bytes.
pub struct Pieces {
    source: Arc<dyn Source>,
    id: ChannelId,
    after: After,
}

impl Pieces {
    pub fn new(source: Arc<dyn Source>, id: ChannelId, after: After) -> Pieces {
        Pieces { source, id, after }
    }

    pub fn after(&self) -> After {
        self.after
    }

    /// The next changes; `None`: there are none now.
    ///
    /// # Errors
    /// The position is not to be had, or the database does not answer.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        if self.after == After::Now {
            let end = self.source.wait(&self.id, "now", std::time::Duration::ZERO).await?;
            self.after = After::At(end);
        }
        let after = self.after.to_string();
        let mut max_bytes = PIECE_BYTES;
        loop {
            let rows = self.source.read(&self.id, &after, max_bytes).await?;
            if let Some(to) = last_change(&rows, self.after) {
                let piece = Piece { after: self.after, to, rows };
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
        }
    }
}

/// The last change after `after` that ends in these rows.
fn last_change(rows: &Rows, after: After) -> Option<Position> {
    let (row, _) = rows.iter().rfind(|(row, _)| ends_a_change(row))?;
    let new = after.tick().is_none_or(|tick| row.last_tick > tick);
    new.then_some(Position { epoch: row.epoch, tick: row.last_tick })
}

fn ends_a_change(row: &LogRow) -> bool {
    row.last_tick >= row.first_tick
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_reaches_to_the_last_change_that_ends_in_it() {
        let mut rows = Rows::default();
        let after = |tick| After::At(Position { epoch: 5, tick });
        assert_eq!(last_change(&rows, After::Start), None);
        // The beginning of a long change.
        rows.push(5, (1, 0), 77, 1, b"a");
        assert_eq!(last_change(&rows, After::Start), None);
        rows.push(5, (1, 3), 77, 0, b"b");
        rows.push(5, (4, 3), 77, 0, b"c");
        let end = Position { epoch: 5, tick: 3 };
        assert_eq!(last_change(&rows, After::Start), Some(end));
        assert_eq!(last_change(&rows, after(2)), Some(end));
        assert_eq!(last_change(&rows, after(3)), None);
        assert_eq!(last_change(&rows, After::Tick(2)), Some(end));
    }
}
