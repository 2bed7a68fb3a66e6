//! `GET /channels/{channel}/stream`: changes as they come, until the client leaves.

use super::channel;
use crate::feed::{After, Wire};
use crate::rest::api::{Api, query, read};
use crate::rest::forward::HOP_HEADER;
use crate::rest::query::Query;
use crate::rest::refusal::Refusal;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, header};
use warp::reply::Response;

const NDJSON: &str = "application/x-ndjson";
const EVENTS: &str = "text/event-stream";
const BINARY: &str = "application/x-pgquorum-change";

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("channels" / String / "stream")
        .and(read())
        .and(query())
        .and(warp::header::headers_cloned())
        .then(move |channel: String, query: String, headers: HeaderMap| {
            let api = api.clone();
            async move { answer(&api, &channel, &query, &headers).await.unwrap_or_else(Refusal::into_response) }
        })
        .boxed()
}

async fn answer(api: &Api, channel: &str, query: &str, headers: &HeaderMap) -> Result<Response, Refusal> {
    // Another node passes on that somebody waits there. It takes this one for the leader; if that is no more so, it
    // must not be passed on again.
    if headers.contains_key(HOP_HEADER) {
        api.leader_view()?;
    }
    api.data_view()?;
    let query = Query::strict(query, &["after", "tables", "changes", "database"])?;
    let id = channel::channel(api, channel, &query)?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (wire, content_type) = wire(text(header::ACCEPT.as_str()));
    let resumed = text("last-event-id").map(str::trim).filter(|id| !id.is_empty());
    let after = match resumed.or(query.get("after")) {
        Some(text) => channel::position(text)?,
        None => After::Start,
    };
    let tables = query.list("tables")?;
    if wire == Wire::Binary && !tables.is_empty() {
        let message =
            "the binary stream is the log as it is, with all tables; leave `tables` out, or ask for JSON";
        return Err(Refusal::bad_request("no_filter", message));
    }
    let place = api.reader_place()?;
    let bytes = if query.flag("changes")?.unwrap_or(true) {
        api.feed().stream(id, after, tables, wire).await?
    } else {
        api.feed().heartbeats(id, wire).await?
    };
    Ok(place.bytes(bytes, content_type))
}

/// The first kind in the header that there is; lines of JSON if it names none.
fn wire(accept: Option<&str>) -> (Wire, &'static str) {
    let kinds =
        accept.unwrap_or_default().split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
    for kind in kinds {
        match kind {
            NDJSON => return (Wire::Ndjson, NDJSON),
            EVENTS => return (Wire::Events, EVENTS),
            BINARY => return (Wire::Binary, BINARY),
            _ => {}
        }
    }
    (Wire::Ndjson, NDJSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses_what_it_understands() {
        for (accept, expected) in [
            (None, Wire::Ndjson),
            (Some("*/*"), Wire::Ndjson),
            (Some("application/json"), Wire::Ndjson),
            (Some("text/event-stream"), Wire::Events),
            (Some("text/html, application/x-pgquorum-change;q=0.9, text/event-stream"), Wire::Binary),
        ] {
            assert_eq!(wire(accept).0, expected, "{accept:?}");
        }
    }
}
