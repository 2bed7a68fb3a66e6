//! What there is: the server, the logger, the collections.

use super::{Call, json};
use crate::feed::{Call as Change, ChannelId, Given, Kind};
use crate::replication::{CHANNEL, FORBIDDEN, Failure, Listed, Log, Result, SYSTEM, VERSION, now};
use serde_json::{Map, Value, json};
use warp::reply::Response;

/// What ArangoDB of this version stores its log in; clients that copy one another's documents look at it.
const ENGINE: &str = "rocksdb";

/// How much a log keeps that `logger-start` makes: as many bytes as ArangoDB's.
const KEPT_BYTES: i64 = 128 << 20;

/// A database that is named must be there; where none is, nodes without data answer, too.
pub(super) async fn version(call: &Call) -> Result<Response> {
    if call.database != call.api.feed().source().default_database() {
        call.log().await?;
    }
    let mut answer = json!({"server": "arango", "version": VERSION, "license": "community"});
    if call.flag("details", false).unwrap_or(false) {
        answer["details"] = json!({"pgquorum": env!("CARGO_PKG_VERSION"), "mode": "server"});
    }
    Ok(json(&answer))
}

pub(super) async fn collections(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    let listed = listed(call, &log).await?;
    let all: Vec<Value> = listed.iter().map(|one| one.summary(log.server)).collect();
    Ok(json(&json!({"error": false, "code": 200, "result": all})))
}

async fn listed(call: &Call, log: &Log) -> Result<Vec<Listed>> {
    listed_in(call, log, &call.id()).await
}

async fn listed_in(call: &Call, log: &Log, id: &ChannelId) -> Result<Vec<Listed>> {
    if !log.exists() {
        return Ok(Vec::new());
    }
    Listed::all(&call.api.feed().source().table_details(id).await?)
}

pub(super) async fn server_id(call: &Call) -> Result<Response> {
    Ok(json(&json!({"serverId": call.log().await?.server.to_string()})))
}

fn server(log: &Log) -> Value {
    json!({"version": VERSION, "serverId": log.server.to_string()})
}

pub(super) async fn logger_state(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    let clients = call.api.replication().clients.list(&call.database);
    let mut server = server(&log);
    server["engine"] = ENGINE.into();
    Ok(json(&json!({"state": log.state()?, "server": server, "clients": clients})))
}

pub(super) async fn first_tick(call: &Call) -> Result<Response> {
    let first = call.log().await?.first()?.map(|tick| tick.to_string());
    Ok(json(&json!({"firstTick": first})))
}

pub(super) async fn tick_ranges(call: &Call) -> Result<Response> {
    Ok(json(&call.log().await?.ranges()?))
}

pub(super) async fn logger_config(call: &Call) -> Result<Response> {
    Ok(json(&call.log().await?.config()))
}

/// Changes what is given. What is of another type is left alone, as ArangoDB does it; so is what makes no difference here. A log
/// that was started goes on after a restart, and what was applied from elsewhere is in it: `autoStart` and `logRemoteChanges`
/// stay true, as the answer says.
pub(super) async fn set_config(call: &Call) -> Result<Response> {
    call.leads()?;
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let number = |name: &str| match body.get(name).and_then(Value::as_u64) {
        None => Ok(Given::Nothing),
        Some(number) => i64::try_from(number)
            .map(Given::Number)
            .map_err(|_| Failure::bad(format!("{name} is {number}, which is too large"))),
    };
    let (rows, bytes) = (number("maxEvents")?, number("maxEventsSize")?);
    if !call.log().await?.exists() {
        return Err(Failure::no_logger(&call.database));
    }
    let change = Change::new("keep_log").text("channel", "text", CHANNEL);
    let change = change.with("rows", "int8", rows).with("bytes", "int8", bytes);
    call.api.feed().source().call(&call.database, change).await?;
    logger_config(call).await
}

pub(super) fn fixed_properties() -> Failure {
    Failure::not_implemented(
        "how the log is stored cannot be set here: pgquorum.segment_size, a setting of the server, says how it is cut, and \
         PUT /_api/replication/logger-config how much of it is kept",
    )
}

/// Makes the channel, if it is not there. It records whole old rows: without them large values that an update leaves alone
/// would be missing in documents. One that was stopped goes on with the tables that it had.
pub(super) async fn start(call: &Call) -> Result<Response> {
    call.leads()?;
    let log = call.log().await?;
    if log.exists() && !log.is_running() {
        let change = Change::new("start_channel").text("channel", "text", CHANNEL);
        call.api.feed().source().call(&call.database, change).await?;
    } else if !log.exists() {
        let change =
            Change::new("create_channel").text("name", "text", CHANNEL).text("old_image", "text", "full");
        let change = change.with("retain_bytes", "int8", Given::Number(KEPT_BYTES));
        let made = call.api.feed().source().call(&call.database, change).await;
        // Somebody else may have made it meanwhile.
        if made.is_err() && !call.log().await?.exists() {
            made?;
        }
    }
    Ok(json(&json!({"running": true})))
}

