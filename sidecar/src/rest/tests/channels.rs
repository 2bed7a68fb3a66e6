//! Channels: looking at them, administration, changes by polls and by streams.

use super::streams::Follower;
use super::*;
use crate::feed::fake::insert;
use crate::feed::{Call, Given};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

/// A request of each kind that changes a channel, with a body that it takes.
const ADMINISTRATION: [(&str, &str); 9] = [
    ("POST /channels", "{\"name\": \"shop\"}"),
    ("DELETE /channels/shop", ""),
    ("POST /channels/shop/tables", "{\"table\": \"orders\"}"),
    ("DELETE /channels/shop/tables/public.orders", ""),
    ("POST /channels/shop/prune", ""),
    ("POST /channels/shop/purge", "{\"keep\": 10}"),
    ("POST /channels/shop/followers", "{\"name\": \"cache\"}"),
    ("PUT /channels/shop/followers/cache", "{\"position\": \"5:0\"}"),
    ("DELETE /channels/shop/followers/cache", ""),
];

#[tokio::test]
async fn channels_are_listed_and_shown_on_every_node() {
    for node in [1, 2, 3] {
        let served = serve(view(node), accept).await;
        served.database.commit(1, &[insert(1, 1, "a")]);
        let list = served.get("/channels").await.json();
        assert_eq!((&list[0]["channel"], &list[0]["database"]), (&json!("shop"), &json!("postgres")));
        let one = served.get("/channels/shop?database=postgres").await.json();
        assert_eq!((&one["last_tick"], &one["tables"][0]["table"]), (&json!(1), &json!("orders")));
        assert_eq!(served.get("/channels/shop/tables").await.json(), one["tables"]);
        assert_eq!(served.get("/channels/shop/followers").await.json(), json!([]));
        assert_eq!(served.get("/channels/shop/schemas?id=2").await.json()[0]["table_name"], "notes");
    }
    for (view, status, code) in [
        (view(4), 412, "holds_no_data"),
        (stranger(), 412, "not_a_member"),
        (stalled(1), 531, "driver_stalled"),
    ] {
        let served = serve(view, accept).await;
        for path in ["/channels", "/channels/shop", "/channels/shop/changes", "/channels/shop/stream"] {
            let answer = served.get(path).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
        }
    }
}

