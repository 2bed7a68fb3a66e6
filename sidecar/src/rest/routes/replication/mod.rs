//! `/_api/…`, `/_admin/wal/…` and `/_open/auth`, each also below `/_db/{database}`: the replication interface. What is
//! meant by tables, rows and positions is in [`crate::replication`]; here requests are read and answers formed.

mod applier;
mod auth;
mod describe;
mod read;
mod restore;

use crate::feed::ChannelId;
use crate::replication::{
    BATCH_NOT_FOUND, CHANNEL, DATABASE_NOT_FOUND, Failure, INVALID_JSON, Log, Result, SUPERFLUOUS_SUFFIX,
    SYSTEM,
};
use crate::rest::api::{Api, query};
use crate::rest::body;
use crate::rest::guard::Sender;
use crate::rest::query::Query;
use crate::rest::refusal::{Refusal, with_body};
use crate::rest::table::Route;
use crate::uri::decoded;
use serde_json::{Map, Value};
use warp::filters::BoxedFilter;
use warp::http::{HeaderValue, Method, header};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection, reject};

const JSON: &str = "application/json; charset=utf-8";

/// A request, as all of these routes are given it.
struct Call {
    api: Api,
    method: Method,
    database: String,
    query: Query,
    body: Result<Map<String, Value>>,
    sender: Option<Sender>,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (api, restoring) = (api.clone(), api.clone());
    let rows =
        ours(true).and(query()).and(warp::body::stream()).then(move |path: String, query: String, stream| {
            let api = restoring.clone();
            async move {
                let restored = async {
                    let (call, _) = call(api, Method::PUT, &path, &query)?;
                    restore::rows(&call, stream).await
                };
                restored.await.unwrap_or_else(|failure| refuse(&failure))
            }
        });
    let others =
        ours(false).and(warp::method()).and(query()).and(warp::ext::optional()).and(body::object()).then(
            move |path: String, method, query: String, sender, body: std::result::Result<_, Refusal>| {
                let api = api.clone();
                async move {
                    let answered = async {
                        let (call, rest) = call(api, method, &path, &query)?;
                        answer(Call { body: body.map_err(bad_body), sender, ..call }, rest).await
                    };
                    answered.await.unwrap_or_else(|failure| refuse(&failure))
                }
            },
        );
    rows.or(others).unify().boxed()
}

/// A request without its body, and the path below the database.
fn call<'p>(api: Api, method: Method, path: &'p str, query: &str) -> Result<(Call, &'p str)> {
    let (database, rest) = split(path)?;
    let database = match database.as_deref() {
        None | Some(SYSTEM) => api.feed().source().default_database().to_owned(),
        Some(name) => name.to_owned(),
    };
    let query = Query::lenient(query).map_err(bad_request)?;
    Ok((Call { api, method, database, query, body: Ok(Map::new()), sender: None }, rest))
}

/// The path, if it is one of this interface. The guard lets nothing else pass than what is served. `rows`: whose body is rows
/// and no object.
fn ours(rows: bool) -> impl Filter<Extract = (String,), Error = Rejection> + Clone {
    warp::path::full().and_then(move |path: FullPath| async move {
        let ours =
            ["/_api/", "/_db/", "/_admin/", "/_open/"].iter().any(|area| path.as_str().starts_with(area));
        let has_rows = path.as_str().trim_end_matches('/').ends_with("/_api/replication/restore-data");
        if ours && has_rows == rows { Ok(path.as_str().to_owned()) } else { Err(reject::not_found()) }
    })
}

/// The database, if one is named, and the rest of the path.
fn split(path: &str) -> Result<(Option<String>, &str)> {
    let Some(below) = path.strip_prefix("/_db/") else { return Ok((None, path)) };
    let (database, rest) = below.find('/').map_or((below, ""), |at| below.split_at(at));
    let name = decoded(database).filter(|name| !name.is_empty() && name.len() <= 63 && !name.contains('\0'));
    let name = name.ok_or_else(|| Failure::bad(format!("{database:?} cannot be the name of a database")))?;
    Ok((Some(name), rest))
}

async fn answer(call: Call, path: &str) -> Result<Response> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["_open", "auth"] => auth::open(call).await,
        ["_api", "version"] => describe::version(&call).await,
        ["_api", "collection"] => describe::collections(&call).await,
        ["_api", "replication", command] => match (*command, call.method == Method::PUT) {
            ("server-id", _) => describe::server_id(&call).await,
            ("logger-state", _) => describe::logger_state(&call).await,
            ("logger-first-tick", _) => describe::first_tick(&call).await,
            ("logger-tick-ranges", _) => describe::tick_ranges(&call).await,
            ("logger-config", false) => describe::logger_config(&call).await,
            ("logger-config", true) => describe::set_config(&call).await,
            ("logger-start", _) => describe::start(&call).await,
            ("logger-stop", _) => describe::stop(&call).await,
            ("restore-collection", _) => restore::collection(&call).await,
            ("restore-indexes", _) => restore::indexes(&call).await,
            ("inventory", _) => describe::inventory(&call, false).await,
            ("clusterInventory", _) => describe::inventory(&call, true).await,
            ("batch", _) => read::begin_batch(&call).await,
            ("dump", _) => read::dump(&call).await,
            ("logger-follow", _) => read::follow(&call, crate::replication::Dialect::Logger).await,
            ("applier-config", _) => applier::config(&call).await,
            ("applier-state", _) => applier::state(&call).await,
            ("applier-state-all", _) => applier::all_states(&call).await,
            ("applier-start", _) => applier::start(&call).await,
            ("applier-stop", _) => applier::stop(&call).await,
            ("sync", _) => applier::copy(&call).await,
            ("make-follower" | "make-slave", _) => applier::make_follower(&call).await,
            _ => Err(unknown(path)),
        },
        ["_api", "replication", "batch", batch] => read::change_batch(&call, batch).await,
        ["_api", "wal", "range"] => describe::wal_range(&call).await,
        ["_api", "wal", "lastTick"] => describe::wal_last_tick(&call).await,
        ["_api", "wal", "tail"] => read::follow(&call, crate::replication::Dialect::Wal).await,
        ["_admin", "wal", "flush"] => describe::flush(&call).await,
        ["_admin", "wal", "properties"] if call.method == Method::PUT => Err(describe::fixed_properties()),
        ["_admin", "wal", "properties"] => describe::wal_properties(&call).await,
        ["_admin", "wal", "transactions"] => describe::wal_transactions(&call).await,
        _ => Err(unknown(path)),
    }
}

