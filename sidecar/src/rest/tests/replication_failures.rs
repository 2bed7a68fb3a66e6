//! What can be wrong with a request of the replication interface, on each of its paths, with its status and number.

use super::super::table::{ROUTES, Route};
use super::replication::failure;
use super::table::example;
use super::users::{PASSWORD, bearer, view_with_users};
use super::*;
use crate::feed::fake::insert;
use crate::login::basic;
use pgquorum_agent::users::UserRole;
use serde_json::json;
use warp::http::Method;

/// The routes with and without the name of a database.
fn routes() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.path.starts_with("/_"))
}

/// Query and body with which nothing is wrong.
fn good(path: &str) -> (&'static str, &'static str) {
    match path.rsplit('/').next().unwrap_or_default() {
        "dump" => ("?collection=orders", ""),
        "restore-data" => ("?collection=t", r#"{"type": 2300, "key": "7", "data": {"id": 7}}"#),
        "restore-collection" | "restore-indexes" => {
            ("", r#"{"parameters": {"name": "t"}, "indexes": [{"type": "hash", "fields": ["n"]}]}"#)
        }
        "batch" | "{batch}" => ("", r#"{"ttl": 10}"#),
        "logger-config" => ("", r#"{"maxEvents": 5}"#),
        "applier-config" | "sync" | "make-follower" | "make-slave" => {
            ("", r#"{"endpoint": "tcp://127.0.0.1:1", "connectTimeout": 1}"#)
        }
        "auth" => ("", r#"{"username": "root", "password": "a wrong password"}"#),
        _ => ("", ""),
    }
}

/// It belongs to no database, and whoever has data or leads makes no difference to it.
fn is_the_servers(method: &Method, path: &str) -> bool {
    path.ends_with("/_open/auth") || (*method == Method::PUT && path.ends_with("/wal/properties"))
}

/// A server whose applier has settings.
async fn serve_applier(view: View) -> Served {
    let served = serve(view, accept).await;
    let shown = json!({"config": {"endpoint": "tcp://a:1"}, "running": false, "resync": false, "phase": "inactive",
        "message": "", "message_at": "2026-01-01T00:00:00Z", "error_number": 0});
    let says = [("applier_show", shown), ("applier_databases", json!(["postgres"]))];
    served.database.says.lock().unwrap().extend(says);
    served
}

#[tokio::test]
async fn every_path_refuses_other_methods_and_what_stands_behind_it() {
    let served = serve(view(1), accept).await;
    for route in routes() {
        let (path, (query, body)) = (example(route.path), good(route.path));
        for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
            if route.methods().any(|known| *known == method) {
                continue;
            }
            let answer = served.send(&format!("{method} {path}{query}"), &[], body).await;
            assert_eq!(failure(&answer), (405, 405), "{method} {path}");
            assert!(answer.body.contains(&format!("method {method} not supported")), "{answer:?}");
        }
        // What stands behind this one is the number of a batch.
        let more = if path.ends_with("/batch") { "57/more" } else { "more" };
        let answer = served.get(&format!("{path}/{more}")).await;
        assert_eq!(failure(&answer), (400, 601), "{path}/{more}");
        assert!(answer.body.contains("superfluous URL suffices, expecting URL"), "{answer:?}");
    }
    let unknown = served.send("PUT /_api/replication/logger-restart", &[], "").await;
    assert!(failure(&unknown) == (400, 400) && unknown.body.contains("invalid command"), "{unknown:?}");
}

#[tokio::test]
async fn every_path_says_that_there_is_no_such_database() {
    let served = serve_applier(view(1)).await;
    for (database, route) in
        ["other", "bare"].into_iter().flat_map(|name| routes().map(move |route| (name, route)))
    {
        if !route.path.contains("{database}") {
            continue;
        }
        let path = example(&route.path.replace("{database}", database));
        let (query, body) = good(route.path);
        for method in route.methods().filter(|method| !is_the_servers(method, route.path)) {
            let answer = served.send(&format!("{method} {path}{query}"), &[], body).await;
            assert_eq!(failure(&answer), (404, 1228), "{method} {path}");
        }
    }
    // Also where a batch is asked for, which is looked for first.
    for rest in ["dump?collection=orders&batchId=57", "dump?collection=orders&from=1", "inventory?batchId=57"]
    {
        let path = format!("/_db/other/_api/replication/{rest}");
        assert_eq!(failure(&served.get(&path).await), (404, 1228), "{path}");
        assert_eq!(failure(&served.get(&path.replace("/_db/other", "")).await), (404, 1600), "{path}");
    }
    let none = served.database.calls.lock().unwrap();
    assert!(none.is_empty(), "something was done: {none:?}");
}

#[tokio::test]
async fn every_path_is_closed_to_those_who_have_no_right() {
    let served = serve(view_with_users(1), accept).await;
    for route in routes().filter(|route| !route.path.ends_with("/_open/auth")) {
        // Who has no right is not told whether there is such a database.
        let path = example(&route.path.replace("{database}", "other"));
        let (query, body) = good(route.path);
        for method in route.methods() {
            for header in ["x-none: 1", bearer(UserRole::Reader).as_str()] {
                let answer = served.send(&format!("{method} {path}{query}"), &[header], body).await;
                assert_eq!(failure(&answer), (401, 11), "{method} {path} {header}");
            }
        }
    }
    let login = |name: &str, password: &str| format!("authorization: {}", basic(name, password));
    for wrong in
        [login("root", "a wrong password"), login("nobody", PASSWORD), "authorization: Basic x".into()]
    {
        for line in ["GET /_api/collection", "PUT /_db/other/_api/replication/sync"] {
            let answer = served.send(line, &[&wrong], "{}").await;
            assert_eq!(failure(&answer), (401, 11), "{line} {wrong}");
            assert!(
                !answer.body.contains(PASSWORD) && !answer.body.contains("a wrong password"),
                "{answer:?}"
            );
        }
    }
    let right = served.send("GET /_db/other/_api/collection", &[&login("root", PASSWORD)], "").await;
    assert_eq!(failure(&right), (404, 1228));
}

#[tokio::test]
async fn every_path_is_answered_by_whom_it_is_meant_for() {
    let (follower, witness) = (serve_applier(view(2)).await, serve_applier(view(4)).await);
    for route in routes() {
        let (path, (query, body)) = (example(route.path), good(route.path));
        for method in route.methods().filter(|method| !is_the_servers(method, route.path)) {
            let line = format!("{method} {path}{query}");
            let answer = follower.send(&line, &[], body).await;
            if *method == Method::GET && !path.ends_with("/dump") {
                assert!(matches!(answer.status, 200 | 204), "{line}: {answer:?}");
            } else {
                assert_eq!(failure(&answer), (503, 503), "{line}");
            }
            let answer = witness.send(&line, &[], body).await;
            if path.ends_with("/_api/version") {
                assert_eq!(answer.status, 200, "{line}: {answer:?}");
            } else {
                assert_eq!(failure(&answer), (503, 503), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn bodies_are_objects_of_json() {
    let served = serve_applier(view(1)).await;
    for line in [
        "POST /_api/replication/batch",
        "PUT /_api/replication/batch/57",
        "PUT /_api/replication/logger-config",
        "PUT /_api/replication/applier-config",
        "PUT /_api/replication/sync",
        "PUT /_api/replication/make-follower",
        "PUT /_api/replication/make-slave",
        "PUT /_api/replication/restore-collection",
        "PUT /_api/replication/restore-indexes",
        "POST /_open/auth",
    ] {
        for body in ["", "{", "{\"ttl\": 10}}", "null", "7", "\"x\"", "[{}]"] {
            let answer = served.send(line, &[], body).await;
            assert_eq!(failure(&answer), (400, 600), "{line} {body}");
            assert!(answer.body.contains("invalid JSON object"), "{answer:?}");
        }
        let large = format!("{{\"ttl\": 10, \"x\": \"{}\"}}", "x".repeat(1 << 20));
        assert_eq!(failure(&served.send(line, &[], &large).await), (413, 413), "{line}");
    }
    // These take none, and look at none.
    for line in ["PUT /_api/replication/logger-start", "PUT /_admin/wal/flush"] {
        assert_eq!(served.send(line, &[], "{").await.status, 200, "{line}");
    }
}

#[tokio::test]
async fn values_of_other_types_are_refused() {
    let served = serve_applier(view(1)).await;
    let (dump, follow) =
        ("GET /_api/replication/dump?collection=orders", "GET /_api/replication/logger-follow?from=0");
    let mut wrong: Vec<String> = Vec::new();
    for more in [
        "to=x",
        "from=-1",
        "from=1.5",
        "from=18446744073709551616",
        "from=3&to=2",
        "ticks=perhaps",
        "inColumns=2",
        "includeSystem=perhaps",
        "chunkSize=1.5",
        "chunkSize=-1",
        "chunkSize=64k",
        "serverId=-1",
    ] {
        wrong.push(format!("{dump}&{more}"));
    }
    for more in [
        "to=x",
        "to=0",
        "includeSystem=perhaps",
        "inColumns=perhaps",
        "chunkSize=-1",
        "chunkSize=1e3",
        "syncerId=-1",
        "serverId=18446744073709551616",
        "exceptOrigins=%7B%7D",
        "exceptOrigins=%5B1%5D",
    ] {
        wrong.push(format!("{follow}&{more}"));
        wrong.push(format!("{follow}&{more}").replace("replication/logger-follow", "wal/tail"));
    }
    let replication = [
        "GET dump?collection=",
        "GET inventory?global=perhaps",
        "GET clusterInventory?includeSystem=perhaps",
        "GET logger-follow?from=5&to=4",
        "GET logger-follow?from=1e3",
        "GET applier-config?global=perhaps",
        "PUT applier-start?from=-1",
        "PUT applier-start?from=1e3",
        "PUT applier-start?from=18446744073709551616",
        "PUT applier-stop?global=perhaps",
        "POST batch?state=perhaps",
        "PUT restore-collection?recycleIds=perhaps",
        "PUT restore-indexes?force=perhaps",
        "PUT restore-data?collection=t&force=perhaps",
        "PUT restore-data",
    ];
    wrong.extend(replication.map(|line| line.replacen(' ', " /_api/replication/", 1)));
    wrong.extend(
        ["from=5&to=4", "lastScanned=x", "global=perhaps"].map(|more| format!("GET /_api/wal/tail?{more}")),
    );
    for line in &wrong {
        assert_eq!(failure(&served.send(line, &[], "{}").await), (400, 400), "{line}");
    }
    for (line, body) in [
        ("POST batch", json!({"ttl": "10"})),
        ("POST batch", json!({"ttl": 0})),
        ("PUT batch/57", json!({"ttl": true})),
        ("PUT restore-collection", json!({"parameters": 5})),
        ("PUT restore-collection", json!({"parameters": {"name": 5}})),
        ("PUT restore-indexes", json!({"parameters": {"name": "t"}, "indexes": 5})),
        ("PUT restore-indexes", json!({"parameters": {"name": "t"}, "indexes": [{"type": "hash"}]})),
        ("PUT restore-data?collection=t", json!({"type": 2300, "key": 7, "data": {}})),
    ] {
        let line = line.replacen(' ', " /_api/replication/", 1);
        assert_eq!(failure(&served.send(&line, &[], &body.to_string()).await), (400, 400), "{line} {body}");
    }
    for wrong in [json!({"username": 5, "password": "x"}), json!({"username": "root", "password": null})] {
        let answer = served.send("POST /_open/auth", &[], &wrong.to_string()).await;
        assert_eq!(failure(&answer), (400, 400), "{wrong}");
    }
    for line in
        ["GET applier-config", "GET applier-state", "PUT applier-start", "PUT applier-stop", "PUT make-slave"]
    {
        let line = format!("{}?global=true", line.replacen(' ', " /_api/replication/", 1));
        assert_eq!(failure(&served.send(&line, &[], "{}").await), (501, 501), "{line}");
    }
    let calls = served.database.calls.lock().unwrap();
    assert!(calls.is_empty(), "something was done: {calls:?}");
}

#[tokio::test]
async fn a_remote_is_named_well_or_refused() {
    let served = serve_applier(view(1)).await;
    for (body, says) in [
        (json!({}), "<endpoint> must be a valid endpoint"),
        (json!({"endpoint": null}), "<endpoint> must be a valid endpoint"),
        (json!({"endpoint": ""}), "<endpoint> must be a valid endpoint"),
        (json!({"endpoint": "10.0.0.1:8529"}), "<endpoint> must be a valid endpoint"),
        (json!({"endpoint": 5}), "endpoint must be a text"),
        (json!({"endpoint": "tcp://a:1", "password": 5}), "password must be a text"),
        (json!({"endpoint": "tcp://a:1", "incremental": "no"}), "incremental must be true or false"),
        (json!({"endpoint": "tcp://a:1", "chunkSize": "x"}), "chunkSize must be a whole number"),
        (
            json!({"endpoint": "tcp://a:1", "restrictType": "include"}),
            "invalid value for <restrictCollections> or",
        ),
        (
            json!({"endpoint": "tcp://a:1", "restrictCollections": ["a"]}),
            "invalid value for <restrictCollections> or",
        ),
        (
            json!({"endpoint": "tcp://a:1", "restrictType": "some", "restrictCollections": ["a"]}),
            "<restrictType>",
        ),
    ] {
        for (command, number) in
            [("applier-config", 1410), ("sync", 400), ("make-follower", 400), ("make-slave", 400)]
        {
            let line = format!("PUT /_api/replication/{command}");
            let answer = served.send(&line, &[], &body.to_string()).await;
            // These two are no settings of their own.
            let number = if says.contains("restrict") { 400 } else { number };
            // Who names no endpoint leaves the one that there is.
            if command == "applier-config" && body == json!({}) {
                assert_eq!(answer.status, 200, "{answer:?}");
                continue;
            }
            assert_eq!(failure(&answer), (400, number), "{line} {body}");
            assert!(answer.body.contains(says), "{line} {body}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn what_is_unknown_or_larger_than_need_be_is_no_failure() {
    let served = serve(view(1), accept).await;
    served.database.commit(1, &[insert(1, 1, "a")]);
    let huge = "chunkSize=99999999999999999999999";
    for path in [
        format!("replication/logger-follow?from=0&{huge}"),
        format!("wal/tail?from=0&{huge}&barrierId=5"),
        format!("replication/dump?collection=orders&{huge}&flush=true"),
        "replication/logger-follow?from=0&chunkSize=0&serverId=0&syncerId=0&something=1".to_owned(),
        "replication/inventory?batchId=&collection=&includeSystem=&something=perhaps".to_owned(),
        "version?details=perhaps".to_owned(),
    ] {
        assert_eq!(served.get(&format!("/_api/{path}")).await.status, 200, "{path}");
    }
    let state = served.get("/_api/replication/logger-state?something=1").await.json();
    assert_eq!(state["clients"], json!([]), "0 is nobody");
    let put = async |body: &str| served.send("PUT /_api/replication/logger-config", &[], body).await;
    let ignored = put(r#"{"maxEvents": -1, "maxEventsSize": 1.5, "autoStart": 7, "something": {}}"#).await;
    assert_eq!(ignored.status, 200, "{ignored:?}");
    for (text, yes) in [
        ("true", true),
        ("TRUE", true),
        ("1", true),
        ("yes", true),
        ("on", true),
        ("y", true),
        ("", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("off", false),
        ("n", false),
    ] {
        let path = format!("/_api/replication/dump?collection=orders&chunkSize=1&ticks={text}");
        let line = served.get(&path).await.json();
        assert_eq!(line.get("tick").is_some(), yes, "{text}: {line}");
    }
}

#[tokio::test]
async fn a_batch_that_is_left_alone_is_over_for_everybody() {
    let served = serve(view(1), accept).await;
    let begun = served.send("POST /_api/replication/batch", &[], r#"{"ttl": 0.05}"#).await.json();
    let id = begun["id"].as_str().unwrap();
    let inventory = format!("/_api/replication/inventory?batchId={id}");
    let over = async {
        while served.get(&inventory).await.status == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, over).await.expect("it ends by itself");
    for line in [
        format!("GET {inventory}"),
        format!("GET /_api/replication/dump?collection=orders&batchId={id}"),
        format!("PUT /_api/replication/batch/{id}"),
        format!("DELETE /_api/replication/batch/{id}"),
    ] {
        assert_eq!(failure(&served.send(&line, &[], r#"{"ttl": 60}"#).await), (404, 1600), "{line}");
    }
}
