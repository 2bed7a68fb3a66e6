//! `GET` and `POST /config`: the cluster's settings.

use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::settings::{Settings, SettingsPatch, Span};
use serde::Serialize;
use serde_json::{Map, Value};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// The settings, and what follows from them.
#[derive(Serialize)]
struct Config {
    #[serde(flatten)]
    settings: Settings,
    effective: Effective,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Effective {
    /// How many standbys every commit waits for.
    acknowledging_standbys: usize,
    data_nodes: usize,
    lease: Span,
}

/// What an answer holds beside settings. Whoever sends an edited answer back need not take it out.
const READ_ONLY: [&str; 2] = ["effective", "warning"];

const WEAK: &str = "a commit returns as soon as the leader alone has it: if the leader is lost, its last transactions \
                    may be lost. Set quorum-replication to true, or replication-factor to 1 or more";

impl Config {
    fn new(settings: Settings, k: usize, data_nodes: usize) -> Config {
        let chosen = !settings.quorum_replication && settings.replication_factor == 0;
        let weak = chosen || (k == 0 && data_nodes > 1);
        let lease = Span(settings.lease_ms());
        Config {
            settings,
            effective: Effective { acknowledging_standbys: k, data_nodes, lease },
            warning: weak.then_some(WEAK),
        }
    }
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (getter, poster) = (api.clone(), api.clone());
    let get = warp::path!("config").and(read()).map(move || respond(get(&getter)));
    let post =
        warp::path!("config").and(warp::post()).and(query()).and(body::object()).then(move |query, body| {
            let api = poster.clone();
            async move { respond(post(&api, query, body).await) }
        });
    get.or(post).unify().boxed()
}

fn get(api: &Api) -> Result<Config, Refusal> {
    let cluster = &api.member_view()?.cluster;
    Ok(Config::new(cluster.settings.clone(), cluster.durability.k, cluster.durability.voters.len()))
}

async fn post(
    api: &Api,
    query: String,
    body: Result<Map<String, Value>, Refusal>,
) -> Result<Config, Refusal> {
    let view = api.writable_view()?;
    Query::strict(&query, &[])?;
    let patch = parse(body?)?;
    match api.ask(Request::SetSettings { patch }).await? {
        Reply::Settings { settings } => {
            let data_nodes = view.cluster.wanted_durability().voters.len();
            let k = settings.acknowledging_standbys(data_nodes);
            Ok(Config::new(settings, k, data_nodes))
        }
        _ => Err(Refusal::unexpected_reply()),
    }
}

/// Reads field by field, so that the error can say which one is wrong.
fn parse(mut object: Map<String, Value>) -> Result<SettingsPatch, Refusal> {
    READ_ONLY.iter().for_each(|name| drop(object.remove(*name)));
    for (name, value) in &object {
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        if let Err(error) = serde_json::from_value::<SettingsPatch>(alone) {
            let error = error.to_string();
            let code = if error.starts_with("unknown field") { "unknown_setting" } else { "bad_setting" };
            return Err(Refusal::bad_request(code, format!("{name}: {error}")));
        }
    }
    let malformed = |error| Refusal::bad_request("bad_setting", format!("{error}"));
    serde_json::from_value(Value::Object(object)).map_err(malformed)
}
