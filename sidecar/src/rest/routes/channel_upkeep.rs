//! `POST /channels/{channel}/prune` and `…/purge`: begin a new version of a channel, drop old changes.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use serde_json::Value;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let pruner = api.clone();
    let prune = warp::path!("channels" / String / "prune").and(warp::post()).and(query()).then(
        move |channel: String, query: String| {
            let api = pruner.clone();
            async move { respond(prune(&api, &channel, &query).await) }
        },
    );
    let purge = channel::posting(api, "purge", |api, channel, query, body| async move {
        purge(&api, &channel, &query, body).await
    });
    prune.or(purge).unify().boxed()
}

async fn prune(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let call = Call::new("prune").text("channel", "text", &id.channel);
    api.feed().source().call(&id.database, call).await?;
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
