//! The work for one publication: another cluster is to have a subscription to a channel of this one. It is made there, told when
//! this cluster is reached in another way, looked at, and ended when it is not wanted any more.

use super::publication::{Own, Publication};
use super::remote::{Remote, document};
use super::trouble::{Kind, Result, Trouble};
use super::wire::unreachable;
use crate::uri::encoded;
use hyper::Method;
use pgquorum_agent::view::View;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";
/// How long a node of the other cluster may take to answer.
const ANSWER: Duration = Duration::from_secs(25);
/// How often "ask the leader" is followed for one request.
const REDIRECTS: usize = 2;
/// Between two attempts: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a subscription that is there is looked at, and how often it is said that it is as it was.
const LOOK: Duration = Duration::from_secs(10);
const TELL_IDLE: Duration = Duration::from_secs(60);

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub state: &'static str,
    pub code: Option<String>,
    pub detail: Option<String>,
    /// State, code and detail of the subscription there.
    pub there: Option<Value>,
}

impl Outcome {
    fn of(state: &'static str, code: &str, detail: impl Into<String>) -> Outcome {
        Outcome { state, code: Some(code.to_owned()), detail: Some(detail.into()), there: None }
    }

    fn established(found: &Value) -> Outcome {
        let there = json!({"state": found["state"], "code": found["code"], "detail": found["detail"]});
        Outcome { state: "established", code: None, detail: None, there: Some(there) }
    }

    /// What the other cluster refuses, or that it cannot be asked.
    fn failed(trouble: Trouble, removing: bool) -> Outcome {
        let state = match trouble.kind {
            _ if removing => "removing",
            Kind::Waiting => "waiting",
            _ => "failed",
        };
        let mut detail = trouble.message;
        if removing {
            detail.push_str(
                ". Until it can be ended there, it goes on to follow this cluster, or to try; this is tried again. quorum.unpublish(…, \
                 force => true) forgets it here, and it must be ended there: quorum.unsubscribe",
            );
        }
        Outcome::of(state, &trouble.code, detail)
    }
}

/// After an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Told(Outcome),
    /// It is not there, as it should be.
    Ended,
}

/// One attempt. `done`: the revision that the other cluster was told last.
pub async fn step(publication: &Publication, remote: &Remote, own: &Own, done: Option<i32>) -> Step {
    match attempt(publication, remote, own, done).await {
        Ok(step) => step,
        Err(trouble) => Step::Told(Outcome::failed(trouble, publication.removing)),
    }
}

/// What the other cluster has under the publication's name.
enum Seen {
    Missing,
    /// There is no such database, or nothing can be followed in it.
    Nowhere(Value),
    /// A subscription that is none of ours.
    Theirs(Value),
    Ours(Value),
}

impl Seen {
    fn of(publication: &Publication, own: &Own, (status, found): (u16, Value)) -> Result<Seen> {
        match (status, found["code"].as_str().unwrap_or_default()) {
            (200, _) if publication.is(&found, own) => Ok(Seen::Ours(found)),
            (200, _) => Ok(Seen::Theirs(found)),
            (404, "unknown_subscription") => Ok(Seen::Missing),
            (404, "unknown_database" | "no_extension") => Ok(Seen::Nowhere(found)),
            _ => Err(refused(status, &found)),
        }
    }
}

