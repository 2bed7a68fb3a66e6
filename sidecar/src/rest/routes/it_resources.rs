//! `/itResources…`: servers register, renew, look who else is there, and say that one is gone. Any node may be asked; what
//! only the leader can do is passed on to it.

use crate::clock;
use crate::registry::wire::{self, OWN_TYPE, Posted};
use crate::registry::{correlation, unix_ms};
use crate::rest::api::{Api, leads, query, read};
use crate::rest::body;
use crate::rest::forward::{HOP_HEADER, Passed};
use crate::rest::guard::Known;
use crate::rest::interface;
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, json, with_body};
use crate::uri::decoded;
use bytes::Bytes;
use futures_util::future::try_join_all;
use pgquorum_agent::registry::{Registration, RegistryChange, RegistryOutcome};
use pgquorum_agent::request::LeaderAddress;
use pgquorum_agent::types::{Millis, NodeId};
use pgquorum_agent::view::View;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, HeaderValue, Method, header};
use warp::reply::Response;

/// How long the leader may take for what is passed on to it.
const LEADER_DEADLINE: Duration = Duration::from_secs(25);

/// The longest answer that is passed on: as many servers as there may be.
const ANSWER_BYTES_MAX: usize = 32 << 20;

type Body = Result<Map<String, Value>, Refusal>;

/// What routes of the registry know of a request beside its body.
pub(in crate::rest) struct Asked {
    pub(in crate::rest) headers: HeaderMap,
    pub(in crate::rest) known: Option<Known>,
    /// The header that goes on to whoever is asked next, and back with the answer.
    pub(in crate::rest) correlation: String,
}

pub(in crate::rest) fn asked() -> BoxedFilter<(Asked,)> {
    warp::header::headers_cloned()
        .and(warp::ext::optional::<Known>())
        .map(|headers: HeaderMap, known| {
            let given = headers.get(correlation::HEADER).and_then(|value| value.to_str().ok());
            let correlation = correlation::received(given);
            Asked { headers, known, correlation }
        })
        .boxed()
}

impl Asked {
    /// The answer on its way out.
    pub(in crate::rest) fn answered(&self, answer: Result<Response, Refusal>) -> Response {
        let mut response = answer.unwrap_or_else(Refusal::into_registry_response);
        if let Ok(value) = HeaderValue::from_str(&self.correlation) {
            response.headers_mut().insert(correlation::HEADER, value);
        }
        response
    }
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, shower, poster, remover) = (api.clone(), api.clone(), api.clone(), api.clone());
    let list = warp::path!("itResources")
        .and(read())
        .and(query())
        .and(asked())
        .map(move |query: String, asked: Asked| asked.answered(list(&lister, &query)));
    let show = warp::path!("itResources" / String)
        .and(read())
        .and(query())
        .and(asked())
        .map(move |id: String, query: String, asked: Asked| asked.answered(show(&shower, &id, &query)));
    let post =
        warp::path!("itResources").and(warp::post()).and(query()).and(asked()).and(body::object()).then(
            move |query: String, asked: Asked, body| {
                let api = poster.clone();
                async move { asked.answered(post(&api, &query, &asked, body).await) }
            },
        );
    let remove = warp::path!("itResources" / String / "servers" / String)
        .and(warp::delete())
        .and(query())
        .and(asked())
        .then(move |id: String, server: String, query: String, asked: Asked| {
            let api = remover.clone();
            async move { asked.answered(remove(&api, &id, &server, &query, &asked).await) }
        });
    post.or(list).unify().or(show).unify().or(remove).unify().boxed()
}

fn list(api: &Api, query: &str) -> Result<Response, Refusal> {
    let view = api.member_view()?;
    let query = Query::strict(query, &["type"])?;
    let wanted = |kind: &str| query.get("type").is_none_or(|wanted| wanted == kind);
    let mut bodies = Vec::new();
    if wanted(OWN_TYPE) {
        bodies.push(Bytes::from(wire::own_nodes(&view, api.scheme()).to_string()));
    }
    let others = view.cluster.registry.iter().filter(|(kind, _)| wanted(kind));
    bodies.extend(others.map(|(kind, service)| api.registrar().body(kind, service)));
    let inner = bodies.join(&b","[..]);
    Ok(with_body(200, "application/json", [&b"{\"data\":["[..], &inner, b"]}"].concat()))
}

