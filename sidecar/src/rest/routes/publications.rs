//! `/publications` and `…/{name}`: channels of this cluster that others are to follow, set up from here.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::time::Instant;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

const NEW: &[&str] = &[
    "name",
    "remote",
    "channel",
    "remote_database",
    "tables",
    "filter",
    "copy",
    "start",
    "policy",
    "ddl",
    "on_purged",
    "forward",
    "jobs",
    "login",
    "secret",
    "ca",
    "own_addresses",
    "own_login",
    "own_secret",
    "own_ca",
];
const CHANGED: &[&str] =
    &["remote", "login", "secret", "ca", "own_addresses", "own_login", "own_secret", "own_ca"];
const TEXTS: [&str; 6] = ["login", "secret", "ca", "own_login", "own_secret", "own_ca"];

/// How long the other cluster is given to end its subscription before that is answered.
const END_WAIT_MAX_S: u64 = 60;
const END_WAIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, creator) = (api.clone(), api.clone());
    let list = warp::path!("publications").and(read()).and(query()).then(move |query: String| {
        let api = lister.clone();
        async move { respond(list(&api, &query).await) }
    });
    let create = warp::path!("publications").and(warp::post()).and(query()).and(body::object()).then(
        move |query: String, body| {
            let api = creator.clone();
            async move { respond(create(&api, &query, body).await) }
        },
    );
    list.or(create).unify().or(one(api)).unify().boxed()
}

fn one(api: &Api) -> BoxedFilter<(Response,)> {
    let (shower, changer, ender) = (api.clone(), api.clone(), api.clone());
    let show = warp::path!("publications" / String).and(read()).and(query()).then(
        move |name: String, query: String| {
            let api = shower.clone();
            async move { respond(show(&api, &name, &query).await) }
        },
    );
    let change =
        warp::path!("publications" / String).and(warp::patch()).and(query()).and(body::object()).then(
            move |name: String, query: String, body| {
                let api = changer.clone();
                async move { respond(change(&api, &name, &query, body).await) }
            },
        );
    let end = warp::path!("publications" / String).and(warp::delete()).and(query()).then(
        move |name: String, query: String| {
            let api = ender.clone();
            async move { respond(end(&api, &name, &query).await) }
        },
    );
    show.or(change).unify().or(end).unify().boxed()
}

async fn list(api: &Api, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    found(api, &database, None).await
}

async fn show(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    state(api, &database, &channel::segment("name", name)?).await
}

async fn create(api: &Api, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let body = body?;
    keep_secrets(&body)?;
    let mut fields = Fields::new(body, NEW)?;
    let name = fields.need("name")?;
    let remote = fields.names("remote")?.ok_or_else(|| {
        let message =
            "the body must have remote, an array of addresses of the other cluster's nodes, as http(s)://host:port";
        Refusal::bad_request("missing_field", message)
    })?;
    let mut call = Call::new("publish").text("name", "text", &name).with("remote", "text[]", remote);
    call = call.text("channel", "text", &fields.need("channel")?);
    call = with(call, "database", "text", fields.text("remote_database")?.map(Given::Text));
    call = with(call, "tables", "text[]", fields.names("tables")?);
    call = with(call, "filter", "jsonb", fields.object("filter")?);
    for field in ["copy", "start", "policy", "ddl", "on_purged"].into_iter().chain(TEXTS) {
        call = with(call, field, "text", fields.text(field)?.map(Given::Text));
    }
    call = with(call, "own_addresses", "text[]", fields.names("own_addresses")?);
    call = with(call, "forward", "bool", fields.flag("forward")?);
    call = with(call, "jobs", "int4", fields.number("jobs")?);
    carry_out(api, &database, call).await?;
    state(api, &database, &name).await
}

async fn change(api: &Api, name: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("name", name)?;
    let mut body = body?;
    keep_secrets(&body)?;
    // What is null is taken away.
    for field in TEXTS {
        if body.get(field) == Some(&Value::Null) {
            body.insert(field.to_owned(), json!(""));
        }
    }
    let known_addresses = matches!(body.get("own_addresses"), Some(Value::Null));
    let mut fields = Fields::new(body, CHANGED)?;
    state(api, &database, &name).await?;
    let mut call = Call::new("alter_publication").text("name", "text", &name);
    call = with(call, "remote", "text[]", fields.names("remote")?);
    for field in TEXTS {
        call = with(call, field, "text", fields.any_text(field)?.map(Given::Text));
    }
    let own = fields.names("own_addresses")?;
    let own = if known_addresses { Some(Given::Texts(Vec::new())) } else { own };
    call = with(call, "own_addresses", "text[]", own);
    carry_out(api, &database, call).await?;
    state(api, &database, &name).await
}

async fn end(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database", "force", "wait"])?;
    let database = channel::database(api, &query)?;
    let name = channel::segment("name", name)?;
    let force = query.flag("force")?.unwrap_or(false);
    let wait = match query.get("wait") {
        None => END_WAIT,
        Some(_) => channel::wait(&query, END_WAIT_MAX_S)?,
    };
    state(api, &database, &name).await?;
    let call = Call::new("unpublish").text("name", "text", &name);
    carry_out(api, &database, call.with("force", "bool", Given::Text(force.to_string()))).await?;
    let answer = |ended: bool, code: Value, detail: Value| json!({"name": name, "database": database, "ended": ended, "code": code, "detail": detail});
    if force {
        let detail = format!(
            "the other cluster was not told: if it has subscription {name}, it goes on to follow this cluster, or to try. End it there"
        );
        return Ok(answer(true, json!("not_told"), json!(detail)));
    }
    // It says why not as soon as it was tried.
    let deadline = Instant::now() + wait;
    loop {
        let left = found(api, &database, Some(&name)).await?;
        let Some(left) = left.get(0) else { return Ok(answer(true, Value::Null, Value::Null)) };
        if left["state"] != "removing" || !left["code"].is_null() || Instant::now() >= deadline {
            return Ok(answer(false, left["code"].clone(), left["detail"].clone()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn carry_out(api: &Api, database: &str, call: Call) -> Result<String, Refusal> {
    let done = api.feed().source().call(database, call).await?;
    // Whoever works for publications looks at once.
    api.handle().subscriptions_changed.notify_one();
    Ok(done)
}

/// All of a database, or the one of this name.
async fn found(api: &Api, database: &str, name: Option<&str>) -> Result<Value, Refusal> {
    let mut call = Call::new("publications_state");
    if let Some(name) = name {
        call = call.text("name", "text", name);
    }
    Ok(api.feed().source().ask(database, call).await?)
}

async fn state(api: &Api, database: &str, name: &str) -> Result<Value, Refusal> {
    let mut found = found(api, database, Some(name)).await?;
    match found.get_mut(0) {
        Some(one) => Ok(one.take()),
        None => {
            let message = format!(
                "database {database} has no publication {name}; GET /publications lists those that there are"
            );
            Err(Refusal::new(404, "unknown_publication", message))
        }
    }
}

/// An error about a field shows its value; not these.
fn keep_secrets(body: &Map<String, Value>) -> Result<(), Refusal> {
    for field in ["secret", "own_secret"] {
        if !matches!(body.get(field), None | Some(Value::Null | Value::String(_))) {
            return Err(Refusal::bad_request("bad_field", format!("{field} must be a text")));
        }
    }
    Ok(())
}
