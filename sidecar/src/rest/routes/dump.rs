//! `GET /channels/{channel}/dump`: the tables as they are now, and the position from which to follow them.

use super::channel;
use crate::rest::api::Api;
use crate::rest::query::Query;
use crate::rest::refusal::Refusal;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    channel::reading(api, "dump", |api, channel, query| async move { answer(&api, &channel, &query).await })
}

async fn answer(api: &Api, channel: &str, query: &str) -> Result<Response, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["table", "database"])?;
    let id = channel::channel(api, channel, &query)?;
    let tables = query.list("table")?;
    let place = api.reader_place()?;
    let bytes = api.feed().dump(&id, &tables).await?;
    Ok(place.bytes(bytes, "application/x-ndjson"))
}
