//! `/channels/{channel}/sequences` and `/subscriptions/{name}/sequences`: what sequences have given at the source, and
//! setting those here beyond it.

use super::channel::{self, Body, Fields, with};
use crate::feed::{Call, Given};
use crate::follow::{Remote, Subscription, Trouble};
use crate::rest::api::{Api, query};
use crate::rest::body;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json, respond};
use serde_json::{Value, json as document};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let setter = api.clone();
    let list = channel::reading(api, "sequences", |api, channel, query| async move {
        Ok(json(200, &list(&api, &channel, &query).await?))
    });
    let set = warp::path!("subscriptions" / String / "sequences")
        .and(warp::post())
        .and(query())
        .and(body::object())
        .then(move |name: String, query: String, body| {
            let api = setter.clone();
            async move { respond(set(&api, &name, &query, body).await) }
        });
    list.or(set).unify().boxed()
}

async fn list(api: &Api, channel: &str, query: &str) -> Result<Value, Refusal> {
    // A standby does not know what was given last.
    api.leader_view()?;
    let id = channel::channel(api, channel, &Query::strict(query, &["database"])?)?;
    Ok(api.feed().source().sequences(&id).await?.into())
}

async fn set(api: &Api, name: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    let database = channel::database(api, &Query::strict(query, &["database"])?)?;
    let name = channel::segment("name", name)?;
    let mut fields = Fields::new(body?, &["from", "step"])?;
    let from = Basis::read(fields.text("from")?.as_deref())?;
    let sequences = advance(api, &database, &name, from, fields.number("step")?).await?;
    Ok(document!({"name": name, "database": database, "sequences": sequences}))
}

/// By what it is known how far sequences must be.
#[derive(Clone, Copy)]
pub(super) enum Basis {
    /// What the source's sequences have given.
    Source,
    /// The rows that are here.
    Rows,
}

impl Basis {
    pub(super) fn read(text: Option<&str>) -> Result<Basis, Refusal> {
        match text {
            None | Some("source") => Ok(Basis::Source),
            Some("rows") => Ok(Basis::Rows),
            Some(other) => {
                let message =
                    format!("{other:?} is nothing that sequences are set by; expected source or rows");
                Err(Refusal::bad_request("bad_field", message))
            }
        }
    }
}

/// Sets the sequences of a subscription's tables; what was done with each.
pub(super) async fn advance(
    api: &Api,
    database: &str,
    name: &str,
    from: Basis,
    step: Option<Given>,
) -> Result<Value, Refusal> {
    let source = api.feed().source();
    let known = match from {
        Basis::Rows => None,
        Basis::Source => {
            let row = source.subscription(database, name).await?;
            let row = row.ok_or_else(|| super::subscriptions::unknown(database, name))?;
            Some(ask(row).await.map_err(|trouble| not_heard(&trouble))?)
        }
    };
    let call = Call::rows("advance_sequences").text("subscription_name", "text", name);
    let call = with(call, "step", "int8", step);
    let call = with(call, "source", "jsonb", known.map(|rows| Given::Text(rows.to_string())));
    let done = source.call(database, call).await?;
    // No row at all is no array.
    if done.is_empty() {
        return Ok(document!([]));
    }
    serde_json::from_str(&done).map_err(|_| Refusal::unexpected_reply())
}

async fn ask(row: Value) -> Result<Value, Trouble> {
    Remote::new(&Subscription::read(row)?)?.sequences().await
}

fn not_heard(trouble: &Trouble) -> Refusal {
    let message = format!(
        "nothing was changed: {} ({}). If the source is lost, go by the rows that are here: \"from\": \"rows\"",
        trouble.message, trouble.code
    );
    Refusal::new(531, "source_unavailable", message)
}
