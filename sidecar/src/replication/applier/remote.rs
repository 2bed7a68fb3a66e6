//! The other server, over HTTP: only what the protocol documents is asked of it.

use super::config::Config;
use super::fault::{Fault, Kind, LEADER_ERROR, NO_RESPONSE, Result};
use super::reply::Reply;
use crate::follow::{Base, Wire};
use crate::replication::{BATCH_NOT_FOUND, SYSTEM};
use crate::uri::encoded;
use http_body_util::{BodyExt, Limited};
use hyper::Method;
use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long small questions may take, whatever `requestTimeout` says of large ones.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How many bytes of the log or of a collection one answer is to have, unless `chunkSize` says so.
const CHUNK_BYTES: u64 = 1 << 20;
/// How long a batch lives after it was asked for last, and how often it is prolonged.
const BATCH_TTL_SECONDS: u64 = 300;
pub const BATCH_RENEWAL: Duration = Duration::from_secs(60);

/// What the remote is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// It is one of ours: names and keys in it are escaped, and of its tables more can be learned.
    pub ours: bool,
    pub server_id: String,
}

/// A snapshot at the remote.
#[derive(Clone, Debug)]
pub struct Batch {
    pub id: String,
    /// Where the log ended then; not all versions say that.
    pub tick: Option<u64>,
}

pub struct Remote {
    wire: Wire,
    /// The one that answered last is the first.
    bases: Mutex<Vec<Base>>,
    /// The name of the database there.
    pub database: String,
    request: Duration,
    dump: Duration,
    chunk: u64,
    bytes_max: usize,
    include_system: bool,
    /// What the database here may be called at the remote, if that follows it.
    known_as: Vec<String>,
}

impl Remote {
    /// Nothing is connected before something is asked. `here`: the name of the database here, which is that of the one there
    /// unless the settings name one.
    ///
    /// # Errors
    /// The settings name no remote that can be asked.
    pub fn new(config: &Config, password: Option<&str>, here: &str) -> Result<Remote> {
        let (wire, bases) = config.wire(password)?;
        Ok(Remote {
            wire,
            bases: Mutex::new(bases),
            database: config.database.clone().unwrap_or_else(|| here.to_owned()),
            request: config.request_timeout.or(600.0),
            dump: config.initial_sync_max_wait_time.or(300.0),
            chunk: if config.chunk_size == 0 { CHUNK_BYTES } else { config.chunk_size },
            bytes_max: usize::try_from(config.max_packet_size).unwrap_or(usize::MAX),
            include_system: config.include_system,
            known_as: Vec::new(),
        })
    }

    /// The same that leaves out, where it can, what the remote got from the database here, which has these names.
    pub fn known_as(self, names: Vec<String>) -> Remote {
        Remote { known_as: names, ..self }
    }

    fn path(&self, rest: &str) -> String {
        format!("/_db/{}/_api/{rest}", encoded(&self.database))
    }

    fn bases(&self) -> Vec<Base> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the node that answered in front.
    fn prefer(&self, base: &Base) {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = bases.iter().position(|known| known == base) {
            bases[..=at].rotate_right(1);
        }
    }

