//! A source over HTTP: any of its nodes is asked, another one when it fails, the leader where only that can answer.

use super::source::{Answer, Bytestream, Channel, CopyBegun, Source};
use super::subscription::{Subscription, TableName};
use super::trouble::{Kind, Result, Trouble};
use super::versions::Version;
use super::wire::{Base, Wire, unreachable};
use crate::feed::Position;
use crate::uri::encoded;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a node may take to answer, and to begin a stream: a standby that is behind gives itself 5 s to catch up; the
/// snapshot of a copy waits for locks.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const BEGIN_DEADLINE: Duration = Duration::from_secs(10);
const COPY_DEADLINE: Duration = Duration::from_secs(75);
/// How long a stream may say nothing. A stream of changes says where it is each second; a table may take long to begin.
const STREAM_SILENCE: Duration = Duration::from_secs(4);
const COPY_SILENCE: Duration = Duration::from_secs(660);
/// The longest answer that is no stream.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often "ask the leader" is followed for one request.
const REDIRECTS: usize = 2;
/// How long a copy may be left alone at the source, and a follower.
const COPY_TTL: &str = "90s";
const FOLLOWER_TTL: &str = "7d";

const JSON: &str = "application/json";
const FRAMES: &str = "application/x-pgquorum-change";
const COPY: &str = "application/x-postgresql-copy";

pub struct Remote {
    pub(super) wire: Wire,
    /// Those to ask, the next one first: the addresses that the subscription names, and leaders that were heard of.
    bases: Mutex<Vec<Base>>,
    channel: String,
    database: String,
}

impl Remote {
    /// Nothing is connected before something is asked.
    ///
    /// # Errors
    /// An address or the certificate authority cannot be used.
    pub fn new(subscription: &Subscription) -> Result<Remote> {
        let parse = |text: &String| {
            Base::parse(text).ok_or_else(|| {
                Trouble::stopped(
                    "address",
                    format!("{text:?} in remote is not http://host:port or https://host:port"),
                )
            })
        };
        let bases = subscription.remote.iter().map(parse).collect::<Result<Vec<_>>>()?;
        let wire = Wire::new(subscription, &bases)?;
        let database = subscription.remote_database.as_deref();
        let database = database.map(|name| format!("database={}", encoded(name))).unwrap_or_default();
        Ok(Remote { wire, bases: Mutex::new(bases), channel: encoded(&subscription.channel), database })
    }

    pub(super) fn path(&self, rest: &str, query: &str) -> String {
        let query: Vec<&str> =
            [self.database.as_str(), query].into_iter().filter(|part| !part.is_empty()).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("/channels/{}{rest}{query}", self.channel)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Base>> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the node that answered in front.
    pub(super) fn prefer(&self, base: &Base) {
        let mut bases = self.lock();
        bases.retain(|known| known != base);
        bases.insert(0, base.clone());
    }

    /// Asks one node after the other until one does what it is asked.
    async fn ask(
        &self,
        (method, path): (Method, &str),
        accept: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<(Base, Response<Incoming>)> {
        let mut said: Vec<Trouble> = Vec::new();
        let bases = self.lock().clone();
        for first in bases {
            let mut base = first;
            for _ in 0..=REDIRECTS {
                let body = body.map(Value::to_string);
                let sent = self.wire.send(&base, method.clone(), path, accept, body);
                let answer = tokio::time::timeout(deadline, sent)
                    .await
                    .unwrap_or_else(|_| Err(unreachable(&base, &format!("no answer within {deadline:?}"))));
                let response = match answer {
                    Ok(response) => response,
                    Err(trouble) => {
                        said.push(trouble);
                        break;
                    }
                };
                let status = response.status().as_u16();
                if (200..300).contains(&status) {
                    // Who leads is asked for what only leaders do; streams are read wherever they can be.
                    self.prefer(&base);
                    return Ok((base, response));
                }
                let refusal = document(response).await.unwrap_or_default();
                let leader = refusal["leader"]["api"].as_str().and_then(|api| base.sibling(api));
                if let (417, Some(leader)) = (status, leader.filter(|leader| *leader != base)) {
                    base = leader;
                    continue;
                }
                let text = |name: &str| refusal[name].as_str();
                let fallback = format!("{base} answered with status {status}");
                let code = text("code").unwrap_or("http_error");
                said.push(Trouble::from_source(status, code, text("message").unwrap_or(&fallback)));
                break;
            }
        }
        Err(worst(said))
    }

    pub(super) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let (base, response) = self.ask((method, path), JSON, body, ANSWER_DEADLINE).await?;
        let read = tokio::time::timeout(ANSWER_DEADLINE, document(response)).await;
        read.ok().flatten().ok_or_else(|| unreachable(&base, "its answer is no JSON, or was broken off"))
    }

    async fn open(
        &self,
        path: &str,
        accept: &str,
        (begin, silence): (Duration, Duration),
    ) -> Result<Box<dyn Bytestream>> {
        let (base, response) = self.ask((Method::GET, path), accept, None, begin).await?;
        Ok(Box::new(Body { body: response.into_body(), base, silence }))
    }
}

/// What the nodes said, in one: what a person must mend comes before what may pass, and what the source knows of a
/// position before that it cannot be reached.
fn worst(said: Vec<Trouble>) -> Trouble {
    let rank = |trouble: &Trouble| match trouble.kind {
        Kind::Lost => 4,
        Kind::Stopped => 3,
        Kind::Behind => 2,
        _ => 1,
    };
    let most = said.iter().map(rank).max().unwrap_or_default();
    let mut those = said.into_iter().filter(|trouble| rank(trouble) == most);
    let Some(mut first) = those.next() else {
        return Trouble::stopped("address", "remote names no node of the source");
    };
    for other in those.filter(|other| other.code == "unreachable") {
        first.message.push_str("; ");
        first.message.push_str(&other.message);
    }
    first
}

pub(super) async fn document(response: Response<Incoming>) -> Option<Value> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
    let body = tokio::time::timeout(ANSWER_DEADLINE, body).await.ok()?.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}

