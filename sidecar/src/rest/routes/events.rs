//! `GET /events`: what happened to the cluster, from its log. As a list, or as a stream that goes on.

use crate::rest::api::{Api, query, read};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use crate::rest::sse::{Wish, wish};
use futures_util::{Stream, stream};
use pgquorum_agent::cluster::{Cluster, LogRecord, describe};
use pgquorum_agent::types::NodeId;
use pgquorum_agent::view::View;
use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

#[derive(Serialize)]
struct Event {
    index: u64,
    term: u64,
    kind: String,
    node: Option<NodeId>,
    message: String,
    details: Value,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("events")
        .and(read())
        .and(query())
        .and(wish())
        .map(move |query: String, wish| answer(&api, &query, &wish).unwrap_or_else(Refusal::into_response))
        .boxed()
}

fn answer(api: &Api, query: &str, wish: &Wish) -> Result<Response, Refusal> {
    let query = Query::strict(query, &["after", "limit"])?;
    let (after, limit) = (query.number("after")?, query.number("limit")?);
    if wish.stream {
        let after = wish.after.or(after).unwrap_or(0);
        return Ok(api.stream_place()?.stream(follow(api.handle().view.clone(), after)));
    }
    let mut events = events_after(&api.view().cluster, after.unwrap_or(0));
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    // Who reads on gets the next ones, who does not say from where gets the newest.
    let surplus = events.len().saturating_sub(limit);
    if after.is_some() {
        events.truncate(limit)
    } else {
        drop(events.drain(..surplus))
    }
    Ok(respond(Ok(events)))
}

fn events_after(cluster: &Cluster, index: u64) -> VecDeque<Event> {
    cluster.log.iter().filter(|record| record.index > index).filter_map(event).collect()
}

fn event(record: &LogRecord) -> Option<Event> {
    let (kind, node, message) = describe(&record.payload)?;
    let details = serde_json::to_value(&record.payload).unwrap_or_default();
    Some(Event { index: record.index, term: record.term, kind, node, message, details })
}

/// What a stream has sent and what it still has to send.
struct Follower {
    view: watch::Receiver<Arc<View>>,
    seen: u64,
    pending: VecDeque<Event>,
}

fn follow(
    view: watch::Receiver<Arc<View>>,
    after: u64,
) -> impl Stream<Item = warp::sse::Event> + Send + Sync {
    let follower = Follower { view, seen: after, pending: VecDeque::new() };
    stream::unfold(follower, |mut follower| async {
        loop {
            if let Some(event) = follower.pending.pop_front() {
                let sent = warp::sse::Event::default().id(event.index.to_string()).json_data(&event).ok()?;
                return Some((sent, follower));
            }
            let view = Arc::clone(&follower.view.borrow_and_update());
            if view.cluster.applied_index > follower.seen {
                follower.pending = events_after(&view.cluster, follower.seen);
                follower.seen = view.cluster.applied_index;
            } else {
                // No driver, no more events.
                follower.view.changed().await.ok()?;
            }
        }
    })
}