async fn attempt(publication: &Publication, remote: &Remote, own: &Own, done: Option<i32>) -> Result<Step> {
    let database = publication.remote_database.as_deref().map(|name| format!("?database={}", encoded(name)));
    let database = database.unwrap_or_default();
    let path = format!("/subscriptions/{}{database}", encoded(&publication.name));
    let told = done == Some(publication.revision);
    let mut seen = Seen::of(publication, own, remote.request(Method::GET, &path, None).await?)?;
    // That was any node, which may be behind. Where it matters the leader is asked: only it changes anything, also nothing.
    let matters = match &seen {
        Seen::Missing => told || publication.removing,
        Seen::Theirs(_) | Seen::Nowhere(_) => publication.removing,
        Seen::Ours(_) => false,
    };
    if matters {
        let answer = remote.request(Method::PATCH, &path, Some(&json!({}))).await?;
        seen = Seen::of(publication, own, answer)?;
    }
    let ended_there = || {
        let name = &publication.name;
        let detail = format!(
            "subscription {name} was there and was ended by somebody. quorum.alter_publication('{name}') has it made again; \
             quorum.unpublish forgets it"
        );
        Step::Told(Outcome::of("failed", "ended_there", detail))
    };
    let (method, path, body) = match seen {
        Seen::Ours(_) if publication.removing => (Method::DELETE, path, None),
        _ if publication.removing => return Ok(Step::Ended),
        Seen::Nowhere(answer) => return Err(refused(404, &answer)),
        Seen::Missing if told => return Ok(ended_there()),
        Seen::Missing => (Method::POST, format!("/subscriptions{database}"), Some(publication.wanted(own))),
        Seen::Theirs(found) => return Ok(Step::Told(taken(publication, &found))),
        Seen::Ours(found) if told && has_addresses(&found["remote"], publication.addresses(own)) => {
            return Ok(Step::Told(Outcome::established(&found)));
        }
        Seen::Ours(_) => (Method::PATCH, path, Some(publication.changed(own))),
    };
    let (status, answer) = remote.request(method, &path, body.as_ref()).await?;
    match status {
        200 if publication.removing => Ok(Step::Ended),
        200 => Ok(Step::Told(Outcome::established(&answer))),
        404 if publication.removing && answer["code"] == "unknown_subscription" => Ok(Step::Ended),
        _ => Err(refused(status, &answer)),
    }
}

fn taken(publication: &Publication, found: &Value) -> Outcome {
    let detail = format!(
        "the other cluster has a subscription {} already, to channel {} of {}. Choose another name, or end that one there",
        publication.name,
        found["channel"].as_str().unwrap_or("?"),
        found["remote_origin"].as_str().unwrap_or("somebody else")
    );
    Outcome::of("failed", "name_taken", detail)
}

/// In whatever order: that depends on who leads.
fn has_addresses(found: &Value, addresses: &[String]) -> bool {
    let found: BTreeSet<&str> = found.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let known: BTreeSet<&str> = addresses.iter().map(String::as_str).collect();
    found == known
}

/// What the other cluster answers to a request that it refuses.
fn refused(status: u16, answer: &Value) -> Trouble {
    let code = answer["code"].as_str().unwrap_or("http_error");
    let message =
        answer["message"].as_str().map_or_else(|| format!("it answers with status {status}"), str::to_owned);
    match status {
        401 | 403 => Trouble::stopped(
            if status == 401 { "login" } else { code },
            format!(
                "the other cluster does not let this one in: {message}. It takes a user with the role admin there: login and secret, or \
                 its token alone as secret"
            ),
        ),
        _ if code == "already_exists" => Trouble::waiting(code, format!("the other cluster says: {message}")),
        400..=409 => Trouble::stopped(code, format!("the other cluster says: {message}")),
        _ => Trouble::waiting(code, format!("the other cluster says: {message}")),
    }
}

impl Remote {
    /// Asks one node after the other until one does what it is asked or refuses it for good; the leader where it must be.
    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let mut said: Option<Trouble> = None;
        let bases = self.lock().clone();
        for first in bases {
            let mut base = first;
            for _ in 0..=REDIRECTS {
                let sent = self.wire.send(&base, method.clone(), path, JSON, body.map(Value::to_string));
                let answer = tokio::time::timeout(ANSWER, sent)
                    .await
                    .unwrap_or_else(|_| Err(unreachable(&base, &format!("no answer within {ANSWER:?}"))));
                let response = match answer {
                    Ok(response) => response,
                    Err(trouble) => {
                        said = Some(worse(said, trouble));
                        break;
                    }
                };
                let status = response.status().as_u16();
                let answer = document(response).await.unwrap_or_default();
                let leader = answer["leader"]["api"].as_str().and_then(|api| base.sibling(api));
                match (status, leader.filter(|leader| *leader != base)) {
                    (417, Some(leader)) => base = leader,
                    (200..=299 | 400..=411 | 413..=416, _) => {
                        self.prefer(&base);
                        return Ok((status, answer));
                    }
                    _ => {
                        said = Some(worse(said, refused(status, &answer)));
                        break;
                    }
                }
            }
        }
        Err(said.unwrap_or_else(|| Trouble::stopped("address", "remote names no node of the other cluster")))
    }
}

