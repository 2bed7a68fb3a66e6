//! How the rest of the process talks to the driver: a snapshot to read, a queue for requests, a trace to follow.

use crate::follow::Board;
use crate::postgres::{PostgresConfig, WeakCommits};
use pgquorum_agent::request::{Rejection, RejectionKind, Reply, Request};
use pgquorum_agent::view::{Trace, View};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

/// How many lines of the trace are kept for those who ask later.
const TRACES_KEPT: usize = 1000;

/// How long a request may take before its outcome is called unknown: longer than the agent's own limits together, so
/// that its more precise answer comes first.
const REQUEST_DEADLINE: Duration = Duration::from_secs(25);

/// A request on its way to the driver.
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Result<Reply, Rejection>>,
}

/// The lines of `GET /rpc`: the newest are kept, and everybody who listens gets each new one.
#[derive(Clone)]
pub struct Traces {
    kept: Arc<Mutex<VecDeque<Trace>>>,
    live: broadcast::Sender<Trace>,
}

impl Default for Traces {
    fn default() -> Self {
        Traces { kept: Arc::default(), live: broadcast::channel(256).0 }
    }
}

impl Traces {
    pub fn add(&self, kind: &str, message: impl Into<String>) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let trace = Trace { at, kind: kind.to_owned(), message: message.into() };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TRACES_KEPT {
            kept.pop_front();
        }
        kept.push_back(trace.clone());
        // Nobody listening is no error.
        let _ = self.live.send(trace);
    }

    /// The lines so far, and the ones to come.
    pub fn follow(&self) -> (Vec<Trace>, broadcast::Receiver<Trace>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }
}

/// The driver, as its clients see it.
#[derive(Clone)]
pub struct Handle {
    pub view: watch::Receiver<Arc<View>>,
    pub requests: mpsc::Sender<Asked>,
    pub traces: Traces,
    pub weak_commits: watch::Receiver<Vec<WeakCommits>>,
    /// Tells those who work for subscriptions that one was changed.
    pub subscriptions_changed: Arc<Notify>,
    /// What this node does for subscriptions.
    pub subscriptions: Board,
    /// How the server beside this node is reached, for those who copy into it; `None`: there is none.
    pub server: Option<Arc<PostgresConfig>>,
}

impl Handle {
    /// What this node knows now. Costs a reference count, no lock that the driver waits for.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Asks the driver for a change and waits for the outcome.
    ///
    /// # Errors
    /// A refusal with its reason; `Unavailable` when the outcome is not known within the deadline.
    pub async fn ask(&self, request: Request) -> Result<Reply, Rejection> {
        let (answer, outcome) = oneshot::channel();
        let gone = || {
            Rejection::new(
                RejectionKind::Unavailable,
                "driver_stopped",
                "this node's sidecar is shutting down; ask another node",
            )
        };
        let late = |_| {
            Rejection::new(
                RejectionKind::Unavailable,
                "timed_out",
                "the cluster did not decide in time: the change may or may not have been made. Look at GET /config \
                 and GET /map before you try again",
            )
        };
        let wait = async {
            self.requests.send(Asked { request, answer }).await.map_err(|_| gone())?;
            outcome.await.map_err(|_| gone())?
        };
        tokio::time::timeout(REQUEST_DEADLINE, wait).await.map_err(late)?
    }
}
