//! Where a stream's bytes go: a buffer that is sent on when it is full, and a queue that is short on purpose.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// When a buffer is sent on.
pub const FULL_BYTES: usize = 64 * 1024;
/// Buffers that wait for the client. Whoever writes waits with them, and reads nothing meanwhile.
const QUEUE: usize = 2;

/// How much longer than at [`LEAST_RATE`] a client may take while its stream holds memory that others wait for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes a second. Whoever takes a large change more slowly than this keeps others from theirs for hours.
const LEAST_RATE: u64 = 128 * 1024;

/// One end of a queue of buffers, or a buffer alone.
pub struct Outlet {
    buffer: Vec<u8>,
    queue: Option<mpsc::Sender<Bytes>>,
    sent: Instant,
    /// Not zero: others wait for what this stream holds.
    burden: Arc<AtomicUsize>,
    /// Since when it is not zero, and what was sent meanwhile.
    burdened: Option<(Instant, u64)>,
}

impl Default for Outlet {
    fn default() -> Outlet {
        Outlet {
            buffer: Vec::new(),
            queue: None,
            sent: Instant::now(),
            burden: Arc::default(),
            burdened: None,
        }
    }
}

impl Outlet {
    /// An outlet to a client, and what the client reads from.
    pub fn new() -> (Outlet, mpsc::Receiver<Bytes>) {
        let (queue, client) = mpsc::channel(QUEUE);
        (Outlet { queue: Some(queue), ..Outlet::default() }, client)
    }

    /// As long as this number is not zero, the client is not waited for without an end.
    pub fn burdened_by(&mut self, burden: Arc<AtomicUsize>) {
        self.burden = burden;
    }

    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Sends what is there if it is much; false: nobody takes it any more.
    pub async fn flush_full(&mut self) -> bool {
        self.buffer.len() < FULL_BYTES || self.flush().await
    }

    /// Sends what is there; false: nobody takes it any more.
    pub async fn flush(&mut self) -> bool {
        let Some(queue) = &self.queue else { return true };
        if self.buffer.is_empty() {
            return !queue.is_closed();
        }
        let room = self.buffer.len() + self.buffer.len() / 8;
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(room.min(2 * FULL_BYTES)));
        let room = loop {
            let burdened = self.burden.load(Ordering::Relaxed) > 0;
            let patience = match (burdened, &mut self.burdened) {
                (false, since) => {
                    *since = None;
                    PATIENCE
                }
                (true, since) => {
                    let (since, sent) = since.get_or_insert((Instant::now(), 0));
                    (PATIENCE + Duration::from_secs(*sent / LEAST_RATE)).saturating_sub(since.elapsed())
                }
            };
            match tokio::time::timeout(patience, queue.reserve()).await {
                Ok(room) => break room.ok(),
                Err(_) if burdened => {
                    tracing::warn!(
                        "a client takes a large change too slowly while others wait for the memory; its stream ends"
                    );
                    break None;
                }
                Err(_) => {}
            }
        };
        if let Some((_, sent)) = &mut self.burdened {
            *sent += full.len() as u64;
        }
        self.sent = Instant::now();
        room.map(|room| room.send(full.into())).is_some()
    }

    /// When something was sent last, or the outlet was made.
    pub fn sent(&self) -> Instant {
        self.sent
    }

    /// The same as `closed` for whoever lends the outlet to another one.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let queue = self.queue.clone();
        async move {
            match queue {
                Some(queue) => queue.closed().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Resolves when the client has gone.
    pub async fn closed(&self) {
        match &self.queue {
            Some(queue) => queue.closed().await,
            None => std::future::pending().await,
        }
    }
}
