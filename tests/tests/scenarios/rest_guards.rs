//! What stands before every route: the token, web pages of other origins, slow clients, too many of them.

use pgquorum_tests::{Cluster, PATIENCE, await_until, request, request_raw, request_to};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// As many streams as a node follows at a time.
const STREAMS_MAX: usize = 128;

#[test]
fn without_the_token_nothing_but_health_is_shown() {
    let cluster = Cluster::start_with(1, &[("node-timeout", "3s")]);
    let (node, token) = (cluster.node(1), "a-token-of-this-test");
    cluster.stop(1);
    let file = node.state_dir().join("token");
    std::fs::write(&file, token).expect("the token");
    let config = cluster.dir().join("node1/node.toml");
    let text = std::fs::read_to_string(&config).expect("node.toml");
    std::fs::write(&config, format!("token-file = \"{}\"\n{text}", file.display())).expect("node.toml");
    cluster.start_node(1);
    let to = SocketAddr::from(([127, 0, 0, 1], node.api_port()));
    let ask = |token: Option<&str>, method: &str, path: &str, body: Option<&str>| {
        request_to(to, token, method, path, body).expect("an answer")
    };
    // It was the primary when it stopped: clients are let in a moment after it leads again.
    await_until(PATIENCE, "the node leads and lets clients in", || {
        match request_to(to, None, "GET", "/primary", None).map_err(|e| e.to_string())? {
            (200, _) => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for (method, path, body) in [
        ("GET", "/map", None),
        ("GET", "/events", None),
        ("GET", "/metrics", None),
        ("POST", "/config", Some("{}")),
        ("DELETE", "/node/1", None),
    ] {
        for wrong in [None, Some("a-token-of-this-tesT"), Some("")] {
            let (status, answer) = ask(wrong, method, path, body);
            assert_eq!(status, 401, "{method} {path} with {wrong:?}: {answer}");
            assert!(!answer.to_string().contains(token), "{answer}");
        }
    }
    assert_eq!(ask(Some(token), "GET", "/map", None).0, 200);
    assert_eq!(ask(Some(token), "POST", "/config", Some("{}")).0, 200);
    for open in ["/primary", "/health", "/liveness", "/readiness", "/openapi.yaml", "/dashboard"] {
        assert_eq!(ask(None, "GET", open, None).0, 200, "{open}");
    }
}

#[test]
fn pages_of_other_origins_slow_bodies_and_crowds_are_refused() {
    let cluster = Cluster::start_steady(1);
    let port = cluster.node(1).api_port();
    let page = format!(
        "POST /node-down/1 HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\norigin: http://elsewhere.example\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n"
    );
    let (status, answer) = request_raw(port, &page).expect("an answer");
    assert_eq!(status, 403, "{answer}");
    let promised = format!(
        "POST /config HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: 20\r\n\r\n{{"
    );
    let (status, answer) = request_raw(port, &promised).expect("an answer");
    assert_eq!(status, 408, "{answer}");
    let follow = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let head =
            format!("GET /events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: text/event-stream\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        (stream, String::from_utf8_lossy(&answer).into_owned())
    };
    let streams: Vec<_> = (0..STREAMS_MAX).map(|_| follow()).collect();
    assert!(streams.iter().all(|(_, answer)| answer.ends_with("200")));
    assert!(follow().1.ends_with("503"), "one more than there are places");
    drop(streams);
    await_until(PATIENCE, "the places are free again", || match follow().1 {
        answer if answer.ends_with("200") => Ok(()),
        answer => Err(answer),
    });
    assert_eq!(request(port, "GET", "/health", None).expect("an answer").0, 200);
}
