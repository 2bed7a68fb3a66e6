//! One request to all nodes of the cluster, or to some: with the login of whoever asks, so each node decides as if it had
//! been asked directly. Only routes of this interface can be asked for; nothing here reaches another place.

use super::api::Api;
use super::forward::{Failure, Passed};
use super::refusal::Refusal;
use super::table::{Route, rule};
use crate::registry::{correlation, wire};
use bytes::Bytes;
use futures_util::future::join_all;
use pgquorum_agent::member::Member;
use pgquorum_agent::settings::Span;
use pgquorum_agent::types::NodeId;
use pgquorum_agent::view::View;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use warp::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

const FIELDS: [&str; 6] = ["method", "path", "headers", "body", "timeout", "targets"];

/// What a caller may set beside method, path and body.
const HEADERS: [&str; 2] = ["content-type", "if-none-match"];

const PATH_BYTES_MAX: usize = 2048;

/// How long nodes may take to answer, in milliseconds.
const TIMEOUT_MS: u64 = 10_000;
const TIMEOUT_MS_MAX: u64 = 60_000;

/// The longest answer of a node that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Routes that are for one node at a time: their answers do not end, or are as long as a table; whoever tries passwords there is
/// counted by his address, which is not that of a node; or they are this one.
const NOT_FOR_ALL: [&str; 11] = [
    "/cluster/request",
    "/cluster/token",
    "/oauth/token",
    "/fact-finder/oauth/token",
    "/_open/auth",
    "/_db/{database}/_open/auth",
    "/_api/replication/dump",
    "/_db/{database}/_api/replication/dump",
    "/channels/{channel}/stream",
    "/channels/{channel}/dump",
    "/channels/{channel}/copies/{copy}/{table}",
];

/// What all are to be asked.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
    targets: BTreeSet<NodeId>,
}

impl Call {
    /// Reads the body of such a request.
    ///
    /// # Errors
    /// It is not right; says what is wrong.
    pub(super) fn read(fields: &Map<String, Value>, view: &View) -> Result<Call, Refusal> {
        if let Some(name) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
            let message = format!("unknown field {name:?}; there are {}", FIELDS.join(", "));
            return Err(Refusal::bad_request("unknown_field", message));
        }
        let method = match fields.get("method") {
            None => Method::GET,
            Some(method) => {
                let text = method.as_str().ok_or_else(|| wrong("method must be a text, as in \"GET\""))?;
                Method::from_bytes(text.to_ascii_uppercase().as_bytes())
                    .map_err(|_| wrong(format!("{text:?} is not a method")))?
            }
        };
        let path = fields.get("path").and_then(Value::as_str).ok_or_else(|| wrong("path is missing"))?;
        check_path(&method, path)?;
        let mut headers = headers(fields.get("headers"))?;
        let (body, kind) = match fields.get("body") {
            None | Some(Value::Null) => (Bytes::new(), None),
            Some(Value::String(text)) => (text.clone().into(), Some("text/plain; charset=utf-8")),
            Some(value) => (value.to_string().into(), Some("application/json")),
        };
        if let Some(kind) = kind {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
        }
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let timeout = timeout(fields.get("timeout"))?;
        let targets = targets(fields.get("targets"), view)?;
        Ok(Call { method, path: path.to_owned(), headers, body, timeout, targets })
    }
}

/// Only what is a route here, in plain spelling: nothing that anybody could take for an address, or for another path.
fn check_path(method: &Method, path: &str) -> Result<(), Refusal> {
    let bad = |why: &str| {
        let message = format!(
            "path is {path:?}: {why}. It must be a path of this interface, as in /map; GET /openapi.yaml lists all"
        );
        Err(Refusal::bad_request("bad_path", message))
    };
    if path.len() > PATH_BYTES_MAX {
        return Err(wrong(format!("path is longer than {PATH_BYTES_MAX} bytes")));
    }
    if !path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\' && b != b'#') {
        return bad("it has characters that must be percent-encoded");
    }
    let plain = path.split('?').next().unwrap_or_default();
    if !plain.starts_with('/') || plain.contains("//") {
        return bad("it does not begin with one slash, or has two of them side by side");
    }
    let dots =
        |segment: &str| matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..");
    if plain.split('/').any(dots) {
        return bad("it has . or .. in it");
    }
    if path.parse::<Uri>().ok().is_none_or(|uri| uri.scheme().is_some() || uri.host().is_some()) {
        return bad("it is not a path");
    }
    let known = Route::find(plain);
    if known.is_some_and(|route| NOT_FOR_ALL.contains(&route.path)) {
        return bad("it is for one node at a time");
    }
    if !rule(method, plain).served {
        return bad(&format!("there is no route {method} {plain}"));
    }
    Ok(())
}

