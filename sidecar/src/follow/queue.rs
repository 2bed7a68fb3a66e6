//! Frames that were read ahead and wait to be applied: bounded by bytes, and taken in batches that end where a
//! transaction does, if that is near enough.

use super::frames::{Frame, piece};
use crate::feed::Position;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How much is read ahead.
pub const AHEAD_BYTES: usize = 8 * 1024 * 1024;
/// How much is applied with one call, about.
pub const BATCH_BYTES: usize = 1024 * 1024;

/// What is applied with one call.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    pub frames: Vec<u8>,
    /// No transaction is open behind it.
    pub ends: bool,
}

/// Between one who reads and one who applies.
pub struct Queue {
    inner: Mutex<Inner>,
    came: Notify,
    went: Notify,
}

struct Inner {
    frames: VecDeque<Waiting>,
    bytes: usize,
    /// Transactions that end in what waits.
    ends: usize,
    /// After what the next frame comes.
    after: Position,
    /// The piece that the next frame belongs to, if it has begun already.
    piece: Option<Position>,
    /// A transaction was given out in part.
    inside: bool,
}

enum Waiting {
    Piece { to: Position, bytes: Bytes },
    Row { last: Position, ends: bool, bytes: Bytes },
}

impl Waiting {
    fn bytes(&self) -> &Bytes {
        match self {
            Waiting::Piece { bytes, .. } | Waiting::Row { bytes, .. } => bytes,
        }
    }
}

impl Queue {
    /// For what comes after this position.
    pub fn new(after: Position) -> Queue {
        let inner = Inner { frames: VecDeque::new(), bytes: 0, ends: 0, after, piece: None, inside: false };
        Queue { inner: Mutex::new(inner), came: Notify::new(), went: Notify::new() }
    }

    /// Puts a piece's or row's frame at the end; other frames are nothing to apply.
    pub fn push(&self, frame: Frame) {
        let mut inner = self.lock();
        let waiting = match frame {
            Frame::Piece { to, bytes } => Waiting::Piece { to, bytes },
            Frame::Row { last_tick, epoch, ends, bytes } => {
                inner.ends += usize::from(ends);
                Waiting::Row { last: Position { epoch, tick: last_tick }, ends, bytes }
            }
            Frame::Heartbeat { .. } | Frame::Failed(_) => return,
        };
        inner.bytes += waiting.bytes().len();
        inner.frames.push_back(waiting);
        drop(inner);
        self.came.notify_one();
    }

    /// Returns when there is room.
    pub async fn room(&self) {
        while self.lock().bytes >= AHEAD_BYTES {
            self.went.notified().await;
        }
    }

    /// The next frames, as soon as there are any that end a transaction, or many. `one_by_one`: at most one transaction.
    pub async fn take(&self, one_by_one: bool) -> Batch {
        loop {
            if let Some(batch) = self.take_ready(one_by_one) {
                self.went.notify_one();
                return batch;
            }
            self.came.notified().await;
        }
    }

    /// The same, if there are such frames already.
    pub fn take_ready(&self, one_by_one: bool) -> Option<Batch> {
        self.lock().take(one_by_one)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, one_by_one: bool) -> Option<Batch> {
        if self.ends == 0 && self.bytes < BATCH_BYTES {
            return None;
        }
        let count = self.count(one_by_one);
        let mut frames = Vec::with_capacity(BATCH_BYTES / 4);
        // A transaction here has a decoder of its own, which begins with a piece.
        if let (false, Some(to), Some(Waiting::Row { .. })) = (self.inside, self.piece, self.frames.front()) {
            frames.extend_from_slice(&piece(self.after.tick, to));
        }
        let mut ends_here = !self.inside;
        for waiting in self.frames.drain(..count) {
            frames.extend_from_slice(waiting.bytes());
            self.bytes -= waiting.bytes().len();
            match waiting {
                Waiting::Piece { to, .. } => self.piece = Some(to),
                Waiting::Row { last, ends, .. } => {
                    ends_here = ends;
                    self.ends -= usize::from(ends);
                    if ends {
                        self.after = last;
                    }
                }
            }
        }
        self.inside = !ends_here;
        Some(Batch { frames, ends: ends_here })
    }

