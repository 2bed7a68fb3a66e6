//! Who may call: stands before every route, and asks the table what a request needs. Also protects from web pages that talk
//! to a local cluster behind a user's back, and ends the answers of those whose login ends.

use super::api::Api;
use super::guarded::{Guarded, GuardedResponse};
use super::interface::{Interface, Why};
use super::table::{Need, Rule, rule};
use super::unrouted;
use crate::login::grant::Granted;
use crate::login::{Caller, Denied, Logins, list};
use crate::operations::NAMES;
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use pgquorum_agent::users::Users;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use warp::http::{HeaderMap, Method, Request, header};
use warp::reply::Response;

/// How much of a request that is refused is read, and for how long, to name in the refusal what it asks for.
const FORBIDDEN_BYTES_MAX: usize = 64 * 1024;
const FORBIDDEN_DEADLINE: Duration = Duration::from_secs(2);

/// What routes of the registry are told of who asks.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) from: IpAddr,
    pub(super) granted: Option<Granted>,
}

/// Where a request comes from, and who sent it, for the routes.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) from: IpAddr,
    /// `None`: nobody has to log in, or it came with a key.
    pub(super) user: Option<String>,
}

#[derive(Clone)]
pub(super) struct Guard {
    api: Api,
    logins: Arc<Logins>,
    /// Moves when users are changed.
    changes: watch::Receiver<u64>,
}

impl Guard {
    pub(super) fn new(api: Api) -> Guard {
        let logins = Arc::clone(api.logins());
        let (moved, changes) = watch::channel(0);
        let mut views = api.handle().view.clone();
        tokio::spawn(async move {
            // Views come many times a second, and those who wait for users would all look at each of them.
            while views.changed().await.is_ok() && !moved.is_closed() {
                let at = views.borrow_and_update().cluster.users.changed_at();
                moved.send_if_modified(|seen| std::mem::replace(seen, at) != at);
            }
        });
        Guard { api, logins, changes }
    }

    /// The answer of the routes to a request, or a refusal.
    pub(super) async fn answer<I: Body, F: Future<Output = Response>>(
        &self,
        mut request: Request<I>,
        from: SocketAddr,
        route: impl FnOnce(Request<I>) -> F,
    ) -> GuardedResponse
    where
        I::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Rule { need, interface, served } = rule(request.method(), request.uri().path());
        match self.admit(need, request.method(), request.headers(), from).await {
            Ok(caller) => {
                if interface == Interface::Registry {
                    let granted = match &caller {
                        Some(Caller::User { granted, .. }) => granted.clone(),
                        _ => None,
                    };
                    request.extensions_mut().insert(Known { from: from.ip(), granted });
                }
                let response = if served {
                    let user = match &caller {
                        Some(Caller::User { name, .. }) => Some(name.clone()),
                        _ => None,
                    };
                    request.extensions_mut().insert(Sender { from: from.ip(), user });
                    route(request).await
                } else {
                    unrouted(interface, request.method(), request.uri().path())
                };
                self.watched(response, caller, need)
            }
            Err(why) => {
                let own_page = request.headers().get("sec-fetch-mode").is_some_and(|mode| mode != "navigate");
                let why = match why {
                    Why::Forbidden { .. } if interface == Interface::Operations => {
                        operation(&why, request).await
                    }
                    Why::Forbidden { user, roles } => {
                        Why::Forbidden { user, roles: with_loss(request.uri().path(), roles) }
                    }
                    why => why,
                };
                interface.refuse(&why, !own_page).map(Guarded::new)
            }
        }
    }

    async fn admit(
        &self,
        need: Need,
        method: &Method,
        headers: &HeaderMap,
        from: SocketAddr,
    ) -> Result<Option<Caller>, Why> {
        let view = self.api.view();
        let users = &view.cluster.users;
        let caller = match need {
            Need::Open => None,
            Need::Login | Need::Roles(_) => {
                let caller = self.logins.admit(users, headers, from.ip()).await;
                let caller = caller.map_err(|denied| why(denied, !users.is_empty()))?;
                // A password takes its time; the user may have been removed meanwhile.
                permitted(&caller, need, &self.api.view().cluster.users)?;
                Some(caller)
            }
        };
        let changes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let required = self.logins.required(users);
        if changes && headers.contains_key(header::ORIGIN) && !same_origin(headers, required) {
            return Err(Why::ForeignOrigin);
        }
        Ok(caller)
    }

    /// An answer that does not end by itself ends when its caller would not be let in any more.
    fn watched(&self, response: Response, caller: Option<Caller>, need: Need) -> GuardedResponse {
        let endless = response.body().size_hint().exact().is_none();
        let Some(caller) = caller.filter(|caller| endless && !matches!(caller, Caller::Key)) else {
            return response.map(Guarded::new);
        };
        let (api, logins, mut changes) = (self.api.clone(), Arc::clone(&self.logins), self.changes.clone());
        let over = async move {
            loop {
                let view = api.view();
                let users = &view.cluster.users;
                let welcome = match &caller {
                    Caller::Key => true,
                    Caller::Anybody => !logins.required(users),
                    Caller::User { .. } => caller.user(users).is_some_and(|user| need.allows(&user.roles)),
                };
                drop(view);
                if !welcome {
                    return;
                }
                if changes.changed().await.is_err() {
                    // Nobody changes users any more; the server stops, and ends its streams by itself.
                    std::future::pending::<()>().await;
                }
            }
        };
        response.map(|body| Guarded::until(body, over))
    }
}

