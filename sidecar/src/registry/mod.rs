//! Servers of others that register with this cluster. What is known of them is part of the cluster's state
//! ([`pgquorum_agent::registry`]); here is what the leader does with it:
//!
//! - registrations that come at the same time go into one entry of the log ([`Registrar::change`]);
//! - a server that only says that it is still there costs no entry: its lease is counted in memory ([`Registrar::register`]);
//! - servers whose lease is over are removed ([`sweep`]).
//!
//! [`wire`] reads and writes what clients send and get, [`correlation`] the header that follows a request on its way.

pub mod correlation;
mod sweep;
pub mod wire;

use crate::clock;
use crate::handle::Handle;
use bytes::Bytes;
use pgquorum_agent::registry::leases::Leases;
use pgquorum_agent::registry::{
    BATCH_BYTES_MAX, BATCH_MAX, Registration, RegistryChange, RegistryOutcome, Service, TYPES_MAX,
};
use pgquorum_agent::request::{Rejection, RejectionKind, Reply, Request};
use pgquorum_agent::types::Millis;
use pgquorum_agent::view::View;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot};

/// How many changes may wait for the log.
const QUEUE: usize = 1024;

/// How long a change waits for a place among them.
const QUEUE_DEADLINE: Duration = Duration::from_secs(5);

type Outcome = Result<RegistryOutcome, Rejection>;

struct Queued {
    change: RegistryChange,
    answer: oneshot::Sender<Outcome>,
}

/// A service as JSON, and the entry of the log that it is as of.
type Body = (u64, Bytes);

/// What a leader does for registered servers. Every node has one; those that do not lead ask theirs for nothing but bodies.
pub struct Registrar {
    handle: Handle,
    queue: mpsc::Sender<Queued>,
    leases: Mutex<Leases>,
    /// By type. All servers of a type are in the answer to each of them, and answers are many.
    bodies: Mutex<HashMap<String, Body>>,
}

impl Registrar {
    /// Starts what works for it; that ends when nobody holds it any more.
    pub fn start(handle: Handle) -> Arc<Registrar> {
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::spawn(write(handle.clone(), queued));
        let (leases, bodies) = (Mutex::default(), Mutex::default());
        let registrar = Arc::new(Registrar { handle, queue, leases, bodies });
        tokio::spawn(sweep::sweep(Arc::downgrade(&registrar)));
        registrar
    }

    /// Registers a server, or renews its lease if everything else is known already. To be asked of a leader, whose `view`
    /// this is.
    ///
    /// # Errors
    /// The cluster did not decide.
    pub async fn register(
        &self,
        view: &View,
        kind: &str,
        server: Registration,
    ) -> Result<RegistryOutcome, Rejection> {
        if self.renewed(view, kind, &server) {
            return Ok(RegistryOutcome::Known);
        }
        let name = server.server.clone();
        let service = wire::service_id(&view.cluster.cluster_id, kind);
        let change = RegistryChange::Register { kind: kind.to_owned(), service, server, at: unix_ms() };
        let outcome = self.change(change).await?;
        if outcome == RegistryOutcome::Done {
            let view = self.handle.view();
            let lease = view.cluster.settings.registry_lease.ms();
            self.leases(&view).registered(kind, &name, clock::now(), lease);
        }
        Ok(outcome)
    }

    fn renewed(&self, view: &View, kind: &str, server: &Registration) -> bool {
        let service = view.cluster.registry.of_type(kind);
        let known = service.and_then(|service| service.servers.get(&server.server));
        let same = known.is_some_and(|known| known.registration == *server);
        let lease = view.cluster.settings.registry_lease.ms();
        same && self.leases(view).renew(kind, &server.server, clock::now(), lease)
    }

    /// Makes a change together with whatever else is asked for at the same time, and says what came of it.
    ///
    /// # Errors
    /// The cluster did not decide, or too much waits to be decided.
    pub async fn change(&self, change: RegistryChange) -> Result<RegistryOutcome, Rejection> {
        let (answer, outcome) = oneshot::channel();
        let busy = |_| {
            let text = "too many registrations wait for the cluster's log; try again in a moment";
            Rejection::new(RejectionKind::Unavailable, "registry_is_busy", text)
        };
        let queued = self.queue.send(Queued { change, answer });
        let sent = tokio::time::timeout(QUEUE_DEADLINE, queued).await.map_err(busy)?;
        sent.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }

    /// A service as its clients see it.
    pub fn body(&self, kind: &str, service: &Service) -> Bytes {
        let bodies = || self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, body)) = bodies().get(kind).filter(|(at, _)| *at == service.changed_at) {
            return body.clone();
        }
        let body = wire::resource(kind, service);
        let mut bodies = bodies();
        if bodies.len() >= TYPES_MAX {
            // Types come and go; those that are still there are written anew.
            bodies.clear();
        }
        bodies.insert(kind.to_owned(), (service.changed_at, body.clone()));
        body
    }

    /// The leases as whoever leads in the view's term counts them.
    fn leases(&self, view: &View) -> MutexGuard<'_, Leases> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.lead(view.term);
        leases
    }
}

/// Asks for what waits, as much at once as may be: while one batch is on its way the next one gathers.
async fn write(handle: Handle, mut queued: mpsc::Receiver<Queued>) {
    let mut next = queued.recv().await;
    while let Some(first) = next.take() {
        let mut bytes = first.change.bytes();
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(more) = queued.try_recv()
        {
            bytes += more.change.bytes();
            if bytes > BATCH_BYTES_MAX {
                next = Some(more);
                break;
            }
            batch.push(more);
        }
        let (changes, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|queued| (queued.change, queued.answer)).unzip();
        let outcomes = ask(&handle, changes, answers.len()).await;
        for (outcome, answer) in outcomes.into_iter().zip(answers) {
            // Whoever asked may have gone away.
            let _ = answer.send(outcome);
        }
        if next.is_none() {
            next = queued.recv().await;
        }
    }
}

async fn ask(handle: &Handle, changes: Vec<RegistryChange>, count: usize) -> Vec<Outcome> {
    match handle.ask(Request::Registry { batch: rand::random(), changes }).await {
        Ok(Reply::Registry { outcomes }) if outcomes.len() == count => outcomes.into_iter().map(Ok).collect(),
        Ok(_) => {
            let text = "the driver's answer does not fit the request; please report this";
            vec![Err(Rejection::new(RejectionKind::Internal, "unexpected_reply", text)); count]
        }
        Err(rejection) => vec![Err(rejection); count],
    }
}

fn stopped() -> Rejection {
    let text = "this node's sidecar is shutting down; ask another node";
    Rejection::new(RejectionKind::Unavailable, "driver_stopped", text)
}

/// Unix time in milliseconds.
pub fn unix_ms() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