fn show(api: &Api, id: &str, query: &str) -> Result<Response, Refusal> {
    let view = api.member_view()?;
    Query::strict(query, &[])?;
    let id = segment("id", id)?;
    if id == view.cluster.cluster_id {
        return Ok(json(200, &json!({"data": wire::own_nodes(&view, api.scheme())})));
    }
    let (kind, service) = view.cluster.registry.by_id(&id).ok_or_else(|| unknown(&id))?;
    let body = api.registrar().body(kind, service);
    Ok(with_body(200, "application/json", [&b"{\"data\":"[..], &body, b"}"].concat()))
}

async fn post(api: &Api, query: &str, asked: &Asked, body: Body) -> Result<Response, Refusal> {
    let view = api.writable_view()?;
    let parameters = Query::strict(query, &["managedCluster", "servers"])?;
    let own = match parameters.get("servers") {
        None | Some("all") => false,
        Some("own") => true,
        Some(other) => return Err(bad("servers", other, "all or own")),
    };
    let body = body?;
    let posted = wire::posted(&body).map_err(|why| Refusal::bad_request("bad_server", why))?;
    match posted {
        Posted::Server { kind, .. } if kind == OWN_TYPE => Err(Refusal::bad_request(
            "own_type",
            format!(
                "{OWN_TYPE} is the type of this cluster's own nodes, which are added with `pgquorum join`"
            ),
        )),
        Posted::Server { kind, server } => match place(api, asked)? {
            Place::Here(view) => register(api, &view, &kind, server, own).await,
            Place::There(leader) => {
                let path = format!("/itResources?servers={}", if own { "own" } else { "all" });
                pass(api, &leader, Method::POST, path, &Value::Object(body), asked).await
            }
        },
        Posted::Service { id, kind, servers } => {
            if let Some(refused) = not_theirs(asked, &kind) {
                return Ok(refused);
            }
            // Who is a node of this cluster is not said by others.
            if id == view.cluster.cluster_id {
                return Ok(json(200, &merged(&view, api, wire::own_nodes(&view, api.scheme()))));
            }
            if view.cluster.registry.by_id(&id).is_some_and(|(known, _)| known != kind) {
                let message =
                    format!("itResource {id} is not of type {kind}; GET /itResources/{id} shows it");
                return Err(Refusal::bad_request("wrong_type", message));
            }
            match place(api, asked)? {
                Place::Here(_) => merge(api, &id, servers).await,
                Place::There(leader) => {
                    let path = "/itResources".to_owned();
                    pass(api, &leader, Method::POST, path, &Value::Object(body), asked).await
                }
            }
        }
    }
}

/// Servers tell each other who is there with tokens that say so, and of which type they are.
fn not_theirs(asked: &Asked, kind: &str) -> Option<Response> {
    let granted = asked.known.as_ref()?.granted.as_ref()?;
    if !granted.cluster {
        let message = "invalid token: must be a cluster token";
        return Some(interface::registry(400, "no_cluster_token", message, None));
    }
    let info = json!({"type": kind, "subType": granted.sub_type});
    (granted.sub_type != kind).then(|| interface::registry(400, "wrong_type", "invalid type", Some(info)))
}

async fn register(
    api: &Api,
    view: &View,
    kind: &str,
    server: Registration,
    own: bool,
) -> Result<Response, Refusal> {
    let name = server.server.clone();
    full(api.registrar().register(view, kind, server).await?)?;
    let view = api.view();
    // Registered, and removed by somebody else at once.
    let service = view.cluster.registry.of_type(kind).ok_or_else(overtaken)?;
    let resource = match own {
        true => wire::resource_of(kind, service, &name),
        false => api.registrar().body(kind, service),
    };
    let lease = view.cluster.settings.registry_lease.ms();
    let end = format!(",\"leaseTime\":{lease}}}");
    let body = [&b"{\"itResource\":"[..], &resource, end.as_bytes()].concat();
    Ok(with_body(200, "application/json", body))
}

async fn merge(api: &Api, id: &str, servers: Vec<(Registration, Millis)>) -> Result<Response, Refusal> {
    // What comes from clocks of others must not look newer than what is said here later.
    let now = unix_ms();
    let changes = servers.into_iter().map(|(server, updated)| {
        let updated = updated.min(now);
        api.registrar().change(RegistryChange::Merge { service: id.to_owned(), server, updated })
    });
    for outcome in try_join_all(changes).await? {
        full(outcome)?;
    }
    let view = api.view();
    let known = view.cluster.registry.by_id(id);
    let data = known.map(|(kind, service)| serde_json::from_slice(&api.registrar().body(kind, service)));
    let data = data.and_then(Result::ok).ok_or_else(|| unknown(id))?;
    Ok(json(200, &merged(&view, api, data)))
}

