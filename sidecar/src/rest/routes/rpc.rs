//! `GET /rpc`: what nodes said to each other and what this one did, line by line for people. As a list, or as a stream.

use crate::rest::api::{Api, query, read};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use crate::rest::sse::{Wish, wish};
use futures_util::{Stream, stream};
use pgquorum_agent::view::Trace;
use std::collections::VecDeque;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("rpc")
        .and(read())
        .and(query())
        .and(wish())
        .map(move |query: String, wish| answer(&api, &query, &wish).unwrap_or_else(Refusal::into_response))
        .boxed()
}

fn answer(api: &Api, query: &str, wish: &Wish) -> Result<Response, Refusal> {
    let query = Query::strict(query, &["after", "limit"])?;
    let (after, limit) = (wish.after.or(query.number("after")?).unwrap_or(0), query.number("limit")?);
    let (mut kept, live) = api.handle().traces.follow();
    kept.retain(|trace| trace.at > after);
    if wish.stream {
        return Ok(api.stream_place()?.stream(follow(kept.into(), live)));
    }
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    kept.drain(..kept.len().saturating_sub(limit));
    Ok(respond(Ok(kept)))
}

fn follow(
    kept: VecDeque<Trace>,
    live: Receiver<Trace>,
) -> impl Stream<Item = warp::sse::Event> + Send + Sync {
    stream::unfold((kept, live), |(mut kept, mut live)| async {
        let event = match kept.pop_front() {
            Some(trace) => line(&trace)?,
            None => match live.recv().await {
                Ok(trace) => line(&trace)?,
                Err(RecvError::Lagged(missed)) => warp::sse::Event::default()
                    .comment(format!(" {missed} lines were missed: the client is too slow")),
                Err(RecvError::Closed) => return None,
            },
        };
        Some((event, (kept, live)))
    })
}

fn line(trace: &Trace) -> Option<warp::sse::Event> {
    warp::sse::Event::default().id(trace.at.to_string()).json_data(trace).ok()
}