/// Ends the recording of all tables, and remembers them. What was recorded can be read on.
pub(super) async fn stop(call: &Call) -> Result<Response> {
    call.leads()?;
    if call.log().await?.is_running() {
        // They lock their tables, for an hour if need be.
        let batches = call.api.replication().batches.count(&call.database);
        if batches > 0 {
            let message = format!(
                "the log cannot be stopped while {batches} batches of it are being dumped; end them (DELETE \
                 /_api/replication/batch/ID), or try again when they are over"
            );
            return Err(Failure::new(503, 503, message));
        }
        let change = Change::new("stop_channel").text("channel", "text", CHANNEL);
        let stopped = call.api.feed().source().call(&call.database, change).await;
        stopped.map_err(|error| match error.kind {
            Kind::TimedOut | Kind::Locked => {
                let message = format!(
                    "a table is in use by a transaction or a copy that does not end (see pg_stat_activity), so nothing was \
                     stopped: {error}"
                );
                Failure::new(503, 503, message)
            }
            _ => error.into(),
        })?;
    }
    Ok(json(&json!({"running": false})))
}

/// `ready`: with what the inventory of a cluster says.
pub(super) async fn inventory(call: &Call, ready: bool) -> Result<Response> {
    call.flag("includeSystem", true)?;
    let global = call.is_global()?;
    let batch = match call.query.get("batchId").filter(|id| !id.is_empty()) {
        None => None,
        Some(id) => {
            call.leads()?;
            let found = call.api.replication().batches.find(&call.id(), id);
            Some(call.in_batch(found).await?)
        }
    };
    let log = call.log().await?;
    let mut listed = listed(call, &log).await?;
    if let Some(batch) = batch {
        // Tables that came later are not in its snapshot.
        listed.retain(|one| batch.has(&one.collection.name));
    }
    if let Some(name) = call.query.get("collection").filter(|name| !name.is_empty()) {
        listed.retain(|one| one.collection.name == name || one.collection.cid.to_string() == name);
        if listed.is_empty() {
            return Err(Failure::no_collection(name));
        }
    }
    let all = |log: &Log, listed: &[Listed]| -> Vec<Value> {
        listed.iter().map(|one| one.inventory(log.server, ready)).collect()
    };
    let (state, tick) = (log.state()?, log.last()?.to_string());
    if !global {
        let collections = all(&log, &listed);
        return Ok(json(&json!({"collections": collections, "views": [], "state": state, "tick": tick})));
    }
    let mut databases = Map::new();
    for (id, other) in logs(call).await? {
        let own = id.database == call.database;
        let listed = if own { std::mem::take(&mut listed) } else { listed_in(call, &other, &id).await? };
        let name = if own { SYSTEM } else { id.database.as_str() };
        let number = other.database.to_string();
        let described = json!({"id": number, "name": name, "collections": all(&other, &listed), "views": [],
            "properties": {"id": number, "name": name}, "state": other.state()?});
        databases.insert(name.to_owned(), described);
    }
    Ok(json(&json!({"databases": databases, "state": state, "tick": tick})))
}

/// The databases that the extension is in, with their logs.
pub(super) async fn logs(call: &Call) -> Result<Vec<(ChannelId, Log)>> {
    let source = call.api.feed().source();
    let names = source.ask(&call.database, Change::new("databases")).await?;
    let names = names.as_array().map_or(&[][..], Vec::as_slice);
    let mut logs = Vec::new();
    for database in names.iter().filter_map(Value::as_str) {
        let id = ChannelId { database: database.to_owned(), channel: CHANNEL.to_owned() };
        match source.log(&id).await {
            Ok(row) => logs.push((id, Log::parse(row)?)),
            // One that was dropped just now is none either.
            Err(error) if matches!(error.kind, Kind::NoExtension | Kind::UnknownDatabase) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(logs)
}

/// Only one database speaks for all of them.
pub(super) fn not_here() -> Failure {
    let message = "global=true is for the database _system alone: ask without /_db/DATABASE";
    Failure::new(403, FORBIDDEN, message)
}

pub(super) async fn wal_range(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    let first = log.first()?.unwrap_or_default().to_string();
    let last = log.last()?.to_string();
    Ok(json(&json!({"time": now(), "tickMin": first, "tickMax": last, "server": server(&log)})))
}

pub(super) async fn wal_last_tick(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    Ok(json(&json!({"time": now(), "tick": log.last()?.to_string(), "server": server(&log)})))
}

/// Makes everything readable that was committed before.
pub(super) async fn flush(call: &Call) -> Result<Response> {
    call.leads()?;
    if call.log().await?.exists() {
        let cut = Change::new("cut").text("channel", "text", CHANNEL);
        call.api.feed().source().call(&call.database, cut).await?;
    }
    Ok(json(&json!({"error": false, "code": 200})))
}

pub(super) async fn wal_properties(call: &Call) -> Result<Response> {
    Ok(json(&call.log().await?.properties()))
}

pub(super) async fn wal_transactions(call: &Call) -> Result<Response> {
    Ok(json(&call.log().await?.transactions()))
}