#[tokio::test]
async fn administration_is_the_leaders() {
    let leader = serve(view(1), accept).await;
    for (line, body) in ADMINISTRATION {
        let answer = leader.send(line, &[], body).await;
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
    }
    for (view, status, code) in [
        (view(2), 417, "not_leader"),
        (leaderless(2), 530, "no_leader"),
        (View { lease_until: 1, ..view(1) }, 530, "no_leader"),
        (removed(), 410, "removed"),
    ] {
        let served = serve(view, accept).await;
        for (line, body) in ADMINISTRATION.into_iter().chain([("GET /channels/shop/dump", "")]) {
            let answer = served.send(line, &[], body).await;
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "{line}");
            let named = answer.json()["leader"]["api"].is_string();
            assert_eq!(named, status == 417, "{line}: {answer:?}");
        }
        assert!(served.database.calls.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn administration_reaches_the_database_as_it_was_meant() {
    let served = serve(view(1), accept).await;
    let text = |value: &str| Given::Text(value.to_owned());
    let body = "{\"name\": \"shop\", \"old_image\": \"full\", \"retain_age\": \"1m 30s\", \"retain_rows\": 5, \
                \"cap_bytes\": 1000000000000, \"retain_bytes\": null}";
    let create = Call::new("create_channel")
        .text("name", "text", "shop")
        .text("old_image", "text", "full")
        .text("retain_age", "interval", "90000 milliseconds")
        .with("retain_rows", "int8", Given::Number(5))
        .with("cap_bytes", "int8", Given::Number(1_000_000_000_000));
    let track_body =
        "{\"table\": \"Odd \\\"Name\\\"\", \"columns\": [\"id\", \"a,b\"], \"where\": \"id > 0\"}";
    let track = Call::new("track")
        .text("relation", "regclass", "Odd \"Name\"")
        .text("channel", "text", "shop")
        .with("columns", "text[]", Given::Texts(vec!["id".to_owned(), "a,b".to_owned()]))
        .text("where", "text", "id > 0");
    let untrack = Call::new("untrack").text("relation", "regclass", "\"public\".\"orders\"");
    let purge = Call::new("purge").text("channel", "text", "shop").text("before", "text", "5:7");
    let moved = Call::new("move_follower")
        .text("channel", "text", "shop")
        .text("name", "text", "the cache")
        .text("position", "text", "17");
    let register = Call::new("register_follower")
        .text("channel", "text", "shop")
        .text("name", "text", "cache")
        .text("after", "text", "start")
        .with("ttl", "interval", text("7 weeks ago"));
    for (line, body, call) in [
        ("POST /channels", body, create),
        ("POST /channels/shop/tables?database=postgres", track_body, track),
        ("DELETE /channels/shop/tables/public%2Eorders", "", untrack),
        ("POST /channels/shop/purge", "{\"before\": \"5:7\"}", purge),
        (
            "POST /channels/shop/followers",
            "{\"name\": \"cache\", \"after\": \"start\", \"ttl\": \"7 weeks ago\"}",
            register,
        ),
        ("PUT /channels/shop/followers/the%20cache", "{\"position\": 17}", moved),
    ] {
        let answer = served.send(line, &[], body).await;
        assert!(answer.status == 200 || line.starts_with("PUT"), "{line}: {answer:?}");
        let calls = std::mem::take(&mut *served.database.calls.lock().unwrap());
        assert_eq!(calls, [("postgres".to_owned(), call)], "{line}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let served = serve(view(1), accept).await;
    for tick in 1..=9 {
        served.database.commit(tick, &[insert(1, tick, "a")]);
    }
    served.database.purge(3);
    for (line, body, status, code) in [
        ("GET /channels/none", "", 404, "unknown_channel"),
        ("GET /channels/none/changes", "", 404, "unknown_channel"),
        ("GET /channels/none/stream", "", 404, "unknown_channel"),
        ("GET /channels/none/schemas", "", 404, "unknown_channel"),
        ("GET /channels/none/tables", "", 404, "unknown_channel"),
        ("GET /channels/none/dump", "", 404, "unknown_channel"),
        ("GET /channels/1shop", "", 404, "unknown_channel"),
        ("GET /channels/sh%20op/changes", "", 404, "unknown_channel"),
        ("GET /channels/%zz", "", 404, "unknown_channel"),
        ("DELETE /channels/shop/tables/nothing", "", 404, "unknown_table"),
        ("GET /channels/shop/changes?tables=orders,nothing", "", 404, "unknown_table"),
        ("GET /channels/shop/stream?tables=nothing", "", 404, "unknown_table"),
        ("GET /channels?database=none", "", 404, "unknown_database"),
        ("GET /channels?database=bare", "", 404, "no_extension"),
        ("GET /channels/shop/changes?database=none", "", 404, "unknown_database"),
        ("PUT /channels/shop/followers/nobody", "{\"position\": 1}", 404, "unknown_follower"),
        ("DELETE /channels/shop/followers/nobody", "", 404, "unknown_follower"),
        ("GET /channels/shop/changes?after=2", "", 410, "position_purged"),
        ("GET /channels/shop/stream?after=5:2", "", 410, "position_purged"),
        ("GET /channels/shop/changes?after=4:8", "", 409, "position_unknown_epoch"),
        ("GET /channels/shop/changes?after=10", "", 409, "position_in_future"),
        ("GET /channels/shop/stream?after=5:10", "", 409, "position_in_future"),
        ("GET /channels/shop/changes?after=x", "", 400, "bad_position"),
        ("GET /channels/shop/changes?after=-1", "", 400, "bad_position"),
        ("GET /channels/shop/stream?after=1:", "", 400, "bad_position"),
        ("GET /channels/shop/changes?limit=0", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?limit=10001", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?limit=many", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?wait=2h", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?wait=5", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?tables=a,,b", "", 400, "bad_parameter"),
        ("GET /channels/shop/changes?table=a", "", 400, "unknown_parameter"),
        ("GET /channels/shop/stream?limit=1", "", 400, "unknown_parameter"),
        ("GET /channels?database=", "", 400, "bad_parameter"),
        ("POST /channels", "{}", 400, "missing_field"),
        ("POST /channels", "{\"name\": \"a b\"}", 400, "bad_field"),
        ("POST /channels", "{\"name\": \"a\", \"retain\": 1}", 400, "unknown_field"),
        ("POST /channels", "{\"name\": \"a\", \"retain_rows\": -1}", 400, "bad_field"),
        ("POST /channels", "{\"name\": \"a\", \"retain_age\": 5}", 400, "bad_field"),
        ("POST /channels/shop/tables", "{\"table\": 5}", 400, "bad_field"),
        ("POST /channels/shop/tables", "{\"table\": \"t\", \"columns\": []}", 400, "bad_field"),
        ("POST /channels/shop/purge", "{}", 400, "bad_field"),
        ("POST /channels/shop/purge", "{\"keep\": 1, \"before\": 2}", 400, "bad_field"),
        ("POST /channels/shop/purge", "{\"before\": \"soon\"}", 400, "bad_position"),
        ("POST /channels/shop/followers", "{\"after\": \"now\"}", 400, "missing_field"),
        ("PUT /channels/shop/followers/cache", "{}", 400, "missing_field"),
    ] {
        let answer = served.send(line, &[], body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{line} {body}");
    }
    let binary = ["accept: application/x-pgquorum-change"];
    let answer = served.send("GET /channels/shop/stream?tables=orders", &binary, "").await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "no_filter"));
    assert!(served.database.calls.lock().unwrap().is_empty());
    served.database.damage(5, true);
    let answer = served.get("/channels/shop/changes?after=4").await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "record_broken"));
}

#[tokio::test]
async fn a_poll_says_where_to_go_on() {
    let served = serve(view(2), accept).await;
    served.database.commit(7, &[insert(1, 1, "a"), insert(1, 2, "b")]);
    let first = served.get("/channels/shop/changes?limit=1").await.json();
    let change = json!({"position": "5:1", "transaction": "7", "committed_at": "2026-01-02T03:04:05.000006Z", "op": "insert",
        "schema": "public", "table": "orders", "key": {"id": 1}, "new": {"id": 1, "note": "a"}});
    let expected = json!({"channel": "shop", "database": "postgres", "changes": [change], "position": "5:1", "more": true,
        "in_transaction": true, "leader": 1});
    assert_eq!(first, expected);
    let next = served.get("/channels/shop/changes?after=5:1").await.json();
    assert_eq!(
        (&next["position"], &next["more"], &next["in_transaction"]),
        (&json!("5:2"), &json!(false), &json!(false))
    );
    let last = served.get("/channels/shop/changes?after=5:2&wait=50ms").await.json();
    assert_eq!((&last["changes"], &last["position"]), (&json!([]), &json!("5:2")));
}

#[tokio::test]
async fn a_stream_comes_in_the_form_that_the_client_accepts() {
    let served = serve(view(2), accept).await;
    served.database.commit(7, &[insert(1, 1, "a")]);
    let mut lines = Follower::accepting(served.address, "/channels/shop/stream", "*/*", &[]).await;
    assert_eq!(lines.next("content-type:").await.unwrap().trim(), "application/x-ndjson");
    assert!(lines.next("{\"type\":\"begin\",\"position\":\"start\"").await.is_some());
    assert!(lines.next("{\"type\":\"change\",\"position\":\"5:1\"").await.is_some());
    assert!(lines.next("{\"type\":\"commit\",\"position\":\"5:1\"").await.is_some());
    let beat = lines.next("{\"type\":\"heartbeat\",").await.unwrap();
    assert!(beat.contains("\"end\":\"5:1\",\"leader\":1"), "{beat}");

    served.database.commit(8, &[insert(1, 2, "b")]);
    let resumed = ["last-event-id: 5:1"];
    let mut events = Follower::new(served.address, "/channels/shop/stream?after=start", &resumed).await;
    assert!(events.next("content-type:").await.unwrap().contains("text/event-stream"));
    assert_eq!(events.data().await["type"], "begin");
    assert_eq!(events.next("id:").await.unwrap().trim(), "5:2");
    assert_eq!(events.data().await["new"]["note"], "b");
    served.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(1), served.done).await.expect("streams hold it up").unwrap();
}

#[tokio::test]
async fn the_binary_stream_is_the_log_as_it_is() {
    let served = serve(view(2), accept).await;
    let rows: Vec<_> = (1..=5000).map(|id| insert(1, id, "a note")).collect();
    served.database.commit(7, &rows);
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let headers = ["accept: application/x-pgquorum-change"];
    let text = request("GET /channels/shop/stream?after=5:10", &headers, "").replace("HTTP/1.1", "HTTP/1.0");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        bytes.read_line(&mut head).await.unwrap();
    }
    assert!(head.to_lowercase().contains("content-type: application/x-pgquorum-change"), "{head}");
    let (mut seen, mut after, mut decoder) = (10_u64, 0, pgquorum_change::Decoder::new());
    while seen < 5000 {
        let kind = bytes.read_u8().await.unwrap();
        let mut body = vec![0; bytes.read_u32_le().await.unwrap() as usize];
        bytes.read_exact(&mut body).await.unwrap();
        let number = |at: usize| u64::from_le_bytes(body[at * 8..at * 8 + 8].try_into().unwrap());
        match kind {
            b'P' => {
                (after, decoder) = (number(0), pgquorum_change::Decoder::new());
                assert_eq!(number(1), 5);
            }
            b'R' => {
                let mut changes = decoder.feed(&body[36..]).unwrap();
                let mut tick = number(1) + u64::from(changes.first_is_lost);
                while let Some(change) = changes.next().unwrap() {
                    if tick > after {
                        assert_eq!(tick, seen + 1, "a gap or a repeat");
                        assert!(change.new.is_some());
                        seen = tick;
                    }
                    tick += 1;
                }
            }
            b'H' => {}
            other => panic!("a frame of kind {other}"),
        }
    }
}

#[tokio::test]
async fn readers_are_bounded() {
    let served = serve(view(1), accept).await;
    let mut readers = Vec::new();
    for _ in 0..256 {
        let mut reader = Follower::accepting(served.address, "/channels/shop/stream", "*/*", &[]).await;
        assert!(reader.next("content-type:").await.is_some());
        readers.push(reader);
    }
    for path in ["/channels/shop/stream", "/channels/shop/changes", "/channels/shop/dump"] {
        let answer = served.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_streams"), "{path}");
    }
    assert_eq!(served.get("/channels/shop").await.status, 200);
}
