//! `GET /channels/{channel}/schemas`: what tables looked like, for readers of the binary stream.

use super::channel;
use crate::rest::api::Api;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json};
use serde_json::Value;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    channel::reading(api, "schemas", |api, channel, query| async move {
        Ok(json(200, &answer(&api, &channel, &query).await?))
    })
}

async fn answer(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let query = Query::strict(query, &["id", "database"])?;
    let id = channel::channel(api, channel, &query)?;
    let source = api.feed().source();
    let found = source.schemas(&id, query.number("id")?).await?;
    if found.is_empty() && source.states(&id.database, Some(&id.channel)).await?.is_empty() {
        return Err(channel::unknown_channel(&id.channel, &id.database));
    }
    Ok(found.into())
}