fn merged(view: &View, api: &Api, data: Value) -> Value {
    let me = view.cluster.member(view.id).map(|member| wire::own_node(member, api.scheme()));
    json!({"data": data, "server": me})
}

async fn remove(api: &Api, id: &str, server: &str, query: &str, asked: &Asked) -> Result<Response, Refusal> {
    let view = api.writable_view()?;
    Query::strict(query, &[])?;
    let (service, (name, not_after)) = (segment("id", id)?, wire::named(&segment("server", server)?));
    if service == view.cluster.cluster_id {
        let message = format!(
            "{name} is a node of this cluster, not a server that registered; nodes are removed with `pgquorum node remove`"
        );
        return Err(Refusal::bad_request("own_node", message));
    }
    match place(api, asked)? {
        Place::Here(_) => {
            let change = RegistryChange::Remove {
                service: service.clone(),
                server: name.clone(),
                not_after,
                at: unix_ms(),
            };
            match api.registrar().change(change).await? {
                RegistryOutcome::Done | RegistryOutcome::Known => Ok(json(200, &json!({"data": name}))),
                RegistryOutcome::Newer { server } => Ok(json(200, &json!({"server": wire::server(&server)}))),
                RegistryOutcome::NoService => Err(unknown(&service)),
                RegistryOutcome::Full { .. } => Err(Refusal::unexpected_reply()),
            }
        }
        Place::There(leader) => {
            let path = format!("/itResources/{id}/servers/{server}");
            pass(api, &leader, Method::DELETE, path, &Value::Null, asked).await
        }
    }
}

/// Where a change is decided.
enum Place {
    Here(Arc<View>),
    There(Leader),
}

struct Leader {
    address: LeaderAddress,
    me: NodeId,
}

fn place(api: &Api, asked: &Asked) -> Result<Place, Refusal> {
    let view = api.writable_view()?;
    if leads(&view, clock::now()) {
        return Ok(Place::Here(view));
    }
    let leader = view.leader.clone().filter(|leader| leader.id != view.id);
    let address = leader.ok_or_else(Refusal::no_leader)?;
    if asked.headers.contains_key(HOP_HEADER) {
        let message = format!(
            "node {} leads, and what came here from another node is not passed on again; try again in a moment",
            address.id
        );
        return Err(Refusal::new(503, "not_leader", message));
    }
    Ok(Place::There(Leader { address, me: view.id }))
}

async fn pass(
    api: &Api,
    leader: &Leader,
    method: Method,
    path: String,
    body: &Value,
    asked: &Asked,
) -> Result<Response, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(login) = api.forward().own_login() {
        headers.insert(header::AUTHORIZATION, login);
    }
    if let Ok(value) = HeaderValue::from_str(&asked.correlation) {
        headers.insert(correlation::HEADER, value);
    }
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let passed = Passed { method, path, headers, body };
    let (to, me) = (leader.address.api, leader.me);
    let answer = api.forward().pass(to, me, passed, ANSWER_BYTES_MAX);
    let unreachable = |why: String| {
        let message = format!(
            "the leader at {to} could not be asked: {why}. Try again, it does no harm to do so twice"
        );
        Refusal::new(531, "leader_unreachable", message)
    };
    match tokio::time::timeout(LEADER_DEADLINE, answer).await {
        Ok(Ok((status, body))) => {
            let mut response = with_body(status, "application/json", body);
            if status == 503 {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Ok(response)
        }
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("it did not answer in time".to_owned())),
    }
}

fn full(outcome: RegistryOutcome) -> Result<(), Refusal> {
    match outcome {
        RegistryOutcome::Full { of } => {
            let message =
                format!("the registry is full: there are {of} already. Remove servers that are not needed");
            Err(Refusal::new(503, "registry_is_full", message))
        }
        _ => Ok(()),
    }
}

fn overtaken() -> Refusal {
    Refusal::new(503, "overtaken", "the server was removed again at once; register again")
}

fn unknown(id: &str) -> Refusal {
    let message = format!("there is no itResource {id}; GET /itResources lists those that there are");
    Refusal::new(404, "no_such_resource", message)
}

fn segment(name: &str, segment: &str) -> Result<String, Refusal> {
    decoded(segment).ok_or_else(|| bad(name, segment, "a name, percent-encoded where needed"))
}
