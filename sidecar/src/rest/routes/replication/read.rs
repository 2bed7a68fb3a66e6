//! Rows and changes: batches, dumps, the log.

use super::{Call, describe, json};
use crate::feed::ChannelId;
use crate::replication::batches::{Asked, Dumped, TTL, TTL_MAX};
use crate::replication::clients::Name;
use crate::replication::tick::Tick;
use crate::replication::unbatched::Reader;
use crate::replication::{self, Dialect, Failure, Followed, Listed, Log, Result, Wanted};
use crate::rest::refusal::with_body;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use warp::http::{HeaderName, HeaderValue, Method};
use warp::reply::Response;

const LINES: &str = "application/x-arango-dump; charset=utf-8";

/// How many bytes an answer has, unless the client says so, and at most: it is held in memory.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The longest text by which a client may describe itself.
const INFO_MAX: usize = 128;

pub(super) async fn begin_batch(call: &Call) -> Result<Response> {
    call.leads()?;
    let ttl = ttl(call)?;
    let state = call.flag("state", false)?;
    let log = running_log(call).await?;
    let (id, batch) = call.api.replication().batches.begin(call.id(), ttl).await?;
    let mut answer = json!({"id": id.to_string(), "lastTick": batch.tick().to_string()});
    if state {
        answer["state"] = log.state()?;
    }
    Ok(json(&answer))
}

/// The log of the database, if there is something to copy.
async fn running_log(call: &Call) -> Result<Log> {
    let log = call.log().await?;
    if !log.exists() {
        return Err(Failure::no_logger(&call.database));
    }
    if !log.is_running() {
        return Err(Failure::stopped(&call.database));
    }
    Ok(log)
}

pub(super) async fn change_batch(call: &Call, id: &str) -> Result<Response> {
    call.leads()?;
    let batches = &call.api.replication().batches;
    let changed = match call.method {
        Method::PUT => batches.renew(&call.id(), id, ttl(call)?),
        _ => batches.end(&call.id(), id),
    };
    call.in_batch(changed).await?;
    Ok(lines(Vec::new(), &[]))
}

fn ttl(call: &Call) -> Result<Duration> {
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let seconds = match body.get("ttl") {
        None | Some(Value::Null) => return Ok(TTL),
        Some(value) => value.as_f64().filter(|seconds| *seconds > 0.0 && seconds.is_finite()),
    };
    let seconds = seconds.ok_or_else(|| Failure::bad("ttl must be a number of seconds above 0"))?;
    Ok(Duration::from_secs_f64(seconds.min(TTL_MAX.as_secs_f64())))
}

fn chunk_bytes(call: &Call) -> Result<usize> {
    match call.query.get("chunkSize") {
        None | Some("" | "0") => Ok(CHUNK_BYTES),
        // However many digits it has.
        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(text.parse().unwrap_or(usize::MAX).min(CHUNK_BYTES_MAX))
        }
        Some(text) => Err(Failure::bad(format!("chunkSize is {text:?}; expected a number of bytes"))),
    }
}

pub(super) async fn dump(call: &Call) -> Result<Response> {
    call.leads()?;
    let collection =
        call.query.get("collection").filter(|name| !name.is_empty()).ok_or_else(|| {
            Failure::bad("parameter collection is missing: the name or the id of a collection")
        })?;
    let (from, to) = (call.number("from")?, call.number("to")?.unwrap_or(u64::MAX));
    if from.is_some_and(|from| from > to) {
        return Err(Failure::bad(format!("from is above to ({to})")));
    }
    call.flag("includeSystem", true)?;
    let (ticks, in_columns) = (call.flag("ticks", true)?, call.flag("inColumns", false)?);
    let asked = Asked { from, to, chunk_bytes: chunk_bytes(call)?, ticks, in_columns };
    let dumped = match call.query.get("batchId").filter(|batch| !batch.is_empty()) {
        Some(batch) => dump_in_batch(call, batch, collection, asked).await,
        None => dump_without_batch(call, collection, asked).await,
    };
    let Dumped { lines: bytes, last_included, more } = call.in_batch(dumped).await?;
    let last = last_included.unwrap_or(0).to_string();
    Ok(lines(bytes, &[("checkmore", more.to_string()), ("lastincluded", last)]))
}

async fn dump_in_batch(call: &Call, batch: &str, collection: &str, asked: Asked) -> Result<Dumped> {
    let (id, batches) = (call.id(), &call.api.replication().batches);
    let held = batches.find(&id, batch)?;
    let named = if held.has(collection) { None } else { named_by_id(call, collection).await? };
    let _place = call.api.reader_place().map_err(super::unavailable)?;
    batches.dump(&id, batch, named.as_deref().unwrap_or(collection), asked).await
}

