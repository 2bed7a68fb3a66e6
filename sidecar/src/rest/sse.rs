//! Server-sent events: a bounded number of clients that stay and get each new line.

use futures_util::{Stream, StreamExt};
use std::convert::Infallible;
use tokio::sync::{OwnedSemaphorePermit, watch};
use warp::Reply;
use warp::filters::BoxedFilter;
use warp::http::HeaderMap;
use warp::reply::Response;
use warp::sse::Event;

/// One client's right to stay.
pub(super) struct Place {
    permit: OwnedSemaphorePermit,
    stopping: watch::Receiver<bool>,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, stopping: watch::Receiver<bool>) -> Place {
        Place { permit, stopping }
    }

    /// Sends `events` until they end, the client leaves or the server stops; a comment every 15 s keeps proxies from
    /// closing the connection.
    pub(super) fn stream(self, events: impl Stream<Item = Event> + Send + Sync + 'static) -> Response {
        let Place { permit, mut stopping } = self;
        let stopped = Box::pin(async move {
            // The sender gone means the same as its signal.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let held = events.take_until(stopped).map(move |event| {
            let _stays_with_the_stream = &permit;
            Ok::<_, Infallible>(event)
        });
        warp::sse::reply(warp::sse::keep_alive().stream(held)).into_response()
    }
}

/// What a request says about streaming.
pub(super) struct Wish {
    pub(super) stream: bool,
    /// `Last-Event-ID`: what the client has already.
    pub(super) after: Option<u64>,
}

pub(super) fn wish() -> BoxedFilter<(Wish,)> {
    use warp::Filter;
    warp::header::headers_cloned()
        .map(|headers: HeaderMap| {
            let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
            Wish {
                stream: text("accept").is_some_and(|accept| accept.contains("text/event-stream")),
                after: text("last-event-id").and_then(|id| id.trim().parse().ok()),
            }
        })
        .boxed()
}
