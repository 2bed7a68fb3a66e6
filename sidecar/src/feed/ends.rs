//! The ends of channels: one session waits for each channel that somebody reads, however many readers there are.

use super::error::{FeedError, Kind};
use super::position::Position;
use super::source::{ChannelId, Source};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long the database is asked to wait before it says that nothing came.
const WAIT: Duration = Duration::from_secs(1);
/// How long after a failure the database is asked again.
const RETRY: Duration = Duration::from_millis(200);
/// How long a channel is still waited for when its last reader has gone: those who poll come again.
const LINGER: Duration = Duration::from_secs(3);

/// What is known of a channel's end.
#[derive(Clone, Debug)]
pub enum End {
    Unknown,
    At(Position),
    /// The database does not say; it is asked again and again.
    Failed(FeedError),
}

/// What the feed must know of the cluster.
pub trait Leadership: Send + Sync + 'static {
    /// The leader that this node hears of; none if it hears nothing any more.
    fn leader(&self) -> Option<u64>;
    /// Why this node does not belong to its cluster any more, if so.
    fn removed(&self) -> Option<FeedError>;
    /// Whether this node is it.
    fn leads(&self) -> bool;
    /// Makes the leader know, until this is dropped, that somebody waits for the channel: it makes new changes readable
    /// at once only where somebody does.
    fn demand(&self, id: ChannelId) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Somebody waits for a channel as long as one of these is held.
pub struct Waiting {
    end: watch::Receiver<End>,
    lingers: AtomicBool,
    tasks: [AbortHandle; 2],
}

impl Waiting {
    /// The end as it is, and as it moves.
    pub fn end(&self) -> watch::Receiver<End> {
        self.end.clone()
    }

    /// Goes on for a little while when everybody else has gone.
    pub fn linger(self: Arc<Self>) {
        if !self.lingers.swap(true, Ordering::Relaxed) {
            tokio::spawn(async move {
                tokio::time::sleep(LINGER).await;
                self.lingers.store(false, Ordering::Relaxed);
            });
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// All channels that are waited for.
pub struct Ends {
    source: Arc<dyn Source>,
    leadership: Arc<dyn Leadership>,
    waiting: Mutex<HashMap<ChannelId, Weak<Waiting>>>,
}

impl Ends {
    pub fn new(source: Arc<dyn Source>, leadership: Arc<dyn Leadership>) -> Ends {
        Ends { source, leadership, waiting: Mutex::default() }
    }

    /// Waits for this channel, together with all others that do.
    pub fn wait_for(&self, id: &ChannelId) -> Arc<Waiting> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = waiting.get(id).and_then(Weak::upgrade) {
            return found;
        }
        waiting.retain(|_, weak| weak.strong_count() > 0);
        let (sender, end) = watch::channel(End::Unknown);
        let wait = tokio::spawn(keep_waiting(Arc::clone(&self.source), id.clone(), sender));
        let demand = tokio::spawn(self.leadership.demand(id.clone()));
        let tasks = [wait.abort_handle(), demand.abort_handle()];
        let new = Arc::new(Waiting { end, lingers: AtomicBool::new(false), tasks });
        waiting.insert(id.clone(), Arc::downgrade(&new));
        new
    }
}

async fn keep_waiting(source: Arc<dyn Source>, id: ChannelId, end: watch::Sender<End>) {
    let mut known: Option<Position> = None;
    loop {
        let found = match known {
            Some(position) => source.wait(&id, &position.to_string(), WAIT).await,
            None => source.wait(&id, "now", Duration::ZERO).await,
        };
        match found {
            Ok(position) => {
                let moved = known != Some(position);
                known = Some(position);
                end.send_if_modified(|old| {
                    let moved = moved || !matches!(old, End::At(_));
                    *old = End::At(position);
                    moved
                });
            }
            // After a failover the end may lie before what was seen: begin with what is there now.
            Err(FeedError { kind, .. })
                if known.is_some()
                    && matches!(
                        kind,
                        Kind::PositionInFuture | Kind::PositionUnknownEpoch | Kind::PositionPurged
                    ) =>
            {
                known = None;
            }
            Err(error) => {
                tracing::debug!(channel = %id, %error, "a channel cannot be waited for now");
                end.send_replace(End::Failed(error));
                known = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
