//! HTTP on the node's API port: the cluster's REST interface, the health checks of load balancers, metrics, dashboard.
//!
//! The same port serves the nodes' own protocol: a connection that begins with `PGQ1` (with TLS: that negotiated
//! `pgquorum-peer`) is handed over unread, everything else is HTTP/1.1.
//!
//! - `listen` binds, accepts, tells the protocols apart and drains; `tls` reads the PEM files.
//! - `table` lists every route, and which role each of its requests needs; `guard` decides by it who may call, the answers
//!   404 and 405 come from it, and a test holds `openapi.yaml` against it.
//! - `interface` has the words in which each of the interfaces here says that somebody is not let in.
//! - `routes/` has one file for each resource: it reads the request, asks [`crate::handle::Handle`], forms the answer.
//! - `refusal` turns every refusal into its status and JSON body, in one place.
//!
//! Warp's own rejections are used for routing only. Nothing here decides anything about the cluster.

mod api;
mod body;
mod condition;
mod fan_out;
mod forward;
mod guard;
mod guarded;
mod interface;
mod leader_seen;
mod listen;
mod query;
mod refusal;
mod routes;
mod sse;
mod table;
#[cfg(test)]
mod tests;
mod tls;

pub use api::leads;
pub use listen::{PeerConnection, PeerIo, RestConfig, RestError, TlsFiles, bind};

use api::Api;
use interface::Interface;
use table::{Route, rule};
use warp::filters::BoxedFilter;
use warp::http::Method;
use warp::reply::Response;
use warp::{Filter, path::FullPath};

/// All routes as one filter. The first that matches answers, so what is asked most often comes first.
fn filter(api: &Api) -> BoxedFilter<(Response,)> {
    let all = [
        routes::is_leader::routes(api),
        routes::health::routes(api),
        // Each registered server asks once a minute, and thousands may be registered.
        routes::it_resources::routes(api),
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
        routes::copies::routes(api),
        routes::sequences::routes(api),
        routes::conflicts::routes(api),
        routes::subscriptions::routes(api),
        routes::publications::routes(api),
        routes::delta::routes(api),
        routes::oauth::routes(api),
        routes::operations::routes(api),
        routes::events::routes(api),
        routes::rpc::routes(api),
        routes::metrics::routes(api),
        routes::users::routes(api),
        routes::user_tokens::routes(api),
        routes::cluster::routes(api),
        routes::documents::routes(),
        routes::replication::routes(api),
        warp::method()
            .and(warp::path::full())
            .map(|method, path: FullPath| {
                unrouted(rule(&method, path.as_str()).interface, &method, path.as_str())
            })
            .boxed(),
    ];
    all.into_iter().rev().reduce(|rest, first| first.or(rest).unify().boxed()).expect("there are routes")
}

/// The answer when no route took the request: the path is unknown, or does not know the method.
fn unrouted(interface: Interface, method: &Method, path: &str) -> Response {
    if interface == Interface::Replication {
        return routes::replication::unrouted(method, path);
    }
    let refusal = match Route::find(path) {
        Some(route) => {
            let allowed: Vec<&str> = route.methods().map(Method::as_str).collect();
            let allowed = allowed.join(", ");
            let message = format!("{} does not answer to {method}; it answers to {allowed}", route.path);
            refusal::Refusal::new(405, "method_not_allowed", message).with_header("allow", &allowed)
        }
        None => {
            refusal::Refusal::new(404, "no_such_route", "there is no such path; GET /openapi.yaml lists all")
        }
    };
    match interface {
        Interface::Delta => routes::delta::refuse(refusal, method, path, ""),
        _ => refusal.into_response(),
    }
}
