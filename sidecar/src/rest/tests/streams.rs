//! `/events` and `/rpc`: as lists and as streams.

use super::*;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

/// A client that stays.
pub(super) struct Follower {
    lines: BufReader<TcpStream>,
}

impl Follower {
    pub(super) async fn new(address: SocketAddr, path: &str, headers: &[&str]) -> Follower {
        Follower::accepting(address, path, "text/event-stream", headers).await
    }

    pub(super) async fn accepting(
        address: SocketAddr,
        path: &str,
        accept: &str,
        headers: &[&str],
    ) -> Follower {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let accept = format!("accept: {accept}");
        let headers = [headers, &[accept.as_str()]].concat();
        stream.write_all(request(&format!("GET {path}"), &headers, "").as_bytes()).await.unwrap();
        Follower { lines: BufReader::new(stream) }
    }

    /// The next line that begins with `prefix`, without it; `None` at the end of the stream.
    pub(super) async fn next(&mut self, prefix: &str) -> Option<String> {
        let find = async {
            loop {
                let mut line = String::new();
                if self.lines.read_line(&mut line).await.unwrap() == 0 {
                    return None;
                }
                if let Some(rest) = line.strip_prefix(prefix) {
                    return Some(rest.trim_end().to_owned());
                }
            }
        };
        tokio::time::timeout(DEADLINE, find).await.expect("nothing came in time")
    }

    pub(super) async fn data(&mut self) -> Value {
        serde_json::from_str(&self.next("data:").await.expect("the stream ended")).unwrap()
    }
}

fn note(view: &mut View, message: &str) {
    let cluster = Arc::make_mut(&mut view.cluster);
    // Raft's own entries leave gaps.
    let index = cluster.applied_index + 2;
    cluster.apply(
        index,
        8,
        &Entry::Note { kind: "test".to_owned(), node: Some(2), message: message.to_owned() },
    );
}

#[tokio::test]
async fn events_are_listed_from_where_the_reader_is() {
    let served = serve(view(2), accept).await;
    let all = served.get("/events").await.json();
    let indexes = |value: &Value| -> Vec<u64> {
        value.as_array().unwrap().iter().map(|event| event["index"].as_u64().unwrap()).collect()
    };
    assert_eq!(indexes(&all), [1, 2, 3, 4, 5, 6]);
    assert_eq!((&all[5]["kind"], &all[5]["node"], &all[5]["term"]), (&json!("opened"), &json!(1), &json!(7)));
    assert_eq!(all[5]["message"], "node 1 accepts writes in epoch 7");
    assert_eq!(all[5]["details"]["type"], "opened");
    for (query, expected) in [
        ("?limit=2", vec![5, 6]),
        ("?after=0&limit=2", vec![1, 2]),
        ("?after=4", vec![5, 6]),
        ("?after=6", vec![]),
        ("?limit=0", vec![]),
    ] {
        assert_eq!(indexes(&served.get(&format!("/events{query}")).await.json()), expected, "{query}");
    }
    for view in [stranger(), removed(), stalled(2)] {
        served.change_view(|v| *v = view);
        assert_eq!((served.get("/events").await.status, served.get("/rpc").await.status), (200, 200));
    }
}

#[tokio::test]
async fn an_event_stream_goes_on_where_it_broke_off() {
    let served = serve(view(2), accept).await;
    let mut from_start = Follower::new(served.address, "/events", &[]).await;
    let mut resumed = Follower::new(served.address, "/events?after=1", &["last-event-id: 5"]).await;
    assert!(from_start.next("content-type:").await.unwrap().contains("text/event-stream"));
    for index in 1..=6 {
        assert_eq!(from_start.data().await["index"], index);
    }
    assert_eq!(resumed.data().await["index"], 6);
    assert_eq!(resumed.next("id:").await.unwrap(), "6");
    served.change_view(|view| {
        note(view, "first");
        note(view, "second");
    });
    for follower in [&mut from_start, &mut resumed] {
        assert_eq!(follower.data().await["message"], "first");
        let second = follower.data().await;
        assert_eq!((&second["message"], &second["index"]), (&json!("second"), &json!(10)));
    }
    served.stop.send(()).unwrap();
    assert_eq!(from_start.next("data:").await, None, "the stream ends with the server");
    tokio::time::timeout(Duration::from_secs(1), served.done)
        .await
        .expect("streams hold the server up")
        .unwrap();
}

#[tokio::test]
async fn traces_are_listed_and_followed() {
    let served = serve(stranger(), accept).await;
    served.traces.add("vote", "node 2 asks for votes");
    served.traces.add("vote", "node 1 agrees");
    let list = served.get("/rpc").await.json();
    assert_eq!((&list[0]["kind"], &list[1]["message"]), (&json!("vote"), &json!("node 1 agrees")));
    assert_eq!(served.get("/rpc?limit=1").await.json()[0]["message"], "node 1 agrees");
    assert_eq!(served.get(&format!("/rpc?after={}", u64::MAX)).await.json(), json!([]));
    let mut follower = Follower::new(served.address, "/rpc", &[]).await;
    assert_eq!(follower.data().await["message"], "node 2 asks for votes");
    assert_eq!(follower.data().await["message"], "node 1 agrees");
    served.traces.add("vote", "node 2 leads");
    assert_eq!(follower.data().await["message"], "node 2 leads");
}

#[tokio::test]
async fn followers_are_bounded() {
    let served = serve(view(1), accept).await;
    let mut followers = Vec::new();
    for _ in 0..128 {
        let mut follower = Follower::new(served.address, "/events", &[]).await;
        follower.data().await;
        followers.push(follower);
    }
    let answer = served.send("GET /rpc", &["accept: text/event-stream"], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_streams"));
    assert_eq!(served.get("/rpc").await.status, 200, "lists are still there");
}
