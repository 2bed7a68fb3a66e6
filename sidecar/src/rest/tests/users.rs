//! Who may do what: every request of the table with every role, and the words in which it is refused.

use super::super::table::{Need, ROUTES};
use super::table::example;
use super::*;
use crate::login::{basic, password, token};
use pgquorum_agent::users::{Secret, Token, User, UserChange, UserRole, Users};
use serde_json::json;
use std::collections::HashMap;
use std::sync::OnceLock;
use warp::http::Method;

pub(super) const PASSWORD: &str = "a password of tests";

fn hash() -> Secret {
    static HASH: OnceLock<Secret> = OnceLock::new();
    HASH.get_or_init(|| Secret::new(password::hash(PASSWORD))).clone()
}

fn tokens() -> &'static HashMap<UserRole, token::New> {
    static TOKENS: OnceLock<HashMap<UserRole, token::New>> = OnceLock::new();
    TOKENS.get_or_init(|| UserRole::ALL.into_iter().map(|role| (role, token::new())).collect())
}

pub(super) fn bearer(role: UserRole) -> String {
    format!("authorization: Bearer {}", tokens()[&role].text)
}

fn name(role: UserRole) -> String {
    format!("with.{role}")
}

/// `root`, who is an admin, `bob`, who is a reader, and for each role somebody who has that one and a token.
fn users() -> Users {
    let mut users = Users::default();
    let mut index = 100;
    let mut change = |change: UserChange| {
        index += 1;
        users.apply(index, &change).unwrap();
    };
    let mut add = |user: String, role, password| {
        change(UserChange::Add { user, roles: [role].into(), password });
    };
    add("root".to_owned(), UserRole::Admin, Some(hash()));
    add("bob".to_owned(), UserRole::Reader, Some(hash()));
    for role in UserRole::ALL {
        add(name(role), role, None);
    }
    for role in UserRole::ALL {
        let new = &tokens()[&role];
        let token = Token { hash: new.token.hash.clone(), created: 0 };
        change(UserChange::AddToken { user: name(role), id: new.id.clone(), token });
    }
    users
}

pub(super) fn view_with_users(id: NodeId) -> View {
    let mut view = view(id);
    Arc::make_mut(&mut view.cluster).users = users();
    view
}

/// The user as a driver would answer after this change.
pub(super) fn after(change: &UserChange) -> Option<User> {
    let mut users = users();
    users.apply(1000, change).unwrap();
    users.get(change.user()).cloned()
}

/// What docs/users.md promises, said once more.
fn may(role: UserRole, method: &Method, path: &str) -> bool {
    let look = *method == Method::GET || *method == Method::HEAD;
    let sequences = path.starts_with("/channels/") && path.ends_with("/sequences");
    let copies =
        path.ends_with("/dump") || path.ends_with("/copies") || path.contains("/copies/") || sequences;
    let theirs =
        copies || path.ends_with("/followers") || path.contains("/followers/") || path.ends_with("/cut");
    let registry = path.starts_with("/itResources") || path == "/cluster/status";
    if path.contains("/rest/v5/") {
        let counters = path.ends_with("/reset/config/version/counters");
        return role.is_mighty() || role == UserRole::ApiImport || (role == UserRole::ApiConfig && counters);
    }
    match role {
        UserRole::Admin | UserRole::SuperUser => true,
        _ if path == "/cluster/request" => true,
        _ if path.starts_with("/users") => false,
        // Another interface, whose readers may not start or flush the log. Some of them may have tables here replaced.
        _ if path.starts_with("/_") => {
            let read = look || path.contains("/batch");
            let (copy, remote) = (path.ends_with("/replication/sync"), path.ends_with("/applier-config"));
            match role {
                UserRole::ReplicationSync => read || copy,
                UserRole::Follower => read && !remote,
                _ => false,
            }
        }
        UserRole::Reader => look && !copies,
        UserRole::Follower => look || theirs,
        UserRole::Cluster => registry,
        UserRole::ApiImport | UserRole::ApiConfig | UserRole::ReplicationSync => false,
    }
}

