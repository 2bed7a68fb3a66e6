//! A body that ends when its reader is not welcome any more.

use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use warp::http::Response;

/// Names the body of an answer, which warp keeps to itself.
pub(super) trait Answer {
    type Body;
}

impl<B> Answer for Response<B> {
    type Body = B;
}

/// An answer of the routes, as it goes out.
pub(super) type GuardedResponse = Response<Guarded<<warp::reply::Response as Answer>::Body>>;

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct Guarded<B> {
    body: B,
    over: Option<Over>,
}

impl<B> Guarded<B> {
    pub(super) fn new(body: B) -> Guarded<B> {
        Guarded { body, over: None }
    }

    /// Ends when `over` does, if not before.
    pub(super) fn until(body: B, over: impl Future<Output = ()> + Send + 'static) -> Guarded<B> {
        Guarded { body, over: Some(Box::pin(over)) }
    }
}

impl<B: Body + Unpin> Body for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(over) = &mut self.over
            && over.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
