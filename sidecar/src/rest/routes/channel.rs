//! What the routes of channels have in common: which channel is meant, what a body may hold, how a state is shown.

use crate::feed::{After, Call, ChannelId, Given};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, respond};
use crate::uri::decoded;
use pgquorum_agent::settings::Span;
use serde_json::{Map, Value};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// What a route with a body is given.
pub(in crate::rest) type Body = Result<Map<String, Value>, Refusal>;

/// `GET` and `HEAD /channels/{channel}/NAME`; the answer is given channel and query as they stand in the address.
pub(in crate::rest) fn reading<A, F>(api: &Api, name: &'static str, answer: A) -> BoxedFilter<(Response,)>
where
    A: Fn(Api, String, String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response, Refusal>> + Send,
{
    let api = api.clone();
    let path = warp::path!("channels" / String / ..).and(warp::path(name)).and(warp::path::end());
    path.and(read())
        .and(query())
        .then(move |channel, query| {
            let answer = answer(api.clone(), channel, query);
            async move { answer.await.unwrap_or_else(Refusal::into_response) }
        })
        .boxed()
}

/// The same for `POST` with a body.
pub(in crate::rest) fn posting<A, F>(api: &Api, name: &'static str, answer: A) -> BoxedFilter<(Response,)>
where
    A: Fn(Api, String, String, Body) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Value, Refusal>> + Send,
{
    let api = api.clone();
    let path = warp::path!("channels" / String / ..).and(warp::path(name)).and(warp::path::end());
    path.and(warp::post())
        .and(query())
        .and(body::object())
        .then(move |channel, query, body| {
            let answer = answer(api.clone(), channel, query, body);
            async move { respond(answer.await) }
        })
        .boxed()
}

/// The database that the request is about.
pub(in crate::rest) fn database(api: &Api, query: &Query) -> Result<String, Refusal> {
    match query.get("database") {
        None => Ok(api.feed().source().default_database().to_owned()),
        Some(name) if name.is_empty() || name.len() > 63 || name.contains('\0') => {
            Err(bad("database", name, "the name of a database"))
        }
        Some(name) => Ok(name.to_owned()),
    }
}

/// The channel that the path and the query name.
pub(in crate::rest) fn channel(api: &Api, segment: &str, query: &Query) -> Result<ChannelId, Refusal> {
    let database = database(api, query)?;
    match decoded(segment).filter(|name| is_channel_name(name)) {
        Some(channel) => Ok(ChannelId { database, channel }),
        // There cannot be one of that name.
        None => Err(unknown_channel(segment, &database)),
    }
}

pub(in crate::rest) fn unknown_channel(channel: &str, database: &str) -> Refusal {
    let message =
        format!("database {database} has no channel {channel}; GET /channels lists those that there are");
    Refusal::new(404, "unknown_channel", message)
}

/// `^[A-Za-z_][A-Za-z0-9_.-]{0,62}$`
pub(in crate::rest) fn is_channel_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// A segment of the path as it was meant.
pub(in crate::rest) fn segment(name: &str, text: &str) -> Result<String, Refusal> {
    decoded(text).ok_or_else(|| bad(name, text, "a name, with %XX for what an address cannot hold"))
}

/// A position as it stands in a query or a body.
pub(in crate::rest) fn position(text: &str) -> Result<After, Refusal> {
    text.parse()
        .map_err(|error| Refusal::bad_request("bad_position", format!("{text:?} is no position: {error}")))
}

/// The channel's state, with its tables and followers.
pub(in crate::rest) async fn state(api: &Api, id: &ChannelId) -> Result<Value, Refusal> {
    let source = api.feed().source();
    let mut states = source.states(&id.database, Some(&id.channel)).await?;
    let Some(Value::Object(mut state)) = states.pop() else {
        return Err(unknown_channel(&id.channel, &id.database));
    };
    state.insert("database".to_owned(), id.database.clone().into());
    state.insert("tables".to_owned(), source.tables(id).await?.into());
    state.insert("followers".to_owned(), source.followers(id).await?.into());
    Ok(Value::Object(state))
}

/// The fields of a body, taken one by one.
pub(in crate::rest) struct Fields {
    given: Map<String, Value>,
    known: &'static [&'static str],
}

impl Fields {
    /// Nothing but `known` may be in it.
    pub(in crate::rest) fn new(
        given: Map<String, Value>,
        known: &'static [&'static str],
    ) -> Result<Fields, Refusal> {
        match given.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(Fields { given, known }),
            Some(name) => {
                let message = format!("unknown field {name:?}; this route knows {}", known.join(", "));
                Err(Refusal::bad_request("unknown_field", message))
            }
        }
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        debug_assert!(self.known.contains(&name));
        match self.given.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&value).map(Some).ok_or_else(|| {
                Refusal::bad_request("bad_field", format!("{name} is {value}; expected {expected}"))
            }),
        }
    }

    pub(in crate::rest) fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        let fits = |text: &&str| !text.is_empty() && !text.contains('\0');
        self.take(name, "a text", |value| value.as_str().filter(fits).map(str::to_owned))
    }

    pub(in crate::rest) fn need(&mut self, name: &'static str) -> Result<String, Refusal> {
        self.text(name)?.ok_or_else(|| {
            Refusal::bad_request("missing_field", format!("the body must have {name}, a text"))
        })
    }

    /// A text that may be empty.
    pub(in crate::rest) fn any_text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        let fits = |text: &&str| !text.contains('\0');
        self.take(name, "a text", |value| value.as_str().filter(fits).map(str::to_owned))
    }

    pub(in crate::rest) fn flag(&mut self, name: &'static str) -> Result<Option<Given>, Refusal> {
        self.take(name, "true or false", |value| value.as_bool().map(|flag| Given::Text(flag.to_string())))
    }

    pub(in crate::rest) fn number(&mut self, name: &'static str) -> Result<Option<Given>, Refusal> {
        let read = |value: &Value| value.as_i64().filter(|n| *n >= 0).map(Given::Number);
        self.take(name, "a number from 0 on", read)
    }

    pub(in crate::rest) fn names(&mut self, name: &'static str) -> Result<Option<Given>, Refusal> {
        let read = |value: &Value| {
            let names = value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<Vec<String>>>().filter(|names| !names.is_empty()).map(Given::Texts)
        };
        self.take(name, "an array of names, not an empty one", read)
    }

    /// An object, as JSON; it may be empty.
    pub(in crate::rest) fn object(&mut self, name: &'static str) -> Result<Option<Given>, Refusal> {
        let read = |value: &Value| value.is_object().then(|| Given::Text(value.to_string()));
        self.take(name, "an object", read)
    }

    /// A length of time, as PostgreSQL reads it.
    pub(in crate::rest) fn span(&mut self, name: &'static str) -> Result<Option<Given>, Refusal> {
        let read = |value: &Value| {
            let text = value.as_str()?;
            // `1m` is a minute here and everywhere else in this interface, a month to PostgreSQL.
            let ms = humantime::parse_duration(text).ok().map(|span| span.as_millis());
            Some(Given::Text(ms.map_or_else(|| text.to_owned(), |ms| format!("{ms} milliseconds"))))
        };
        self.take(name, "a duration such as 90s, 12h or 7 days", read)
    }

    pub(in crate::rest) fn after(&mut self, name: &'static str) -> Result<Option<After>, Refusal> {
        // A tick may come as a number.
        let read = |value: &Value| {
            value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|n| n.to_string()))
        };
        self.take(name, "a position", read)?.map(|text| position(&text)).transpose()
    }
}

/// Adds an argument if it was given.
pub(in crate::rest) fn with(
    call: Call,
    name: &'static str,
    type_name: &'static str,
    given: Option<Given>,
) -> Call {
    match given {
        Some(value) => call.with(name, type_name, value),
        None => call,
    }
}

/// The length of a wait, at most `max_s` seconds.
pub(in crate::rest) fn wait(query: &Query, max_s: u64) -> Result<std::time::Duration, Refusal> {
    match query.get("wait") {
        None | Some("0" | "0s" | "0ms") => Ok(std::time::Duration::ZERO),
        Some(text) => {
            let span = Span::parse(text).ok().filter(|span| span.ms() <= max_s * 1000);
            let span = span.ok_or_else(|| {
                bad("wait", text, &format!("a duration such as 500ms or 10s, at most {max_s}s"))
            })?;
            Ok(std::time::Duration::from_millis(span.ms()))
        }
    }
}
