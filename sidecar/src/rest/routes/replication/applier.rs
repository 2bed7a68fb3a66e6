//! The applier of a database: its settings, its state, and copies that are made at once.

use super::{Call, JSON, json};
use crate::feed::{Call as Change, FeedError, Given, Kind as FeedKind};
use crate::postgres::PostgresConfig;
use crate::replication::applier::{Config, Fault, Here, Remote, state, sync};
use crate::replication::tick::Tick;
use crate::replication::{Failure, Log, Result, SYSTEM, VERSION};
use crate::rest::refusal::with_body;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use warp::http::Method;
use warp::reply::Response;

const INVALID_CONFIG: u16 = 1410;
const RUNNING: u16 = 1411;
/// How long the answer waits until a follower has its copy. The work goes on after that.
const COPY_DEADLINE: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn config(call: &Call) -> Result<Response> {
    call.not_global()?;
    if call.method == Method::PUT {
        return configure(call).await;
    }
    call.api.data_view().map_err(super::unavailable)?;
    shown_config(call, &Config::read(&shown(call).await?["config"])?)
}

fn shown_config(call: &Call, config: &Config) -> Result<Response> {
    let mut shown = config.clone();
    shown.database.get_or_insert_with(|| name(call, &call.database).to_owned());
    let text = serde_json::to_string(&shown).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(with_body(200, JSON, text))
}

async fn configure(call: &Call) -> Result<Response> {
    call.leads()?;
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let shown = shown(call).await?;
    if shown["running"] == true {
        return Err(running());
    }
    let config = set(call, &Config::read(&shown["config"])?, body).await?;
    shown_config(call, &config)
}

/// Saves the settings of a request.
async fn set(call: &Call, before: &Config, body: &Map<String, Value>) -> Result<Config> {
    let (config, password) = before.merged(body)?;
    config.bases()?;
    config.wire(password.as_deref())?;
    let text = serde_json::to_string(&config).map_err(|error| Failure::internal(error.to_string()))?;
    let password = password.map_or(Given::Nothing, Given::Text);
    let change =
        Change::new("applier_configure").text("config", "jsonb", &text).with("password", "text", password);
    change_it(call, change).await?;
    Ok(config)
}

pub(super) async fn start(call: &Call) -> Result<Response> {
    call.not_global()?;
    call.leads()?;
    let from = match call.query.get("from").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(Tick::parse(text).ok_or_else(|| {
            Failure::bad(format!("from is {text:?}; expected a tick, a number of 64 bits"))
        })?),
    };
    let shown = shown(call).await?;
    if !shown["config"]["endpoint"].is_string() {
        let message =
            "the applier is not configured: PUT /_api/replication/applier-config with an endpoint first";
        return Err(Failure::new(400, INVALID_CONFIG, message));
    }
    if shown["running"] != true {
        begin(call, from, false).await?;
    }
    state(call).await
}

async fn begin(call: &Call, from: Option<Tick>, resync: bool) -> Result<()> {
    let mut change = Change::new("applier_start");
    if let Some(from) = from {
        change = change.text("from", "numeric", &from.to_string());
    }
    if resync {
        change = change.text("resync", "bool", "true");
    }
    change_it(call, change).await
}

pub(super) async fn stop(call: &Call) -> Result<Response> {
    call.not_global()?;
    call.leads()?;
    change_it(call, Change::new("applier_stop")).await?;
    state(call).await
}

pub(super) async fn state(call: &Call) -> Result<Response> {
    call.not_global()?;
    if call.method == Method::DELETE {
        call.leads()?;
        change_it(call, Change::new("applier_forget")).await?;
    }
    let log = call.log().await?;
    Ok(with_body(200, JSON, body(call, &call.database, &log).await?))
}

async fn body(call: &Call, database: &str, log: &Log) -> Result<String> {
    let shown = call.api.feed().source().ask(database, Change::new("applier_show")).await?;
    Ok(state::body(&shown, name(call, database), VERSION, log.server)?)
}

