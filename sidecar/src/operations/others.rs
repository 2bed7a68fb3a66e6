//! Asking other clusters: their operations interface, at the first of their sidecars that answers.

use super::fault::Fault;
use super::known::{Known, Login};
use super::request::RouteTo;
use crate::follow::{Base, Wire};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::{BodyExt, Limited};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The longest answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a node that is looked for may take to say who it is.
const FIND_DEADLINE: Duration = Duration::from_secs(3);

/// Why another cluster did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It cannot be reached.
    Closed(String),
    /// It says nothing.
    TimedOut(String),
    /// It refuses, with this status.
    Refused(u16, String),
}

impl Silence {
    fn stranger() -> Silence {
        Silence::Closed(
            "what answers there is no sidecar of a cluster, or one of an older version".to_owned(),
        )
    }

    /// As `cluster_status` has it.
    pub fn status(&self) -> &'static str {
        match self {
            Silence::TimedOut(_) => "timeout",
            Silence::Closed(_) | Silence::Refused(..) => "closed",
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Silence::Closed(message) | Silence::TimedOut(message) | Silence::Refused(_, message) => message,
        }
    }

    /// The same, and what to do about it.
    fn explained(&self) -> String {
        match self {
            Silence::Refused(401 | 403, message) => format!(
                "{message} (all clusters share one user with the role super_user: tell this one with set_configuration, as \
                 clustering_user and clustering_password, or as clustering_token)"
            ),
            other => other.message().to_owned(),
        }
    }

    /// As the answer to an operation that needed it.
    pub fn of(self, name: &str) -> Fault {
        match self {
            Silence::Refused(401 | 403, _) => {
                Fault::not_now(format!("Node '{name}' does not let this cluster in: {}", self.explained()))
            }
            Silence::Refused(status @ (400 | 404), message) => {
                Fault::new(status, format!("Error returned from remote node {name}: {message}"))
            }
            Silence::Refused(_, message) => {
                Fault::not_now(format!("Error returned from remote node {name}: {message}"))
            }
            Silence::Closed(message) | Silence::TimedOut(message) => {
                Fault::not_now(format!("Node '{name}' does not answer: {message}"))
            }
        }
    }
}

/// What a cluster says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub node_name: String,
    pub version: String,
    pub uptime_seconds: u64,
    /// Its sidecars, the leader first.
    pub addresses: Vec<String>,
    pub routes: Vec<RouteTo>,
    /// The clusters that were added there.
    pub nodes: Vec<Acquaintance>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquaintance {
    pub name: String,
    pub addresses: Vec<String>,
}

/// The way to other clusters.
pub struct Others {
    login: Login,
    /// `http` or `https`: what routes mean. All clusters are reached in the same way.
    scheme: &'static str,
}

impl Others {
    pub fn new(login: Login, scheme: &'static str) -> Others {
        Others { login, scheme }
    }

    /// The address that a route means.
    pub fn address(&self, route: &RouteTo) -> String {
        let host = route.host.trim_start_matches('[').trim_end_matches(']');
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("{}://{host}:{}", self.scheme, route.port)
    }

    /// Asks one sidecar after the other until one does what it is asked.
    pub async fn ask(
        &self,
        addresses: &[String],
        body: &Value,
        deadline: Duration,
    ) -> Result<Value, Silence> {
        let begun = Instant::now();
        let mut said = Vec::new();
        for address in addresses {
            match self.ask_one(address, body, deadline.saturating_sub(begun.elapsed())).await {
                Ok(answer) => return Ok(answer),
                // The others would say the same.
                Err(refused @ Silence::Refused(400..=404, _)) => return Err(refused),
                Err(silence) => said.push(silence),
            }
        }
        Err(worst(said))
    }

    /// Asks all of its sidecars at the same time who they are, takes the first answer, and measures how long that takes.
    pub async fn info(
        &self,
        addresses: &[String],
        deadline: Duration,
    ) -> (Result<NodeInfo, Silence>, Duration) {
        let begun = Instant::now();
        let body = json!({"operation": "node_info"});
        let mut asked: FuturesUnordered<_> =
            addresses.iter().map(|address| self.ask_one(address, &body, deadline)).collect();
        let mut said = Vec::new();
        while let Some(answer) = asked.next().await {
            let read = |answer| serde_json::from_value(answer).map_err(|_| Silence::stranger());
            match answer.and_then(read) {
                Ok(info) => return (Ok(info), begun.elapsed()),
                Err(silence) => said.push(silence),
            }
        }
        (Err(worst(said)), begun.elapsed())
    }

    async fn ask_one(&self, address: &str, body: &Value, deadline: Duration) -> Result<Value, Silence> {
        let base = Base::parse(address).ok_or_else(|| Silence::Closed(format!("{address} is no address")))?;
        let wire = Wire::new(&self.login.subscription(), std::slice::from_ref(&base)).map_err(|trouble| {
            Silence::Closed(format!(
                "{}: set_configuration takes it as clustering_ca, for all clusters",
                trouble.message
            ))
        })?;
        tokio::time::timeout(deadline, exchange(&wire, &base, body))
            .await
            .unwrap_or_else(|_| Err(Silence::TimedOut(format!("{base} did not answer within {deadline:?}"))))
    }

