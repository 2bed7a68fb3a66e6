//! Subscriptions: what is asked of the database, and what is not shown.

use super::*;
use crate::feed::Given;
use serde_json::json;

#[tokio::test]
async fn a_subscription_is_made_changed_and_ended() {
    let served = serve(view(1), accept).await;
    let new = json!({"name": "mirror", "remote": ["http://a:1", "http://b:1"], "channel": "shop", "secret": "s3cret",
        "remote_database": "sales", "forward": true, "jobs": 4, "filter": {"public.orders": "id > 3"}});
    let made = served.send("POST /subscriptions", &[], &new.to_string()).await;
    assert_eq!((made.status, &made.json()["name"]), (200, &json!("mirror")), "{made:?}");
    let patch = json!({"enabled": false, "tables": null, "filter": null, "login": null, "policy": "skip"})
        .to_string();
    assert_eq!(served.send("PATCH /subscriptions/mirror", &[], &patch).await.status, 200);
    let resumed =
        served.send("POST /subscriptions/mirror/tables/public.orders/resume", &[], "{\"copy\": true}").await;
    assert_eq!(resumed.status, 200, "{resumed:?}");
    assert_eq!(served.get("/subscriptions/mirror/tables").await.json()[0]["table"], "orders");
    assert_eq!(served.send("DELETE /subscriptions/mirror", &[], "").await.status, 200);
    let calls = served.database.calls.lock().unwrap();
    let functions: Vec<&str> = calls.iter().map(|(_, call)| call.function).collect();
    let expected = ["subscribe", "alter_subscription", "enable_subscription", "resume_table", "unsubscribe"];
    assert_eq!(functions, expected);
    let given = |call: usize, name: &str| {
        let arguments = &calls[call].1.arguments;
        arguments.iter().find(|one| one.name == name).map(|one| one.value.clone())
    };
    assert_eq!(given(0, "database"), Some(Given::Text("sales".to_owned())));
    assert_eq!(given(0, "jobs"), Some(Given::Number(4)));
    assert_eq!(given(0, "filter"), Some(Given::Text(json!({"public.orders": "id > 3"}).to_string())));
    assert_eq!(given(1, "filter"), Some(Given::Text("{}".to_owned())));
    assert_eq!(given(1, "tables"), Some(Given::Texts(Vec::new())));
    assert_eq!(given(1, "login"), Some(Given::Text(String::new())));
    assert_eq!(given(1, "remote"), None);
    assert_eq!(given(2, "enabled"), Some(Given::Text("false".to_owned())));
}

#[tokio::test]
async fn what_is_wrong_is_said_without_the_secret() {
    let served = serve(view(1), accept).await;
    for (body, code) in [
        (json!({"name": "a", "channel": "shop"}), "missing_field"),
        (json!({"name": "a", "channel": "shop", "remote": [], "secret": "s3cret"}), "bad_field"),
        (json!({"name": "a", "channel": "shop", "remote": ["http://a:1"], "filter": "id > 3"}), "bad_field"),
        (
            json!({"name": "a", "channel": "shop", "remote": ["http://a:1"], "secret": ["s3cret"]}),
            "bad_field",
        ),
        (
            json!({"name": "a", "channel": "shop", "remote": ["http://a:1"], "password": "s3cret"}),
            "unknown_field",
        ),
    ] {
        let answer = served.send("POST /subscriptions", &[], &body.to_string()).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{body}");
        assert!(!answer.body.contains("s3cret"), "{answer:?}");
    }
    assert_eq!(served.get("/subscriptions/other").await.code(), "unknown_subscription");
    let other = serve(view(2), accept).await;
    assert_eq!(other.send("DELETE /subscriptions/mirror", &[], "").await.code(), "not_leader");
    assert_eq!(other.get("/subscriptions").await.status, 200);
}

#[tokio::test]
async fn sequences_conflicts_and_what_was_left_out() {
    let served = serve(view(1), accept).await;
    // Nobody answers there.
    let row = json!({"id": 1, "name": "mirror", "enabled": true, "remote": ["http://127.0.0.1:9"], "channel": "shop",
        "policy": "error", "ddl": "ignore", "on_purged": "stop", "forward": false, "copy": "error", "jobs": 2,
        "secret": "s3cret"});
    *served.database.subscription.lock().unwrap() = Some(row);
    assert_eq!(served.get("/subscriptions/mirror/conflicts").await.json()[0]["count"], 2);
    let left = served.get("/subscriptions/mirror/rejected?after=17&limit=5").await;
    assert_eq!(left.json(), json!([{"id": 19, "op": "insert"}]));
    for (query, code) in
        [("limit=0", "bad_parameter"), ("limit=1001", "bad_parameter"), ("after=x", "bad_parameter")]
    {
        let answer = served.get(&format!("/subscriptions/mirror/rejected?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "{query}");
    }
    assert_eq!(served.send("POST /subscriptions/mirror/rejected/17/retry", &[], "").await.status, 200);
    assert_eq!(served.send("DELETE /subscriptions/mirror/rejected/19", &[], "").await.status, 200);
    // Of another subscription, or none.
    let other = served.send("POST /subscriptions/mirror/rejected/18/retry", &[], "").await;
    assert_eq!((other.status, other.code().as_str()), (404, "unknown_change"));
    let none = served.send("DELETE /subscriptions/mirror/rejected/last", &[], "").await;
    assert_eq!((none.status, none.code().as_str()), (400, "bad_parameter"));
    for (body, status) in [(json!({"policy": "skip"}), 200), (json!({"policy": null}), 200), (json!({}), 400)]
    {
        let answer = served.send("PATCH /subscriptions/mirror/tables/public.t", &[], &body.to_string()).await;
        assert_eq!(answer.status, status, "{body} {answer:?}");
    }
    let known = served.get("/channels/shop/sequences").await;
    assert_eq!((known.status, &known.json()[0]["last_value"]), (200, &json!(7)));
    let by_rows =
        served.send("POST /subscriptions/mirror/sequences", &[], r#"{"from": "rows", "step": 5}"#).await;
    assert_eq!((by_rows.status, &by_rows.json()["sequences"]), (200, &json!([])), "{by_rows:?}");
    // Nobody answers at the source: nothing is set, nothing ends, and the secret is not told.
    for request in ["POST /subscriptions/mirror/sequences", "DELETE /subscriptions/mirror?sequences=source"] {
        let body = if request.starts_with("POST") { "{}" } else { "" };
        let answer = served.send(request, &[], body).await;
        assert_eq!((answer.status, answer.code().as_str()), (531, "source_unavailable"), "{request}");
        assert!(!answer.body.contains("s3cret"), "{answer:?}");
    }
    let calls = served.database.calls.lock().unwrap();
    let functions: Vec<&str> = calls.iter().map(|(_, call)| call.function).collect();
    let expected =
        ["retry_rejected", "drop_rejected", "set_table_policy", "set_table_policy", "advance_sequences"];
    assert_eq!(functions, expected);
    let policy = |call: usize| calls[call].1.arguments.last().map(|one| one.value.clone());
    assert_eq!(policy(2), Some(Given::Text("skip".to_owned())));
    assert_eq!(policy(3), Some(Given::Nothing));
}