pub(super) fn unreadable(what: &str) -> Trouble {
    let message = format!(
        "the source's answer about {what} is not what this program expects. Are both of the same version, and is remote the \
         address of a sidecar?"
    );
    Trouble::waiting("bad_answer", message)
}

struct Body {
    body: Incoming,
    base: Base,
    silence: Duration,
}

impl Bytestream for Body {
    fn next(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async {
            loop {
                let frame = tokio::time::timeout(self.silence, self.body.frame()).await;
                match frame {
                    Err(_) => {
                        return Err(unreachable(
                            &self.base,
                            &format!("it says nothing for {:?}", self.silence),
                        ));
                    }
                    Ok(None) => return Ok(None),
                    Ok(Some(Err(error))) => return Err(unreachable(&self.base, &error.to_string())),
                    Ok(Some(Ok(frame))) => {
                        if let Ok(data) = frame.into_data() {
                            return Ok(Some(data));
                        }
                    }
                }
            }
        })
    }
}

#[derive(Deserialize)]
struct ChannelBody {
    origin: String,
    epoch: Option<u64>,
    last_tick: Option<u64>,
    database_version: u64,
    delta_version: Option<u64>,
    bytes: Option<u64>,
    /// Below 0 where more was purged than can be read yet.
    changes: Option<i64>,
    tables: Vec<TableName>,
}

#[derive(Deserialize)]
struct CopyBody {
    id: String,
    position: String,
    database_version: u64,
    version_tick: u64,
    origin: String,
    tables: Vec<CopyTable>,
}

#[derive(Deserialize)]
struct CopyTable {
    #[serde(flatten)]
    name: TableName,
    columns: Vec<String>,
}

/// As `/schemas` has them, and as `quorum.add_schemas` takes them.
#[derive(Deserialize)]
struct SchemaBody {
    id: u64,
    schema_name: String,
    table_name: String,
    columns: Value,
}

pub(super) fn channel_of(found: Value) -> Result<Channel> {
    let body: ChannelBody = serde_json::from_value(found).map_err(|_| unreadable("the channel"))?;
    let end = Position { epoch: body.epoch.unwrap_or_default(), tick: body.last_tick.unwrap_or_default() };
    let tick = end.tick.saturating_sub(body.delta_version.unwrap_or_default());
    let version = Version { number: body.database_version, tick };
    let change_bytes = match (body.bytes, body.changes) {
        (Some(bytes), Some(changes)) if changes > 0 => Some(bytes / changes.unsigned_abs()),
        _ => None,
    };
    Ok(Channel { origin: body.origin, end, version, change_bytes, tables: body.tables })
}

