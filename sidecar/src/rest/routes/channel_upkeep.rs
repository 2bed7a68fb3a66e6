//! `POST /channels/{channel}/prune`, `…/purge`, `…/flush`, `…/imports` and `…/cut`: begin a new version of a channel, drop old
//! changes, have caches dropped, count an import, see its end as it is at this moment.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (pruner, flusher, cutter) = (api.clone(), api.clone(), api.clone());
    let prune = warp::path!("channels" / String / "prune").and(warp::post()).and(query()).then(
        move |channel: String, query: String| {
            let api = pruner.clone();
            async move { respond(prune(&api, &channel, &query).await) }
        },
    );
    let purge = channel::posting(api, "purge", |api, channel, query, body| async move {
        purge(&api, &channel, &query, body).await
    });
    let flush = warp::path!("channels" / String / "flush").and(warp::post()).and(query()).then(
        move |channel: String, query: String| {
            let api = flusher.clone();
            async move { respond(flush(&api, &channel, &query).await) }
        },
    );
    let imports = channel::posting(api, "imports", |api, channel, query, body| async move {
        count(&api, &channel, &query, body).await
    });
    let cut = warp::path!("channels" / String / "cut").and(warp::post()).and(query()).then(
        move |channel: String, query: String| {
            let api = cutter.clone();
            async move { respond(cut(&api, &channel, &query).await) }
        },
    );
    prune.or(purge).unify().or(flush).unify().or(imports).unify().or(cut).unify().boxed()
}

async fn prune(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let call = Call::new("prune").text("channel", "text", &id.channel);
    api.feed().source().call(&id.database, call).await?;
    channel::state(api, &id).await
}

async fn flush(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let call = Call::new("flush_caches").text("channel", "text", &id.channel);
    let flushes = api.feed().source().call(&id.database, call).await?;
    let flushes = flushes.parse::<u64>().ok();
    Ok(json!({"channel": id.channel, "database": id.database, "cache_flushes": flushes}))
}

/// Of a channel that is published or followed here.
async fn count(api: &Api, channel: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let kind = Fields::new(body?, &["kind"])?.need("kind")?;
    let call = Call::new("count_import").text("channel", "text", &id.channel).text("kind", "text", &kind);
    let count = api.feed().source().call(&id.database, call).await?;
    let count = count.parse::<u64>().ok();
    Ok(json!({"channel": id.channel, "database": id.database, "kind": kind, "count": count}))
}

/// What was committed before is before the end that is shown.
async fn cut(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    api.feed().source().call(&id.database, Call::new("cut").text("channel", "text", &id.channel)).await?;
    channel::state(api, &id).await
}

async fn purge(api: &Api, channel: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let mut fields = Fields::new(body?, &["keep", "before"])?;
    let (keep, before) = (fields.number("keep")?, fields.after("before")?);
    if keep.is_some() == before.is_some() {
        let message = "say what goes: {\"keep\": N} keeps the newest N changes, {\"before\": POSITION} those from there on";
        return Err(Refusal::bad_request("bad_field", message));
    }
    let mut call = Call::new("purge").text("channel", "text", &id.channel);
    call = with(call, "keep", "int8", keep);
    call = with(call, "before", "text", before.map(|after| Given::Text(after.to_string())));
    api.feed().source().call(&id.database, call).await?;
    channel::state(api, &id).await
}