    /// Asks one node after the other until one does what it is asked.
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>, limit: Duration) -> Result<Reply> {
        let mut said = Vec::new();
        for base in self.bases() {
            let asked = tokio::time::timeout(limit, self.ask_one(&base, method.clone(), path, body)).await;
            let answer = asked.unwrap_or_else(|_| {
                Err(Fault::new(Kind::Remote, NO_RESPONSE, format!("{base} did not answer within {limit:?}")))
            });
            match answer {
                Ok(reply) => {
                    self.prefer(&base);
                    return Ok(reply);
                }
                // Another node may lead, or may be reached.
                Err(fault) if fault.kind == Kind::Remote => said.push(fault),
                // This one was told nothing, as it is not whom it should be; another one may be.
                Err(fault) if fault.answered.0 == 0 => {
                    tracing::warn!("a node of the applier's remote is passed over: {fault}");
                    said.push(fault);
                }
                Err(fault) => return Err(fault),
            }
        }
        Err(worst(said))
    }

    async fn ask_one(&self, base: &Base, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
        let broken = |why: &str| {
            Fault::new(Kind::Remote, NO_RESPONSE, format!("the answer of {base} was broken off: {why}"))
        };
        let body = body.map(Value::to_string);
        let response = self.wire.send(base, method, path, "*/*", body).await.map_err(Fault::unreachable)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.bytes_max).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                let max = self.bytes_max;
                return Fault::invalid(format!("an answer of more than maxPacketSize ({max}) bytes"));
            }
            broken(&error.to_string())
        })?;
        let body = body.to_bytes();
        let status = head.status.as_u16();
        if (200..300).contains(&status) {
            return Ok(Reply { headers: head.headers, body, unasked: None });
        }
        Err(refused(base, status, &body))
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let reply = self.ask(method, path, body, ANSWER_DEADLINE.min(self.request)).await?;
        serde_json::from_slice(&reply.body).map_err(|_| Fault::invalid(format!("{path} is no JSON")))
    }

    /// What the remote is.
    ///
    /// # Errors
    /// It does not answer, or does not let the applier in.
    pub async fn identify(&self) -> Result<Identity> {
        let version = self.json(Method::GET, &self.path("version?details=true"), None).await?;
        let id = self.json(Method::GET, &self.path("replication/server-id"), None).await?;
        let server_id =
            number_of(&id["serverId"]).ok_or_else(|| Fault::invalid("server-id has no serverId"))?;
        Ok(Identity { ours: version["details"]["pgquorum"].is_string(), server_id: server_id.to_string() })
    }

    /// # Errors
    /// As [`Remote::identify`].
    pub async fn begin_batch(&self) -> Result<Batch> {
        let body = json!({ "ttl": BATCH_TTL_SECONDS });
        let begun = self.json(Method::POST, &self.path("replication/batch"), Some(&body)).await?;
        let id = match &begun["id"] {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => return Err(Fault::invalid("a batch without an id")),
        };
        Ok(Batch { id, tick: number_of(&begun["lastTick"]) })
    }

    /// # Errors
    /// It is gone; else as [`Remote::identify`].
    pub async fn renew_batch(&self, id: &str) -> Result<()> {
        let (path, body) =
            (self.path(&format!("replication/batch/{id}")), json!({ "ttl": BATCH_TTL_SECONDS }));
        self.ask(Method::PUT, &path, Some(&body), ANSWER_DEADLINE).await.map(drop)
    }

    /// # Errors
    /// As [`Remote::renew_batch`].
    pub async fn end_batch(&self, id: &str) -> Result<()> {
        let path = self.path(&format!("replication/batch/{id}"));
        self.ask(Method::DELETE, &path, None, ANSWER_DEADLINE).await.map(drop)
    }

    /// # Errors
    /// As [`Remote::identify`].
    pub async fn inventory(&self, batch: &str) -> Result<Value> {
        let system = self.include_system;
        let path = format!("replication/inventory?includeSystem={system}&batchId={}", encoded(batch));
        self.json(Method::GET, &self.path(&path), None).await
    }

    /// Lines of a collection, behind the line with this tick.
    ///
    /// # Errors
    /// As [`Remote::identify`].
    pub async fn dump(&self, collection: &str, batch: &str, from: Option<u64>) -> Result<Reply> {
        let mut path = format!(
            "replication/dump?collection={}&batchId={}&chunkSize={}&ticks=true&includeSystem={}&inColumns=true",
            encoded(collection),
            encoded(batch),
            self.chunk,
            self.include_system
        );
        if let Some(from) = from {
            path.push_str(&format!("&from={from}"));
        }
        self.ask(Method::GET, &self.path(&path), None, self.dump).await
    }

    /// Lines of the log behind this tick, from a node whose log reaches so far, if there is one; of ours without what it got
    /// from here. `me`: the number of this server, by which the remote lists it.
    ///
    /// # Errors
    /// As [`Remote::identify`].
    pub async fn follow(&self, from: u64, me: u64) -> Result<Reply> {
        let mut query = format!(
            "from={from}&chunkSize={}&includeSystem={}&inColumns=true&serverId={me}&clientInfo=pgquorum",
            self.chunk, self.include_system
        );
        if !self.known_as.is_empty() {
            let origins: Value = self.known_as.iter().map(|name| origin(&me.to_string(), name)).collect();
            query.push_str(&format!("&exceptOrigins={}", encoded(&origins.to_string())));
        }
        let mut path = self.path(&format!("replication/logger-follow?{query}"));
        let mut reply = match self.ask(Method::GET, &path, None, self.request).await {
            // Newer servers have only the successor of it.
            Err(fault) if matches!(fault.answered.0, 404 | 405 | 410 | 501) && fault.answered.1 != 1228 => {
                path = self.path(&format!("wal/tail?{query}&syncerId=0"));
                self.ask(Method::GET, &path, None, self.request).await?
            }
            answer => answer?,
        };
        if reply.is_behind(from) {
            let limit = ANSWER_DEADLINE.min(self.request);
            // The one that answered is the first.
            for base in self.bases().into_iter().skip(1) {
                let asked = tokio::time::timeout(limit, self.ask_one(&base, Method::GET, &path, None)).await;
                match asked {
                    Ok(Ok(other)) if other.is_behind(from) => {}
                    Ok(Ok(other)) => {
                        self.prefer(&base);
                        return Ok(other);
                    }
                    Ok(Err(fault)) => reply.unasked = Some(fault),
                    Err(_) => {
                        let message = format!("{base} did not answer within {limit:?}");
                        reply.unasked = Some(Fault::new(Kind::Remote, NO_RESPONSE, message));
                    }
                }
            }
        }
        Ok(reply)
    }

    /// Versions of the tables in the log of a remote that is ours, with their columns.
    ///
    /// # Errors
    /// The login may not see them; else as [`Remote::identify`].
    pub async fn schemas(&self) -> Result<Value> {
        let database = if self.database == SYSTEM {
            String::new()
        } else {
            format!("?database={}", encoded(&self.database))
        };
        self.json(Method::GET, &format!("/channels/_logger/schemas{database}"), None).await
    }
}

