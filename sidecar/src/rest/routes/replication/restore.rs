//! Collections, indexes and rows, restored from what an inventory and a dump say.

use super::{Call, bad_body, json};
use crate::feed::{Call as Change, Kind};
use crate::replication::restore::{self, Wanted};
use crate::replication::{CHANNEL, DUPLICATE_NAME, Failure, Result};
use crate::rest::body;
use futures_util::Stream;
use serde_json::{Value, json};
use warp::Buf;
use warp::reply::Response;

/// Makes a table as an inventory describes it, and tracks it if there is a log.
pub(super) async fn collection(call: &Call) -> Result<Response> {
    call.leads()?;
    let overwrite = call.flag("overwrite", false)?;
    call.flag("force", false)?;
    call.flag("recycleIds", false)?;
    let Some(wanted) = Wanted::read(call.body.as_ref().map_err(Clone::clone)?)? else { return Ok(done()) };
    let change =
        of_table("restore_collection", &wanted.schema, &wanted.table).text("channel", "text", CHANNEL);
    let change = change.text("edge", "bool", truth(wanted.edge)).text("overwrite", "bool", truth(overwrite));
    let change = match &wanted.description {
        None => change,
        Some(description) => change.text("description", "jsonb", &description.to_string()),
    };
    let made = call.api.feed().source().call(&call.database, change).await;
    made.map_err(|error| match error.kind {
        Kind::AlreadyExists => Failure::new(409, DUPLICATE_NAME, format!("duplicate name: {error}")),
        _ => error.into(),
    })?;
    Ok(done())
}

/// Makes the indexes that an inventory lists of a collection.
pub(super) async fn indexes(call: &Call) -> Result<Response> {
    call.leads()?;
    let force = call.flag("force", false)?;
    let body = call.body.as_ref().map_err(Clone::clone)?;
    let Some(wanted) = Wanted::read(body)? else { return Ok(done()) };
    let indexes = restore::indexes(body, force)?;
    if !indexes.is_empty() {
        let change = of_table("restore_indexes", &wanted.schema, &wanted.table);
        let change = change.text("indexes", "jsonb", &Value::Array(indexes).to_string());
        call.api.feed().source().call(&call.database, change).await?;
    }
    Ok(done())
}

/// Writes the rows of a dump, all of them or none.
pub(super) async fn rows(
    call: &Call,
    stream: impl Stream<Item = std::result::Result<impl Buf, warp::Error>> + Send,
) -> Result<Response> {
    call.leads()?;
    let force = call.flag("force", false)?;
    let name = call.query.get("collection").filter(|name| !name.is_empty());
    let name =
        name.ok_or_else(|| Failure::bad("parameter collection is missing: the name of a collection"))?;
    let (schema, table) = restore::table(name)?;
    let Ok(_place) = call.api.replication().restoring.try_acquire() else {
        return Err(Failure::new(503, 503, "rows of others are being restored on this node; try again"));
    };
    let rows = restore::rows(&body::rows(stream).await.map_err(bad_body)?)?;
    if !rows.is_empty() {
        let change = of_table("restore_rows", &schema, &table).text("force", "bool", truth(force));
        let change = change.text("rows", "jsonb", &format!("[{}]", rows.join(",")));
        call.api.feed().source().call(&call.database, change).await.map_err(|error| match error.kind {
            Kind::UnknownTable => Failure::no_table(name),
            _ => error.into(),
        })?;
    }
    Ok(done())
}

fn of_table(function: &'static str, schema: &str, table: &str) -> Change {
    Change::new(function).text("schema", "text", schema).text("table", "text", table)
}

fn truth(yes: bool) -> &'static str {
    if yes { "true" } else { "false" }
}

fn done() -> Response {
    json(&json!({"result": true}))
}
