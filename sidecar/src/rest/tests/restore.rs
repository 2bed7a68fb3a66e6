//! The replication interface's logger is stopped and set, databases are listed together, collections and rows restored.

use super::*;
use crate::feed::fake::insert;
use crate::feed::{Call, Given};
use serde_json::json;
use std::sync::atomic::Ordering;

fn number(answer: &Answer) -> (u16, u64) {
    (answer.status, answer.json()["errorNum"].as_u64().unwrap_or_default())
}

/// The calls that the database got, without what comes before.
fn calls(served: &Served) -> Vec<Call> {
    std::mem::take(&mut *served.database.calls.lock().unwrap()).into_iter().map(|(_, call)| call).collect()
}

fn given(call: &Call, name: &str) -> Value {
    let found = call.arguments.iter().find(|argument| argument.name == name);
    match found.map(|argument| (&argument.value, argument.type_name)) {
        Some((Given::Text(text), "jsonb")) => serde_json::from_str(text).unwrap(),
        Some((Given::Text(text), _)) => text.clone().into(),
        Some((Given::Number(number), _)) => (*number).into(),
        _ => Value::Null,
    }
}

#[tokio::test]
async fn a_log_is_stopped_and_goes_on() {
    let served = serve(view(1), accept).await;
    served.database.commit(1, &[insert(1, 1, "a")]);
    let put = async |command: &str| served.send(&format!("PUT /_api/replication/{command}"), &[], "").await;
    let state =
        async || served.get("/_api/replication/logger-state").await.json()["state"]["running"].clone();
    let begun = served.send("POST /_api/replication/batch", &[], "{}").await.json();
    assert_eq!(number(&put("logger-stop").await), (503, 503), "a batch is held");
    let batch = format!("DELETE /_api/replication/batch/{}", begun["id"].as_str().unwrap());
    assert_eq!(served.send(&batch, &[], "").await.status, 204);
    for _ in 0..2 {
        assert_eq!(put("logger-stop").await.json(), json!({"running": false}));
    }
    assert_eq!(state().await, false);
    // What was recorded can be read on.
    let follow = served.get("/_api/replication/logger-follow?from=0").await;
    assert!(follow.status == 200 && follow.head.contains("x-arango-replication-active: false"), "{follow:?}");
    assert_eq!(number(&served.send("POST /_api/replication/batch", &[], "{}").await), (400, 1412));
    for _ in 0..2 {
        assert_eq!(put("logger-start").await.json(), json!({"running": true}));
    }
    assert_eq!(state().await, true);
    let functions: Vec<&str> = calls(&served).iter().map(|call| call.function).collect();
    assert_eq!(functions, ["stop_channel", "start_channel"]);
}

#[tokio::test]
async fn the_log_keeps_what_it_is_told_to() {
    let served = serve(view(1), accept).await;
    let body = r#"{"maxEvents": 5, "maxEventsSize": "large", "autoStart": false, "logRemoteChanges": false, "something": 1}"#;
    let config = served.send("PUT /_api/replication/logger-config", &[], body).await;
    assert_eq!((config.status, &config.json()["autoStart"]), (200, &json!(true)), "{config:?}");
    let calls = calls(&served);
    assert_eq!(
        (calls[0].function, given(&calls[0], "rows"), given(&calls[0], "bytes")),
        ("keep_log", json!(5), Value::Null)
    );
    served.database.unknown_logger.store(true, Ordering::Relaxed);
    assert_eq!(number(&served.send("PUT /_api/replication/logger-config", &[], "{}").await), (400, 1412));
}

#[tokio::test]
async fn all_databases_are_listed_at_once() {
    let served = serve(view(1), accept).await;
    served.database.commit(1, &[insert(1, 1, "a")]);
    let names = json!(["bare", "gone", "postgres"]);
    served.database.says.lock().unwrap().insert("databases", names);
    let inventory = served.get("/_api/replication/inventory?global=true").await.json();
    let databases = inventory["databases"].as_object().unwrap();
    assert_eq!(
        databases.keys().collect::<Vec<_>>(),
        ["_system"],
        "the others are without the extension, or gone"
    );
    let system = &databases["_system"];
    assert_eq!(
        (&system["name"], &system["id"], &system["views"]),
        (&json!("_system"), &json!("16000"), &json!([]))
    );
    assert_eq!(system["collections"][1]["parameters"]["name"], "orders");
    assert!(inventory["collections"].is_null() && inventory["tick"].is_string(), "{inventory}");
    let tail = served.get("/_api/wal/tail?global=true&from=0").await;
    assert_eq!((tail.status, &tail.json()["db"]), (200, &json!("postgres")), "{tail:?}");
}

