//! Fixed documents: the description of this interface, and a page that shows the cluster.

use crate::rest::api::read;
use crate::rest::refusal::with_body;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::HeaderValue;
use warp::reply::Response;

const OPENAPI: &str = include_str!("../openapi.yaml");
const DASHBOARD: &str = include_str!("../dashboard.html");

/// The page brings everything along and talks to this node only.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(in crate::rest) fn routes() -> BoxedFilter<(Response,)> {
    let openapi = warp::path!("openapi.yaml")
        .and(read())
        .map(|| with_body(200, "application/yaml; charset=utf-8", OPENAPI.to_owned()));
    let dashboard = warp::path!("dashboard").and(read()).map(|| {
        let mut response = with_body(200, "text/html; charset=utf-8", DASHBOARD.to_owned());
        response.headers_mut().insert("content-security-policy", HeaderValue::from_static(POLICY));
        response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response
    });
    openapi.or(dashboard).unify().boxed()
}
