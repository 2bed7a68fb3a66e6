//! The delta interface: bodies, errors, and what a worker is told to do.

use super::*;
use crate::feed::Given;
use crate::feed::fake::insert;
use crate::follow::SyncRequest;
use serde_json::json;

const BASES: [&str; 2] = ["/rest/v5/cluster", "/fact-finder/rest/v5/cluster"];

fn state(more: &Value) -> Value {
    let mut state = json!({"role": "director", "subscription": null, "state": null, "code": null, "detail": null,
        "loading": false, "database_version": 1, "delta_version": 7, "delta_error_count": 0, "cache_flush": 2,
        "import_counts": [{"type": "DATA", "count": 3}], "epoch": 5, "tick": 7});
    for (name, value) in more.as_object().into_iter().flatten() {
        state[name] = value.clone();
    }
    state
}

/// A worker that rests at this tick, of this version, and is at the second tick when it was woken.
async fn worker(director: &Served, version: u64, (now, then): (u64, u64)) -> Served {
    let served = serve(view(1), accept).await;
    let resting = |tick: u64, state_now: &str| {
        state(
            &json!({"role": "worker", "subscription": "mirror", "state": state_now, "database_version": version, "tick": tick}),
        )
    };
    let database = &served.database;
    database.says.lock().unwrap().insert("delta_state", resting(now, "disabled"));
    let outcome = json!({"rejected": [{"tick": 2, "conflict": "insert_exists", "code": "23505", "message": "it is there"}],
        "rejected_count": 1, "wanted": null, "stopped": []});
    database.says.lock().unwrap().insert("delta_outcome", outcome);
    *database.later.lock().unwrap() = Some(("delta_state", resting(then, "following")));
    *database.subscription.lock().unwrap() = Some(json!({"id": 1, "name": "mirror", "enabled": false,
        "remote": [format!("http://{}", director.address)], "channel": "shop", "policy": "error", "ddl": "ignore",
        "on_purged": "stop", "forward": false, "copy": "error", "jobs": 2}));
    served
}

async fn director(changes: u64) -> Served {
    let served = serve(view(1), accept).await;
    for id in 1..=changes {
        served.database.commit(id, &[insert(1, id, "a")]);
    }
    served
}

/// Functions that were called, with whether they enable something.
fn called(served: &Served) -> Vec<String> {
    let calls = served.database.calls.lock().unwrap();
    let one = |call: &crate::feed::Call| {
        let given = |name| call.arguments.iter().find(|one| one.name == name).map(|one| one.value.clone());
        match given("enabled") {
            Some(Given::Text(enabled)) => format!("{} {enabled}", call.function),
            _ => call.function.to_owned(),
        }
    };
    calls.iter().map(|(_, call)| one(call)).collect()
}

