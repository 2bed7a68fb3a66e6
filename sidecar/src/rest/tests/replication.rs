//! The replication interface: documented forms, failures of every kind, logins.

use super::users::{PASSWORD, view_with_users};
use super::*;
use crate::feed::fake::insert;
use crate::replication::tick::{Step, Tick};
use serde_json::json;

/// A failure's status and number, after a look at whether it has the documented form.
pub(super) fn failure(answer: &Answer) -> (u16, u64) {
    let body = answer.json();
    assert_eq!((&body["error"], &body["code"]), (&json!(true), &json!(answer.status)), "{answer:?}");
    assert!(body["errorMessage"].as_str().is_some_and(|text| text.len() > 10), "{answer:?}");
    assert!(answer.head.contains("content-type: application/json; charset=utf-8"), "{answer:?}");
    (answer.status, body["errorNum"].as_u64().unwrap())
}

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let name = format!("x-arango-replication-{name}: ");
    answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .unwrap_or_else(|| panic!("no {name}: {answer:?}"))
}

fn tick(change: u64) -> String {
    Tick::new(crate::feed::Position { epoch: 5, tick: change }, Step::End).unwrap().to_string()
}

#[tokio::test]
async fn a_server_describes_itself() {
    let served = serve(view(1), accept).await;
    served.database.commit(1, &[insert(1, 1, "a")]);
    for prefix in ["", "/_db/_system", "/_db/postgres"] {
        let get = async |path: &str| served.get(&format!("{prefix}{path}")).await.json();
        assert_eq!(
            get("/_api/version").await,
            json!({"server": "arango", "version": "3.11.0", "license": "community"})
        );
        assert!(get("/_api/version?details=true").await["details"]["pgquorum"].is_string());
        let collections = get("/_api/collection?excludeSystem=1").await;
        assert_eq!((&collections["error"], &collections["code"]), (&json!(false), &json!(200)));
        let names: Vec<&Value> =
            collections["result"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["notes", "orders"]);
        assert_eq!(collections["result"][1]["id"], "16385");
        assert_eq!(get("/_api/replication/server-id").await, json!({"serverId": "7"}));
        let state = get("/_api/replication/logger-state").await;
        assert_eq!(
            (&state["state"]["running"], &state["state"]["lastLogTick"]),
            (&json!(true), &json!(tick(1)))
        );
        assert_eq!(state["server"], json!({"version": "3.11.0", "serverId": "7", "engine": "rocksdb"}));
        assert_eq!(state["clients"], json!([]));
        let first = Tick::new(crate::feed::Position { epoch: 5, tick: 1 }, Step::Begin).unwrap().to_string();
        assert_eq!(get("/_api/replication/logger-first-tick").await, json!({"firstTick": first}));
        assert_eq!(
            get("/_api/replication/logger-tick-ranges").await,
            json!([{"datafile": "segment-1", "status": "open", "tickMin": first, "tickMax": tick(1)}])
        );
        let inventory = get("/_api/replication/inventory?includeSystem=0").await;
        assert_eq!(inventory["collections"][1]["parameters"]["name"], "orders");
        assert_eq!((&inventory["views"], &inventory["tick"]), (&json!([]), &json!(tick(1))));
        assert_eq!(
            get("/_api/replication/inventory?collection=orders").await["collections"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(get("/_api/replication/clusterInventory").await["collections"][0]["isReady"], true);
        let range = get("/_api/wal/range").await;
        assert_eq!((&range["tickMin"], &range["tickMax"]), (&json!(first), &json!(tick(1))));
        assert_eq!(get("/_api/wal/lastTick").await["tick"], tick(1));
        assert_eq!(get("/_admin/wal/transactions").await["runningTransactions"], 0);
        assert_eq!(get("/_admin/wal/properties").await["historicLogfiles"], 1);
        assert_eq!(get("/_api/replication/logger-config").await["autoStart"], true);
    }
    let flushed = served.send("PUT /_admin/wal/flush?waitForSync=1", &[], "").await;
    assert_eq!((flushed.status, &flushed.json()["error"]), (200, &json!(false)));
}

#[tokio::test]
async fn the_log_is_followed_and_its_clients_are_listed() {
    let served = serve(view(2), accept).await;
    served.database.commit(1, &[insert(1, 1, "a")]);
    served.database.commit(2, &[insert(1, 2, "b")]);
    let follow = "/_api/replication/logger-follow";
    let first = served.get(&format!("{follow}?from=0&chunkSize=1&serverId=99&clientInfo=cache")).await;
    assert_eq!(first.status, 200);
    assert!(first.head.contains("content-type: application/x-arango-dump; charset=utf-8"), "{first:?}");
    assert_eq!(first.json()["data"]["note"], "a");
    for (name, value) in [
        ("active", "true"),
        ("checkmore", "true"),
        ("lastincluded", tick(1).as_str()),
        ("lasttick", tick(2).as_str()),
        ("frompresent", "true"),
    ] {
        assert_eq!(field(&first, name), value, "{name}");
    }
    let state = served.get("/_api/replication/logger-state").await.json();
    assert_eq!(
        (&state["clients"][0]["serverId"], &state["clients"][0]["lastServedTick"]),
        (&json!("99"), &json!(tick(1)))
    );
    assert_eq!(state["clients"][0]["clientInfo"], "cache");
    let rest = served.get(&format!("{follow}?from={}&includeSystem=true", tick(1))).await;
    assert_eq!((rest.json()["data"]["id"].clone(), field(&rest, "checkmore")), (json!(2), "false"));
    let end = served.get(&format!("{follow}?from={}", tick(2))).await;
    assert_eq!((end.status, end.body.as_str(), field(&end, "lastincluded")), (204, "", "0"));
    let tail =
        served.get(&format!("/_api/wal/tail?from=0&lastScanned={}&global=false&syncerId=5", tick(1))).await;
    assert_eq!((&tail.json()["db"], field(&tail, "lastscanned")), (&json!("postgres"), tick(2).as_str()));
    served.database.purge(1);
    assert_eq!(field(&served.get(&format!("{follow}?from=0")).await, "frompresent"), "false");
}

#[tokio::test]
async fn a_batch_is_begun_dumped_kept_and_ended() {
    let served = serve(view(1), accept).await;
    let begun = served.send("POST /_api/replication/batch?state=true", &[], r#"{"ttl": 30}"#).await.json();
    assert_eq!((&begun["lastTick"], &begun["state"]["running"]), (&json!(tick(0)), &json!(true)));
    let id = begun["id"].as_str().unwrap();
    let dump =
        |more: &str| format!("/_api/replication/dump?collection=orders&batchId={id}&chunkSize=1{more}");
    let first = served.get(&dump("")).await;
    assert_eq!((first.status, field(&first, "checkmore"), field(&first, "lastincluded")), (200, "true", "1"));
    assert!(first.head.contains("content-type: application/x-arango-dump; charset=utf-8"), "{first:?}");
    assert_eq!(first.json()["data"]["_id"], "orders/1");
    let second = served.get(&dump("&from=1&ticks=0")).await;
    assert!(second.json().get("tick").is_none() && field(&second, "checkmore") == "false", "{second:?}");
    let end = served.get(&dump("")).await;
    assert_eq!((end.status, field(&end, "lastincluded")), (204, "0"));
    // By the id of the table, too.
    let by_id = dump("&from=0").replace("orders", "16385");
    assert_eq!(served.get(&by_id).await.json()["data"]["_key"], "1");
    let batch = format!("/_api/replication/batch/{id}");
    assert_eq!(served.send(&format!("PUT {batch}"), &[], r#"{"ttl": 1000000}"#).await.status, 204);
    let inventory = served.get(&format!("/_api/replication/inventory?batchId={id}")).await.json();
    assert_eq!(inventory["collections"].as_array().unwrap().len(), 1, "what the snapshot has");
    assert_eq!(served.send(&format!("DELETE {batch}"), &[], "").await.status, 204);
    for line in [format!("DELETE {batch}"), format!("PUT {batch}"), format!("GET {}", dump(""))] {
        assert_eq!(failure(&served.send(&line, &[], r#"{"ttl": 1}"#).await), (404, 1600), "{line}");
    }
}

#[tokio::test]
async fn who_begins_no_batch_dumps_all_the_same() {
    let served = serve(view(1), accept).await;
    let dump = async |collection: &str, more: &str| {
        served.get(&format!("/_api/replication/dump?collection={collection}&chunkSize=1{more}")).await
    };
    let place = |answer: &Answer| ["checkmore", "lastincluded"].map(|name| field(answer, name).to_owned());
    let at = |more: bool, last: u64| [more.to_string(), last.to_string()];
    // Up to the end of the log that the inventory told, which is far above all numbers of rows.
    let end = tick(0);
    let first = dump("16385", &format!("&serverId=99&from=0&to={end}")).await;
    assert_eq!((first.status, &first.json()["key"], place(&first)), (200, &json!("1"), at(true, 1)));
    // One that does not say who it is has a dump of its own.
    let other = dump("orders", "").await;
    assert_eq!((other.status, place(&other)), (200, at(true, 1)));
    let second = dump("16385", &format!("&serverId=99&from=1&to={end}")).await;
    assert_eq!((&second.json()["key"], place(&second)), (&json!("2"), at(false, 2)));
    assert_eq!(dump("orders", "&serverId=99&from=2").await.status, 204);
    assert_eq!(dump("orders", "&from=1").await.json()["key"], "2");
    for more in ["&from=1", "&serverId=99&from=1", "&serverId=98&from=1"] {
        assert_eq!(failure(&dump("orders", more).await), (404, 1600), "{more}");
    }
}

#[tokio::test]
async fn every_failure_has_its_number() {
    let served = serve(view(1), accept).await;
    let begun = served.send("POST /_api/replication/batch", &[], r#"{"ttl": null}"#).await.json();
    let dump = format!("GET /_api/replication/dump?batchId={}", begun["id"].as_str().unwrap());
    for (line, body, expected) in [
        ("GET /_api/replication/nothing", "", (400, 400)),
        ("GET /_api/replication/revisions/tree?collection=orders", "", (501, 501)),
        ("PUT /_db/postgres/_api/replication/revisions/documents", "[]", (501, 501)),
        ("POST /_api/replication/barrier", "{}", (501, 501)),
        ("GET /_api/replication/dump/extra", "", (400, 601)),
        ("GET /_db/postgres/_api/replication/batch/57/x", "", (400, 601)),
        ("GET /_api/nothing", "", (404, 404)),
        ("GET /_db/postgres", "", (404, 404)),
        ("POST /_api/replication/inventory", "", (405, 405)),
        ("GET /_api/replication/batch", "", (405, 405)),
        ("GET /_db/other/_api/collection", "", (404, 1228)),
        ("GET /_db/bare/_api/wal/lastTick", "", (404, 1228)),
        ("GET /_db/%zz/_api/collection", "", (400, 400)),
        ("POST /_api/replication/batch", "{\"ttl\": ", (400, 600)),
        ("POST /_api/replication/batch", "[1]", (400, 600)),
        ("POST /_api/replication/batch", "{\"ttl\": 0}", (400, 400)),
        ("POST /_api/replication/batch", "{\"ttl\": \"10\"}", (400, 400)),
        ("POST /_db/other/_api/replication/batch", "{\"ttl\": 10}", (404, 1228)),
        ("PUT /_api/replication/batch/57", "{\"ttl\": 10}", (404, 1600)),
        ("GET /_api/replication/inventory?batchId=57", "", (404, 1600)),
        ("GET /_db/other/_api/replication/inventory?global=true", "", (403, 11)),
        ("GET /_api/replication/inventory?collection=nothing", "", (404, 1203)),
        ("GET /_api/replication/inventory?includeSystem=perhaps", "", (400, 400)),
        ("GET /_api/replication/dump?batchId=57", "", (400, 400)),
        ("GET /_api/replication/dump?collection=orders&from=1", "", (404, 1600)),
        ("GET /_api/replication/dump?collection=nothing", "", (404, 1203)),
        ("GET /_api/replication/dump?collection=99", "", (404, 1203)),
        ("GET /_api/replication/dump?collection=orders&serverId=x", "", (400, 400)),
        ("GET /_db/other/_api/replication/dump?collection=orders", "", (404, 1228)),
        ("GET /_api/replication/dump?collection=orders&batchId=57", "", (404, 1600)),
        (format!("{dump}&collection=nothing").as_str(), "", (404, 1203)),
        (format!("{dump}&collection=99").as_str(), "", (404, 1203)),
        (format!("{dump}&collection=orders&from=3&to=2").as_str(), "", (400, 400)),
        (format!("{dump}&collection=orders&from=x").as_str(), "", (400, 400)),
        (format!("{dump}&collection=orders&chunkSize=-1").as_str(), "", (400, 400)),
        (format!("{dump}&collection=orders&from=99").as_str(), "", (400, 400)),
        ("GET /_api/replication/logger-follow?from=5&to=4", "", (400, 400)),
        ("GET /_api/replication/logger-follow?to=0", "", (400, 400)),
        ("GET /_api/replication/logger-follow?from=-1", "", (400, 400)),
        ("GET /_api/replication/logger-follow?from=18446744073709551616", "", (400, 400)),
        ("GET /_api/replication/logger-follow?serverId=x", "", (400, 400)),
        ("GET /_api/replication/logger-follow?exceptOrigins=x", "", (400, 400)),
        ("GET /_db/other/_api/wal/tail?global=1", "", (403, 11)),
        ("PUT /_api/replication/logger-config", "{\"maxEvents\": 18446744073709551615}", (400, 400)),
        ("PUT /_api/replication/logger-config", "", (400, 600)),
        ("PUT /_admin/wal/properties", "{}", (501, 501)),
        ("POST /_open/auth", "{", (400, 600)),
        ("POST /_open/auth", "{\"username\": \"root\"}", (400, 400)),
    ] {
        assert_eq!(failure(&served.send(line, &[], body).await), expected, "{line} {body}");
    }
    // A chunk that is larger than any answer is no failure.
    let huge =
        format!("{}&collection=orders&chunkSize=99999999999999999999999", dump.trim_start_matches("GET "));
    assert_eq!(served.get(&huge).await.status, 200);
    served.database.unknown_logger.store(true, std::sync::atomic::Ordering::Relaxed);
    let begin = served.send("POST /_api/replication/batch", &[], r#"{"ttl": 10}"#).await;
    assert_eq!(failure(&begin), (400, 1412));
    assert_eq!(failure(&served.get("/_api/replication/dump?collection=orders").await), (400, 1412));
    assert_eq!(served.get("/_api/replication/logger-first-tick").await.json(), json!({"firstTick": null}));
    assert_eq!(served.get("/_api/replication/logger-follow").await.status, 204);
    // Whoever does not lead sends clients on, and who has no data has nothing to say.
    for (node, line) in [
        (2, "POST /_api/replication/batch"),
        (2, "PUT /_api/replication/logger-start"),
        (2, "PUT /_api/replication/logger-stop"),
        (2, "PUT /_api/replication/logger-config"),
        (2, "PUT /_api/replication/restore-collection"),
        (2, "PUT /_api/replication/restore-indexes"),
        (2, "PUT /_api/replication/restore-data?collection=orders"),
        (2, "GET /_api/replication/dump?collection=orders&batchId=57"),
        (4, "GET /_api/replication/logger-state"),
    ] {
        let other = serve(view(node), accept).await;
        assert_eq!(failure(&other.send(line, &[], r#"{"ttl": 10}"#).await), (503, 503), "{line}");
    }
}

#[tokio::test]
async fn the_log_is_made_once() {
    let served = serve(view(1), accept).await;
    served.database.unknown_logger.store(true, std::sync::atomic::Ordering::Relaxed);
    let start = async || served.send("PUT /_api/replication/logger-start", &[], "").await;
    assert_eq!(start().await.json(), json!({"running": true}));
    served.database.unknown_logger.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(start().await.json(), json!({"running": true}));
    let calls = served.database.calls.lock().unwrap();
    assert_eq!(calls.iter().map(|(_, call)| call.function).collect::<Vec<_>>(), ["create_channel"]);
}

#[tokio::test]
async fn a_web_token_is_a_login() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    let served = serve_with(&config, view_with_users(1), accept).await;
    let open = async |name: &str, password: &str| {
        let body = json!({"username": name, "password": password}).to_string();
        served.send("POST /_db/_system/_open/auth", &[], &body).await
    };
    assert_eq!(failure(&open("root", "a wrong password").await), (401, 401));
    assert_eq!(failure(&open("nobody", PASSWORD).await), (401, 401));
    let opened = open("root", PASSWORD).await.json();
    let token = opened["jwt"].as_str().unwrap();
    let header = format!("authorization: bearer {token}");
    let state = served.send("GET /_api/replication/logger-state", &[&header], "").await;
    assert_eq!(state.status, 200, "{state:?}");
    let forged = format!("authorization: bearer {token}x");
    for header in ["x-none: 1", forged.as_str()] {
        let refused = served.send("GET /_api/replication/logger-state", &[header], "").await;
        assert_eq!(failure(&refused), (401, 11), "{header}");
    }
    // Where nobody has to log in, clients that insist get a token all the same.
    let free = serve(view(1), accept).await;
    let body = json!({"username": "root", "password": ""}).to_string();
    let any = free.send("POST /_open/auth", &[], &body).await;
    assert!(any.json()["jwt"].as_str().unwrap().split('.').count() == 3, "{any:?}");
}
