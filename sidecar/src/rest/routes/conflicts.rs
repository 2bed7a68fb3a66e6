//! `/subscriptions/{name}/conflicts`, `…/rejected`, `…/rejected/{change}` and `…/tables/{table}`: what changes met here, those that were
//! left out, and what is to be done about the next ones.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// How many rejected changes are shown at a time, and at most.
const SHOWN: u64 = 100;
const SHOWN_MAX: u64 = 1000;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (counter, lister, policy) = (api.clone(), api.clone(), api.clone());
    let conflicts = warp::path!("subscriptions" / String / "conflicts").and(read()).and(query()).then(
        move |name: String, query: String| {
            let api = counter.clone();
            async move { respond(conflicts(&api, &name, &query).await) }
        },
    );
    let rejected = warp::path!("subscriptions" / String / "rejected").and(read()).and(query()).then(
        move |name: String, query: String| {
            let api = lister.clone();
            async move { respond(list(&api, &name, &query).await) }
        },
    );
    let table = warp::path!("subscriptions" / String / "tables" / String)
        .and(warp::patch())
        .and(query())
        .and(body::object())
        .then(move |name: String, table: String, query: String, body| {
            let api = policy.clone();
            async move { respond(set_policy(&api, &name, &table, &query, body).await) }
        });
    conflicts.or(rejected).unify().or(table).unify().or(one(api)).unify().boxed()
}

fn one(api: &Api) -> BoxedFilter<(Response,)> {
    let (retrier, dropper) = (api.clone(), api.clone());
    let retry = warp::path!("subscriptions" / String / "rejected" / String / "retry")
        .and(warp::post())
        .and(query())
        .then(move |name: String, change: String, query: String| {
            let api = retrier.clone();
            async move { respond(retry(&api, &name, &change, &query).await) }
        });
    let drop = warp::path!("subscriptions" / String / "rejected" / String)
        .and(warp::delete())
        .and(query())
        .then(move |name: String, change: String, query: String| {
            let api = dropper.clone();
            async move { respond(forget(&api, &name, &change, &query).await) }
        });
    retry.or(drop).unify().boxed()
}

async fn conflicts(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("name", name)?;
    super::subscriptions::state(api, &database, &name).await?;
    Ok(api.feed().source().conflicts(&database, &name).await?.into())
}

async fn list(api: &Api, name: &str, query: &str) -> Result<Value, Refusal> {
    api.data_view()?;
    let query = Query::strict(query, &["database", "after", "limit"])?;
    let database = channel::database(api, &query)?;
    let name = channel::segment("name", name)?;
    let limit = query.number("limit")?.unwrap_or(SHOWN);
    if !(1..=SHOWN_MAX).contains(&limit) {
        return Err(bad("limit", &limit.to_string(), &format!("1 to {SHOWN_MAX}")));
    }
    let after = query.number("after")?.unwrap_or_default();
    super::subscriptions::state(api, &database, &name).await?;
    Ok(api.feed().source().rejected(&database, &name, after, limit).await?.into())
}

async fn retry(api: &Api, name: &str, change: &str, query: &str) -> Result<Value, Refusal> {
    let (name, database, change) = named(api, name, change, query).await?;
    let call = Call::new("retry_rejected").with("id", "int8", Given::Number(change));
    let outcome = api.feed().source().call(&database, call).await?;
    Ok(json!({"name": name, "database": database, "id": change, "outcome": outcome}))
}

async fn forget(api: &Api, name: &str, change: &str, query: &str) -> Result<Value, Refusal> {
    let (name, database, change) = named(api, name, change, query).await?;
    let call = Call::new("drop_rejected").with("id", "int8", Given::Number(change));
    api.feed().source().call(&database, call).await?;
    Ok(json!({"name": name, "database": database, "id": change, "dropped": true}))
}

/// A rejected change of this very subscription, on the leader.
async fn named(api: &Api, name: &str, change: &str, query: &str) -> Result<(String, String, i64), Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("name", name)?;
    let id = change.parse::<i64>().ok().filter(|id| *id > 0);
    let id = id.ok_or_else(|| bad("change", change, "the number of a rejected change"))?;
    super::subscriptions::state(api, &database, &name).await?;
    let found = api.feed().source().rejected(&database, &name, id.unsigned_abs() - 1, 1).await?;
    if found.first().is_some_and(|row| row["id"] == id) {
        return Ok((name, database, id));
    }
    let message = format!(
        "subscription {name} has no rejected change {id}; GET /subscriptions/{name}/rejected lists those that there are"
    );
    Err(Refusal::new(404, "unknown_change", message))
}

async fn set_policy(api: &Api, name: &str, table: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let (name, table) = (channel::segment("name", name)?, channel::segment("table", table)?);
    let body = body?;
    if !body.contains_key("policy") {
        let message = "the body must have policy: one, or null for that of the subscription";
        return Err(Refusal::bad_request("missing_field", message));
    }
    let policy = Fields::new(body, &["policy"])?.text("policy")?;
    let call =
        Call::new("set_table_policy").text("subscription_name", "text", &name).text("table", "text", &table);
    // NULL where none is given: the function has no default.
    let call = match &policy {
        Some(policy) => call.text("policy", "text", policy),
        None => with(call, "policy", "text", Some(Given::Nothing)),
    };
    api.feed().source().call(&database, call).await?;
    Ok(json!({"name": name, "database": database, "table": table, "policy": policy}))
}
