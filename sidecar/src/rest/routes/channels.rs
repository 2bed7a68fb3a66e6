//! `/channels` and `/channels/{channel}`: look at channels, create and drop them.

use super::channel::{self, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Map, Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

const FIELDS: &[&str] = &["name", "old_image", "retain_age", "retain_rows", "retain_bytes", "cap_bytes"];

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, creator, shower, dropper) = (api.clone(), api.clone(), api.clone(), api.clone());
    let list = warp::path!("channels").and(read()).and(query()).then(move |query: String| {
        let api = lister.clone();
        async move { respond(list(&api, &query).await) }
    });
    let create = warp::path!("channels").and(warp::post()).and(query()).and(body::object()).then(
        move |query: String, body| {
            let api = creator.clone();
            async move { respond(create(&api, &query, body).await) }
        },
    );
    let show = warp::path!("channels" / String).and(read()).and(query()).then(
        move |channel: String, query: String| {
            let api = shower.clone();
            async move { respond(show(&api, &channel, &query).await) }
        },
    );
    let drop = warp::path!("channels" / String).and(warp::delete()).and(query()).then(
        move |channel: String, query: String| {
            let api = dropper.clone();
            async move { respond(drop_channel(&api, &channel, &query).await) }
        },
    );
    list.or(create).unify().or(show).unify().or(drop).unify().boxed()
}

async fn list(api: &Api, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let mut states = api.feed().source().states(&database, None).await?;
    for state in states.iter_mut().filter_map(Value::as_object_mut) {
        state.insert("database".to_owned(), database.clone().into());
    }
    Ok(states.into())
}

async fn show(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    channel::state(api, &id).await
}

async fn create(api: &Api, query: &str, body: Result<Map<String, Value>, Refusal>) -> Result<Value, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database"])?;
    let database = channel::database(api, &query)?;
    let mut fields = Fields::new(body?, FIELDS)?;
    let name = fields.need("name")?;
    if !channel::is_channel_name(&name) {
        let message = format!(
            "{name:?} cannot be a channel's name: 1 to 63 letters, digits, `_`, `.` and `-`, the first a letter or `_`"
        );
        return Err(Refusal::bad_request("bad_field", message));
    }
    let mut call = Call::new("create_channel").text("name", "text", &name);
    call = with(call, "old_image", "text", fields.text("old_image")?.map(Given::Text));
    call = with(call, "retain_age", "interval", fields.span("retain_age")?);
    for limit in ["retain_rows", "retain_bytes", "cap_bytes"] {
        call = with(call, limit, "int8", fields.number(limit)?);
    }
    api.feed().source().call(&database, call).await?;
    channel::state(api, &channel::channel(api, &name, &query)?).await
}

async fn drop_channel(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    let call = Call::new("drop_channel").text("name", "text", &id.channel);
    api.feed().source().call(&id.database, call).await?;
    Ok(json!({"channel": id.channel, "database": id.database, "dropped": true}))
}