impl Source for Remote {
    fn channel(&self) -> Answer<'_, Channel> {
        Box::pin(async { channel_of(self.json(Method::GET, &self.path("", ""), None).await?) })
    }

    fn schemas(&self) -> Answer<'_, Value> {
        Box::pin(async {
            let found = self.json(Method::GET, &self.path("/schemas", ""), None).await?;
            let all: Vec<SchemaBody> =
                serde_json::from_value(found).map_err(|_| unreadable("the channel's tables"))?;
            let of = |one: SchemaBody| json!({"id": one.id, "schema": one.schema_name, "table": one.table_name, "columns": one.columns});
            Ok(all.into_iter().map(of).collect::<Vec<_>>().into())
        })
    }

    fn end(&self) -> Answer<'_, Position> {
        Box::pin(async { Ok(self.cut().await?.1) })
    }

    fn position_at(&self, time_us: i64) -> Answer<'_, Position> {
        Box::pin(self.moment(time_us))
    }

    fn begin_copy<'a>(&'a self, tables: &'a [TableName]) -> Answer<'a, CopyBegun> {
        Box::pin(async move {
            let tables: Vec<String> = tables.iter().map(|table| encoded(&table.to_string())).collect();
            let path = self.path("/copies", &format!("ttl={COPY_TTL}&tables={}", tables.join(",")));
            let (_, response) = self.ask((Method::POST, &path), JSON, None, COPY_DEADLINE).await?;
            let found = document(response).await.unwrap_or_default();
            let body: CopyBody = serde_json::from_value(found).map_err(|_| unreadable("a copy"))?;
            let position = body.position.parse().map_err(|_| unreadable("a copy"))?;
            let tables = body.tables.into_iter().map(|table| (table.name, table.columns)).collect();
            let version = Version { number: body.database_version, tick: body.version_tick };
            Ok(CopyBegun { id: body.id, position, version, origin: body.origin, tables })
        })
    }

    fn renew_copy<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = self.path(&format!("/copies/{id}"), &format!("ttl={COPY_TTL}"));
            self.json(Method::PUT, &path, None).await.map(drop)
        })
    }

    fn end_copy<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.json(Method::DELETE, &self.path(&format!("/copies/{id}"), ""), None).await.map(drop)
        })
    }

    fn copy<'a>(
        &'a self,
        id: &'a str,
        table: &'a TableName,
        columns: &'a [String],
        filter: Option<&'a str>,
    ) -> Answer<'a, Box<dyn Bytestream>> {
        Box::pin(async move {
            let mut query = format!("columns={}", encoded(&json!(columns).to_string()));
            if let Some(condition) = filter {
                query.push_str(&format!("&where={}", encoded(condition)));
            }
            let path = self.path(&format!("/copies/{id}/{}", encoded(&table.to_string())), &query);
            let opened = self.open(&path, COPY, (COPY_DEADLINE, COPY_SILENCE)).await;
            opened.map_err(|trouble| if filter.is_some() { trouble.of_filter() } else { trouble })
        })
    }

    fn stream(&self, after: Position) -> Answer<'_, Box<dyn Bytestream>> {
        Box::pin(async move {
            let path = self.path("/stream", &format!("after={}", encoded(&after.to_string())));
            self.open(&path, FRAMES, (BEGIN_DEADLINE, STREAM_SILENCE)).await
        })
    }

    fn register<'a>(&'a self, follower: &'a str, after: Option<Position>) -> Answer<'a, ()> {
        Box::pin(async move {
            let after = after.map_or_else(|| "now".to_owned(), |position| position.to_string());
            let body = json!({"name": follower, "after": after, "ttl": FOLLOWER_TTL});
            self.json(Method::POST, &self.path("/followers", ""), Some(&body)).await.map(drop)
        })
    }

    fn move_to<'a>(&'a self, follower: &'a str, position: Position) -> Answer<'a, bool> {
        Box::pin(async move {
            let path = self.path(&format!("/followers/{}", encoded(follower)), "");
            let body = json!({"position": position.to_string()});
            match self.json(Method::PUT, &path, Some(&body)).await {
                Ok(_) => Ok(true),
                Err(trouble) if trouble.code == "unknown_follower" => Ok(false),
                Err(trouble) => Err(trouble),
            }
        })
    }

    fn forget<'a>(&'a self, follower: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = self.path(&format!("/followers/{}", encoded(follower)), "");
            self.json(Method::DELETE, &path, None).await.map(drop)
        })
    }

    fn leave(&self) {
        let mut bases = self.lock();
        if !bases.is_empty() {
            bases.rotate_left(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_takes_what_all_take_on_average() {
        let channel = |more: Value| {
            let mut body = json!({"origin": "berlin", "database_version": 1, "tables": []});
            for (name, value) in more.as_object().into_iter().flatten() {
                body[name.as_str()] = value.clone();
            }
            channel_of(body).unwrap().change_bytes
        };
        assert_eq!(channel(json!({"bytes": 1050, "changes": 10})), Some(105));
        for changes in [0, -1] {
            assert_eq!(channel(json!({"bytes": 8192, "changes": changes})), None, "{changes}");
        }
        assert_eq!(channel(json!({})), None);
    }
}