#[tokio::test]
async fn collections_indexes_and_rows_are_restored() {
    let served = serve(view(1), accept).await;
    let put = async |command: &str, body: &Value| {
        let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
        served.send(&format!("PUT /_api/replication/restore-{command}"), &[], &body).await
    };
    let description = json!({"columns": [{"name": "id", "type": "integer"}], "key": ["id"]});
    let entry = json!({"parameters": {"name": "orders", "type": 3, "pgquorum": description},
        "indexes": [{"id": "9", "type": "hash", "unique": true, "fields": ["n"]}]});
    assert_eq!(number(&put("collection", &entry).await), (409, 1207));
    let made = put("collection?overwrite=true&force=true&recycleIds=0", &entry).await;
    assert_eq!((made.status, made.json()), (200, json!({"result": true})));
    assert_eq!(put("indexes?force=false", &entry).await.json(), json!({"result": true}));
    let lines =
        "{\"type\":2300,\"key\":\"7\",\"data\":{\"_key\":\"7\",\"id\":7}}\n{\"type\":2302,\"key\":\"8\"}\n";
    assert_eq!(
        put("data?collection=shop.orders&force=1", &lines.into()).await.json(),
        json!({"result": true})
    );
    // Nothing to do is done.
    assert_eq!(put("data?collection=orders", &"\n".into()).await.status, 200);
    assert_eq!(put("collection", &json!({"parameters": {"deleted": true}})).await.status, 200);
    let calls = calls(&served);
    let functions: Vec<&str> = calls.iter().map(|call| call.function).collect();
    assert_eq!(functions, ["restore_collection", "restore_indexes", "restore_rows"]);
    let of = |call: usize, names: &[&str]| -> Vec<Value> {
        names.iter().map(|name| given(&calls[call], name)).collect()
    };
    assert_eq!(
        of(0, &["schema", "table", "channel", "edge", "overwrite", "description"]),
        [json!("public"), json!("orders"), json!("_logger"), json!("true"), json!("true"), description]
    );
    assert_eq!(of(1, &["indexes"]), [json!([{"type": "hash", "unique": true, "fields": ["n"]}])]);
    assert_eq!(
        of(2, &["schema", "force", "rows"]),
        [
            json!("shop"),
            json!("true"),
            json!([{"key": ["7"], "joined": "7", "data": {"id": 7}},
            {"key": ["8"], "joined": "8", "data": null}])
        ]
    );
    for (command, body, expected) in [
        ("collection", json!({}), (400, 400)),
        ("collection", json!("[1]"), (400, 600)),
        ("collection", json!({"parameters": {"name": "%00"}}), (400, 1208)),
        ("collection?overwrite=perhaps", entry.clone(), (400, 400)),
        (
            "indexes",
            json!({"parameters": {"name": "t"}, "indexes": [{"type": "geo", "fields": ["x"]}]}),
            (501, 501),
        ),
        ("data", json!(""), (400, 400)),
        ("data?collection=%2500", json!(""), (400, 1208)),
        ("data?collection=t", json!("x"), (400, 600)),
        ("data?collection=t", json!("{\"type\":2001,\"key\":\"1\"}"), (400, 1406)),
    ] {
        let answer = put(command, &body).await;
        assert_eq!(number(&answer), expected, "{command} {body}: {answer:?}");
    }
    // More than any other body may have.
    let line = format!("{{\"type\":2300,\"key\":\"7\",\"data\":{{\"n\":\"{}\"}}}}", "x".repeat(2 << 20));
    assert_eq!(put("data?collection=t", &line.into()).await.status, 200);
}
