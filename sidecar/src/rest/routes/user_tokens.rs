//! `/users/{user}/tokens`: what programs log in with. A token is shown once; only its hash is kept.

use super::users::{time, user};
use crate::login::token;
use crate::rest::api::{Api, query};
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::users::UserChange;
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (maker, remover) = (api.clone(), api.clone());
    let make = warp::path!("users" / String / "tokens").and(warp::post()).and(query()).then(
        move |user: String, query: String| {
            let api = maker.clone();
            async move { respond(make(&api, &user, &query).await) }
        },
    );
    let remove = warp::path!("users" / String / "tokens" / String).and(warp::delete()).and(query()).then(
        move |user: String, id: String, query: String| {
            let api = remover.clone();
            async move { respond(remove(&api, &user, id, &query).await) }
        },
    );
    make.or(remove).unify().boxed()
}

async fn make(api: &Api, segment: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    Query::strict(query, &[])?;
    let (user, new) = (user(segment)?, token::new());
    let answer = json!({"user": user, "id": new.id, "token": new.text, "created": time(new.token.created)});
    match api.ask(Request::User(UserChange::AddToken { user, id: new.id, token: new.token })).await? {
        Reply::User { .. } => Ok(answer),
        _ => Err(Refusal::unexpected_reply()),
    }
}

async fn remove(api: &Api, segment: &str, id: String, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    Query::strict(query, &[])?;
    let user = user(segment)?;
    let removed = json!({ "user": user, "removed": id });
    match api.ask(Request::User(UserChange::RemoveToken { user, id })).await? {
        Reply::User { .. } => Ok(removed),
        _ => Err(Refusal::unexpected_reply()),
    }
}
