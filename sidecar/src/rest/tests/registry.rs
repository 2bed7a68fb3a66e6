//! Servers that register, the tokens that they get, and requests to all nodes.

use super::*;
use crate::login::{basic, password};
use pgquorum_agent::registry::{Registration, RegistryChange};
use pgquorum_agent::users::{Secret, UserChange, UserRole};
use serde_json::json;
use std::sync::OnceLock;

const KEY: [&str; 1] = ["authorization: Bearer key-of-tests"];
const PASSWORD: &str = "a password of shops";
const BODY: &str = r#"{"type": "shop", "serverId": "s1", "location": "eu",
    "publicBaseUrl": "https://shop.example.org", "clusterBaseUrl": "http://10.0.0.5:8080"}"#;

fn config() -> RestConfig {
    RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() }
}

fn hash() -> Secret {
    static HASH: OnceLock<Secret> = OnceLock::new();
    HASH.get_or_init(|| Secret::new(password::hash(PASSWORD))).clone()
}

/// `s1` of type `shop` is registered; `root` and `shop` may log in.
fn with_a_shop(id: NodeId) -> View {
    let mut view = view(id);
    let cluster = Arc::make_mut(&mut view.cluster);
    let server = Registration {
        server: "s1".to_owned(),
        public_url: "https://shop.example.org".to_owned(),
        cluster_url: "http://10.0.0.5:8080".to_owned(),
        location: json!("eu"),
    };
    let service = crate::registry::wire::service_id("c0ffee", "shop");
    let register = RegistryChange::Register { kind: "shop".to_owned(), service, server, at: 1000 };
    cluster.apply_registry(7, 7, &[register]);
    for (index, (user, role)) in
        [("root", UserRole::Admin), ("shop", UserRole::Cluster), ("bob", UserRole::Reader)].iter().enumerate()
    {
        let add = UserChange::Add { user: (*user).to_owned(), roles: [*role].into(), password: Some(hash()) };
        cluster.users.apply(10 + index as u64, &add).unwrap();
    }
    view
}

fn said(answer: &Answer) -> (u16, String) {
    let json = answer.json();
    assert_eq!(json["statusCode"], answer.status, "{answer:?}");
    assert!(json["title"].is_string() && json["message"].is_string(), "{answer:?}");
    (answer.status, json["info"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_renewal_asks_nobody_and_everything_else_does() {
    let served = serve_with(&config(), with_a_shop(1), accept).await;
    let answer = served.send("POST /itResources?managedCluster=off", &KEY, BODY).await;
    let json = answer.json();
    assert_eq!((answer.status, &json["leaseTime"]), (200, &json!(60_000)), "{json}");
    assert_eq!(json["itResource"]["type"], "shop");
    assert_eq!(
        json["itResource"]["servers"],
        json!([{"serverId": "s1", "publicBaseUrl": "https://shop.example.org",
            "clusterBaseUrl": "http://10.0.0.5:8080", "location": "eu",
            "createdAt": "1970-01-01T00:00:01.000Z", "updatedAt": "1970-01-01T00:00:01.000Z"}])
    );
    assert_eq!(served.asked(), []);
    // From another address; as another server.
    for changed in [BODY.replace("10.0.0.5", "10.0.0.6"), BODY.replace("s1", "s2")] {
        assert_eq!(served.send("POST /itResources?servers=own", &KEY, &changed).await.status, 200);
        let asked = served.asked();
        assert!(matches!(&asked[..], [Request::Registry { changes, .. }] if changes.len() == 1), "{asked:?}");
    }
    let answer = served.send("POST /itResources", &[KEY[0], "x-correlation-id: a@3/then"], BODY).await;
    assert!(answer.head.contains("x-correlation-id: a@4/then"), "{}", answer.head);
}

#[tokio::test]
async fn a_follower_passes_on_what_only_the_leader_can_do() {
    let leader = serve_with(&config(), with_a_shop(1), accept).await;
    let follower = serve_with(&config(), with_a_shop(2), accept).await;
    follower.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    let answer = follower.send("POST /itResources", &KEY, &BODY.replace("s1", "s2")).await;
    assert_eq!((answer.status, &answer.json()["leaseTime"]), (200, &json!(60_000)), "{answer:?}");
    let id = answer.json()["itResource"]["id"].as_str().unwrap().to_owned();
    assert_eq!((leader.asked().len(), follower.asked().len()), (1, 0));
    let line = format!("DELETE /itResources/{id}/servers/s1@1970-01-01T00:00:01.000Z");
    let answer = follower.send(&line, &KEY, "").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"data": "s1"})));
    let removed = |request: &Request| match request {
        Request::Registry { changes, .. } => {
            matches!(&changes[..], [RegistryChange::Remove { not_after: Some(1000), .. }])
        }
        _ => false,
    };
    assert!(leader.asked().iter().all(removed));
    // Not in circles: the leader has just lost its place.
    leader.change_view(|view| *view = with_a_shop(3));
    let answer = follower.send("POST /itResources", &KEY, BODY).await;
    assert_eq!(said(&answer), (503, "not_leader".to_owned()));
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    let dead = TcpStream::connect(follower.address).await.unwrap().local_addr().unwrap();
    follower.change_view(|view| view.leader.as_mut().unwrap().api = dead);
    let answer = follower.send("POST /itResources", &KEY, BODY).await;
    assert_eq!(said(&answer), (503, "leader_unreachable".to_owned()));
    follower.change_view(|view| *view = leaderless(2));
    assert_eq!(said(&follower.send("POST /itResources", &KEY, BODY).await).0, 503);
}

