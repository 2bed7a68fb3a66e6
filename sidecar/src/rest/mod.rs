//! HTTP on the node's API port: the cluster's REST interface, the health checks of load balancers, metrics, dashboard.
//!
//! The same port serves the nodes' own protocol: a connection that begins with `PGQ1` (with TLS: that negotiated
//! `pgquorum-peer`) is handed over unread, everything else is HTTP/1.1.
//!
//! - `listen` binds, accepts, tells the protocols apart and drains; `tls` reads the PEM files.
//! - [`ROUTES`] lists every route; `guard` decides by it who may call, the answers 404 and 405 come from it, and a
//!   test holds `openapi.yaml` against it.
//! - `routes/` has one file for each resource: it reads the request, asks [`crate::handle::Handle`], forms the answer.
//! - `refusal` turns every refusal into its status and JSON body, in one place.
//!
//! Warp's own rejections are used for routing only. Nothing here decides anything about the cluster.

mod api;
mod body;
mod condition;
mod forward;
mod guard;
mod leader_seen;
mod listen;
mod query;
mod refusal;
mod routes;
mod sse;
#[cfg(test)]
mod tests;
mod tls;

pub use listen::{PeerConnection, PeerIo, RestConfig, RestError, TlsFiles, bind};

use api::Api;
use warp::filters::BoxedFilter;
use warp::http::Method;
use warp::reply::Response;
use warp::{Filter, path::FullPath};

/// Who may call a route when a token is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Everybody: what load balancers and orchestrators ask, and pages without data.
    Open,
    /// Those who know the token.
    Token,
}

/// One path and what it answers to. A segment `{…}` stands for any one segment.
struct Route {
    path: &'static str,
    methods: &'static [Method],
    access: Access,
}

const fn route(path: &'static str, methods: &'static [Method], access: Access) -> Route {
    Route { path, methods, access }
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const PROBE: &[Method] = &[Method::GET, Method::HEAD, Method::OPTIONS];

/// Every route that there is.
const ROUTES: &[Route] = &[
    route("/is-leader", PROBE, Access::Open),
    route("/", PROBE, Access::Open),
    route("/primary", PROBE, Access::Open),
    route("/master", PROBE, Access::Open),
    route("/read-write", PROBE, Access::Open),
    route("/leader-check", PROBE, Access::Open),
    route("/replica", PROBE, Access::Open),
    route("/read-only", PROBE, Access::Open),
    route("/synchronous", PROBE, Access::Open),
    route("/sync", PROBE, Access::Open),
    route("/quorum", PROBE, Access::Open),
    route("/asynchronous", PROBE, Access::Open),
    route("/async", PROBE, Access::Open),
    route("/health", PROBE, Access::Open),
    route("/liveness", PROBE, Access::Open),
    route("/readiness", PROBE, Access::Open),
    route("/map", READ, Access::Token),
    route("/info", READ, Access::Token),
    route("/config", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/db-config", &[Method::GET, Method::HEAD, Method::PATCH, Method::POST], Access::Token),
    route("/leader", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/node", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/node/{node}", &[Method::GET, Method::HEAD, Method::PATCH, Method::DELETE], Access::Token),
    route("/node-down/{node}", &[Method::POST], Access::Token),
    route("/sql/readonly", READ, Access::Token),
    route("/channels", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/channels/{channel}", &[Method::GET, Method::HEAD, Method::DELETE], Access::Token),
    route("/channels/{channel}/changes", READ, Access::Token),
    route("/channels/{channel}/stream", READ, Access::Token),
    route("/channels/{channel}/schemas", READ, Access::Token),
    route("/channels/{channel}/dump", READ, Access::Token),
    route("/channels/{channel}/tables", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/channels/{channel}/tables/{table}", &[Method::DELETE], Access::Token),
    route("/channels/{channel}/prune", &[Method::POST], Access::Token),
    route("/channels/{channel}/purge", &[Method::POST], Access::Token),
    route("/channels/{channel}/followers", &[Method::GET, Method::HEAD, Method::POST], Access::Token),
    route("/channels/{channel}/followers/{follower}", &[Method::PUT, Method::DELETE], Access::Token),
    route("/events", READ, Access::Token),
    route("/rpc", READ, Access::Token),
    route("/metrics", READ, Access::Token),
    route("/openapi.yaml", READ, Access::Open),
    route("/dashboard", READ, Access::Open),
];

impl Route {
    /// The route of this path, whatever the method. A slash at the end makes no difference.
    fn find(path: &str) -> Option<&'static Route> {
        ROUTES.iter().find(|route| route.matches(path))
    }

    fn matches(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        let pattern = self.path.strip_suffix('/').unwrap_or(self.path);
        let (mut segments, mut patterns) = (path.split('/'), pattern.split('/'));
        loop {
            match (segments.next(), patterns.next()) {
                (None, None) => return true,
                (Some(segment), Some(pattern)) if pattern.starts_with('{') && !segment.is_empty() => {}
                (Some(segment), Some(pattern)) if segment == pattern => {}
                _ => return false,
            }
        }
    }
}

/// All routes as one filter. The first that matches answers, so what is asked most often comes first.
fn filter(api: &Api) -> BoxedFilter<(Response,)> {
    let all = [
        guard::refuse(api),
        routes::is_leader::routes(api),
        routes::health::routes(api),
        routes::map::routes(api),
        routes::info::routes(api),
        routes::config::routes(api),
        routes::db_config::routes(api),
        routes::leader::routes(api),
        routes::node::routes(api),
        routes::node_down::routes(api),
        routes::sql::routes(api),
        routes::changes::routes(api),
        routes::stream::routes(api),
        routes::channels::routes(api),
        routes::channel_tables::routes(api),
        routes::channel_upkeep::routes(api),
        routes::schemas::routes(api),
        routes::followers::routes(api),
        routes::dump::routes(api),
        routes::events::routes(api),
        routes::rpc::routes(api),
        routes::metrics::routes(api),
        routes::documents::routes(),
        warp::method()
            .and(warp::path::full())
            .map(|method, path: FullPath| unrouted(&method, path.as_str()))
            .boxed(),
    ];
    all.into_iter().rev().reduce(|rest, first| first.or(rest).unify().boxed()).expect("there are routes")
}

/// The answer when no route took the request: the path is unknown, or does not know the method.
fn unrouted(method: &Method, path: &str) -> Response {
    let refusal = match Route::find(path) {
        Some(route) => {
            let allowed: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
            let allowed = allowed.join(", ");
            let message = format!("{} does not answer to {method}; it answers to {allowed}", route.path);
            refusal::Refusal::new(405, "method_not_allowed", message).with_header("allow", &allowed)
        }
        None => {
            refusal::Refusal::new(404, "no_such_route", "there is no such path; GET /openapi.yaml lists all")
        }
    };
    refusal.into_response()
}
