//! `GET /channels/{channel}/changes`: some changes, at once or when they come.

use super::channel;
use crate::feed::{Ask, ChannelId, Found};
use crate::rest::api::Api;
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, with_body};
use warp::filters::BoxedFilter;
use warp::reply::Response;

const LIMIT: u64 = 1000;
const LIMIT_MAX: u64 = 10_000;
const WAIT_MAX_S: u64 = 60;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    channel::reading(
        api,
        "changes",
        |api, channel, query| async move { answer(&api, &channel, &query).await },
    )
}

async fn answer(api: &Api, channel: &str, query: &str) -> Result<Response, Refusal> {
    api.data_view()?;
    let query = Query::strict(query, &["after", "limit", "wait", "tables", "database"])?;
    let id = channel::channel(api, channel, &query)?;
    let limit = query.number("limit")?.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(bad("limit", &limit.to_string(), &format!("a number from 1 to {LIMIT_MAX}")));
    }
    let ask = Ask {
        after: channel::position(query.get("after").unwrap_or("start"))?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
        wait: channel::wait(&query, WAIT_MAX_S)?,
        tables: query.list("tables")?,
    };
    let place = api.reader_place()?;
    let found = place.unless_stopped(async { Ok(api.feed().poll(&id, ask).await?) }).await?;
    Ok(with_body(200, "application/json", document(&id, &found, api.feed().leader())))
}

fn document(id: &ChannelId, found: &Found, leader: Option<u64>) -> String {
    let Found { changes, position, more, in_transaction } = found;
    let name = |text: &str| serde_json::Value::from(text).to_string();
    let (channel, database) = (name(&id.channel), name(&id.database));
    let leader = serde_json::Value::from(leader);
    let mut text = format!("{{\"channel\":{channel},\"database\":{database},\"changes\":[");
    text.reserve(changes.len() + 128);
    text.push_str(&String::from_utf8_lossy(changes));
    text.push_str(&format!(
        "],\"position\":\"{position}\",\"more\":{more},\"in_transaction\":{in_transaction},\"leader\":{leader}}}"
    ));
    text
}