/// The states of all databases in which the extension is.
pub(super) async fn all_states(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    let listed = call.api.feed().source().ask(&call.database, Change::new("applier_databases")).await?;
    let mut states = Map::new();
    for database in listed.as_array().into_iter().flatten().filter_map(Value::as_str) {
        let body = match body(call, database, &log).await {
            Ok(body) => body,
            // Without the extension, or dropped meanwhile.
            Err(failure) if failure.code == 404 => continue,
            Err(failure) => return Err(failure),
        };
        let body = serde_json::from_str(&body).map_err(|error| Failure::internal(error.to_string()))?;
        states.insert(name(call, database).to_owned(), body);
    }
    Ok(json(&Value::Object(states)))
}

/// Copies the remote's collections once.
pub(super) async fn copy(call: &Call) -> Result<Response> {
    call.leads()?;
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let (config, password) = settings(body)?;
    if shown(call).await?["running"] == true {
        return Err(running());
    }
    let remote = Remote::new(&config, password.as_deref(), name(call, &call.database))?;
    let Some(server) = &call.api.handle().server else {
        return Err(Failure::new(503, 503, "this node has no server to copy into"));
    };
    let here = Arc::new(Here::new(PostgresConfig::clone(server), &call.database));
    // Whoever asked may go away; the copy is then made all the same, and is whole or not there.
    let copying = tokio::spawn(async move {
        let identity = remote.identify().await?;
        sync(&here, &remote, &identity, &config, None).await
    });
    let synced = copying.await.map_err(|error| Failure::internal(error.to_string()))?;
    let synced = synced?;
    let collections: Vec<Value> =
        synced.collections.iter().map(|(id, name)| json!({"id": id, "name": name})).collect();
    Ok(json(&json!({"collections": collections, "lastLogTick": synced.tick.to_string()})))
}

/// Makes this database a follower of another one: all tables are copied, then the log is followed.
pub(super) async fn make_follower(call: &Call) -> Result<Response> {
    call.not_global()?;
    call.leads()?;
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let (config, password) = settings(body)?;
    // Nobody is asked for a database that is not there, and nothing is stopped before it is known that the remote can be asked.
    shown(call).await?;
    let remote = Remote::new(&config, password.as_deref(), name(call, &call.database))?;
    remote.identify().await?;
    change_it(call, Change::new("applier_stop")).await?;
    let mut given = body.clone();
    // A password of an earlier remote is none for this one.
    given.entry("password").or_insert_with(|| "".into());
    set(call, &Config::default(), &given).await?;
    begin(call, None, true).await?;
    let until = Instant::now() + COPY_DEADLINE;
    loop {
        let shown = shown(call).await?;
        if shown["running"] != true && shown["error_number"] != 0 {
            let number = shown["error_number"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(500);
            let message = shown["error_message"].as_str().unwrap_or("the applier has stopped");
            let code = if matches!(number, 400 | 1203 | 1405 | 1410) { 400 } else { 500 };
            return Err(Failure::new(code, number, message));
        }
        if shown["running"] != true || shown["resync"] != true || Instant::now() >= until {
            return state(call).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The settings of a body that names its remote.
fn settings(body: &Map<String, Value>) -> Result<(Config, Option<String>)> {
    let of_body = |fault: Fault| Failure::new(400, 400, fault.message);
    let (config, password) = Config::default().merged(body).map_err(of_body)?;
    config.wire(password.as_deref()).map_err(of_body)?;
    Ok((config, password))
}

fn running() -> Failure {
    let message = "the applier is running; stop it first: PUT /_api/replication/applier-stop";
    Failure::new(400, RUNNING, message)
}

/// What the extension says of the applier.
async fn shown(call: &Call) -> Result<Value> {
    Ok(call.api.feed().source().ask(&call.database, Change::new("applier_show")).await?)
}

/// Has something changed, and looked at at once by who works for the applier.
async fn change_it(call: &Call, change: Change) -> Result<()> {
    let changed = call.api.feed().source().call(&call.database, change).await;
    call.api.handle().subscriptions_changed.notify_one();
    match changed {
        Ok(_) => Ok(()),
        // Somebody else was faster.
        Err(FeedError { kind: FeedKind::Refused, message }) if message.contains("is running") => {
            Err(running())
        }
        Err(error) => Err(error.into()),
    }
}

/// The name of a database in this interface.
fn name<'a>(call: &Call, database: &'a str) -> &'a str {
    if database == call.api.feed().source().default_database() { SYSTEM } else { database }
}
