//! `POST /oauth/token`, also below `/fact-finder`: where clients of the delta interface log in, by OAuth2's password flow
//! (RFC 6749, section 4.3). What they get is a web token, as of `/_open/auth`. Users are all that is told apart: `client_id` and
//! `client_secret` may be there and are not looked at, and there is no refresh token. Refusals are those of the RFC, section 5.2.

use crate::login::{Denied, SESSION_LIFETIME};
use crate::rest::api::{Api, query};
use crate::rest::body::{self, Form};
use crate::rest::guard::Sender;
use crate::rest::refusal::{Refusal, json};
use pgquorum_agent::users::{UserRole, Users};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::{HeaderValue, header};
use warp::reply::Response;

/// What a client of this interface may be let do, by the names that it has for that, and who may.
const SCOPES: [(&str, UserRole); 2] = [("import", UserRole::ApiImport), ("config", UserRole::ApiConfig)];

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    let plain = warp::path!("oauth" / "token");
    let below = warp::path!("fact-finder" / "oauth" / "token");
    let sender = warp::ext::optional::<Sender>();
    plain
        .or(below)
        .unify()
        .and(warp::post())
        .and(query())
        .and(sender)
        .and(body::form())
        .then(move |query: String, sender: Option<Sender>, form: Result<Form, Refusal>| {
            let api = api.clone();
            async move { token(&api, &query, sender, form).await.unwrap_or_else(Fault::into_response) }
        })
        .boxed()
}

async fn token(
    api: &Api,
    query: &str,
    sender: Option<Sender>,
    form: Result<Form, Refusal>,
) -> Result<Response, Fault> {
    if !query.is_empty() {
        let message =
            "the query must be empty, for what is in an address is kept in logs; send all of it as the body";
        return Err(Fault::request(message));
    }
    let form = form.map_err(|refusal| Fault {
        status: refusal.status(),
        ..Fault::request(refusal.message().to_owned())
    })?;
    let need = |name: &str| {
        form.get(name).ok_or_else(|| {
            Fault::request(format!(
                "{name} is missing; the body is application/x-www-form-urlencoded, with grant_type=password, username and password"
            ))
        })
    };
    if need("grant_type")? != "password" {
        let message = "only grant_type=password is served; when a token has run out, log in again";
        return Err(Fault { error: "unsupported_grant_type", ..Fault::request(message) });
    }
    let (name, password) = (need("username")?, need("password")?);
    let from = sender.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |sender| sender.from);
    let view = api.view();
    let (logins, users) = (api.logins(), &view.cluster.users);
    let token =
        logins.open_session(users, name.to_owned(), password.to_owned(), from).await.map_err(denied)?;
    let mut answer = json!({
        "access_token": token, "token_type": "bearer", "expires_in": SESSION_LIFETIME.as_secs(),
    });
    // Whatever was asked for: a token may what its user may, and who may nothing here gets one for other paths.
    if let Some(scope) = scope(users, name, logins.required(users)) {
        answer["scope"] = scope.into();
    }
    let mut response = json(200, &answer);
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    Ok(response)
}

fn scope(users: &Users, name: &str, required: bool) -> Option<String> {
    let user = users.get(name);
    let may = |role: &UserRole| {
        !required || user.is_some_and(|user| user.roles.iter().any(|one| one.is_mighty() || one == role))
    };
    let scopes: Vec<&str> = SCOPES.iter().filter(|(_, role)| may(role)).map(|(name, _)| *name).collect();
    (!scopes.is_empty()).then(|| scopes.join(" "))
}

fn denied(why: Denied) -> Fault {
    let fault = |status, error, message: String, seconds| Fault { status, error, message, seconds };
    match why {
        Denied::Wrong | Denied::Missing | Denied::Outdated => {
            fault(400, "invalid_grant", "the name or the password is wrong".to_owned(), 0)
        }
        Denied::TooOften { seconds } => {
            let message = format!("too many logins failed; the next one is looked at in {seconds} s");
            fault(429, "invalid_grant", message, seconds)
        }
        Denied::Busy => {
            let message = "too many passwords are being verified at the moment; try again".to_owned();
            fault(503, "temporarily_unavailable", message, 1)
        }
    }
}

/// How the RFC refuses. Nothing in it ever repeats what was sent.
struct Fault {
    status: u16,
    error: &'static str,
    message: String,
    /// After how long to try again; 0: that is not known.
    seconds: u64,
}

impl Fault {
    fn request(message: impl Into<String>) -> Fault {
        Fault { status: 400, error: "invalid_request", message: message.into(), seconds: 0 }
    }

    fn into_response(self) -> Response {
        let mut response =
            json(self.status, &json!({"error": self.error, "error_description": self.message}));
        let headers = response.headers_mut();
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        if self.seconds > 0 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.seconds));
        }
        response
    }
}