/// The origin of what is copied or followed from a database of a server.
pub fn origin(server_id: &str, database: &str) -> String {
    format!("arango.{server_id}.{database}")
}

/// A number of 64 bits, written as a text or as a number.
pub fn number_of(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// What the nodes said, in one. As long as one of them may yet do what it is asked, all are asked again; that one of those
/// said something is worth more than that another one is down.
fn worst(said: Vec<Fault>) -> Fault {
    let (passing, mut lasting): (Vec<Fault>, Vec<Fault>) =
        said.into_iter().partition(|fault| fault.kind == Kind::Remote);
    let passing = passing.into_iter().max_by_key(|fault| fault.answered.0);
    match (passing, lasting.pop()) {
        (Some(passing), Some(lasting)) => {
            let message = format!("{}; {}", passing.message, lasting.message);
            Fault { message, ..passing }
        }
        (Some(fault), None) | (None, Some(fault)) => fault,
        (None, None) => Fault::stopped(LEADER_ERROR, "the endpoint names no server"),
    }
}

/// How the remote refuses.
fn refused(base: &Base, status: u16, body: &[u8]) -> Fault {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = said["errorMessage"].as_str().or(said["message"].as_str()).unwrap_or("no reason given");
    let text: String = text.chars().take(500).collect();
    let number = said["errorNum"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
    let (kind, message) = match status {
        // A batch is gone when another node leads there; a new one can be begun.
        404 if number == BATCH_NOT_FOUND => (Kind::Remote, format!("{base}: {text}")),
        401 | 403 => (
            Kind::Stopped,
            format!(
                "{base} does not let the applier in, look at username and password in its settings: {text}"
            ),
        ),
        400..=407 | 409..=428 | 501 => (Kind::Stopped, format!("{base} refuses (status {status}): {text}")),
        _ => (Kind::Remote, format!("{base} answered with status {status}: {text}")),
    };
    Fault { kind, number: LEADER_ERROR, message, answered: (status, number) }
}

#[cfg(test)]
mod asking;

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        Base::parse("http://a:1").unwrap()
    }

    #[test]
    fn what_passes_is_asked_again_and_the_rest_is_for_a_person() {
        for (status, kind) in [
            (400, Kind::Stopped),
            (401, Kind::Stopped),
            (404, Kind::Stopped),
            (408, Kind::Remote),
            (429, Kind::Remote),
            (500, Kind::Remote),
            (501, Kind::Stopped),
            (503, Kind::Remote),
        ] {
            let body = br#"{"error":true,"code":404,"errorNum":1228,"errorMessage":"database not found"}"#;
            let fault = refused(&base(), status, body);
            assert_eq!((fault.kind, fault.answered), (kind, (status, 1228)), "{status}");
            assert!(fault.message.contains("database not found"), "{fault}");
            assert_eq!(refused(&base(), status, b"<html>").number, LEADER_ERROR);
        }
    }

    #[test]
    fn the_node_that_answered_is_asked_first() {
        let config =
            Config { endpoint: Some("tcp://a:1,tcp://b:1,tcp://c:1".to_owned()), ..Config::default() };
        let remote = Remote::new(&config, None, "shop").unwrap();
        remote.prefer(&remote.bases()[2]);
        let bases: Vec<String> = remote.bases().iter().map(ToString::to_string).collect();
        assert_eq!(bases, ["http://c:1", "http://a:1", "http://b:1"]);
        assert_eq!(remote.path("version"), "/_db/shop/_api/version");
    }
}