#[tokio::test]
async fn each_role_may_what_the_table_says_and_nothing_else() {
    let served = serve(view_with_users(1), accept).await;
    let mut open = Vec::new();
    for route in ROUTES {
        assert!(!route.verbs.is_empty(), "{}", route.path);
        for (method, need) in route.verbs {
            let line = format!("{method} {}", example(route.path));
            // A stream that is let in does not end.
            let endless = *method == Method::GET && route.path.ends_with("/stream");
            let anonymous = served.send(&line, &[], "").await.status;
            if *need == Need::Open {
                open.push(route.path);
                assert!(anonymous != 401 && anonymous != 403, "{line}");
                continue;
            }
            assert_eq!(anonymous, 401, "{line}");
            for role in UserRole::ALL {
                let allowed = may(role, method, route.path);
                assert_eq!(need.allows([&role]), allowed, "{line} as {role}: the table says something else");
                if allowed && endless {
                    continue;
                }
                let status = served.send(&line, &[&bearer(role)], "").await.status;
                let refusal = if route.path.starts_with("/_") { 401 } else { 403 };
                assert!(
                    if allowed { status != 401 && status != 403 } else { status == refusal },
                    "{line} as {role}: {status}"
                );
            }
        }
    }
    open.dedup();
    let health = [
        "/is-leader",
        "/",
        "/primary",
        "/master",
        "/read-write",
        "/leader-check",
        "/replica",
        "/read-only",
        "/synchronous",
        "/sync",
        "/quorum",
        "/asynchronous",
        "/async",
        "/health",
        "/liveness",
        "/readiness",
    ];
    let others = [
        "/cluster/token",
        "/openapi.yaml",
        "/dashboard",
        "/oauth/token",
        "/fact-finder/oauth/token",
        "/_open/auth",
        "/_db/{database}/_open/auth",
    ];
    assert_eq!(open, [&health[..], &others].concat(), "nothing else is open");
    // What is in no table is nobody's business who has no login.
    for line in ["GET /nothing", "GET //map", "GET /map//", "PUT /map", "GET /USERS", "GET /users/"] {
        assert_eq!(served.send(line, &[], "").await.status, 401, "{line}");
        let known = served.send(line, &[&bearer(UserRole::Cluster)], "").await.status;
        let expected = match line {
            "PUT /map" => 405,
            "GET /users/" => 403,
            _ => 404,
        };
        assert_eq!(known, expected, "{line}");
    }
}

