//! What there is: the server, the logger, the collections.

use super::{Call, json};
use crate::feed::{Call as Change, Given};
use crate::replication::{CHANNEL, Failure, Listed, Log, Result, VERSION, now};
use serde_json::{Value, json};
use warp::reply::Response;

/// How much a log keeps that `logger-start` makes: as many bytes as ArangoDB's.
const KEPT_BYTES: i64 = 128 << 20;

pub(super) fn version(call: &Call) -> Response {
    let mut answer = json!({"server": "arango", "version": VERSION, "license": "community"});
    if call.flag("details", false).unwrap_or(false) {
        answer["details"] = json!({"pgquorum": env!("CARGO_PKG_VERSION"), "mode": "server"});
    }
    json(&answer)
}

pub(super) async fn collections(call: &Call) -> Result<Response> {
    let log = call.log().await?;
    let listed = listed(call, &log).await?;
    let all: Vec<Value> = listed.iter().map(|one| one.summary(log.server)).collect();
    Ok(json(&json!({"error": false, "code": 200, "result": all})))
}

async fn listed(call: &Call, log: &Log) -> Result<Vec<Listed>> {
    if !log.is_running() {
        return Ok(Vec::new());
    }
    Listed::all(&call.api.feed().source().table_details(&call.id()).await?)
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
    Ok(json(&json!({"state": log.state()?, "server": server(&log), "clients": clients})))
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

pub(super) fn fixed_config() -> Failure {
    Failure::not_implemented(
        "the settings of the log cannot be changed here: create channel _logger with the limits that you want \
         (quorum.create_channel, or POST /channels) before logger-start",
    )
}

/// Makes the channel, if it is not there. It records whole old rows: without them large values that an update leaves alone
/// would be missing in documents.
pub(super) async fn start(call: &Call) -> Result<Response> {
    call.leads()?;
    if !call.log().await?.is_running() {
        let change =
            Change::new("create_channel").text("name", "text", CHANNEL).text("old_image", "text", "full");
        let change = change.with("retain_bytes", "int8", Given::Number(KEPT_BYTES));
        let made = call.api.feed().source().call(&call.database, change).await;
        // Somebody else may have made it meanwhile.
        if made.is_err() && !call.log().await?.is_running() {
            made?;
        }
    }
    Ok(json(&json!({"running": true})))
}

pub(super) fn no_stop() -> Failure {
    Failure::not_implemented(
        "the log of a database cannot be stopped as a whole. SELECT quorum.untrack('table') ends the recording of a table, \
         with an entry in the log; SELECT quorum.drop_channel('_logger') removes the log",
    )
}

/// `ready`: with what the inventory of a cluster says.
pub(super) async fn inventory(call: &Call, ready: bool) -> Result<Response> {
    call.not_global()?;
    call.flag("includeSystem", true)?;
    let batch = match call.query.get("batchId") {
        None => None,
        Some(id) => {
            call.leads()?;
            Some(call.api.replication().batches.find(&call.id(), id)?)
        }
    };
    let log = call.log().await?;
    let mut listed = listed(call, &log).await?;
    if let Some(batch) = batch {
        // Tables that came later are not in its snapshot.
        listed.retain(|one| batch.has(&one.collection.name));
    }
    if let Some(name) = call.query.get("collection") {
        listed.retain(|one| one.collection.name == name || one.collection.cid.to_string() == name);
        if listed.is_empty() {
            return Err(Failure::no_collection(name));
        }
    }
    let all: Vec<Value> = listed.iter().map(|one| one.inventory(log.server, ready)).collect();
    let answer =
        json!({"collections": all, "views": [], "state": log.state()?, "tick": log.last()?.to_string()});
    Ok(json(&answer))
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
    if call.log().await?.is_running() {
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