    /// How many frames go into the next batch: up to the last end of a transaction that is near enough; else, of a
    /// transaction that is longer, as much as is usual.
    fn count(&self, one_by_one: bool) -> usize {
        let (mut bytes, mut whole, mut count) = (0, 0, 0);
        for waiting in &self.frames {
            // A single frame is taken however long it is.
            if bytes >= BATCH_BYTES && whole > 0 {
                return whole;
            }
            if bytes >= BATCH_BYTES {
                return count;
            }
            bytes += waiting.bytes().len();
            count += 1;
            if let Waiting::Row { ends: true, .. } = waiting {
                whole = count;
                if one_by_one {
                    return whole;
                }
            }
        }
        if whole > 0 { whole } else { count }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::super::frames::written::*;
    use super::*;

    fn at(tick: u64) -> Position {
        Position { epoch: 5, tick }
    }

    fn filled(parts: &[Vec<u8>]) -> Queue {
        let queue = Queue::new(at(0));
        let mut frames = Frames::default();
        for part in parts {
            frames.push(part);
            while let Some(frame) = frames.next().unwrap() {
                queue.push(frame);
            }
        }
        queue
    }

    fn row(ticks: (u64, u64), flags: u32, bytes: usize) -> Vec<u8> {
        row_frame(5, ticks, 7, flags, &vec![b'x'; bytes])
    }

    #[tokio::test]
    async fn batches_end_where_transactions_do() {
        let first = [piece_frame(0, at(3)), row((1, 1), 3, 10), row((2, 3), 3, 10), row((4, 3), 1, 10)];
        let queue = filled(&first);
        assert_eq!(queue.take(false).await, Batch { frames: first[..3].concat(), ends: true });
        // The rest of a transaction that has begun waits for its end, and begins with a piece of its own.
        assert!(queue.lock().take(false).is_none());
        let mut frames = Frames::default();
        frames.push(&row((4, 4), 2, 10));
        queue.push(frames.next().unwrap().unwrap());
        let expected = [piece_frame(3, at(3)), row((4, 3), 1, 10), row((4, 4), 2, 10)].concat();
        assert_eq!(queue.take(false).await, Batch { frames: expected, ends: true });
    }

    #[tokio::test]
    async fn transactions_are_taken_one_by_one_where_that_is_wanted() {
        let parts = [piece_frame(0, at(3)), row((1, 1), 3, 10), row((2, 3), 3, 10), row((4, 4), 3, 10)];
        let queue = filled(&parts);
        assert_eq!(queue.take(true).await.frames, parts[..2].concat());
        assert_eq!(queue.take(true).await.frames, [piece_frame(1, at(3)), parts[2].clone()].concat());
        assert_eq!(queue.take(false).await.frames, [piece_frame(3, at(3)), parts[3].clone()].concat());
    }

    #[tokio::test]
    async fn a_long_transaction_comes_in_parts() {
        let mut parts = vec![piece_frame(0, at(900))];
        parts.extend((1..=250).map(|tick| row((tick, tick), u32::from(tick == 1), 8000)));
        parts.push(row((251, 251), 2, 8000));
        parts.push(row((252, 252), 3, 8000));
        let queue = filled(&parts);
        let mut all = Vec::new();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let batch = queue.take(false).await;
            assert!(batch.frames.len() < BATCH_BYTES + 10_000);
            ends.push(batch.ends);
            all.extend(batch.frames);
        }
        assert_eq!((ends, all), (vec![false, true], parts.concat()));
        assert_eq!(queue.lock().bytes, 0);
    }
}
