//! `GET`, `PATCH` and `POST /db-config`: PostgreSQL parameters that all nodes have in common.

use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::types::NodeId;
use pgquorum_agent::view::View;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// The longest value of a parameter.
const VALUE_BYTES_MAX: usize = 8192;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct DbConfig {
    parameters: BTreeMap<String, String>,
    /// Which nodes must be restarted for which parameters.
    restart_required: BTreeMap<NodeId, Vec<String>>,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (getter, changer) = (api.clone(), api.clone());
    let get = warp::path!("db-config").and(read()).map(move || respond(get(&getter)));
    let change = warp::path!("db-config")
        .and(warp::patch().or(warp::post()).unify())
        .and(query())
        .and(body::object())
        .then(move |query, body| {
            let api = changer.clone();
            async move { respond(change(&api, query, body).await) }
        });
    get.or(change).unify().boxed()
}

fn get(api: &Api) -> Result<DbConfig, Refusal> {
    let view = api.member_view()?;
    Ok(DbConfig { parameters: view.cluster.db_config.clone(), restart_required: pending_restarts(&view) })
}

fn pending_restarts(view: &View) -> BTreeMap<NodeId, Vec<String>> {
    let mut pending: BTreeMap<NodeId, Vec<String>> =
        view.nodes.iter().map(|(id, status)| (*id, status.pending_restart.clone())).collect();
    pending.insert(view.id, view.postgres.pending_restart.clone());
    pending.retain(|id, names| !names.is_empty() && view.cluster.members.contains_key(id));
    pending
}

async fn change(
    api: &Api,
    query: String,
    body: Result<Map<String, Value>, Refusal>,
) -> Result<DbConfig, Refusal> {
    let view = api.writable_view()?;
    Query::strict(&query, &[])?;
    let set = body?.into_iter().map(parameter).collect::<Result<_, _>>()?;
    match api.ask(Request::SetDbConfig { set }).await? {
        Reply::DbConfig { parameters, restart_required } => {
            let mut pending = pending_restarts(&view);
            if !restart_required.is_empty() {
                pending.insert(view.id, restart_required);
            }
            Ok(DbConfig { parameters, restart_required: pending })
        }
        _ => Err(Refusal::unexpected_reply()),
    }
}

/// A parameter as PostgreSQL's configuration file takes it; `null` takes it out.
fn parameter((name, value): (String, Value)) -> Result<(String, Option<String>), Refusal> {
    if !is_parameter_name(&name) {
        let message =
            format!("{name:?} is no name of a parameter: small letters, digits, _ and . are allowed");
        return Err(Refusal::bad_request("bad_parameter_name", message));
    }
    let value = match value {
        Value::Null => None,
        Value::Bool(on) => Some(if on { "on" } else { "off" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text),
        Value::Array(_) | Value::Object(_) => {
            let message = format!("{name}: expected a string, a number, true, false or null");
            return Err(Refusal::bad_request("bad_parameter_value", message));
        }
    };
    if value.as_ref().is_some_and(|text| text.len() > VALUE_BYTES_MAX || text.contains(char::is_control)) {
        let message =
            format!("{name}: the value is longer than {VALUE_BYTES_MAX} bytes or has control characters");
        return Err(Refusal::bad_request("bad_parameter_value", message));
    }
    Ok((name, value))
}

/// `^[a-z_][a-z0-9_.]*$`
fn is_parameter_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
}
