//! Clients that stay, a bounded number of them: server-sent events, and streams of bytes.

use super::refusal::Refusal;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use std::convert::Infallible;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use warp::Reply;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, header};
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
        warp::sse::reply(warp::sse::keep_alive().stream(self.hold(events))).into_response()
    }

    /// Sends `bytes` as they come, until they end, the client leaves or the server stops.
    pub(super) fn bytes(self, mut bytes: mpsc::Receiver<Bytes>, content_type: &'static str) -> Response {
        let bytes = stream::poll_fn(move |context| bytes.poll_recv(context));
        let mut response = warp::reply::stream(self.hold(bytes)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Proxies that collect an answer before they pass it on would hold a stream back for ever.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn hold<T: Send + Sync + 'static>(
        self,
        items: impl Stream<Item = T> + Send + Sync + 'static,
    ) -> impl Stream<Item = Result<T, Infallible>> + Send + Sync {
        let Place { permit, mut stopping } = self;
        let stopped = Box::pin(async move {
            // The sender gone means the same as its signal.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        items.take_until(stopped).map(move |item| {
            let _stays_with_the_stream = &permit;
            Ok(item)
        })
    }

    /// What `answer` brings, or a refusal when the server stops meanwhile.
    pub(super) async fn unless_stopped<T>(
        mut self,
        answer: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let stopped = async {
            let _ = self.stopping.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            answer = answer => answer,
            () = stopped => Err(Refusal::new(531, "stopping", "this node's sidecar stops; ask another node")),
        }
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
