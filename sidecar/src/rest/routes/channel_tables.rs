//! `/channels/{channel}/tables` and `/channels/{channel}/tables/{table}`: which tables a channel follows.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json, respond};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

const FIELDS: &[&str] = &["table", "columns", "where", "old_image"];

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let untracker = api.clone();
    let list = channel::reading(api, "tables", |api, channel, query| async move {
        Ok(json(200, &list(&api, &channel, &query).await?))
    });
    let track = channel::posting(api, "tables", |api, channel, query, body| async move {
        track(&api, &channel, &query, body).await
    });
    let untrack = warp::path!("channels" / String / "tables" / String).and(warp::delete()).and(query()).then(
        move |channel: String, table: String, query: String| {
            let api = untracker.clone();
            async move { respond(untrack(&api, &channel, &table, &query).await) }
        },
    );
    list.or(track).unify().or(untrack).unify().boxed()
}

async fn list(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let source = api.feed().source();
    if source.states(&id.database, Some(&id.channel)).await?.is_empty() {
        return Err(channel::unknown_channel(&id.channel, &id.database));
    }
    Ok(source.tables(&id).await?.into())
}

async fn track(api: &Api, channel: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let mut fields = Fields::new(body?, FIELDS)?;
    let mut call = Call::new("track").text("relation", "regclass", &fields.need("table")?).text(
        "channel",
        "text",
        &id.channel,
    );
    call = with(call, "columns", "text[]", fields.names("columns")?);
    call = with(call, "where", "text", fields.text("where")?.map(Given::Text));
    call = with(call, "old_image", "text", fields.text("old_image")?.map(Given::Text));
    api.feed().source().call(&id.database, call).await?;
    channel::state(api, &id).await
}

async fn untrack(api: &Api, channel: &str, table: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let table = channel::segment("table", table)?;
    let source = api.feed().source();
    if source.states(&id.database, Some(&id.channel)).await?.is_empty() {
        return Err(channel::unknown_channel(&id.channel, &id.database));
    }
    let tracked = source.tables(&id).await?;
    let Some(found) = tracked.iter().find(|row| is_named(row, &table)) else {
        let message = format!(
            "channel {} does not track {table}; GET /channels/{}/tables lists what it does, name them as schema.table",
            id.channel, id.channel
        );
        return Err(Refusal::new(404, "unknown_table", message));
    };
    let relation = format!("{}.{}", quoted(found, "schema"), quoted(found, "table"));
    source.call(&id.database, Call::new("untrack").text("relation", "regclass", &relation)).await?;
    Ok(json!({"channel": id.channel, "database": id.database, "table": table, "tracked": false}))
}

/// Whether a row of `quorum.tracked_tables` is about the table of this name, with or without its schema.
fn is_named(row: &Value, name: &str) -> bool {
    let (schema, table) =
        (row["schema"].as_str().unwrap_or_default(), row["table"].as_str().unwrap_or_default());
    table == name || name.strip_prefix(schema).and_then(|rest| rest.strip_prefix('.')) == Some(table)
}

fn quoted(row: &Value, name: &str) -> String {
    format!("\"{}\"", row[name].as_str().unwrap_or_default().replace('"', "\"\""))
}