#[tokio::test]
async fn who_is_there_is_known_to_every_node() {
    let served = serve_with(&config(), with_a_shop(2), accept).await;
    let all = served.send("GET /itResources", &KEY, "").await.json();
    let kinds: Vec<&str> =
        all["data"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["pgquorum", "shop"]);
    assert_eq!(all["data"][0]["servers"][1]["clusterBaseUrl"], "http://127.0.0.1:8002");
    let id = all["data"][1]["id"].as_str().unwrap();
    let one = served.send(&format!("GET /itResources/{id}"), &KEY, "").await.json();
    assert_eq!(one["data"], all["data"][1]);
    assert_eq!(served.send("GET /itResources?type=shop", &KEY, "").await.json()["data"][0], one["data"]);
    assert_eq!(served.send("GET /itResources/c0ffee", &KEY, "").await.json()["data"], all["data"][0]);
    let status = served.send("GET /cluster/status", &KEY, "").await.json();
    assert_eq!(
        status,
        json!({"REGISTRATION_STATUS": "registered", "CLUSTER_STATUS_SERVERS": 5,
            "CLUSTER_STATUS_UPDATED_AT": "1970-01-01T00:00:01.000Z", "CLUSTER_STATUS_LEASE_TIME": 60_000})
    );
    let shop = served.send("GET /cluster/status?type=shop", &KEY, "").await.json();
    assert_eq!(shop["CLUSTER_STATUS_SERVERS"], 1);
    served.change_view(|view| *view = leaderless(2));
    let status = served.send("GET /cluster/status", &[], "").await.json();
    assert!(status["REGISTRATION_STATUS"].as_str().unwrap().starts_with("orphan: "), "{status}");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_the_words_of_its_clients() {
    let served = serve_with(&config(), with_a_shop(1), accept).await;
    let own = BODY.replace("\"shop\"", "\"pgquorum\"");
    let others = r#"{"id": "other", "type": "shop", "servers": []}"#;
    for (line, body, expected) in [
        ("POST /itResources", "{}", (400, "bad_server")),
        ("POST /itResources", "[]", (400, "not_an_object")),
        ("POST /itResources", "", (400, "malformed_json")),
        ("POST /itResources", own.as_str(), (400, "own_type")),
        ("POST /itResources?servers=some", BODY, (400, "bad_parameter")),
        ("POST /itResources?typ=x", BODY, (400, "unknown_parameter")),
        ("POST /itResources", others, (404, "no_such_resource")),
        ("GET /itResources?x=1", "", (400, "unknown_parameter")),
        ("GET /itResources/none", "", (404, "no_such_resource")),
        ("GET /itResources/%ff", "", (400, "bad_parameter")),
        ("DELETE /itResources/c0ffee/servers/node-1", "", (400, "own_node")),
        ("DELETE /itResources/x/servers/%ff", "", (400, "bad_parameter")),
        ("POST /cluster/token", "{}", (400, "missing_field")),
        ("POST /cluster/token", r#"{"grant_type": "password"}"#, (400, "bad_field")),
        ("POST /cluster/token", r#"{"grant_type": "client_credentials"}"#, (400, "missing_field")),
        (
            "POST /cluster/token",
            r#"{"grant_type": "refresh_token", "refresh_token": "a.b.c"}"#,
            (400, "bad_refresh_token"),
        ),
        ("POST /cluster/request", "{}", (400, "bad_field")),
        ("GET /cluster/status?of=x", "", (400, "unknown_parameter")),
    ] {
        let answer = served.send(line, &KEY, body).await;
        let (status, code) = said(&answer);
        assert_eq!((status, code.as_str()), expected, "{line} {body}");
    }
    assert_eq!(served.asked(), []);
    served.change_view(|view| *view = stranger());
    for line in ["POST /itResources", "DELETE /itResources/x/servers/y", "GET /itResources"] {
        assert_eq!(said(&served.send(line, &KEY, BODY).await).0, 412, "{line}");
    }
    served.change_view(|view| *view = removed());
    assert_eq!(said(&served.send("POST /itResources", &KEY, BODY).await).0, 410);
    served.change_view(|view| *view = stalled(1));
    assert_eq!(said(&served.send("GET /itResources", &KEY, "").await), (503, "driver_stalled".to_owned()));
}

async fn token(served: &Served, id: &str, secret: &str, more: &str) -> Answer {
    let body = format!(
        r#"{{"grant_type": "client_credentials", "client_id": "{id}", "client_secret": "{secret}"{more}}}"#
    );
    served.send("POST /cluster/token", &[], &body).await
}

fn bearer(answer: &Answer, which: &str) -> String {
    format!("authorization: Bearer {}", answer.json()["data"][which].as_str().unwrap())
}

#[tokio::test]
async fn a_server_logs_in_with_a_token_for_a_while() {
    let served = serve_with(&config(), with_a_shop(1), accept).await;
    let pair = token(&served, "shop", PASSWORD, r#", "audience": "pgquorum""#).await;
    assert_eq!(pair.status, 200, "{pair:?}");
    let access = bearer(&pair, "access_token");
    assert_eq!(served.send("POST /itResources", &[&access], BODY).await.status, 200);
    assert_eq!(served.send("GET /itResources", &[&access], "").await.status, 200);
    let others = token(&served, "root", PASSWORD, "").await;
    for access in [&access, &bearer(&others, "access_token")] {
        let answer = served.send("POST /config", &[access], "{}").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "forbidden"),
            "it is for the registry alone"
        );
        assert_eq!(served.send("GET /map", &[access], "").await.status, 403);
    }
    assert_eq!(said(&token(&served, "shop", "wrong", "").await).0, 401);
    assert_eq!(said(&token(&served, "nobody", PASSWORD, "").await).0, 401);
    assert_eq!(said(&token(&served, "bob", PASSWORD, "").await), (403, "forbidden".to_owned()));
    assert_eq!(said(&token(&served, "shop", PASSWORD, r#", "type": "x""#).await).0, 400);
    // What is for others is not for us.
    let elsewhere = token(&served, "shop", PASSWORD, r#", "audience": "shops", "type": "cluster""#).await;
    assert_eq!(served.send("GET /itResources", &[&bearer(&elsewhere, "access_token")], "").await.status, 401);
    assert_eq!(served.send("GET /itResources", &[&bearer(&pair, "refresh_token")], "").await.status, 401);
    let refresh = pair.json()["data"]["refresh_token"].as_str().unwrap().to_owned();
    let body = json!({"grant_type": "refresh_token", "refresh_token": refresh}).to_string();
    let next = served.send("POST /cluster/token", &[], &body).await;
    assert_eq!(served.send("GET /itResources", &[&bearer(&next, "access_token")], "").await.status, 200);
    // The user gets another password: the token is told to be out of date in the way that makes clients get another.
    let password = Some(Secret::new(password::hash("another password")));
    let set = UserChange::Set { user: "shop".to_owned(), roles: None, password };
    served.change_view(|view| Arc::make_mut(&mut view.cluster).users.apply(50, &set).unwrap());
    let answer = served.send("POST /itResources", &[&access], BODY).await;
    assert_eq!(said(&answer), (403, "login_failed".to_owned()));
    assert_eq!(said(&served.send("POST /cluster/token", &[], &body).await).0, 400);
}

#[tokio::test]
async fn servers_tell_what_they_know_with_tokens_that_say_whose_they_are() {
    let served = serve_with(&config(), with_a_shop(1), accept).await;
    let all = served.send("GET /itResources?type=shop", &KEY, "").await.json();
    let mut resource = all["data"][0].clone();
    resource["servers"][0]["serverId"] = json!("s2");
    let body = resource.to_string();
    let root = format!("authorization: {}", basic("root", PASSWORD));
    let answer = served.send("POST /itResources", &[&root], &body).await;
    assert_eq!((answer.status, &answer.json()["server"]["serverId"]), (200, &json!("node-1")), "{answer:?}");
    assert_eq!(answer.json()["data"]["id"], resource["id"]);
    assert!(matches!(&served.asked()[..], [Request::Registry { changes, .. }]
        if matches!(&changes[..], [RegistryChange::Merge { updated: 1000, .. }])));
    let plain = bearer(&token(&served, "shop", PASSWORD, "").await, "access_token");
    let answer = served.send("POST /itResources", &[&plain], &body).await;
    assert_eq!(said(&answer), (400, "no_cluster_token".to_owned()));
    assert_eq!(answer.json()["message"], "invalid token: must be a cluster token");
    let cluster = r#", "type": "cluster""#;
    let other = bearer(&token(&served, "root", PASSWORD, cluster).await, "access_token");
    let answer = served.send("POST /itResources", &[&other], &body).await;
    assert_eq!((answer.status, &answer.json()["message"]), (400, &json!("invalid type")));
    assert_eq!(answer.json()["info"]["subType"], "root");
    assert_eq!(served.asked(), []);
    let own = bearer(&token(&served, "shop", PASSWORD, cluster).await, "access_token");
    resource["type"] = json!("other");
    let answer = served.send("POST /itResources", &[&root], &resource.to_string()).await;
    assert_eq!(said(&answer), (400, "wrong_type".to_owned()));
    assert_eq!(served.send("POST /itResources", &[&own], &body).await.status, 200);
}

/// Nodes 1 and 2 run, 3 and 4 do not.
async fn two_nodes() -> (Served, Served) {
    let one = serve_with(&config(), with_a_shop(1), accept).await;
    let two = serve_with(&config(), with_a_shop(2), accept).await;
    let ports = [one.address.port(), two.address.port(), 1, 1];
    for served in [&one, &two] {
        served.change_view(|view| {
            let members = Arc::make_mut(&mut view.cluster).members.values_mut();
            for (member, port) in members.zip(ports) {
                member.api_port = port;
            }
        });
    }
    (one, two)
}

#[tokio::test]
async fn all_nodes_are_asked_with_the_callers_own_login() {
    let (one, _two) = two_nodes().await;
    let bob = format!("authorization: {}", basic("bob", PASSWORD));
    let ask = async |login: &str, body: Value| {
        let answer = one.send("POST /cluster/request", &[login], &body.to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let all = ask(&bob, json!({"path": "/info?", "timeout": "5s"})).await;
    let ids = |part: &Value| -> Vec<String> {
        let servers = part.as_array().unwrap().iter();
        servers.map(|one| one["server"]["serverId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&all["results"]), ["node-1", "node-2"], "{all}");
    assert_eq!(ids(&all["failures"]), ["node-3", "node-4"]);
    assert_eq!(all["failures"][0]["error"]["info"]["code"], "unreachable");
    assert_eq!((&all["data"][0]["id"], &all["data"][1]["id"]), (&json!(1), &json!(2)));
    let some = ask(&bob, json!({"path": "/node", "targets": ["node-2", 2]})).await;
    assert_eq!((ids(&some["results"]), some["failures"].clone()), (vec!["node-2".to_owned()], json!([])));
    assert_eq!(some["data"].as_array().unwrap().len(), 4, "the nodes that it knows, one by one");
    // What bob may not do he may not do this way.
    let refused = ask(&bob, json!({"method": "POST", "path": "/config", "body": {}, "targets": [1]})).await;
    assert_eq!(refused["failures"][0]["error"]["statusCode"], 403, "{refused}");
    assert_eq!(one.asked(), []);
    let root = format!("authorization: {}", basic("root", PASSWORD));
    let done = ask(
        &root,
        json!({"method": "post", "path": "/config", "body": {"node-timeout": "2s"}, "targets": [1]}),
    )
    .await;
    assert_eq!(done["results"][0]["result"]["node-timeout"], "2s", "{done}");
    let wrong = one.send("POST /cluster/request", &[&bob], r#"{"path": "/map", "targets": [9]}"#).await;
    assert_eq!(said(&wrong), (400, "unknown_target".to_owned()));
}