#[tokio::test]
async fn each_interface_refuses_in_its_own_words() {
    let served = serve(view_with_users(1), accept).await;
    let ask = async |line: &str, header: &str| {
        let answer = served.send(line, &[header], "").await;
        (answer.status, answer.json())
    };
    let (nobody, wrong) = ("x: y", "authorization: Bearer pgq_0_1");
    let (reader, mighty) = (bearer(UserRole::Reader), bearer(UserRole::SuperUser));
    let cluster = ask("POST /config", nobody).await;
    assert_eq!((cluster.0, &cluster.1["code"]), (401, &json!("login_required")));
    assert_eq!(ask("GET /map", wrong).await.1["code"], "login_failed");
    let forbidden = ask("POST /config", &reader).await;
    assert_eq!((forbidden.0, &forbidden.1["code"]), (403, &json!("forbidden")));
    let message = forbidden.1["message"].as_str().unwrap();
    assert!(message.contains("with.reader") && message.contains("admin, super_user"), "{message}");

    for line in ["GET /rest/v5/cluster/shop/state", "POST /fact-finder/rest/v5/cluster/shop/database/prune"] {
        let (status, body) = ask(line, nobody).await;
        assert_eq!((status, &body["error"]), (401, &json!("Unauthorized")));
        assert!(body["errorDescription"].is_string() && body.get("stacktrace").is_none(), "{body}");
        assert_eq!(ask(line, &reader).await.1["error"], "Forbidden");
        assert_eq!(ask(line, &bearer(UserRole::ApiConfig)).await.0, 403);
        // The fake knows no state.
        let status = if line.starts_with("GET") { 400 } else { 200 };
        assert_eq!(ask(line, &bearer(UserRole::ApiImport)).await.0, status);
    }
    assert_eq!(ask("GET /rest/v5/none", &bearer(UserRole::ApiImport)).await.1["error"], "NoSuchRoute");
    let counters = "POST /rest/v5/cluster/reset/config/version/counters";
    assert_eq!(ask(counters, &bearer(UserRole::ApiConfig)).await.0, 200);

    assert_eq!(ask("POST /", nobody).await, (401, json!({"error": "Must login"})));
    assert_eq!(ask("POST /", wrong).await, (401, json!({"error": "Login failed"})));
    let (status, body) = ask("POST /", &reader).await;
    assert_eq!(status, 403);
    assert!(body["error"].as_str().unwrap().starts_with("This operation is not authorized"));
    assert!(body["unauthorized_access"].is_array() && body["invalid_schema_items"] == json!([]));
    let body = json!({"operation": "cluster_set_routes"}).to_string();
    let named = served.send("POST /", &[&reader], &body).await;
    assert_eq!(
        (named.status, &named.json()["unauthorized_access"]),
        (403, &json!(["Operation 'clusterSetRoutes' is restricted to 'super_user' roles"]))
    );
    assert_eq!(ask("POST /", &mighty).await, (400, json!({"error": "Invalid JSON."})));

    for (line, status) in [("GET /_api/replication/logger-state", 200), ("GET /_db/shop/_api/wal/tail", 404)]
    {
        for header in [nobody, wrong, &reader] {
            let (status, body) = ask(line, header).await;
            assert_eq!(
                (status, &body["errorNum"], &body["code"], &body["error"]),
                (401, &json!(11), &json!(401), &json!(true))
            );
        }
        for role in [UserRole::ReplicationSync, UserRole::Follower] {
            assert_eq!(ask(line, &bearer(role)).await.0, status, "{role}");
        }
    }
    for (line, known) in [
        ("POST /itResources?managedCluster=off", 400),
        ("DELETE /itResources/c0ffee/servers/node-1", 400),
        ("POST /cluster/elsewhere", 404),
    ] {
        let (status, body) = ask(line, nobody).await;
        assert_eq!((status, &body["statusCode"], &body["title"]), (401, &json!(401), &json!("Unauthorized")));
        assert_eq!(ask(line, &reader).await.1["statusCode"], 403);
        assert_eq!(ask(line, &bearer(UserRole::Cluster)).await.0, known);
    }
}

#[tokio::test]
async fn the_challenge_fits_the_client() {
    let served = serve(view_with_users(1), accept).await;
    let head = async |headers: &[&str]| served.send("GET /map", headers, "").await.head;
    let tool = head(&[]).await;
    assert!(tool.contains("www-authenticate: bearer") && tool.contains("www-authenticate: basic"), "{tool}");
    let page = head(&["sec-fetch-mode: cors"]).await;
    assert!(page.contains("www-authenticate: bearer") && !page.contains("www-authenticate: basic"), "{page}");
}

