//! Request bodies: bounded in size and time, and read as JSON with errors that help.

use super::refusal::Refusal;
use futures_util::{Stream, StreamExt};
use serde_json::{Map, Value};
use std::pin::pin;
use std::time::Duration;
use warp::filters::BoxedFilter;
use warp::{Buf, Filter};

/// The longest body that is read.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// How much of a body that is too long is read and thrown away, so that the client gets to read the answer.
const DISCARDED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a client may take to send its body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// The body as a JSON object.
pub(super) fn object() -> BoxedFilter<(Result<Map<String, Value>, Refusal>,)> {
    let read = |stream| async move {
        let late =
            |_| Refusal::new(408, "body_too_slow", "the body did not arrive within 10 s; send it again");
        let bytes = tokio::time::timeout(BODY_DEADLINE, collect(stream)).await.map_err(late)??;
        parse(&bytes)
    };
    warp::body::stream().then(read).boxed()
}

async fn collect(
    stream: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Result<Vec<u8>, Refusal> {
    let mut stream = pin!(stream);
    let mut bytes = Vec::new();
    let mut received = 0;
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk.map_err(|_| Refusal::bad_request("body_broken", "the body broke off"))?;
        received += chunk.remaining();
        if received > DISCARDED_BYTES_MAX {
            break;
        }
        while received <= BODY_BYTES_MAX && chunk.has_remaining() {
            bytes.extend_from_slice(chunk.chunk());
            chunk.advance(chunk.chunk().len());
        }
    }
    if received > BODY_BYTES_MAX {
        return Err(Refusal::new(413, "body_too_large", "the body is longer than 1 MiB"));
    }
    Ok(bytes)
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
