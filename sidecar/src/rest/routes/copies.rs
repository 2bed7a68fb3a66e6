//! `/channels/{channel}/copies`, `…/{copy}` and `…/{copy}/{table}`: the tables in one snapshot, for several readers at the
//! same time.

use super::channel;
use crate::feed::{TTL_DEFAULT, TTL_MAX};
use crate::rest::api::{Api, query, read};
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, json, respond};
use pgquorum_agent::settings::Span;
use serde_json::{Value, json};
use std::time::Duration;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// COPY's text format, with its end marked.
const COPY: &str = "application/x-postgresql-copy";

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (beginner, renewer, ender, reader) = (api.clone(), api.clone(), api.clone(), api.clone());
    let begin = warp::path!("channels" / String / "copies").and(warp::post()).and(query()).then(
        move |channel: String, query: String| {
            let api = beginner.clone();
            async move { begin(&api, &channel, &query).await.unwrap_or_else(Refusal::into_response) }
        },
    );
    let renew = warp::path!("channels" / String / "copies" / String).and(warp::put()).and(query()).then(
        move |channel: String, copy: String, query: String| {
            let api = renewer.clone();
            async move { respond(renew(&api, &channel, &copy, &query)) }
        },
    );
    let end = warp::path!("channels" / String / "copies" / String).and(warp::delete()).and(query()).then(
        move |channel: String, copy: String, query: String| {
            let api = ender.clone();
            async move { respond(end(&api, &channel, &copy, &query)) }
        },
    );
    let table = warp::path!("channels" / String / "copies" / String / String).and(read()).and(query()).then(
        move |channel: String, copy: String, table: String, query: String| {
            let api = reader.clone();
            async move {
                let answer = table_of(&api, &channel, &copy, &table, &query).await;
                answer.unwrap_or_else(Refusal::into_response)
            }
        },
    );
    begin.or(renew).unify().or(end).unify().or(table).unify().boxed()
}

async fn begin(api: &Api, channel: &str, query: &str) -> Result<Response, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database", "ttl", "tables"])?;
    let id = channel::channel(api, channel, &query)?;
    let ttl = ttl(&query)?.unwrap_or(TTL_DEFAULT);
    let begun = api.feed().copies().begin(id, &query.list("tables")?, ttl).await?;
    Ok(json(201, &begun))
}

fn renew(api: &Api, channel: &str, copy: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database", "ttl"])?;
    let id = channel::channel(api, channel, &query)?;
    Ok(api.feed().copies().renew(&id, copy, ttl(&query)?)?)
}

fn end(api: &Api, channel: &str, copy: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    api.feed().copies().end(&id, copy)?;
    Ok(json!({"channel": id.channel, "database": id.database, "id": copy, "ended": true}))
}

async fn table_of(
    api: &Api,
    channel: &str,
    copy: &str,
    table: &str,
    query: &str,
) -> Result<Response, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database", "columns", "where"])?;
    let id = channel::channel(api, channel, &query)?;
    let table = channel::segment("table", table)?;
    let columns = columns(&query)?;
    let place = api.reader_place()?;
    let bytes = api.feed().copies().read(&id, copy, &table, columns.as_deref(), query.get("where")).await?;
    Ok(place.bytes(bytes, COPY))
}

fn ttl(query: &Query) -> Result<Option<Duration>, Refusal> {
    let Some(text) = query.get("ttl") else { return Ok(None) };
    let span = Span::parse(text).ok().map(|span| Duration::from_millis(span.ms()));
    let span = span.filter(|span| (Duration::from_secs(1)..=TTL_MAX).contains(span));
    span.map(Some).ok_or_else(|| bad("ttl", text, "a duration from 1s to 10m"))
}

/// A JSON array, because the name of a column may hold anything, also a comma.
fn columns(query: &Query) -> Result<Option<Vec<String>>, Refusal> {
    let Some(text) = query.get("columns") else { return Ok(None) };
    let names = serde_json::from_str::<Vec<String>>(text).ok().filter(|names| !names.is_empty());
    names.map(Some).ok_or_else(|| bad("columns", text, "a JSON array of names, such as [\"id\",\"note\"]"))
}