#[tokio::test]
async fn a_login_by_password_is_as_good_as_a_token() {
    let served = serve(view_with_users(2), accept).await;
    let login = |name: &str, password: &str| format!("authorization: {}", basic(name, password));
    let status = async |header: String| served.send("GET /map", &[&header], "").await.status;
    assert_eq!(status(login("bob", PASSWORD)).await, 200);
    assert_eq!(status(login("bob", "another password")).await, 401);
    assert_eq!(status(login("eve", PASSWORD)).await, 401);
    assert_eq!(status(login("with.reader", PASSWORD)).await, 401, "has a token and no password");
    let wrong = served.send("GET /map", &[&login("bob", "another password")], "").await;
    assert!(!wrong.body.contains("another password") && !wrong.body.contains("bob"), "{wrong:?}");
    for _ in 0..4 {
        status(login("bob", "yet another")).await;
    }
    let slowed = served.send("GET /map", &[&login("bob", "yet another")], "").await;
    assert_eq!((slowed.status, slowed.code().as_str()), (429, "too_many_failures"));
    assert!(slowed.head.contains("retry-after: "), "{slowed:?}");
    assert_eq!(status(login("bob", PASSWORD)).await, 200, "it was verified before");
    served.change_view(|view| Arc::make_mut(&mut view.cluster).users = Users::default());
    assert_eq!(served.get("/map").await.status, 200, "nobody is left, and it listens on loopback");
}

#[tokio::test]
async fn users_are_shown_without_what_is_secret() {
    let served = serve(view_with_users(1), accept).await;
    let root = format!("authorization: {}", basic("root", PASSWORD));
    let list = served.send("GET /users", &[&root], "").await;
    assert_eq!(list.json().as_array().unwrap().len(), 10, "{list:?}");
    let bob = served.send("GET /users/bob", &[&root], "").await;
    assert_eq!(bob.json(), json!({"name": "bob", "roles": ["reader"], "password": true, "tokens": []}));
    let other = served.send("GET /users/with%2Ereader", &[&root], "").await.json();
    assert_eq!(
        (&other["password"], &other["tokens"][0]["created"]),
        (&json!(false), &json!("1970-01-01T00:00:00Z"))
    );
    assert_eq!(served.send("GET /users/eve", &[&root], "").await.code(), "unknown_user");
    for text in [&list.body, &served.send("GET /info", &[&root], "").await.body] {
        assert!(!text.contains("argon2"), "{text}");
        assert!(tokens().values().all(|new| !text.contains(new.token.hash.reveal())));
    }
}

