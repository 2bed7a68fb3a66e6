//! A channel's state as `quorum.delta_state` says it, and as this interface shows it.

use crate::feed::{Call, Position};
use crate::rest::api::Api;
use crate::rest::refusal::Refusal;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct State {
    /// By which this database follows the channel; `None`: it publishes it.
    pub(super) subscription: Option<String>,
    pub(super) state: Option<String>,
    pub(super) code: Option<String>,
    pub(super) detail: Option<String>,
    /// All tables are being copied.
    pub(super) loading: bool,
    pub(super) database_version: u64,
    delta_version: u64,
    delta_error_count: u64,
    cache_flush: u64,
    import_counts: Value,
    epoch: Option<u64>,
    pub(super) tick: Option<u64>,
}

/// The state of the channel of this name, or of that subscription.
pub(super) async fn of(
    api: &Api,
    database: &str,
    channel: &str,
    subscription: Option<&str>,
) -> Result<State, Refusal> {
    let mut call = Call::new("delta_state").text("channel", "text", channel);
    if let Some(name) = subscription {
        call = call.text("subscription_name", "text", name);
    }
    let found = api.feed().source().ask(database, call).await?;
    serde_json::from_value(found).map_err(|_| Refusal::unexpected_reply())
}

impl State {
    pub(super) fn position(&self) -> Option<Position> {
        Some(Position { epoch: self.epoch?, tick: self.tick? })
    }

    pub(super) fn is(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// `DatabaseState`.
    pub(super) fn database(&self) -> Value {
        json!({"databaseVersion": self.database_version, "deltaVersion": self.delta_version,
            "deltaErrorCount": self.delta_error_count})
    }

    /// `ImportState`.
    pub(super) fn imports(&self) -> Value {
        json!({"importCounts": self.import_counts})
    }

    /// Both, and the caches. The documentation of the interface does not say whether their fields are members of objects of
    /// their own, so that they are there in both ways.
    pub(super) fn whole(&self) -> Value {
        let (mut whole, imports) = (self.database(), self.imports());
        whole["importCounts"] = self.import_counts.clone();
        whole["cacheFlush"] = self.cache_flush.into();
        whole["databaseState"] = self.database();
        whole["importState"] = imports;
        whole
    }
}
