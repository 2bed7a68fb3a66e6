//! `/subscriptions`, `…/{name}`, `…/{name}/tables` and `…/{name}/tables/{table}/resume`: following other clusters.

use super::channel::{self, Body, Fields, with};
use super::sequences::{self, Basis};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Map, Value, json};
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
];
const CHANGED: &[&str] = &[
    "enabled",
    "remote",
    "tables",
    "filter",
    "policy",
    "ddl",
    "on_purged",
    "forward",
    "jobs",
    "login",
    "secret",
    "ca",
];

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, creator) = (api.clone(), api.clone());
    let list = warp::path!("subscriptions").and(read()).and(query()).then(move |query: String| {
        let api = lister.clone();
        async move { respond(list(&api, &query).await) }
    });
    let create = warp::path!("subscriptions").and(warp::post()).and(query()).and(body::object()).then(
        move |query: String, body| {
            let api = creator.clone();
            async move { respond(create(&api, &query, body).await) }
        },
    );
    list.or(create).unify().or(one(api)).unify().or(tables(api)).unify().boxed()
}

fn one(api: &Api) -> BoxedFilter<(Response,)> {
    let (shower, changer, ender) = (api.clone(), api.clone(), api.clone());
    let show = warp::path!("subscriptions" / String).and(read()).and(query()).then(
        move |name: String, query: String| {
            let api = shower.clone();
            async move { respond(show(&api, &name, &query).await) }
        },
    );
    let change =
        warp::path!("subscriptions" / String).and(warp::patch()).and(query()).and(body::object()).then(
            move |name: String, query: String, body| {
                let api = changer.clone();
                async move { respond(change(&api, &name, &query, body).await) }
            },
        );
    let end = warp::path!("subscriptions" / String).and(warp::delete()).and(query()).then(
        move |name: String, query: String| {
            let api = ender.clone();
            async move { respond(end(&api, &name, &query).await) }
        },
    );
    show.or(change).unify().or(end).unify().boxed()
}

fn tables(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, resumer) = (api.clone(), api.clone());
    let list = warp::path!("subscriptions" / String / "tables").and(read()).and(query()).then(
        move |name: String, query: String| {
            let api = lister.clone();
            async move { respond(list_tables(&api, &name, &query).await) }
        },
    );
    let resume = warp::path!("subscriptions" / String / "tables" / String / "resume")
        .and(warp::post())
        .and(query())
        .and(body::object())
        .then(move |name: String, table: String, query: String, body| {
            let api = resumer.clone();
            async move { respond(resume(&api, &name, &table, &query, body).await) }
        });
    list.or(resume).unify().boxed()
}

async fn list(api: &Api, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    Ok(api.feed().source().subscriptions(&database, None).await?.into())
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
    keep_secret(&body)?;
    let mut fields = Fields::new(body, NEW)?;
    let name = fields.need("name")?;
    let remote = fields.names("remote")?.ok_or_else(|| {
        let message =
            "the body must have remote, an array of addresses of the source's nodes, as http(s)://host:port";
        Refusal::bad_request("missing_field", message)
    })?;
    let mut call = Call::new("subscribe").text("name", "text", &name).with("remote", "text[]", remote);
    call = call.text("channel", "text", &fields.need("channel")?);
    call = with(call, "database", "text", fields.text("remote_database")?.map(Given::Text));
    call = with(call, "tables", "text[]", fields.names("tables")?);
    call = with(call, "filter", "jsonb", fields.object("filter")?);
    for field in ["copy", "start", "policy", "ddl", "on_purged", "login", "secret", "ca"] {
        call = with(call, field, "text", fields.text(field)?.map(Given::Text));
    }
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
    keep_secret(&body)?;
    // What is null is taken away: all tables, all rows, no login.
    for (field, none) in
        [("login", json!("")), ("secret", json!("")), ("ca", json!("")), ("filter", json!({}))]
    {
        if body.get(field) == Some(&Value::Null) {
            body.insert(field.to_owned(), none);
        }
    }
    let all_tables = matches!(body.get("tables"), Some(Value::Null));
    let mut fields = Fields::new(body, CHANGED)?;
    let enabled = fields.flag("enabled")?;
    let mut call = Call::new("alter_subscription").text("name", "text", &name);
    call = with(call, "remote", "text[]", fields.names("remote")?);
    let tables = if all_tables { Some(Given::Texts(Vec::new())) } else { fields.names("tables")? };
    call = with(call, "tables", "text[]", tables);
    call = with(call, "filter", "jsonb", fields.object("filter")?);
    for field in ["policy", "ddl", "on_purged"] {
        call = with(call, field, "text", fields.text(field)?.map(Given::Text));
    }
    for field in ["login", "secret", "ca"] {
        call = with(call, field, "text", fields.any_text(field)?.map(Given::Text));
    }
    call = with(call, "forward", "bool", fields.flag("forward")?);
    call = with(call, "jobs", "int4", fields.number("jobs")?);
    if call.arguments.len() > 1 || enabled.is_none() {
        carry_out(api, &database, call).await?;
    }
    if let Some(enabled) = enabled {
        let call =
            Call::new("enable_subscription").text("name", "text", &name).with("enabled", "bool", enabled);
        carry_out(api, &database, call).await?;
    }
    state(api, &database, &name).await
}

async fn end(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let query = Query::strict(query, &["database", "sequences", "step"])?;
    let database = channel::database(api, &query)?;
    let name = channel::segment("name", name)?;
    let mut ended = json!({"name": name, "database": database, "ended": true});
    if let Some(basis) = query.get("sequences") {
        let step = query.number("step")?.map(|step| Given::Number(i64::try_from(step).unwrap_or(i64::MAX)));
        let basis = Basis::read(Some(basis))?;
        ended["sequences"] = sequences::advance(api, &database, &name, basis, step).await?;
    }
    carry_out(api, &database, Call::new("unsubscribe").text("name", "text", &name)).await?;
    Ok(ended)
}

async fn list_tables(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("name", name)?;
    state(api, &database, &name).await?;
    Ok(api.feed().source().subscription_tables(&database, &name).await?.into())
}

async fn resume(api: &Api, name: &str, table: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let (name, table) = (channel::segment("name", name)?, channel::segment("table", table)?);
    let mut fields = Fields::new(body?, &["copy"])?;
    let call =
        Call::new("resume_table").text("subscription_name", "text", &name).text("table", "text", &table);
    let call = with(call, "copy", "bool", fields.flag("copy")?);
    let state = carry_out(api, &database, call).await?;
    Ok(json!({"name": name, "database": database, "table": table, "state": state}))
}

async fn carry_out(api: &Api, database: &str, call: Call) -> Result<String, Refusal> {
    let done = api.feed().source().call(database, call).await?;
    // Whoever works for subscriptions looks at once.
    api.handle().subscriptions_changed.notify_one();
    Ok(done)
}

pub(super) async fn state(api: &Api, database: &str, name: &str) -> Result<Value, Refusal> {
    let found = api.feed().source().subscriptions(database, Some(name)).await?;
    found.into_iter().next().ok_or_else(|| unknown(database, name))
}

pub(super) fn unknown(database: &str, name: &str) -> Refusal {
    let message = format!(
        "database {database} has no subscription {name}; GET /subscriptions lists those that there are"
    );
    Refusal::new(404, "unknown_subscription", message)
}

/// An error about a field shows its value; not this one.
fn keep_secret(body: &Map<String, Value>) -> Result<(), Refusal> {
    match body.get("secret") {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(_) => Err(Refusal::bad_request("bad_field", "secret must be a text")),
    }
}
