//! What every route has at hand: the driver's handle, the logins, the way to the leader.

use super::forward::Forward;
use super::leader_seen::LeaderSeen;
use super::refusal::Refusal;
use super::sse;
use crate::clock;
use crate::feed::{Feed, Source};
use crate::handle::Handle;
use crate::login::Logins;
use crate::operations::Turns;
use crate::registry::Registrar;
use crate::replication::Replication;
use crate::statements::Statements;
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::standing::Outcast;
use pgquorum_agent::types::Millis;
use pgquorum_agent::view::View;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use warp::filters::BoxedFilter;
use warp::{Filter, http::Method};

/// A view older than this says that the driver does not run.
const VIEW_AGE_MAX_MS: Millis = 5000;

/// How many clients may follow `/events` and `/rpc` at the same time.
const STREAMS_MAX: usize = 128;

/// How many clients may follow channels, wait for changes or copy tables at the same time.
const READERS_MAX: usize = 256;

/// How many clients may wait for other statements to be served at the same time.
const WAITERS_MAX: usize = 256;

/// How many requests to all nodes may be on their way at the same time.
const FAN_OUTS_MAX: usize = 16;

#[derive(Clone)]
pub(super) struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle,
    logins: Arc<Logins>,
    forward: Arc<Forward>,
    feed: Feed,
    replication: Replication,
    streams: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    statements: Arc<Statements>,
    waiters: Arc<Semaphore>,
    syncing: Arc<Mutex<()>>,
    registrar: Arc<Registrar>,
    fan_outs: Arc<Semaphore>,
    operations: Turns,
    started: Instant,
    stopping: watch::Receiver<bool>,
}

impl Api {
    pub(super) fn new(
        handle: Handle,
        logins: Logins,
        forward: Arc<Forward>,
        source: Arc<dyn Source>,
        statements: Arc<Statements>,
        stopping: watch::Receiver<bool>,
    ) -> Api {
        let places = |n| Arc::new(Semaphore::new(n));
        let (streams, readers, waiters) = (places(STREAMS_MAX), places(READERS_MAX), places(WAITERS_MAX));
        let leadership = LeaderSeen::new(handle.view.clone(), Arc::clone(&forward));
        let replication = Replication::new(Arc::clone(&source));
        let feed = Feed::new(source, Arc::new(leadership));
        let logins = Arc::new(logins);
        let (registrar, fan_outs) = (Registrar::start(handle.clone()), places(FAN_OUTS_MAX));
        let syncing = Arc::default();
        let (operations, started) = (Turns::default(), Instant::now());
        let inner = Inner {
            handle,
            logins,
            forward,
            feed,
            replication,
            streams,
            readers,
            statements,
            waiters,
            syncing,
            registrar,
            fan_outs,
            operations,
            started,
            stopping,
        };
        Api { inner: Arc::new(inner) }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.inner.handle
    }

    pub(super) fn logins(&self) -> &Arc<Logins> {
        &self.inner.logins
    }

    pub(super) fn forward(&self) -> &Forward {
        &self.inner.forward
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.inner.feed
    }

    /// Whoever synchronises subscriptions holds it: one at a time.
    pub(super) fn syncing(&self) -> &Arc<Mutex<()>> {
        &self.inner.syncing
    }

    pub(super) fn replication(&self) -> &Replication {
        &self.inner.replication
    }

    pub(super) fn statements(&self) -> &Statements {
        &self.inner.statements
    }

    pub(super) fn registrar(&self) -> &Registrar {
        &self.inner.registrar
    }

