//! Followers of a channel, and copies of its tables.

use super::*;
use crate::feed::fake::insert;
use serde_json::json;

#[tokio::test]
async fn a_follower_registers_moves_and_goes() {
    let served = serve(view(1), accept).await;
    let registered = served.send("POST /channels/shop/followers", &[], "{\"name\": \"cache\"}").await;
    assert_eq!((registered.status, &registered.json()["name"]), (200, &json!("cache")));
    assert_eq!(served.get("/channels/shop/followers").await.json()[0]["name"], "cache");
    let moved = served.send("PUT /channels/shop/followers/cache", &[], "{\"position\": \"5:0\"}").await;
    assert_eq!((moved.status, &moved.json()["name"]), (200, &json!("cache")));
    let gone = served.send("DELETE /channels/shop/followers/cache", &[], "").await.json();
    assert_eq!((&gone["name"], &gone["dropped"]), (&json!("cache"), &json!(true)));
    let functions: Vec<&str> =
        served.database.calls.lock().unwrap().iter().map(|(_, call)| call.function).collect();
    assert_eq!(functions, ["register_follower", "move_follower", "drop_follower"]);
}

#[tokio::test]
async fn a_copy_begins_with_its_position_and_says_when_it_is_whole() {
    let served = serve(view(1), accept).await;
    served.database.commit(7, &[insert(1, 1, "a")]);
    let text = request("GET /channels/shop/dump?table=orders", &[], "").replace("HTTP/1.1", "HTTP/1.0");
    let answer = exchange(TcpStream::connect(served.address).await.unwrap(), text.as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/x-ndjson"), "{}", answer.head);
    let lines: Vec<Value> = answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| json!({"type": kind, "schema": "public", "table": "orders"});
    let row = |id: u64, note: Value| {
        let mut line = of("row");
        line["new"] = json!({"id": id, "note": note});
        line
    };
    let mut end = of("table_end");
    end["rows"] = json!(3);
    let expected = [
        json!({"type": "dump", "position": "5:1", "tables": 1}),
        of("table"),
        row(1, json!("a")),
        row(2, json!(null)),
        row(3, json!("c\n")),
        end,
        json!({"type": "end", "position": "5:1", "rows": 3}),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_copy_for_many_is_begun_read_and_ended() {
    let served = serve(view(1), accept).await;
    let begun = served.send("POST /channels/shop/copies?ttl=30s", &[], "").await;
    assert_eq!(begun.status, 201, "{begun:?}");
    let begun = begun.json();
    assert_eq!(
        (&begun["ttl"], &begun["origin"], &begun["tables"][0]["rows_estimate"]),
        (&json!("30s"), &json!("berlin"), &json!(2))
    );
    let copy = format!("/channels/shop/copies/{}", begun["id"].as_str().unwrap());
    let text = request(&format!("GET {copy}/public.orders"), &[], "").replace("HTTP/1.1", "HTTP/1.0");
    let answer = exchange(TcpStream::connect(served.address).await.unwrap(), text.as_bytes()).await;
    assert!(answer.head.contains("content-type: application/x-postgresql-copy"), "{}", answer.head);
    assert!(answer.body.starts_with("1\ta\n") && answer.body.ends_with("\n\\.\n"), "{}", answer.body);
    assert_eq!(served.send(&format!("PUT {copy}?ttl=1m"), &[], "").await.json()["ttl"], "1m");
    assert_eq!(served.send(&format!("DELETE {copy}"), &[], "").await.json()["ended"], true);
    assert_eq!(served.send(&format!("PUT {copy}"), &[], "").await.code(), "copy_gone");
    for (query, code) in
        [("ttl=0s", "bad_parameter"), ("ttl=1h", "bad_parameter"), ("table=a", "unknown_parameter")]
    {
        let refused = served.send(&format!("POST /channels/shop/copies?{query}"), &[], "").await;
        assert_eq!((refused.status, refused.code().as_str()), (400, code), "{query}");
    }
    let other = serve(view(2), accept).await;
    assert_eq!(other.send("POST /channels/shop/copies", &[], "").await.code(), "not_leader");
}
