//! `/users` and `/users/{user}`: who may log in. Hashes are not shown, and passwords are not repeated in an error.

use crate::login::{Denied, password};
use crate::rest::api::{Api, query, read};
use crate::rest::body;
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, respond};
use crate::uri::decoded;
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::users::{Secret, User, UserChange, UserRole};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

type Body = Result<Map<String, Value>, Refusal>;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, shower, adder, changer, remover) =
        (api.clone(), api.clone(), api.clone(), api.clone(), api.clone());
    let list = warp::path!("users").and(read()).map(move || respond(list(&lister)));
    let show =
        warp::path!("users" / String).and(read()).map(move |user: String| respond(show(&shower, &user)));
    let add = warp::path!("users").and(warp::post()).and(query()).and(body::object()).then(
        move |query: String, body| {
            let api = adder.clone();
            async move { respond(add(&api, &query, body).await) }
        },
    );
    let change = warp::path!("users" / String).and(warp::patch()).and(query()).and(body::object()).then(
        move |user: String, query: String, body| {
            let api = changer.clone();
            async move { respond(change(&api, &user, &query, body).await) }
        },
    );
    let remove = warp::path!("users" / String).and(warp::delete()).and(query()).then(
        move |user: String, query: String| {
            let api = remover.clone();
            async move { respond(remove(&api, &user, &query).await) }
        },
    );
    list.or(show).unify().or(add).unify().or(change).unify().or(remove).unify().boxed()
}

fn list(api: &Api) -> Result<Value, Refusal> {
    let view = api.member_view()?;
    Ok(view.cluster.users.iter().map(|(name, user)| shown(name, user)).collect())
}

fn show(api: &Api, user: &str) -> Result<Value, Refusal> {
    let view = api.member_view()?;
    let name = self::user(user)?;
    view.cluster.users.get(&name).map(|user| shown(&name, user)).ok_or_else(|| unknown(&name))
}

async fn add(api: &Api, query: &str, body: Body) -> Result<Value, Refusal> {
    // Whoever does not lead says so before a password is hashed.
    api.leader_view()?;
    Query::strict(query, &[])?;
    let mut fields = Fields::new(body?, &["name", "roles", "password"])?;
    let user = fields.text("name")?.ok_or_else(|| missing("name"))?;
    let roles = fields.roles()?.ok_or_else(|| missing("roles"))?;
    let password = fields.hash(api).await?;
    ask(api, UserChange::Add { user, roles, password }).await
}

async fn change(api: &Api, user: &str, query: &str, body: Body) -> Result<Value, Refusal> {
    api.leader_view()?;
    Query::strict(query, &[])?;
    let user = self::user(user)?;
    let mut fields = Fields::new(body?, &["roles", "password"])?;
    let roles = fields.roles()?;
    let password = fields.hash(api).await?;
    if roles.is_none() && password.is_none() {
        return Err(Refusal::bad_request("missing_field", "the body must have roles or password, or both"));
    }
    ask(api, UserChange::Set { user, roles, password }).await
}

async fn remove(api: &Api, user: &str, query: &str) -> Result<Value, Refusal> {
    api.leader_view()?;
    let last = Query::strict(query, &["last"])?.flag("last")?.unwrap_or(false);
    let user = self::user(user)?;
    let removed = json!({ "removed": user });
    match api.ask(Request::User(UserChange::Remove { user, last })).await? {
        Reply::User { .. } => Ok(removed),
        _ => Err(Refusal::unexpected_reply()),
    }
}

/// Makes a change and shows the user as it is then.
async fn ask(api: &Api, change: UserChange) -> Result<Value, Refusal> {
    let name = change.user().to_owned();
    match api.ask(Request::User(change)).await? {
        Reply::User { user: Some(user) } => Ok(shown(&name, &user)),
        _ => Err(Refusal::unexpected_reply()),
    }
}

/// A user as it may be seen.
fn shown(name: &str, user: &User) -> Value {
    let tokens = user.tokens.iter().map(|(id, token)| json!({"id": id, "created": time(token.created)}));
    json!({
        "name": name,
        "roles": user.roles,
        "password": user.password.is_some(),
        "tokens": tokens.collect::<Vec<_>>(),
    })
}

/// RFC 3339, in whole seconds.
pub(super) fn time(unix_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    at.map_or_else(String::new, |at| humantime::format_rfc3339_seconds(at).to_string())
}

/// The user whom a segment of the path names.
pub(super) fn user(segment: &str) -> Result<String, Refusal> {
    decoded(segment).ok_or_else(|| bad("user", segment, "a user's name"))
}

fn unknown(user: &str) -> Refusal {
    let message = format!("there is no user {user}; GET /users lists those that there are");
    Refusal::new(404, "unknown_user", message)
}

fn missing(field: &str) -> Refusal {
    Refusal::bad_request("missing_field", format!("the body must have {field}"))
}

impl From<Denied> for Refusal {
    fn from(_: Denied) -> Refusal {
        Refusal::new(503, "busy", "too many passwords are being worked on at the moment; try again")
    }
}

/// The body of a request. What it says of a field that is wrong never repeats its value.
struct Fields(Map<String, Value>);

impl Fields {
    fn new(fields: Map<String, Value>, known: &[&str]) -> Result<Fields, Refusal> {
        if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            let message = format!("unknown field {name:?}; this route knows {}", known.join(", "));
            return Err(Refusal::bad_request("unknown_field", message));
        }
        Ok(Fields(fields))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::bad_request("bad_field", format!("{name} must be a text"))),
        }
    }

    fn roles(&mut self) -> Result<Option<BTreeSet<UserRole>>, Refusal> {
        let wrong = |message| Refusal::bad_request("bad_role", message);
        let role = |role: Value| match role {
            Value::String(role) => UserRole::parse(&role).map_err(wrong),
            _ => Err(wrong("roles must be texts".to_owned())),
        };
        match self.0.remove("roles") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(roles)) => roles.into_iter().map(role).collect::<Result<_, _>>().map(Some),
            Some(_) => Err(wrong("roles must be an array, as in [\"reader\"]".to_owned())),
        }
    }

    /// The password's hash.
    async fn hash(&mut self, api: &Api) -> Result<Option<Secret>, Refusal> {
        let Some(password) = self.text("password")? else { return Ok(None) };
        password::check(&password).map_err(|why| Refusal::bad_request("bad_password", why))?;
        Ok(Some(api.logins().hash(password).await?))
    }
}
