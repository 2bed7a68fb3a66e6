//! Request bodies: bounded in size and time, and read as JSON, or as forms, with errors that help.

use super::refusal::Refusal;
use crate::uri;
use futures_util::{Stream, StreamExt};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;
use warp::filters::BoxedFilter;
use warp::{Buf, Filter};

/// The longest body that is read.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The longest body that holds rows of a table, and how long it may take.
const ROWS_BYTES_MAX: usize = 16 * 1024 * 1024;
const ROWS_DEADLINE: Duration = Duration::from_secs(60);

/// How much more of a body that is too long is read and thrown away, so that the client gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 7 * 1024 * 1024;

/// How long a client may take to send its body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The body as a JSON object.
pub(super) fn object() -> BoxedFilter<(Result<Map<String, Value>, Refusal>,)> {
    warp::body::stream().then(|stream| async move { parse(&short(stream).await?) }).boxed()
}

/// The fields of a form, each once.
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    /// A field's value; one without a value counts as one that is not there.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The body as a form, as browsers send it.
pub(super) fn form() -> BoxedFilter<(Result<Form, Refusal>,)> {
    warp::body::stream().then(|stream| async move { parse_form(&short(stream).await?) }).boxed()
}

async fn short(stream: impl Stream<Item = Result<impl Buf, warp::Error>> + Send) -> Result<Vec<u8>, Refusal> {
    let late = |_| Refusal::new(408, "body_too_slow", "the body did not arrive within 10 s; send it again");
    tokio::time::timeout(BODY_DEADLINE, collect(stream, BODY_BYTES_MAX)).await.map_err(late)?
}

/// The body as it is, for rows of tables.
///
/// # Errors
/// It is too long, too slow, or breaks off.
pub(super) async fn rows(
    stream: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Result<Vec<u8>, Refusal> {
    let late = |_| {
        Refusal::new(
            408,
            "body_too_slow",
            "the body did not arrive within 60 s; send it again, in smaller parts",
        )
    };
    tokio::time::timeout(ROWS_DEADLINE, collect(stream, ROWS_BYTES_MAX)).await.map_err(late)?
}

async fn collect(
    stream: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
    bytes_max: usize,
) -> Result<Vec<u8>, Refusal> {
    let mut stream = pin!(stream);
    let mut bytes = Vec::new();
    let mut received = 0;
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk.map_err(|_| Refusal::bad_request("body_broken", "the body broke off"))?;
        received += chunk.remaining();
        if received > bytes_max + DISCARDED_BYTES_MAX {
            break;
        }
        while received <= bytes_max && chunk.has_remaining() {
            bytes.extend_from_slice(chunk.chunk());
            chunk.advance(chunk.chunk().len());
        }
    }
    if received > bytes_max {
        let message = format!("the body is longer than {} MiB", bytes_max >> 20);
        return Err(Refusal::new(413, "body_too_large", message));
    }
    Ok(bytes)
}

/// What it says of a form that is wrong never repeats it: there may be a password in it.
fn parse_form(bytes: &[u8]) -> Result<Form, Refusal> {
    let decoded = |text: &str| uri::decoded(&text.replace('+', " "));
    let broken =
        || Refusal::bad_request("malformed_form", "the body is not application/x-www-form-urlencoded");
    let mut fields = BTreeMap::new();
    let text = std::str::from_utf8(bytes).map_err(|_| broken())?;
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = decoded(name).zip(decoded(value)).ok_or_else(broken)?;
        if fields.insert(name, value).is_some() {
            return Err(Refusal::bad_request(
                "duplicate_field",
                "a field of the form is there more than once",
            ));
        }
    }
    Ok(Form(fields))
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::bad_request(
            "not_an_object",
            "the body must be a JSON object, as in {\"name\": value}",
        )),
        Err(error) => Err(Refusal::bad_request("malformed_json", format!("the body is not JSON: {error}"))),
    }
}
