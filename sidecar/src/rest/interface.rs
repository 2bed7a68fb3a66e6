//! The interfaces that share this port, and how each of them says that somebody is not let in.

use super::refusal::{Refusal, json, with_body};
use serde_json::{Value, json};
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::Response;

/// Whose clients a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// The cluster's own: `{"code", "message"}`.
    Cluster,
    /// `/rest/v5/…`: ApiError.
    Delta,
    /// `POST /` with an operation: `{"error"}`.
    Operations,
    /// `/_api/…` and `/_db/…`: an envelope with `errorNum`.
    Replication,
    /// `/itResources…`, `/cluster/request`: `{"statusCode", "title", "message"}`.
    Registry,
}

/// Why a request does not get as far as its route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing was shown. As long as there are no users only a token can be shown.
    NoLogin { users: bool },
    /// What was shown is wrong.
    WrongLogin { users: bool },
    /// A token for a while is not good any more.
    Outdated,
    /// The user may not do this; these roles may.
    Forbidden { user: String, roles: String },
    /// The same of an operation, by the name of the function that would carry it out.
    OperationForbidden { function: String },
    /// It was wrong too often.
    TooOften { seconds: u64 },
    /// Too many passwords are being verified.
    Busy,
    /// A web page of another origin.
    ForeignOrigin,
}

const TOKEN: &str = "send the cluster's token as `Authorization: Bearer …`; it is in the file that token-file in \
                     node.toml names";
const LOGIN: &str = "log in: name and password as HTTP Basic, or a token as `Authorization: Bearer …`. An administrator \
                     makes users with `pgquorum user add`";
const WRONG: &str =
    "this login is not valid: the name, the password or the token is wrong, or the user was removed";
const OUTDATED: &str = "the token has run out, or its user was changed since: get a new one where it came from, with POST \
                        /cluster/token, POST /oauth/token or POST /_open/auth";
const BUSY: &str =
    "too many passwords are being verified at the moment; try again. A login by token is not held up";
const ORIGIN: &str =
    "a web page of another origin may not change the cluster; use the command line, or a page of this node";

impl Why {
    fn status(&self) -> u16 {
        match self {
            Why::NoLogin { .. } | Why::WrongLogin { .. } | Why::Outdated => 401,
            Why::Forbidden { .. } | Why::OperationForbidden { .. } | Why::ForeignOrigin => 403,
            Why::TooOften { .. } => 429,
            Why::Busy => 503,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Why::NoLogin { users: false } | Why::WrongLogin { users: false } => "token_required",
            Why::NoLogin { users: true } => "login_required",
            Why::WrongLogin { users: true } | Why::Outdated => "login_failed",
            Why::Forbidden { .. } | Why::OperationForbidden { .. } => "forbidden",
            Why::TooOften { .. } => "too_many_failures",
            Why::Busy => "busy",
            Why::ForeignOrigin => "foreign_origin",
        }
    }

    fn message(&self) -> String {
        match self {
            Why::NoLogin { users: false } | Why::WrongLogin { users: false } => TOKEN.to_owned(),
            Why::NoLogin { users: true } => LOGIN.to_owned(),
            Why::WrongLogin { users: true } => WRONG.to_owned(),
            Why::Outdated => OUTDATED.to_owned(),
            Why::Forbidden { user, roles } => {
                format!("user {user} may not do this; it needs one of the roles {roles}")
            }
            Why::OperationForbidden { function } => {
                format!("Operation '{function}' is restricted to 'super_user' roles")
            }
            Why::TooOften { seconds } => {
                format!("too many logins failed; the next one is looked at in {seconds} s")
            }
            Why::Busy => BUSY.to_owned(),
            Why::ForeignOrigin => ORIGIN.to_owned(),
        }
    }
}

impl Interface {
    /// The answer in this interface's words. `basic`: the client is told that it may log in by name and password; a web
    /// page that asks by itself is not, or the browser would put its own dialogue over it.
    pub(super) fn refuse(self, why: &Why, basic: bool) -> Response {
        let status = match (self, why) {
            // Clients of the registry get a new token when they are told so, and only then.
            (Interface::Registry, Why::Outdated) => 403,
            _ => why.status(),
        };
        let mut response = match self {
            Interface::Cluster => Refusal::new(status, why.code(), why.message()).into_response(),
            Interface::Delta => {
                json(status, &json!({"error": title(status), "errorDescription": why.message()}))
            }
            Interface::Operations => json(status, &operations(why)),
            // What a user has no right to looks there like what nobody knows.
            Interface::Replication => {
                let status = if status == 403 { 401 } else { status };
                let number = if status == 401 { 11 } else { status };
                let body =
                    json!({"error": true, "code": status, "errorNum": number, "errorMessage": why.message()});
                with_body(status, "application/json; charset=utf-8", body.to_string())
            }
            Interface::Registry => registry(status, why.code(), &why.message(), None),
        };
        let headers = response.headers_mut();
        if status == 401 {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pgquorum\""));
            let users = !matches!(why, Why::NoLogin { users: false } | Why::WrongLogin { users: false });
            if users && basic {
                let value = HeaderValue::from_static("Basic realm=\"pgquorum\", charset=\"UTF-8\"");
                headers.append(header::WWW_AUTHENTICATE, value);
            }
        }
        let seconds = match why {
            Why::TooOften { seconds } => *seconds,
            Why::Busy => 1,
            _ => 0,
        };
        if seconds > 0 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn title(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

/// A refusal in the words of the registry's clients; `code` is our own word for it.
pub(super) fn registry(status: u16, code: &str, message: &str, info: Option<Value>) -> Response {
    let mut known = json!({ "code": code });
    if let (Some(known), Some(Value::Object(more))) = (known.as_object_mut(), info) {
        known.extend(more);
    }
    let body = json!({"statusCode": status, "title": title(status), "message": message, "info": known});
    json(status, &body)
}

fn operations(why: &Why) -> Value {
    match why {
        Why::NoLogin { .. } => json!({"error": "Must login"}),
        Why::WrongLogin { .. } | Why::Outdated => json!({"error": "Login failed"}),
        Why::Forbidden { .. } => unauthorized("This operation is restricted to 'super_user' roles"),
        Why::OperationForbidden { .. } => unauthorized(&why.message()),
        Why::TooOften { .. } | Why::Busy | Why::ForeignOrigin => json!({"error": why.message()}),
    }
}

fn unauthorized(what: &str) -> Value {
    json!({
        "error": "This operation is not authorized due to role restrictions and/or invalid database items",
        "unauthorized_access": [what],
        "invalid_schema_items": [],
    })
}