/// Each reader has a snapshot of its own, from its first request to the last row.
async fn dump_without_batch(call: &Call, collection: &str, asked: Asked) -> Result<Dumped> {
    let reader = match (call.number("serverId")?, &call.sender) {
        (Some(server), _) if server > 0 => Reader::Server(server),
        (_, Some(sender)) => Reader::Sender { from: sender.from, user: sender.user.clone() },
        (_, None) => Reader::Server(0),
    };
    if asked.from.unwrap_or(0) == 0 {
        running_log(call).await?;
    }
    let named = named_by_id(call, collection).await?;
    let _place = call.api.reader_place().map_err(super::unavailable)?;
    let collection = named.as_deref().unwrap_or(collection);
    call.api.replication().unbatched.dump(&call.id(), reader, collection, asked).await
}

/// The name of the collection that has this id; `None`: it is no number, or the name of a collection.
async fn named_by_id(call: &Call, collection: &str) -> Result<Option<String>> {
    let Ok(cid) = collection.parse::<u64>() else { return Ok(None) };
    let listed = Listed::all(&call.api.feed().source().table_details(&call.id()).await?)?;
    if listed.iter().any(|one| one.collection.name == collection) {
        return Ok(None);
    }
    let found = listed.into_iter().find(|one| one.collection.cid == cid);
    Ok(Some(found.ok_or_else(|| Failure::no_collection(collection))?.collection.name))
}

pub(super) async fn follow(call: &Call, dialect: Dialect) -> Result<Response> {
    call.flag("includeSystem", true)?;
    let (from, to) = (tick(call, "from")?.unwrap_or_default(), tick(call, "to")?.unwrap_or(Tick::MAX));
    if from > to || to == Tick(0) {
        return Err(Failure::bad(format!("invalid from/to values: from {from}, to {to}")));
    }
    // What was looked at already and brought no line need not be looked at again.
    let scanned = if dialect == Dialect::Wal { tick(call, "lastScanned")? } else { None };
    let from = from.max(scanned.unwrap_or_default().min(to));
    let (except, in_columns) = (except(call)?, call.flag("inColumns", false)?);
    let wanted = Wanted { from, to, chunk_bytes: chunk_bytes(call)?, dialect, except, in_columns };
    let client = client(call)?;
    let (id, log) = followed_log(call).await?;
    let _place = call.api.reader_place().map_err(super::unavailable)?;
    let followed = replication::follow(call.api.feed(), &id, &log, wanted).await?;
    let Followed { lines: bytes, last_included, last_scanned, last, more, from_present } = followed;
    if let Some(client) = client {
        let served = last_included.unwrap_or(from);
        call.api.replication().clients.served(&id.database, client, served, SystemTime::now());
    }
    let mut headers = vec![
        ("active", log.is_running().to_string()),
        ("checkmore", more.to_string()),
        ("lastincluded", last_included.unwrap_or_default().to_string()),
        ("lasttick", last.to_string()),
        ("frompresent", from_present.to_string()),
    ];
    if dialect == Dialect::Wal {
        headers.push(("lastscanned", last_scanned.to_string()));
    }
    Ok(lines(bytes, &headers))
}

/// The log that is to be followed. Ticks of several databases have no common order.
async fn followed_log(call: &Call) -> Result<(ChannelId, Log)> {
    let global = call.is_global()?;
    let own = call.log().await?;
    if !global {
        return Ok((call.id(), own));
    }
    let mut logs = describe::logs(call).await?;
    logs.retain(|(_, log)| log.exists());
    match logs.len() {
        0 => Ok((call.id(), own)),
        1 => Ok(logs.remove(0)),
        _ => {
            let names: Vec<&str> = logs.iter().map(|(id, _)| id.database.as_str()).collect();
            Err(Failure::not_implemented(format!(
                "global=true is served where one database has a log, and here several have one: {}. Their ticks cannot be \
                 compared; ask for each of them, at /_db/DATABASE/_api/wal/tail",
                names.join(", ")
            )))
        }
    }
}

fn tick(call: &Call, name: &str) -> Result<Option<Tick>> {
    let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let tick = Tick::parse(text);
    tick.map(Some)
        .ok_or_else(|| Failure::bad(format!("{name} is {text:?}; expected a tick, a number of 64 bits")))
}

/// The origins of changes that the reader does not want.
fn except(call: &Call) -> Result<Vec<String>> {
    let Some(text) = call.query.get("exceptOrigins").filter(|text| !text.is_empty()) else {
        return Ok(Vec::new());
    };
    serde_json::from_str(text)
        .map_err(|_| Failure::bad("exceptOrigins must be a JSON array of names of origins"))
}

/// Who asks, if it says so.
fn client(call: &Call) -> Result<Option<Name>> {
    let (server, syncer) = (call.number("serverId")?.unwrap_or(0), call.number("syncerId")?.unwrap_or(0));
    let info = call.query.get("clientInfo").unwrap_or_default().chars().take(INFO_MAX).collect();
    Ok((server > 0 || syncer > 0).then_some(Name { server, syncer, info }))
}

/// Lines with the fields that say where they are; no content if there are none.
fn lines(bytes: Vec<u8>, fields: &[(&str, String)]) -> Response {
    let status = if bytes.is_empty() { 204 } else { 200 };
    let mut response = with_body(status, LINES, bytes);
    for (name, value) in fields {
        let name = HeaderName::from_bytes(format!("x-arango-replication-{name}").as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