impl Call {
    /// The log of the database.
    fn id(&self) -> ChannelId {
        ChannelId { database: self.database.clone(), channel: CHANNEL.to_owned() }
    }

    /// What is known of it, on a node that has data.
    async fn log(&self) -> Result<Log> {
        self.api.data_view().map_err(unavailable)?;
        Log::read(self.api.feed().source(), &self.id()).await
    }

    /// What was done with a batch. Where the whole database is missing, that is why there is none.
    async fn in_batch<T>(&self, done: Result<T>) -> Result<T> {
        if let Err(failure) = &done
            && failure.number == BATCH_NOT_FOUND
            && let Err(unknown) = self.log().await
            && unknown.number == DATABASE_NOT_FOUND
        {
            return Err(unknown);
        }
        done
    }

    /// Only the leader can do this.
    fn leads(&self) -> Result<()> {
        self.api.leader_view().map(|_| ()).map_err(unavailable)
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.query.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("") => Ok(default),
            Some("true" | "1" | "yes" | "on" | "y") => Ok(true),
            Some("false" | "0" | "no" | "off" | "n") => Ok(false),
            Some(text) => Err(Failure::bad(format!("{name} is {text:?}; expected true or false"))),
        }
    }

    /// A number of 64 bits.
    fn number(&self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number
            .map(Some)
            .ok_or_else(|| Failure::bad(format!("{name} is {text:?}; expected a number from 0 on")))
    }

    /// Each database has an applier of its own, and there is none for all.
    fn not_global(&self) -> Result<()> {
        match self.flag("global", false)? {
            false => Ok(()),
            true => Err(Failure::not_implemented(
                "global=true is not served here: each database has an applier of its own. Ask for each of them, at \
                 /_db/DATABASE/_api/…",
            )),
        }
    }

    /// All databases are asked for at once.
    fn is_global(&self) -> Result<bool> {
        let global = self.flag("global", false)?;
        if global && self.database != self.api.feed().source().default_database() {
            return Err(describe::not_here());
        }
        Ok(global)
    }
}

fn json(value: &Value) -> Response {
    with_body(200, JSON, value.to_string())
}

fn refuse(failure: &Failure) -> Response {
    if failure.code == 500 {
        tracing::error!("{}", failure.message);
    }
    with_body(failure.code, JSON, failure.body().to_string())
}

fn bad_request(refusal: Refusal) -> Failure {
    Failure::bad(refusal.message())
}

fn bad_body(refusal: Refusal) -> Failure {
    match refusal.status() {
        400 => Failure::new(400, INVALID_JSON, format!("invalid JSON object: {}", refusal.message())),
        status => Failure::new(status, status, refusal.message()),
    }
}

/// This node cannot answer now, or is not the one that can. Clients that know other nodes go there.
fn unavailable(refusal: Refusal) -> Failure {
    Failure::new(503, 503, refusal.message())
}

fn unknown(path: &str) -> Failure {
    Failure::new(404, 404, format!("unknown path '{path}'"))
}

/// The answer in this interface's words when no route took the request.
pub(in crate::rest) fn unrouted(method: &Method, path: &str) -> Response {
    if let Some(route) = Route::find(path) {
        let allowed = route.methods().map(Method::as_str).collect::<Vec<_>>().join(", ");
        let mut response =
            refuse(&Failure::new(405, 405, format!("method {method} not supported, only {allowed}")));
        if let Ok(allowed) = HeaderValue::from_str(&allowed) {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
        return response;
    }
    let mut shorter = path;
    while let Some((above, _)) = shorter.rsplit_once('/') {
        if Route::find(above).is_some_and(|route| route.path.starts_with("/_")) {
            let message = format!("superfluous URL suffices, expecting URL {above}");
            return refuse(&Failure::new(400, SUPERFLUOUS_SUFFIX, message));
        }
        shorter = above;
    }
    if let Some((_, command)) = path.split_once("/_api/replication/") {
        return refuse(&match command.split('/').next() {
            Some(missing @ ("revisions" | "barrier")) => Failure::not_implemented(format!(
                "{missing} is not served here. To copy what differs, copy again with a batch (POST /_api/replication/batch); how \
                 much of the log is kept says PUT /_api/replication/logger-config"
            )),
            _ => Failure::bad("invalid command"),
        });
    }
    refuse(&unknown(path))
}
