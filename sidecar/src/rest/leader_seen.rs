//! The leader as the feed sees it: who it is, and that somebody waits for a channel here.

use super::api::{is_running, leads, why_removed};
use super::forward::Forward;
use crate::clock;
use crate::feed::{ChannelId, FeedError, Kind, Leadership};
use crate::uri::encoded;
use pgquorum_agent::view::View;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long after a failure the leader is asked again.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct LeaderSeen {
    view: watch::Receiver<Arc<View>>,
    forward: Arc<Forward>,
}

impl LeaderSeen {
    pub(super) fn new(view: watch::Receiver<Arc<View>>, forward: Arc<Forward>) -> LeaderSeen {
        LeaderSeen { view, forward }
    }
}

impl Leadership for LeaderSeen {
    fn leader(&self) -> Option<u64> {
        let view = self.view.borrow();
        // A view that is not renewed would name the leader of then for ever.
        let hears = is_running(&view, clock::now()) && view.member && !view.removed;
        view.leader.as_ref().filter(|_| hears).map(|leader| leader.id)
    }

    fn removed(&self) -> Option<FeedError> {
        let view = self.view.borrow();
        view.removed.then(|| FeedError::new(Kind::Removed, why_removed(&view).explain(view.id)))
    }

    fn leads(&self) -> bool {
        leads(&self.view.borrow(), clock::now())
    }

    fn demand(&self, id: ChannelId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (view, forward) = (self.view.clone(), Arc::clone(&self.forward));
        Box::pin(async move {
            // It waits there as a reader does here who wants to know the end only.
            let path =
                format!("/channels/{}/stream?changes=false&database={}", id.channel, encoded(&id.database));
            let mut changes = view.clone();
            loop {
                let now = Arc::clone(&changes.borrow_and_update());
                match now.leader.clone().filter(|leader| leader.id != now.id) {
                    Some(leader) => {
                        let other = |view: &Arc<View>| view.leader.as_ref().is_none_or(|l| *l != leader);
                        let ended = tokio::select! {
                            ended = forward.hold(leader.api, &path, now.id) => ended,
                            _ = changes.wait_for(other) => Ok(()),
                        };
                        if let Err(error) = ended {
                            tracing::debug!(channel = %id, %error, "the leader does not hear of a reader");
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                    // No driver, nothing to follow.
                    None if changes.changed().await.is_err() => return,
                    None => {}
                }
            }
        })
    }
}
