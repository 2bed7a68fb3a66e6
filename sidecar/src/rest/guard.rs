//! Who may call: the bearer token, and protection from web pages that talk to a local cluster behind a user's back.

use super::api::Api;
use super::refusal::Refusal;
use super::{Access, Route};
use subtle::ConstantTimeEq;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderMap, Method, header};
use warp::path::FullPath;
use warp::reply::Response;

/// Answers requests that must not go on; all others pass by.
pub(super) fn refuse(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::method()
        .and(warp::path::full())
        .and(warp::header::headers_cloned())
        .and_then(move |method: Method, path: FullPath, headers: HeaderMap| {
            let refused = check(api.token(), &method, path.as_str(), &headers);
            async move { refused.err().map(Refusal::into_response).ok_or_else(warp::reject::not_found) }
        })
        .boxed()
}

fn check(token: Option<&str>, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    if let Some(token) = token {
        // A path that is in no table is not open either.
        let open = Route::find(path).is_some_and(|route| route.access == Access::Open);
        if !open && !carries(token, headers) {
            return Err(Refusal::new(
                401,
                "token_required",
                "send the cluster's token as `Authorization: Bearer …`; it is in the file that token-file in \
                 node.toml names",
            )
            .with_header("www-authenticate", "Bearer realm=\"pgquorum\""));
        }
    }
    let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && headers.contains_key(header::ORIGIN) && !same_origin(headers, token.is_some()) {
        return Err(Refusal::new(
            403,
            "foreign_origin",
            "a web page of another origin may not change the cluster; use the command line, or a page of this node",
        ));
    }
    Ok(())
}

fn carries(token: &str, headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
    let Some((scheme, given)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.trim_ascii().ct_eq(token.as_bytes()))
}

/// Whether the page that sent this request came from this very server.
///
/// Without a token a name of somebody else's that resolves to this machine must not count either, so the page's host
/// must then be an address or `localhost`.
fn same_origin(headers: &HeaderMap, has_token: bool) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    let same = origin.split_once("://").is_some_and(|(_, page)| page.eq_ignore_ascii_case(host));
    same && (has_token || is_address_or_localhost(host))
}

fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}
