//! Readers of channels and what becomes of the nodes: the leader's part, a node that is removed or stalled.

use super::super::forward::Forward;
use super::streams::Follower;
use super::*;
use std::time::Instant;
use tokio::net::TcpListener;

#[tokio::test]
async fn the_leader_hears_of_readers_elsewhere() {
    let leader = serve(view(1), accept).await;
    let other = serve(view(2), accept).await;
    other.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    let waits = async |served: &Served, expected: usize| {
        let seen = async {
            while served.database.waits.load(std::sync::atomic::Ordering::Relaxed) != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, seen).await.expect("the number of waits");
    };
    let reader = Follower::accepting(other.address, "/channels/shop/stream?after=now", "*/*", &[]).await;
    waits(&other, 1).await;
    waits(&leader, 1).await;
    drop(reader);
    waits(&leader, 0).await;
    // Who takes another node for the leader by mistake is told so.
    let hop = ["x-pgquorum-forwarded-by: 3"];
    let answer = other.send("GET /channels/shop/stream?changes=false", &hop, "").await;
    assert_eq!((answer.status, answer.code().as_str()), (417, "not_leader"));
}

#[tokio::test]
async fn a_leader_that_says_nothing_is_asked_anew() {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let leader = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n\n\r\n").await.unwrap();
        // Held open, as by a machine that has stopped.
        std::future::pending::<()>().await;
    });
    let begin = Instant::now();
    let error = Forward::new(None, None).hold(address, "/channels/shop/stream", 2).await.unwrap_err();
    assert!(error.to_string().contains("nothing for 4 s"), "{error}");
    assert!(begin.elapsed() < DEADLINE);
    leader.abort();
}

#[tokio::test]
async fn a_stream_of_a_node_that_was_removed_ends() {
    let served = serve(view(2), accept).await;
    let mut lines = Follower::accepting(served.address, "/channels/shop/stream?after=now", "*/*", &[]).await;
    let beat = lines.next("{\"type\":\"heartbeat\",").await.unwrap();
    assert!(beat.contains("\"leader\":1"), "{beat}");
    served.change_view(|view| *view = removed());
    let mut last = String::new();
    while let Some(line) = lines.next("{\"type\":").await {
        last = line;
    }
    assert!(last.starts_with("\"error\"") && last.contains("\"code\":\"removed\""), "{last}");
}

#[tokio::test]
async fn a_node_whose_driver_stalls_names_no_leader() {
    let served = serve(view(2), accept).await;
    let mut lines = Follower::accepting(served.address, "/channels/shop/stream?after=now", "*/*", &[]).await;
    let heartbeat = "{\"type\":\"heartbeat\",";
    assert!(lines.next(heartbeat).await.unwrap().contains("\"leader\":1"));
    served.change_view(|view| *view = stalled(2));
    let begin = Instant::now();
    while !lines.next(heartbeat).await.unwrap().contains("\"leader\":null") {
        assert!(begin.elapsed() < DEADLINE, "it still names a leader");
    }
}