#[tokio::test]
async fn a_channel_shows_its_state() {
    for node in [1, 2] {
        let served = serve(view(node), accept).await;
        served.database.says.lock().unwrap().insert("delta_state", state(&json!({})));
        for base in BASES {
            let get = async |path: &str| {
                let answer = served.get(&format!("{base}/shop{path}")).await;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
                answer.json()
            };
            let database = json!({"databaseVersion": 1, "deltaVersion": 7, "deltaErrorCount": 0});
            let imports = json!({"importCounts": [{"type": "DATA", "count": 3}]});
            assert_eq!(get("/database/state").await, database);
            assert_eq!(get("/import/state").await, imports);
            let whole = get("/state").await;
            assert_eq!((&whole["databaseState"], &whole["importState"]), (&database, &imports));
            assert_eq!((&whole["cacheFlush"], &whole["deltaVersion"]), (&json!(2), &json!(7)));
            assert_eq!(whole["importCounts"], imports["importCounts"]);
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_an_api_error() {
    let served = serve(view(1), accept).await;
    for base in BASES {
        for (line, status, error) in [
            ("GET /none/state", 400, "UnknownChannel"),
            ("GET /a%20b/state", 400, "UnknownChannel"),
            ("GET /shop/state?database=other", 400, "UnknownDatabase"),
            ("GET /shop/database/state?verbose=perhaps", 400, "BadParameter"),
            ("GET /shop/import/state?wait=1s", 400, "UnknownParameter"),
            ("POST /shop/database/sync?wait=long", 400, "BadParameter"),
            ("POST /shop/database/prune?x=1", 400, "UnknownParameter"),
            ("POST /database/sync/full?verbose=2", 400, "BadParameter"),
            ("POST /reset/config/version/counters?wait=1s", 400, "UnknownParameter"),
            ("GET /shop/database/sync", 405, "MethodNotAllowed"),
            ("POST /shop/state", 405, "MethodNotAllowed"),
            ("GET /shop/database", 404, "NoSuchRoute"),
        ] {
            let (method, path) = line.split_once(' ').unwrap();
            let answer = served.send(&format!("{method} {base}{path}"), &[], "").await;
            let body = answer.json();
            assert_eq!((answer.status, body["error"].as_str()), (status, Some(error)), "{line}: {answer:?}");
            assert!(body["errorDescription"].as_str().is_some_and(|text| text.len() > 10), "{answer:?}");
            assert_eq!(body.get("stacktrace"), None, "{answer:?}");
        }
        let verbose = served.get(&format!("{base}/none/state?verbose=true")).await.json();
        let trace = verbose["stacktrace"].as_array().unwrap();
        assert!(trace[0].as_str().unwrap().starts_with("unknown_channel"), "{verbose}");
        assert_eq!(trace[1], format!("GET {base}/none/state"));
    }
    served.database.failure.lock().unwrap().replace(crate::feed::Kind::Unavailable);
    let answer = served.get("/rest/v5/cluster/shop/state").await;
    assert_eq!((answer.status, &answer.json()["error"]), (500, &json!("DatabaseUnavailable")));
    let stranger = serve(stranger(), accept).await;
    assert_eq!(stranger.get("/rest/v5/cluster/shop/state").await.status, 500);
}

#[tokio::test]
async fn a_follower_passes_on_what_changes_something() {
    let config = RestConfig { cluster_key: Some("key-of-tests".to_owned()), ..open_config() };
    let leader = serve_with(&config, view(1), accept).await;
    let follower = serve_with(&config, view(2), accept).await;
    follower.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    for base in BASES {
        let pruned = follower.send(&format!("POST {base}/shop/database/prune"), &[], "").await;
        assert_eq!(pruned.status, 200, "{pruned:?}");
        assert!(pruned.json().as_str().unwrap().contains("channel shop"), "{pruned:?}");
        let reset = follower.send(&format!("POST {base}/reset/config/version/counters"), &[], "").await;
        assert!(reset.status == 200 && reset.json().is_string(), "{reset:?}");
        // The fake has one subscription, of which it says nothing.
        let full = follower.send(&format!("POST {base}/database/sync/full"), &[], "").await;
        assert_eq!((full.status, &full.json()["error"]), (400, &json!("UnknownSubscription")), "{full:?}");
    }
    assert_eq!(called(&leader), ["prune", "reset_config_versions", "prune", "reset_config_versions"]);
    assert_eq!(called(&follower), Vec::<String>::new());
    // It is passed on once.
    let hop = ["x-pgquorum-forwarded-by: 3"];
    let answer = follower.send("POST /rest/v5/cluster/shop/database/prune", &hop, "").await;
    assert_eq!((answer.status, &answer.json()["error"]), (500, &json!("NotLeader")));
    follower.change_view(|view| *view = leaderless(2));
    let answer = follower.send("POST /rest/v5/cluster/shop/database/prune", &[], "").await;
    assert_eq!((answer.status, &answer.json()["error"]), (500, &json!("NoLeader")));
}

#[tokio::test]
async fn a_worker_applies_what_is_missing_and_rests_again() {
    let director = director(3).await;
    let worker = worker(&director, 1, (1, 3)).await;
    let answer = worker.send("POST /rest/v5/cluster/shop/database/sync?verbose=true", &[], "").await;
    let results = answer.json();
    assert_eq!((answer.status, results.as_array().unwrap().len()), (200, 2), "{answer:?}");
    assert_eq!(results[0]["error"]["name"], "insert_exists");
    assert_eq!(results[1], json!({"success": true, "record": {"id": 3, "note": "a"}}));
    assert_eq!(called(&director), ["cut"]);
    assert_eq!(called(&worker), ["wake_subscription", "confirm_applied", "rest_subscription"]);
    // Nothing is missing any more.
    let again = worker.send("POST /fact-finder/rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!((again.status, again.json()), (200, json!([])));
    let full = worker.send("POST /fact-finder/rest/v5/cluster/database/sync/full", &[], "").await;
    assert_eq!((full.status, full.body.as_str()), (200, ""));
    assert!(!full.head.contains("content-type"), "{full:?}");
}

#[tokio::test]
async fn another_version_is_a_conflict_until_everything_is_loaded_anew() {
    let director = director(3).await;
    *director.database.version.lock().unwrap() = 2;
    let served = worker(&director, 1, (3, 3)).await;
    let answer = served.send("POST /rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!((answer.status, &answer.json()["error"]), (409, &json!("DatabaseVersionDiffers")));
    let said = answer.json()["errorDescription"].as_str().unwrap().to_owned();
    assert!(
        said.starts_with("worldmatch database is outdated and an import (LOAD_ONLY) is necessary"),
        "{said}"
    );
    assert_eq!(called(&served), Vec::<String>::new(), "nothing was tried");
    // The fake has the version of the director as soon as something was called.
    let loaded = state(
        &json!({"role": "worker", "subscription": "mirror", "state": "following", "database_version": 2, "tick": 3}),
    );
    *served.database.later.lock().unwrap() = Some(("delta_state", loaded));
    let full = served.send("POST /rest/v5/cluster/database/sync/full", &[], "").await;
    assert_eq!(full.status, 200, "{full:?}");
    assert_eq!(called(&served), ["reload", "wake_subscription", "confirm_applied", "rest_subscription"]);
}

#[tokio::test]
async fn a_worker_that_does_not_get_there_says_so() {
    let director = director(3).await;
    let served = worker(&director, 1, (1, 2)).await;
    let late = served.send("POST /rest/v5/cluster/shop/database/sync?wait=300ms", &[], "").await;
    assert_eq!((late.status, &late.json()["error"]), (500, &json!("TimedOut")), "{late:?}");
    assert_eq!(called(&served), ["wake_subscription", "rest_subscription"]);
    let stopped = json!({"role": "worker", "subscription": "mirror", "state": "stopped", "code": "PQ015", "detail": "another one", "tick": 1});
    served.database.says.lock().unwrap().insert("delta_state", state(&stopped));
    let answer = served.send("POST /rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!((answer.status, &answer.json()["error"]), (500, &json!("SubscriptionStopped")), "{answer:?}");
    // What comes next is not at the director any more.
    served
        .database
        .says
        .lock()
        .unwrap()
        .insert("delta_state", state(&json!({"subscription": "mirror", "tick": 0})));
    director.database.purge(2);
    let gone = served.send("POST /rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!(gone.status, 409, "{gone:?}");
    // The director itself is missing.
    served.database.subscription.lock().unwrap().as_mut().unwrap()["remote"] = json!(["http://127.0.0.1:1"]);
    let alone = served.send("POST /rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!((alone.status, &alone.json()["error"]), (500, &json!("DirectorFailed")), "{alone:?}");
}

/// What was written down of a synchronisation, when it is.
async fn written(served: &Served, request: i64) -> Vec<(&'static str, String)> {
    let find = || {
        let calls = served.database.calls.lock().unwrap();
        let mut ended = calls.iter().map(|(_, call)| call).filter(|call| call.function == "end_sync");
        let found = ended.find(|call| call.arguments[0].value == Given::Number(request))?;
        let more = found.arguments[1..].iter().map(|one| (one.name, format!("{:?}", one.value)));
        Some(more.collect())
    };
    let wait = async {
        loop {
            if let Some(found) = find() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("nothing was written down")
}

#[tokio::test]
async fn what_is_asked_for_in_sql_is_done_and_written_down() {
    let director = director(3).await;
    let served = worker(&director, 1, (1, 3)).await;
    let ask = |id, channel: Option<&str>| {
        let channel = channel.map(str::to_owned);
        served.board.ask("postgres", vec![SyncRequest { id, channel, records: false, left_ms: 10_000 }]);
    };
    ask(7, Some("shop"));
    let results = written(&served, 7).await;
    assert_eq!((results.len(), results[0].0), (1, "results"));
    assert!(results[0].1.contains("insert_exists") && !results[0].1.contains("record"), "{results:?}");
    assert_eq!(called(&served), ["wake_subscription", "confirm_applied", "rest_subscription", "end_sync"]);
    ask(8, None);
    assert!(written(&served, 8).await.is_empty());
    *director.database.version.lock().unwrap() = 2;
    ask(9, Some("shop"));
    let refused = written(&served, 9).await;
    assert!(refused[0].0 == "code" && refused[0].1.contains("database_version_differs"), "{refused:?}");
    assert!(refused[1].0 == "message" && refused[1].1.contains("outdated"), "{refused:?}");
}

#[tokio::test]
async fn a_director_has_nothing_to_apply() {
    let served = serve(view(1), accept).await;
    served.database.says.lock().unwrap().insert("delta_state", state(&json!({})));
    let answer = served.send("POST /rest/v5/cluster/shop/database/sync", &[], "").await;
    assert_eq!((answer.status, answer.json()), (200, json!([])));
}

#[tokio::test]
async fn a_channel_is_cut_flushed_and_counted_by_the_leader() {
    let (served, other) = (serve(view(1), accept).await, serve(view(2), accept).await);
    assert_eq!(served.send("POST /channels/shop/cut", &[], "").await.json()["channel"], "shop");
    assert_eq!(served.send("POST /channels/shop/flush", &[], "").await.status, 200);
    let import = r#"{"kind": "SUGGEST"}"#;
    let counted = served.send("POST /channels/shop/imports", &[], import).await;
    assert_eq!((counted.status, &counted.json()["kind"]), (200, &json!("SUGGEST")), "{counted:?}");
    assert_eq!(served.send("POST /channels/shop/imports", &[], "{}").await.code(), "missing_field");
    assert_eq!(called(&served), ["cut", "flush_caches", "count_import"]);
    assert_eq!(other.send("POST /channels/shop/cut", &[], "").await.code(), "not_leader");
    assert_eq!(other.send("POST /channels/shop/imports", &[], import).await.code(), "not_leader");
    assert_eq!(other.send("POST /channels/shop/flush", &[], "").await.code(), "not_leader");
}