    /// Finds the cluster of this name: at a place that is known, or through clusters that know it.
    ///
    /// # Errors
    /// 404: nobody knows it, with what was found in its place.
    pub async fn find(&self, known: &Known, name: &str, at: Option<&RouteTo>) -> Result<NodeInfo, Fault> {
        let mut places: Vec<Vec<String>> = Vec::new();
        places.extend(known.node(name).map(|node| node.remote.clone()));
        places.extend(at.into_iter().chain(known.routes()).map(|route| vec![self.address(route)]));
        places.extend(known.nodes.iter().filter(|node| node.name != name).map(|node| node.remote.clone()));
        let mut seen = BTreeSet::new();
        let mut met: Vec<String> = Vec::new();
        // Those that are known, then those that they know.
        for _ in 0..2 {
            places.retain(|addresses| seen.insert(addresses.clone()));
            let mut heard_of: Vec<Vec<String>> = Vec::new();
            let mut asked: FuturesUnordered<_> = places
                .iter()
                .map(|place| async move { (place, self.info(place, FIND_DEADLINE).await.0) })
                .collect();
            while let Some((place, answer)) = asked.next().await {
                match answer {
                    Ok(mut info) if info.node_name == name => {
                        // The way that led there comes first: the cluster's own addresses may not be reachable from here.
                        if let Some(way) = place.first() {
                            info.addresses.retain(|known| known != way);
                            info.addresses.insert(0, way.clone());
                        }
                        return Ok(info);
                    }
                    Ok(info) => {
                        met.push(format!("{} is '{}'", place.join(", "), info.node_name));
                        let known_there = info.nodes.into_iter().filter(|node| node.name == name);
                        heard_of.extend(known_there.map(|node| node.addresses));
                    }
                    Err(silence) => met.push(format!("{}: {}", place.join(", "), silence.explained())),
                }
            }
            std::mem::drop(asked);
            places = heard_of;
        }
        let met = if met.is_empty() {
            "there is no route to any; cluster_set_routes adds some".to_owned()
        } else {
            met.join("; ")
        };
        Err(Fault::new(404, format!("Node '{name}' was not found: {met}")))
    }
}

async fn exchange(wire: &Wire, base: &Base, body: &Value) -> Result<Value, Silence> {
    let sent = wire.send(base, Method::POST, "/", "application/json", Some(body.to_string())).await;
    let response = sent.map_err(|trouble| Silence::Closed(trouble.message))?;
    let status = response.status().as_u16();
    let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let bytes = bytes.map_err(|error| Silence::Closed(format!("{base}: {error}")))?.to_bytes();
    let answer: Option<Value> = serde_json::from_slice(&bytes).ok();
    match (status, answer) {
        (200, Some(answer)) => Ok(answer),
        (200, None) => Err(Silence::stranger()),
        (status, answer) => {
            let said = answer.as_ref().and_then(|answer| answer["error"].as_str());
            let said = said.map_or_else(|| format!("{base} answers with status {status}"), str::to_owned);
            Err(Silence::Refused(status, said))
        }
    }
}

/// Of what the sidecars said: that they refuse counts for more than that they are silent.
fn worst(said: Vec<Silence>) -> Silence {
    let rank = |silence: &Silence| match silence {
        Silence::Refused(..) => 2,
        Silence::TimedOut(_) => 1,
        Silence::Closed(_) => 0,
    };
    let most = said.into_iter().reduce(|one, other| if rank(&other) > rank(&one) { other } else { one });
    most.unwrap_or_else(|| Silence::Closed("no address of it is known".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn what_another_cluster_does_not_do_is_told_with_its_name() {
        let said = |silence: Silence| {
            let Fault { status, message } = silence.of("berlin");
            (status, message)
        };
        for silence in [Silence::TimedOut(text("x is silent")), Silence::Closed(text("x is silent"))] {
            assert_eq!(said(silence), (503, text("Node 'berlin' does not answer: x is silent")));
        }
        for refused in [401, 403] {
            let (status, message) = said(Silence::Refused(refused, text("Must login")));
            let begin = "Node 'berlin' does not let this cluster in: Must login (all clusters share one user";
            assert!(
                status == 503 && message.starts_with(begin) && message.contains("set_configuration"),
                "{message}"
            );
        }
        for (refused, status) in [(400, 400), (404, 404), (429, 503), (500, 503), (503, 503)] {
            let expected = text("Error returned from remote node berlin: it is so");
            assert_eq!(said(Silence::Refused(refused, text("it is so"))), (status, expected), "{refused}");
        }
    }

    #[test]
    fn a_refusal_counts_for_more_than_silence() {
        let (closed, late) = (Silence::Closed(text("a")), Silence::TimedOut(text("b")));
        let refused = Silence::Refused(503, text("c"));
        assert_eq!((closed.status(), late.status(), refused.status()), ("closed", "timeout", "closed"));
        assert_eq!(worst(vec![closed.clone(), late.clone()]), late);
        assert_eq!(worst(vec![refused.clone(), closed, late]), refused);
        assert_eq!(worst(Vec::new()), Silence::Closed(text("no address of it is known")));
    }
}
