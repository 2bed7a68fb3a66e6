//! Synchronisations that are asked for in SQL: the overseer of subscriptions finds them, here they are done as those that come
//! by HTTP, and what came of them is written down for whoever waits.

use super::worker;
use crate::feed::{Call, Given};
use crate::follow::SyncRequest;
use crate::rest::api::Api;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Works for them until the server stops.
pub(in crate::rest) fn work(api: &Api) {
    let api = api.clone();
    tokio::spawn(async move {
        let board = api.handle().subscriptions.clone();
        loop {
            tokio::select! {
                () = api.stopped() => return,
                (database, request) = board.asked() => drop(tokio::spawn(one(api.clone(), database, request))),
            }
        }
    });
}

async fn one(api: Api, database: String, request: SyncRequest) {
    let deadline = Instant::now() + Duration::from_millis(request.left_ms);
    let done = match request.channel {
        Some(channel) => {
            Box::pin(worker::sync(api.clone(), database.clone(), channel, request.records, deadline)).await
        }
        None => Box::pin(worker::full(api.clone(), database.clone(), deadline)).await.map(|()| Value::Null),
    };
    let call = Call::new("end_sync").with("request", "int8", Given::Number(request.id));
    let call = match &done {
        Ok(Value::Null) => call,
        Ok(results) => call.text("results", "jsonb", &results.to_string()),
        Err(refusal) => call.text("code", "text", refusal.code()).text("message", "text", refusal.message()),
    };
    if let Err(error) = api.feed().source().call(&database, call).await {
        tracing::debug!(database, %error, "what came of a synchronisation cannot be written down now");
    }
    api.handle().subscriptions.answered(&database, request.id);
}