/// Of what two nodes said: what a person must mend, else what the first one said that answered.
fn worse(said: Option<Trouble>, trouble: Trouble) -> Trouble {
    match said {
        Some(said) if said.kind == Kind::Stopped => said,
        Some(said) if trouble.kind != Kind::Stopped && trouble.code == "unreachable" => {
            if said.code != "unreachable" {
                return said;
            }
            Trouble { message: format!("{}; {}", said.message, trouble.message), ..said }
        }
        _ => trouble,
    }
}

/// The addresses of this cluster's sidecars that hold data, the one that is asked first.
pub fn addresses(view: &View, scheme: &str) -> Vec<String> {
    let mut members: Vec<_> = view.cluster.members.values().filter(|member| member.holds_data()).collect();
    members.sort_by_key(|member| (member.id != view.id, member.id));
    members.into_iter().map(|member| format!("{scheme}://{}", member.api_address())).collect()
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The database with the publication.
pub trait Here: Send + Sync + 'static {
    /// How this cluster is reached now.
    fn own(&self) -> Answer<'_, Own>;
    /// `revision`: what the other cluster was told.
    fn report(&self, outcome: Outcome, revision: Option<i32>) -> Answer<'_, ()>;
    /// There is no such subscription any more.
    fn ended(&self) -> Answer<'_, ()>;
}

/// Works until the publication is ended.
pub async fn work(publication: Publication, mut done: Option<i32>, here: impl Here) {
    let mut pause = PAUSE_MIN;
    let mut said: Option<(Outcome, Instant)> = None;
    loop {
        match round(&publication, done, &here, &mut said).await {
            Ok(Next::Over) => {
                tracing::info!(
                    publication = publication.name,
                    "a publication was ended at the other cluster"
                );
                return;
            }
            Ok(Next::Established) => {
                (done, pause) = (Some(publication.revision), PAUSE_MIN);
                tokio::time::sleep(LOOK).await;
            }
            Ok(Next::Again) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            Err(trouble) => {
                tracing::debug!(code = trouble.code, "the database here takes no word of a publication now");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

enum Next {
    Over,
    Established,
    Again,
}

async fn round(
    publication: &Publication,
    done: Option<i32>,
    here: &impl Here,
    said: &mut Option<(Outcome, Instant)>,
) -> Result<Next> {
    let own = here.own().await?;
    let outcome = match Remote::new(&publication.way()) {
        Ok(remote) => match step(publication, &remote, &own, done).await {
            Step::Told(outcome) => outcome,
            Step::Ended => return here.ended().await.map(|()| Next::Over),
        },
        Err(trouble) => Outcome::failed(trouble, publication.removing),
    };
    let established = outcome.state == "established";
    let news = said.as_ref().is_none_or(|(last, at)| *last != outcome || at.elapsed() >= TELL_IDLE);
    if news || done != Some(publication.revision) {
        here.report(outcome.clone(), established.then_some(publication.revision)).await?;
        if said.as_ref().is_none_or(|(last, _)| (last.state, &last.code) != (outcome.state, &outcome.code)) {
            let code = outcome.code.as_deref().unwrap_or_default();
            tracing::info!(publication = publication.name, state = outcome.state, code, "a publication");
        }
        *said = Some((outcome, Instant::now()));
    }
    Ok(if established { Next::Established } else { Next::Again })
}