fn permitted(caller: &Caller, need: Need, users: &Users) -> Result<(), Why> {
    let Caller::User { name, granted, .. } = caller else { return Ok(()) };
    match caller.user(users) {
        Some(_) if granted.is_some() && !need.is_registry() => {
            let user = format!("{name}, with a token that is for the registry alone,");
            Err(Why::Forbidden { user, roles: list(&need.roles()) })
        }
        Some(user) if need.allows(&user.roles) => Ok(()),
        Some(_) => Err(Why::Forbidden { user: name.clone(), roles: list(&need.roles()) }),
        None => Err(Why::WrongLogin { users: true }),
    }
}

/// The roles that may send a request, with what that would destroy.
fn with_loss(path: &str, roles: String) -> String {
    const LOSS: &str = "It would delete all rows of the tables here that are named as the remote's collections (all of them, or \
                        those that restrictCollections leaves), and put the remote's documents in their place";
    if path.trim_end_matches('/').ends_with("/_api/replication/sync") {
        return format!("{roles}. {LOSS}");
    }
    roles
}

/// Names the operation that a user may not have carried out, if it is one: clients show that.
async fn operation<I: Body>(why: &Why, request: Request<I>) -> Why
where
    I::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(request.into_body(), FORBIDDEN_BYTES_MAX).collect();
    let bytes = tokio::time::timeout(FORBIDDEN_DEADLINE, body).await.ok().and_then(Result::ok);
    let body = bytes.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes.to_bytes()).ok());
    let name = body.as_ref().and_then(|body| body["operation"].as_str());
    match name.filter(|name| NAMES.contains(name)) {
        None => why.clone(),
        Some(name) => {
            let mut words = name.split('_');
            let mut function = words.next().unwrap_or_default().to_owned();
            for word in words {
                let (first, rest) = word.split_at(1);
                function.push_str(&first.to_uppercase());
                function.push_str(rest);
            }
            Why::OperationForbidden { function }
        }
    }
}

pub(super) fn why(denied: Denied, users: bool) -> Why {
    match denied {
        Denied::Missing => Why::NoLogin { users },
        Denied::Wrong => Why::WrongLogin { users },
        Denied::Outdated => Why::Outdated,
        Denied::TooOften { seconds } => Why::TooOften { seconds },
        Denied::Busy => Why::Busy,
    }
}

/// Whether the page that sent this request came from this very server.
///
/// Where nobody has to log in, a name of somebody else's that resolves to this machine must not count either, so the
/// page's host must then be an address or `localhost`.
fn same_origin(headers: &HeaderMap, login: bool) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    let same = origin.split_once("://").is_some_and(|(_, page)| page.eq_ignore_ascii_case(host));
    same && (login || is_address_or_localhost(host))
}

fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}
