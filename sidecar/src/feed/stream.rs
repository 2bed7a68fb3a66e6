//! A stream of changes to one client. Two tasks: one reads ahead by a piece, the other writes; a client that takes
//! nothing stops both, and then the stream costs the two pieces and a few buffers that are under way, no session.

use super::ends::{End, Leadership, Waiting};
use super::error::{FeedError, Kind, Result};
use super::frames;
use super::lines::Lines;
use super::outlet::Outlet;
use super::pieces::{Piece, Pieces};
use super::position::{After, Position};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How long a stream says nothing before it says where it is.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the database may fail in ways that pass before the client is sent elsewhere.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(100);

/// How changes are written.
pub enum Format {
    Lines(Box<Lines>),
    Frames,
}

/// What a stream consists of.
pub struct Stream {
    /// None: the client wants to know the end only.
    pub pieces: Option<Pieces>,
    /// What was read already to see whether the position is good.
    pub first: Option<Piece>,
    pub format: Format,
    pub waiting: Arc<Waiting>,
    pub leadership: Arc<dyn Leadership>,
}

impl Stream {
    /// Starts it; the client reads from what is returned, and ends it by dropping that.
    pub fn start(self) -> mpsc::Receiver<Bytes> {
        let (mut out, client) = Outlet::new();
        let Stream { pieces, first, format, waiting, leadership } = self;
        let (queue, read) = mpsc::channel(1);
        let end = waiting.end();
        // A stream without pieces holds the queue's other end itself, so that it goes on.
        let held = match pieces {
            Some(pieces) => {
                out.burdened_by(pieces.large());
                tokio::spawn(pull(pieces, waiting.end(), queue));
                None
            }
            None => Some(queue),
        };
        let writer = Writer { out, format, end, leadership, _waiting: waiting, _held: held };
        tokio::spawn(writer.run(first, read));
        client
    }
}

/// Reads pieces and waits where there are none, until the writer has gone.
async fn pull(mut pieces: Pieces, mut end: watch::Receiver<End>, queue: mpsc::Sender<Result<Piece>>) {
    let mut failing: Option<Instant> = None;
    loop {
        // Seen before the log is read: what comes between is not missed.
        let known = end.borrow_and_update().clone();
        let at_end = matches!((&known, pieces.after()), (End::At(end), After::At(here)) if *end == here);
        let read = if at_end { Ok(None) } else { pieces.next().await };
        match read {
            Ok(Some(piece)) => {
                failing = None;
                if queue.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
            Ok(None) => {
                failing = None;
                if let End::Failed(error) = known
                    && !error.is_passing()
                {
                    let _ = queue.send(Err(error)).await;
                    return;
                }
                let moved = tokio::select! {
                    moved = end.changed() => moved.is_ok(),
                    () = queue.closed() => return,
                };
                if !moved {
                    let message = "waiting for the channel has ended; the sidecar's log has the reason";
                    let _ = queue.send(Err(FeedError::new(Kind::Internal, message))).await;
                    return;
                }
            }
            Err(error)
                if error.is_passing() && failing.get_or_insert_with(Instant::now).elapsed() < PATIENCE =>
            {
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => {}
                    () = queue.closed() => return,
                }
            }
            Err(error) => {
                let _ = queue.send(Err(error)).await;
                return;
            }
        }
    }
}

struct Writer {
    out: Outlet,
    format: Format,
    end: watch::Receiver<End>,
    leadership: Arc<dyn Leadership>,
    _waiting: Arc<Waiting>,
    _held: Option<mpsc::Sender<Result<Piece>>>,
}

impl Writer {
    async fn run(mut self, first: Option<Piece>, mut read: mpsc::Receiver<Result<Piece>>) {
        let mut next = first.map(Ok);
        loop {
            let written = match next.take() {
                Some(Ok(piece)) => self.piece(&piece).await,
                Some(Err(error)) => Err(error),
                None => self.heartbeat(),
            };
            let go_on = match written {
                Ok(go_on) => go_on,
                Err(error) => {
                    if matches!(error.kind, Kind::RecordBroken | Kind::Internal) {
                        tracing::error!(%error, "a stream of changes ends");
                    }
                    self.error(&error);
                    let _ = self.out.flush().await;
                    return;
                }
            };
            if !go_on || !self.out.flush().await {
                return;
            }
            // Much was read and none of it wanted: the client hears how far that is.
            if self.out.sent().elapsed() >= HEARTBEAT {
                next = None;
                continue;
            }
            next = tokio::select! {
                piece = read.recv() => match piece {
                    Some(piece) => Some(piece),
                    None => return,
                },
                () = tokio::time::sleep_until(self.out.sent() + HEARTBEAT) => None,
                () = self.out.closed() => return,
            };
        }
    }

    async fn piece(&mut self, piece: &Piece) -> Result<bool> {
        match &mut self.format {
            Format::Lines(lines) => lines.piece(piece, &mut self.out).await,
            Format::Frames => frames::piece(piece, &mut self.out).await,
        }
    }

    fn heartbeat(&mut self) -> Result<bool> {
        if let Some(error) = self.leadership.removed() {
            return Err(error);
        }
        let end: Option<Position> = match &*self.end.borrow() {
            End::At(end) => Some(*end),
            End::Unknown | End::Failed(_) => None,
        };
        match &self.format {
            Format::Lines(lines) => lines.heartbeat(end, self.leadership.leader(), &mut self.out),
            Format::Frames => frames::heartbeat(end, self.leadership.leader(), &mut self.out),
        }
        Ok(true)
    }

    fn error(&mut self, error: &FeedError) {
        let (code, message) = (error.kind.code(), &error.message);
        match &self.format {
            Format::Lines(lines) => lines.error(code, message, &mut self.out),
            Format::Frames => frames::error(code, message, &mut self.out),
        }
    }
}
