//! `/rest/v5/cluster/…`, also below `/fact-finder`: the delta interface. A cluster that publishes a channel is its director,
//! one that follows it a worker. docs/delta-interface.md says what each request means here.
//!
//! - `error` has the words in which requests are refused; `state` what a channel's state is;
//! - `worker` brings a worker to where its director is; `results` says what became of each change on the way;
//! - `asked` does the same for those who ask in SQL.

mod asked;
mod error;
mod results;
mod state;
mod worker;

pub(in crate::rest) use asked::work as work_for_sql;
pub(in crate::rest) use error::refuse;

use super::channel;
use crate::feed::Call;
use crate::rest::api::{Api, query};
use crate::rest::forward::HOP_HEADER;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, json};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderValue, Method, header};
use warp::path::FullPath;
use warp::reply::Response;

/// How long a worker may take to get where its director is, unless the request says something else, and at most.
const SYNC: Duration = Duration::from_secs(60);
const FULL: Duration = Duration::from_secs(600);
const WAIT_MAX_S: u64 = 3600;
/// How much longer the leader may take to answer a node that asks in a client's name.
const GRACE: Duration = Duration::from_secs(30);

const PREFIX: &str = "/fact-finder";
const BASE: &str = "/rest/v5/cluster/";

/// What a path asks for; the channel as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action<'a> {
    FullSync,
    ResetCounters,
    Prune(&'a str),
    Sync(&'a str),
    Database(&'a str),
    Imports(&'a str),
    State(&'a str),
}

impl Action<'_> {
    fn of(path: &str) -> Option<Action<'_>> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let path = path.strip_prefix(PREFIX).unwrap_or(path).strip_prefix(BASE)?;
        match path.split('/').collect::<Vec<_>>()[..] {
            ["database", "sync", "full"] => Some(Action::FullSync),
            ["reset", "config", "version", "counters"] => Some(Action::ResetCounters),
            [channel, "database", "prune"] => Some(Action::Prune(channel)),
            [channel, "database", "sync"] => Some(Action::Sync(channel)),
            [channel, "database", "state"] => Some(Action::Database(channel)),
            [channel, "import", "state"] => Some(Action::Imports(channel)),
            [channel, "state"] => Some(Action::State(channel)),
            _ => None,
        }
    }

    /// Whether the leader alone can do it.
    fn changes(self) -> bool {
        !matches!(self, Action::Database(_) | Action::Imports(_) | Action::State(_))
    }

    /// How long it may take, if the client does not say.
    fn patience(self) -> Option<Duration> {
        match self {
            Action::Sync(_) => Some(SYNC),
            Action::FullSync => Some(FULL),
            _ => None,
        }
    }
}

/// A request as it came.
struct Asked {
    method: Method,
    path: String,
    query: String,
    /// By another node, in the name of its client.
    forwarded: bool,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    let plain = warp::path!("rest" / "v5" / "cluster" / ..);
    let below = warp::path!("fact-finder" / "rest" / "v5" / "cluster" / ..);
    let hop = warp::header::optional::<String>(HOP_HEADER);
    let parts = warp::method().and(warp::path::full()).and(query()).and(hop);
    plain
        .or(below)
        .unify()
        .and(parts)
        .then(move |method, path: FullPath, query, hop: Option<String>| {
            let api = api.clone();
            let asked = Asked { method, path: path.as_str().to_owned(), query, forwarded: hop.is_some() };
            async move {
                let answer = answer(&api, &asked).await;
                answer.unwrap_or_else(|refusal| refuse(refusal, &asked.method, &asked.path, &asked.query))
            }
        })
        .boxed()
}

async fn answer(api: &Api, asked: &Asked) -> Result<Response, Refusal> {
    let action = Action::of(&asked.path).ok_or_else(Refusal::unexpected_reply)?;
    let known: &[&str] =
        if action.patience().is_some() { &["database", "verbose", "wait"] } else { &["database", "verbose"] };
    let query = Query::strict(&asked.query, known)?;
    let verbose = query.flag("verbose")?.unwrap_or(false);
    let database = channel::database(api, &query)?;
    let wait = match query.get("wait") {
        None => action.patience().unwrap_or_default(),
        Some(_) => channel::wait(&query, WAIT_MAX_S)?,
    };
    if action.changes()
        && let Some(passed) = pass_on(api, asked, wait).await?
    {
        return Ok(passed);
    }
    let deadline = Instant::now() + wait;
    let name = |segment| channel::channel(api, segment, &query).map(|id| id.channel);
    let state = async |segment| {
        api.data_view()?;
        state::of(api, &database, &name(segment)?, None).await
    };
    Ok(match action {
        Action::Database(channel) => json(200, &state(channel).await?.database()),
        Action::Imports(channel) => json(200, &state(channel).await?.imports()),
        Action::State(channel) => json(200, &state(channel).await?.whole()),
        Action::Prune(channel) => json(200, &prune(api, &database, &name(channel)?).await?),
        Action::ResetCounters => json(200, &reset(api, &database).await?),
        // What was begun is ended, also if the client does not wait for it: a worker that rests must rest again.
        Action::Sync(channel) => {
            let synced = worker::sync(api.clone(), database.clone(), name(channel)?, verbose, deadline);
            json(200, &ended(tokio::spawn(synced).await)?)
        }
        Action::FullSync => {
            let synced = worker::full(api.clone(), database.clone(), deadline);
            ended(tokio::spawn(synced).await)?;
            nothing()
        }
    })
}

/// The leader's answer, where that is another node.
async fn pass_on(api: &Api, asked: &Asked, wait: Duration) -> Result<Option<Response>, Refusal> {
    let refusal = match api.leader_view() {
        Ok(_) => return Ok(None),
        Err(refusal) => refusal,
    };
    let view = api.view();
    match &view.leader {
        Some(leader) if refusal.status() == 417 && !asked.forwarded => {
            let query = if asked.query.is_empty() { String::new() } else { format!("?{}", asked.query) };
            let path = format!("{}{query}", asked.path);
            api.forward().post_within(leader.api, &path, view.id, wait + GRACE).await.map(Some)
        }
        _ => Err(refusal),
    }
}

async fn prune(api: &Api, database: &str, channel: &str) -> Result<Value, Refusal> {
    let call = Call::new("prune").text("channel", "text", channel);
    let version = api.feed().source().call(database, call).await?;
    Ok(json!(format!("databaseVersion of channel {channel} is {version}: each worker reloads once")))
}

async fn reset(api: &Api, database: &str) -> Result<Value, Refusal> {
    let count = api.feed().source().call(database, Call::new("reset_config_versions")).await?;
    Ok(json!(format!("config version counters were set to 0, of subscriptions: {count}")))
}

fn ended<T>(work: Result<Result<T, Refusal>, tokio::task::JoinError>) -> Result<T, Refusal> {
    work.unwrap_or_else(|_| {
        let message =
            "the work was broken off by a fault of this program; its log says more. Please report it";
        Err(Refusal::new(500, "broken_off", message))
    })
}

fn nothing() -> Response {
    let mut response = Response::default();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_means_the_same_with_and_without_the_prefix() {
        for (path, action) in [
            ("database/sync/full", Action::FullSync),
            ("reset/config/version/counters", Action::ResetCounters),
            ("shop/database/prune", Action::Prune("shop")),
            ("shop/database/sync", Action::Sync("shop")),
            ("database/database/state", Action::Database("database")),
            ("reset/import/state", Action::Imports("reset")),
            ("shop/state", Action::State("shop")),
        ] {
            for path in [format!("{BASE}{path}"), format!("{PREFIX}{BASE}{path}/")] {
                assert_eq!(Action::of(&path), Some(action), "{path}");
            }
        }
        for path in ["/rest/v5/cluster/shop", "/rest/v5/cluster/shop/database", "/rest/v5/shop/state"] {
            assert_eq!(Action::of(path), None, "{path}");
        }
    }
}