    /// A place among the requests to all nodes.
    pub(super) fn fan_out_place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.inner.fan_outs).try_acquire_owned().map_err(|_| {
            let message = format!(
                "{FAN_OUTS_MAX} requests to all nodes are on their way already; try again in a moment"
            );
            Refusal::new(503, "too_many_requests_to_all", message)
        })
    }

    pub(super) fn operations(&self) -> &Turns {
        &self.inner.operations
    }

    /// How long this sidecar runs.
    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// `http` or `https`: how the nodes of this cluster are reached.
    pub(super) fn scheme(&self) -> &'static str {
        self.inner.forward.scheme()
    }

    /// Returns when this server stops.
    pub(super) async fn stopped(&self) {
        let mut stopping = self.inner.stopping.clone();
        // The sender gone means the same as its signal.
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    /// A place among those who follow a stream, and the signal that ends it.
    pub(super) fn stream_place(&self) -> Result<sse::Place, Refusal> {
        self.place(&self.inner.streams, STREAMS_MAX, "clients follow streams")
    }

    /// The same among those who read channels.
    pub(super) fn reader_place(&self) -> Result<sse::Place, Refusal> {
        self.place(&self.inner.readers, READERS_MAX, "clients read channels")
    }

    /// The same among those who wait for other statements to be served.
    pub(super) fn waiter_place(&self) -> Result<sse::Place, Refusal> {
        self.place(&self.inner.waiters, WAITERS_MAX, "clients wait for the list of statements")
    }

    /// How many clients read channels now.
    pub(super) fn readers(&self) -> usize {
        READERS_MAX - self.inner.readers.available_permits()
    }

    fn place(&self, places: &Arc<Semaphore>, max: usize, who: &str) -> Result<sse::Place, Refusal> {
        let permit = Arc::clone(places).try_acquire_owned().map_err(|_| {
            Refusal::new(
                503,
                "too_many_streams",
                format!("{max} {who} already; try later, or ask another node"),
            )
        })?;
        Ok(sse::Place::new(permit, self.inner.stopping.clone()))
    }

    /// What this node knows, whatever it is worth.
    pub(super) fn view(&self) -> Arc<View> {
        self.inner.handle.view()
    }

    /// What this node knows, if its driver runs and it is a member.
    pub(super) fn member_view(&self) -> Result<Arc<View>, Refusal> {
        let view = self.running_view()?;
        if !view.member || view.removed { Err(not_a_member(&view)) } else { Ok(view) }
    }

    /// The same for routes that change the cluster: a node that was removed says so with a code of its own.
    pub(super) fn writable_view(&self) -> Result<Arc<View>, Refusal> {
        let view = self.running_view()?;
        match (view.removed, view.member) {
            (true, _) => Err(not_a_member(&view).with_status(|_| 410)),
            (false, false) => Err(not_a_member(&view)),
            (false, true) => Ok(view),
        }
    }

    /// What this node knows, if it holds data that can be read.
    pub(super) fn data_view(&self) -> Result<Arc<View>, Refusal> {
        let view = self.member_view()?;
        if view.cluster.member(view.id).is_some_and(|member| !member.holds_data()) {
            let message =
                "this node is a witness: it votes and holds no data. Ask another node; GET /map lists them";
            return Err(Refusal::new(412, "holds_no_data", message));
        }
        Ok(view)
    }

    /// What this node knows, if it leads: the database takes writes here only.
    pub(super) fn leader_view(&self) -> Result<Arc<View>, Refusal> {
        let view = self.writable_view()?;
        if leads(&view, clock::now()) {
            return Ok(view);
        }
        match &view.leader {
            Some(leader) if leader.id != view.id => {
                let message = format!(
                    "only the leader can do this, node {}; its REST is at {}. Send the request there",
                    leader.id, leader.api
                );
                Err(Refusal::new(417, "not_leader", message).naming(leader.clone()))
            }
            _ => Err(Refusal::no_leader()),
        }
    }

    pub(super) fn running_view(&self) -> Result<Arc<View>, Refusal> {
        let view = self.view();
        if is_running(&view, clock::now()) { Ok(view) } else { Err(driver_stalled()) }
    }

    pub(super) async fn ask(&self, request: Request) -> Result<Reply, Refusal> {
        Ok(self.inner.handle.ask(request).await?)
    }
}

/// Whether the driver's loop ran lately.
pub(super) fn is_running(view: &View, now: Millis) -> bool {
    now.saturating_sub(view.at) <= VIEW_AGE_MAX_MS
}

/// Whether this node is the primary and open. A view that outlived the lease it was made under is not believed: the
/// process may just have been woken from a sleep in which another node took over.
pub fn leads(view: &View, now: Millis) -> bool {
    view.is_open_leader && (view.lease_until == 0 || view.lease_until > now)
}

pub(super) fn driver_stalled() -> Refusal {
    Refusal::new(
        531,
        "driver_stalled",
        "this node's sidecar has not run its loop for a while: it starts, stops, or waits for its disk. Look at its \
         log, ask another node",
    )
}

/// Why a node that was removed was.
pub(super) fn why_removed(view: &View) -> Outcast {
    view.outcast.unwrap_or(Outcast::Removed)
}

fn not_a_member(view: &View) -> Refusal {
    if view.removed {
        let why = why_removed(view);
        let code = match why {
            Outcast::Removed => "removed",
            Outcast::Forgotten => "forgotten",
            Outcast::Superseded => "superseded",
        };
        return Refusal::new(412, code, why.explain(view.id));
    }
    let message = "this node has not heard of its cluster yet; it does as soon as another node reaches it. A new one \
                   is made with `pgquorum init` or `pgquorum join`";
    Refusal::new(412, "not_a_member", message)
}

/// GET, and HEAD, of which the server leaves out the body.
pub(super) fn read() -> BoxedFilter<()> {
    warp::get().or(warp::head()).unify().boxed()
}

/// GET, HEAD and OPTIONS, as load balancers ask.
pub(super) fn probe() -> BoxedFilter<(Method,)> {
    warp::get().or(warp::head()).unify().or(warp::options()).unify().and(warp::method()).boxed()
}

/// The query string, empty if there is none.
pub(super) fn query() -> BoxedFilter<(String,)> {
    warp::query::raw().or(warp::any().map(String::new)).unify().boxed()
}
