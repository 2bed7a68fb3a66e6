//! `/cluster/…`: how this node stands in the registry, tokens for servers that register, and requests to all nodes.

use super::it_resources::{Asked, asked};
use crate::login::Caller;
use crate::login::grant::{AUDIENCE, Bad, Wish};
use crate::registry::wire::{OWN_TYPE, time};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::fan_out::{self, Call};
use crate::rest::guard::why;
use crate::rest::interface::Interface;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json};
use pgquorum_agent::users::{UserRole, Users};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::header;
use warp::reply::Response;

const TEXT_BYTES_MAX: usize = 8192;

type Body = Result<Map<String, Value>, Refusal>;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (stater, granter, caller) = (api.clone(), api.clone(), api.clone());
    let status = warp::path!("cluster" / "status")
        .and(read())
        .and(query())
        .and(asked())
        .map(move |query: String, asked: Asked| asked.answered(status(&stater, &query)));
    let token = warp::path!("cluster" / "token").and(warp::post()).and(asked()).and(body::object()).then(
        move |asked: Asked, body| {
            let api = granter.clone();
            async move { asked.answered(token(&api, &asked, body).await) }
        },
    );
    let request = warp::path!("cluster" / "request")
        .and(warp::post())
        .and(query())
        .and(asked())
        .and(body::object())
        .then(move |query: String, asked: Asked, body| {
            let api = caller.clone();
            async move { asked.answered(request(&api, &query, &asked, body).await) }
        });
    status.or(token).unify().or(request).unify().boxed()
}

/// Under the names that clients of the registry have for it in their environment.
fn status(api: &Api, query: &str) -> Result<Response, Refusal> {
    let query = Query::strict(query, &["type"])?;
    let standing = match api.member_view() {
        Err(refusal) => format!("orphan: {}", refusal.message()),
        Ok(view) if view.leader.is_none() => format!("orphan: {}", Refusal::no_leader().message()),
        Ok(_) => "registered".to_owned(),
    };
    let view = api.view();
    let (registry, nodes) = (&view.cluster.registry, view.cluster.members.len());
    let (servers, updated) = match query.get("type") {
        None => (registry.len() + nodes, registry.updated()),
        Some(OWN_TYPE) => (nodes, 0),
        Some(kind) => {
            registry.of_type(kind).map_or((0, 0), |service| (service.servers.len(), service.updated))
        }
    };
    let updated = (updated > 0).then(|| time(updated));
    Ok(json(
        200,
        &json!({
            "REGISTRATION_STATUS": standing,
            "CLUSTER_STATUS_SERVERS": servers,
            "CLUSTER_STATUS_UPDATED_AT": updated,
            "CLUSTER_STATUS_LEASE_TIME": view.cluster.settings.registry_lease.ms(),
        }),
    ))
}

async fn token(api: &Api, asked: &Asked, body: Body) -> Result<Response, Refusal> {
    let (view, body) = (api.running_view()?, body?);
    let users = &view.cluster.users;
    let grants = api.logins().grants().ok_or_else(|| {
        Refusal::new(503, "no_tokens", "this node has no secret of a cluster to sign tokens with")
    })?;
    let host = asked.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let issuer = format!("{}://{host}/cluster/token", api.scheme());
    match text(&body, "grant_type")?.ok_or_else(|| missing("grant_type"))? {
        "client_credentials" => {
            let id = text(&body, "client_id")?.ok_or_else(|| missing("client_id"))?;
            let secret = text(&body, "client_secret")?.ok_or_else(|| missing("client_secret"))?;
            let audience = text(&body, "audience")?.unwrap_or(AUDIENCE);
            let cluster = match text(&body, "type")? {
                None => false,
                Some("cluster") => true,
                Some(_) => return Err(Refusal::bad_request("bad_field", "type can only be cluster")),
            };
            let from = asked.known.as_ref().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |known| known.from);
            let caller = match api.logins().client(users, id, secret, from).await {
                Ok(caller) => caller,
                Err(denied) => return Ok(Interface::Registry.refuse(&why(denied, true), false)),
            };
            let Caller::User { name, proof, .. } = &caller else { return Err(Refusal::unexpected_reply()) };
            may_register(&api.view().cluster.users, name)?;
            let wish = Wish { user: name, proof, issuer: &issuer, audience, cluster };
            Ok(json(200, &json!({"data": grants.issue(&wish)})))
        }
        "refresh_token" => {
            let token = text(&body, "refresh_token")?.ok_or_else(|| missing("refresh_token"))?;
            // Clients log in anew when this is 400, and only then.
            let (name, pair) = grants.refresh(token, users, &issuer).map_err(|bad| {
                Refusal::bad_request(
                    "bad_refresh_token",
                    match bad {
                        Bad::Outdated => {
                            "the refresh token has run out, or its user was changed since; log in again"
                        }
                        Bad::Wrong => "this is no refresh token of this cluster; log in again",
                    },
                )
            })?;
            may_register(users, &name)?;
            Ok(json(200, &json!({ "data": pair })))
        }
        _ => Err(Refusal::bad_request("bad_field", "grant_type must be client_credentials or refresh_token")),
    }
}

fn may_register(users: &Users, name: &str) -> Result<(), Refusal> {
    let may = |role: &UserRole| role.is_mighty() || *role == UserRole::Cluster;
    if users.get(name).is_some_and(|user| user.roles.iter().any(may)) {
        return Ok(());
    }
    let message =
        format!("user {name} has not the role cluster; an administrator gives it with `pgquorum user set`");
    Err(Refusal::new(403, "forbidden", message))
}

/// What it says of a field that is wrong never repeats its value: it may be a secret.
fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= TEXT_BYTES_MAX => Ok(Some(text)),
        Some(_) => {
            let message = format!("{name} must be a text of at most {TEXT_BYTES_MAX} bytes");
            Err(Refusal::bad_request("bad_field", message))
        }
    }
}

fn missing(field: &str) -> Refusal {
    Refusal::bad_request("missing_field", format!("the body must have {field}"))
}

async fn request(api: &Api, query: &str, asked: &Asked, body: Body) -> Result<Response, Refusal> {
    let view = api.member_view()?;
    Query::strict(query, &[])?;
    let call = Call::read(&body?, &view)?;
    let place = api.fan_out_place()?;
    let login = asked.headers.get(header::AUTHORIZATION).cloned();
    let answer = fan_out::ask_all(api, &view, call, login, &asked.correlation).await;
    drop(place);
    Ok(json(200, &answer))
}