#[tokio::test]
async fn changes_are_checked_and_hashed_before_they_are_asked_for() {
    let served = serve(view_with_users(1), accept).await;
    let root = format!("authorization: {}", basic("root", PASSWORD));
    let send = async |line: &str, body: &str| served.send(line, &[&root], body).await;
    let added =
        send("POST /users", r#"{"name": "eve", "roles": ["follower"], "password": "correct horse"}"#).await;
    assert_eq!(added.json(), json!({"name": "eve", "roles": ["follower"], "password": true, "tokens": []}));
    let Some(Request::User(UserChange::Add { password: Some(hash), .. })) = served.asked().pop() else {
        panic!("another request")
    };
    assert!(password::verify("correct horse", hash.reveal()));
    assert_eq!(send("PATCH /users/bob", r#"{"roles": ["admin"]}"#).await.json()["roles"], json!(["admin"]));
    let new = send("POST /users/bob/tokens", "").await.json();
    let Some(Request::User(UserChange::AddToken { id, .. })) = served.asked().pop() else {
        panic!("another request")
    };
    assert_eq!((new["id"].as_str(), new["user"].as_str()), (Some(id.as_str()), Some("bob")));
    assert!(new["token"].as_str().unwrap().starts_with("pgq_"));
    assert_eq!(send("DELETE /users/bob", "").await.json(), json!({"removed": "bob"}));
    assert_eq!(send("DELETE /users/bob?last=true", "").await.status, 200);
    let last = |request: Request| matches!(request, Request::User(UserChange::Remove { last: true, .. }));
    assert_eq!(served.asked().into_iter().map(last).collect::<Vec<_>>(), [false, true]);
    for (line, body, code) in [
        ("POST /users", r#"{"roles": ["reader"], "password": "s3cretive"}"#, "missing_field"),
        ("POST /users", r#"{"name": "eve", "password": "s3cretive"}"#, "missing_field"),
        ("POST /users", r#"{"name": "eve", "roles": ["root"], "password": "s3cretive"}"#, "bad_role"),
        ("POST /users", r#"{"name": "eve", "roles": "reader", "password": "s3cretive"}"#, "bad_role"),
        ("POST /users", r#"{"name": "eve", "roles": ["reader"], "password": "s3cret"}"#, "bad_password"),
        ("POST /users", r#"{"name": "eve", "roles": ["reader"], "password": ["s3cretive"]}"#, "bad_field"),
        ("POST /users", r#"{"name": "eve", "roles": ["reader"], "pasword": "s3cretive"}"#, "unknown_field"),
        ("POST /users", r#"{"name": "eve", "password": "s3cretive"#, "malformed_json"),
        ("POST /users", r#""s3cretive""#, "not_an_object"),
        ("POST /users?last=true", "{}", "unknown_parameter"),
        ("PATCH /users/bob", "{}", "missing_field"),
        ("PATCH /users/bob", r#"{"name": "rob"}"#, "unknown_field"),
        ("PATCH /users/%ff", r#"{"roles": ["reader"]}"#, "bad_parameter"),
        ("DELETE /users/bob?last=perhaps", "", "bad_parameter"),
        ("POST /users/bob/tokens?name=x", "", "unknown_parameter"),
    ] {
        let answer = send(line, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{line} {body}");
        assert!(!answer.body.contains("s3cret"), "{answer:?}");
    }
    assert_eq!(served.asked(), [], "nothing of that is asked for");
    served.change_view(|view| *view = view_with_users(2));
    for line in ["POST /users", "PATCH /users/bob", "DELETE /users/bob", "POST /users/bob/tokens"] {
        let answer = send(line, "{}").await;
        assert_eq!((answer.status, answer.code().as_str()), (417, "not_leader"), "{line}");
    }
}

#[tokio::test]
async fn streams_end_when_their_reader_is_not_welcome_any_more() {
    let served = serve(view(1), accept).await;
    let follow = async |header: &str| {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let head = format!(
            "GET /events HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: text/event-stream\r\n{header}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
        stream
    };
    let ends = async |mut stream: TcpStream| {
        let mut rest = Vec::new();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest))
            .await
            .expect("the stream goes on")
            .unwrap();
        assert!(rest.ends_with(b"0\r\n\r\n"), "it ends properly");
    };
    let anybody = follow("x: y").await;
    served.change_view(|view| Arc::make_mut(&mut view.cluster).users = users());
    ends(anybody).await;
    let (reader, follower) =
        (follow(&bearer(UserRole::Reader)).await, follow(&bearer(UserRole::Follower)).await);
    let demote = UserChange::Set {
        user: name(UserRole::Reader),
        roles: Some([UserRole::Cluster].into()),
        password: None,
    };
    let remove = UserChange::Remove { user: name(UserRole::Follower), last: false };
    served.change_view(|view| Arc::make_mut(&mut view.cluster).users.apply(500, &demote).unwrap());
    ends(reader).await;
    let still = served.send("GET /map", &[&bearer(UserRole::Follower)], "").await;
    assert_eq!(still.status, 200);
    served.change_view(|view| Arc::make_mut(&mut view.cluster).users.apply(501, &remove).unwrap());
    ends(follower).await;
}

/// Nodes have no user and no token here; they know the cluster's secret.
#[tokio::test]
async fn nodes_let_each_other_in() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    let leader = serve_with(&config, view_with_users(1), accept).await;
    let follower = serve_with(&config, view_with_users(2), accept).await;
    follower.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    let line = "POST /leader?node=2";
    let answer = follower.send(line, &[&bearer(UserRole::Admin)], "").await;
    assert_eq!((answer.status, leader.asked().len()), (200, 1), "{answer:?}");
    assert_eq!(follower.send(line, &[&bearer(UserRole::Reader)], "").await.status, 403);
    assert_eq!(leader.asked(), []);
}
