//! `GET /sql/readonly`: hashes of statements that write nothing, at once or when they are others than the client has.

use super::channel;
use crate::rest::api::{Api, query, read};
use crate::rest::condition::{Known, not_modified, tagged};
use crate::rest::query::Query;
use crate::rest::refusal::Refusal;
use crate::statements::List;
use std::time::Duration;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::HeaderMap;
use warp::reply::Response;

const WAIT_MAX_S: u64 = 60;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("sql" / "readonly")
        .and(read())
        .and(query())
        .and(warp::header::headers_cloned())
        .then(move |query: String, headers: HeaderMap| {
            let api = api.clone();
            async move { answer(&api, &query, &headers).await.unwrap_or_else(Refusal::into_response) }
        })
        .boxed()
}

async fn answer(api: &Api, query: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
    api.data_view()?;
    let query = Query::strict(query, &["database", "details", "wait"])?;
    let database = channel::database(api, &query)?;
    let details = query.flag("details")?.unwrap_or(false);
    let wait = channel::wait(&query, WAIT_MAX_S)?;
    let known = Known::of(headers);
    let tag = |list: &List| {
        // Counters move while the statements stay the same: that tag names the statements, not the bytes.
        if details { format!("W/\"{}-details\"", list.tag) } else { format!("\"{}\"", list.tag) }
    };
    let already = |list: &List| known.has(&tag(list));
    let list = if wait == Duration::ZERO {
        api.statements().list(&database, already, wait).await?
    } else {
        let place = api.waiter_place()?;
        place.unless_stopped(async { Ok(api.statements().list(&database, already, wait).await?) }).await?
    };
    // A node may have lost its part in the cluster while somebody waited.
    api.data_view()?;
    let tag = tag(&list);
    if known.has(&tag) {
        return Ok(not_modified(&tag));
    }
    let body = if details { api.statements().records(&database).await? } else { list.body.clone() };
    Ok(tagged(200, body, &tag))
}