fn headers(given: Option<&Value>) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    let fields = match given {
        None | Some(Value::Null) => return Ok(headers),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(wrong("headers must be an object, as in {\"if-none-match\": \"*\"}")),
    };
    for (name, value) in fields {
        let known = HEADERS.iter().find(|known| known.eq_ignore_ascii_case(name));
        // It is passed on from the request itself.
        if name.eq_ignore_ascii_case(correlation::HEADER) {
            continue;
        }
        let Some(known) = known else {
            let message = format!(
                "the header {name:?} is not passed on; {} are. The login is that of this request",
                HEADERS.join(", ")
            );
            return Err(Refusal::bad_request("header_not_allowed", message));
        };
        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
        let known = HeaderName::from_static(known);
        headers.insert(known, value.ok_or_else(|| wrong(format!("the header {name} has no proper value")))?);
    }
    Ok(headers)
}

fn timeout(given: Option<&Value>) -> Result<Duration, Refusal> {
    let ms = match given {
        None | Some(Value::Null) => Some(TIMEOUT_MS),
        Some(Value::String(text)) => Span::parse(text).ok().map(Span::ms),
        Some(value) => value.as_u64(),
    };
    let ms = ms.filter(|ms| (1..=TIMEOUT_MS_MAX).contains(ms));
    ms.map(Duration::from_millis)
        .ok_or_else(|| wrong("timeout must be a time up to 1m, as in \"5s\", or a number of milliseconds"))
}

fn targets(given: Option<&Value>, view: &View) -> Result<BTreeSet<NodeId>, Refusal> {
    let members = &view.cluster.members;
    let targets = match given {
        None | Some(Value::Null) => return Ok(members.keys().copied().collect()),
        Some(Value::Array(targets)) if !targets.is_empty() => targets,
        Some(_) => return Err(wrong("targets must be an array of nodes, as in [1, \"node-2\"]")),
    };
    let node = |target: &Value| {
        let id = match target {
            Value::String(name) => name.strip_prefix("node-").and_then(|id| id.parse().ok()),
            other => other.as_u64(),
        };
        id.filter(|id| members.contains_key(id)).ok_or_else(|| {
            let known = members.keys().map(|id| format!("{id}")).collect::<Vec<_>>().join(", ");
            let message = format!("there is no node {target} in this cluster; its nodes are {known}");
            Refusal::bad_request("unknown_target", message)
        })
    };
    targets.iter().map(node).collect()
}

fn wrong(message: impl Into<String>) -> Refusal {
    Refusal::bad_request("bad_field", message)
}

/// Asks all at the same time. A node that does not answer is among the failures, with everything that refused.
pub(super) async fn ask_all(
    api: &Api,
    view: &View,
    call: Call,
    login: Option<HeaderValue>,
    correlation: &str,
) -> Value {
    let mut headers = call.headers.clone();
    if let Some(login) = login {
        headers.insert(header::AUTHORIZATION, login);
    }
    if let Ok(value) = HeaderValue::from_str(correlation) {
        headers.insert(correlation::HEADER, value);
    }
    let passed = Passed { method: call.method, path: call.path, headers, body: call.body };
    let targets = view.cluster.members.values().filter(|member| call.targets.contains(&member.id));
    let asked = targets.map(|member| ask(api, view.id, member, passed.clone(), call.timeout));
    let (mut data, mut results, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for (member, answer) in join_all(asked).await {
        let server = wire::own_node(member, api.scheme());
        match answer {
            Ok(result) => {
                let own = result.get("data").unwrap_or(&result);
                match own {
                    Value::Array(several) => data.extend(several.iter().cloned()),
                    Value::Null => {}
                    one => data.push(one.clone()),
                }
                results.push(json!({"result": result, "server": server}));
            }
            Err(error) => failures.push(json!({"error": error, "server": server})),
        }
    }
    json!({"data": data, "results": results, "failures": failures})
}

async fn ask<'a>(
    api: &Api,
    me: NodeId,
    member: &'a Member,
    passed: Passed,
    timeout: Duration,
) -> (&'a Member, Result<Value, Value>) {
    let asked = api.forward().pass(member.api_address(), me, passed, ANSWER_BYTES_MAX);
    let answer = match tokio::time::timeout(timeout, asked).await {
        Ok(Ok((status, body))) => read(status, &body),
        Ok(Err(error)) => Err(unanswered(503, "unreachable", &unreachable(&error))),
        Err(_) => {
            let message = format!("it did not answer within {} ms", timeout.as_millis());
            Err(unanswered(504, "timed_out", &message))
        }
    };
    (member, answer)
}

fn unreachable(error: &Failure) -> String {
    format!("it could not be asked, or its answer is longer than {ANSWER_BYTES_MAX} bytes: {error}")
}

/// The body of an answer, or the refusal that it is.
fn read(status: u16, body: &[u8]) -> Result<Value, Value> {
    let value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(_) if body.is_empty() => Value::Null,
        Err(_) => Value::String(String::from_utf8_lossy(body).into_owned()),
    };
    if status < 400 {
        return Ok(value);
    }
    let message = value.get("message").or(value.as_str().map(|_| &value)).cloned().unwrap_or_default();
    Err(json!({"statusCode": status, "title": title(status), "message": message, "info": value}))
}

/// Tells a node that says nothing from one that says that it is not available: `info.code`.
fn unanswered(status: u16, code: &str, message: &str) -> Value {
    json!({"statusCode": status, "title": title(status), "message": message, "info": {"code": code}})
}

fn title(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

#[cfg(test)]
mod tests;
