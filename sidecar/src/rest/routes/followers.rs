//! `/channels/{channel}/followers` and `…/{follower}`: readers whose position retention respects.

use super::channel::{self, Body, Fields, with};
use crate::feed::{After, Call, ChannelId, FeedError, Given, Kind};
use crate::rest::api::{Api, query};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json, respond};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (mover, dropper) = (api.clone(), api.clone());
    let list = channel::reading(api, "followers", |api, channel, query| async move {
        Ok(json(200, &list(&api, &channel, &query).await?))
    });
    let register = channel::posting(api, "followers", |api, channel, query, body| async move {
        register(&api, &channel, &query, body).await
    });
    let forward = warp::path!("channels" / String / "followers" / String)
        .and(warp::put())
        .and(query())
        .and(body::object())
        .then(move |channel: String, follower: String, query: String, body| {
            let api = mover.clone();
            async move { respond(forward(&api, &channel, &follower, &query, body).await) }
        });
    let drop = warp::path!("channels" / String / "followers" / String).and(warp::delete()).and(query()).then(
        move |channel: String, follower: String, query: String| {
            let api = dropper.clone();
            async move { respond(drop_follower(&api, &channel, &follower, &query).await) }
        },
    );
    list.or(register).unify().or(forward).unify().or(drop).unify().boxed()
}

async fn list(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let source = api.feed().source();
    let found = source.followers(&id).await?;
    if found.is_empty() && source.states(&id.database, Some(&id.channel)).await?.is_empty() {
        return Err(channel::unknown_channel(&id.channel, &id.database));
    }
    Ok(found.into())
}

async fn register(api: &Api, channel: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let mut fields = Fields::new(body?, &["name", "after", "ttl"])?;
    let name = fields.need("name")?;
    let after = fields.after("after")?.unwrap_or(After::Now);
    let call = Call::new("register_follower")
        .text("channel", "text", &id.channel)
        .text("name", "text", &name)
        .text("after", "text", &after.to_string());
    api.feed().source().call(&id.database, with(call, "ttl", "interval", fields.span("ttl")?)).await?;
    show(api, &id, &name).await
}

async fn forward(
    api: &Api,
    channel: &str,
    follower: &str,
    query: &str,
    body: Body,
) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("follower", follower)?;
    let position = Fields::new(body?, &["position"])?.after("position")?.ok_or_else(|| {
        Refusal::bad_request("missing_field", "the body must have position, up to which everything was taken")
    })?;
    let call = Call::new("move_follower")
        .text("channel", "text", &id.channel)
        .text("name", "text", &name)
        .with("position", "text", Given::Text(position.to_string()));
    carry_out(api, &id, &name, call).await?;
    show(api, &id, &name).await
}

async fn drop_follower(api: &Api, channel: &str, follower: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("follower", follower)?;
    let call = Call::new("drop_follower").text("channel", "text", &id.channel).text("name", "text", &name);
    carry_out(api, &id, &name, call).await?;
    Ok(json!({"channel": id.channel, "database": id.database, "name": name, "dropped": true}))
}

/// The database says of channel and follower alike that they do not exist.
async fn carry_out(api: &Api, id: &ChannelId, name: &str, call: Call) -> Result<(), Refusal> {
    let source = api.feed().source();
    match source.call(&id.database, call).await {
        Ok(result) if result == "false" => Err(unknown_follower(id, name).into()),
        Ok(_) => Ok(()),
        Err(FeedError { kind: Kind::UnknownChannel, .. })
            if !source.states(&id.database, Some(&id.channel)).await?.is_empty() =>
        {
            Err(unknown_follower(id, name).into())
        }
        Err(error) => Err(error.into()),
    }
}

async fn show(api: &Api, id: &ChannelId, name: &str) -> Result<Value, Refusal> {
    let found = api.feed().source().followers(id).await?;
    found.into_iter().find(|row| row["name"] == name).ok_or_else(|| unknown_follower(id, name).into())
}

fn unknown_follower(id: &ChannelId, name: &str) -> FeedError {
    let message = format!(
        "channel {} has no follower {name}: it never registered, was dropped, or was not heard of for longer than its \
         ttl. POST /channels/{}/followers registers it",
        id.channel, id.channel
    );
    FeedError::new(Kind::UnknownFollower, message)
}
