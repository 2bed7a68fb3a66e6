//! The port itself: peers, TLS, tokens, limits, shutdown.

use super::super::tls::{PEER_PROTOCOL, Tls};
use super::super::{RestError, TlsFiles};
use super::*;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let served = serve(view(1), accept).await;
    let taken = RestConfig { listen: served.address, ..open_config() };
    let error = bind(&taken).await.err().unwrap();
    assert!(matches!(error, RestError::PortInUse(_)));
    let text = error.to_string();
    assert!(text.contains(&served.address.port().to_string()) && text.contains("api-port"), "{text}");
    for token in ["", " \n", "two\nlines"] {
        let config = RestConfig { token: Some(token.to_owned()), ..open_config() };
        assert!(matches!(bind(&config).await, Err(RestError::BadToken)));
    }
}

#[tokio::test]
async fn peers_are_handed_over_unread() {
    let mut served = serve(view(1), accept).await;
    let mut peer = TcpStream::connect(served.address).await.unwrap();
    // In two parts, as a network may deliver it.
    peer.write_all(b"PG").await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    peer.write_all(b"Q1 and more").await.unwrap();
    let handed = tokio::time::timeout(DEADLINE, served.peers.recv()).await.unwrap().unwrap();
    assert_eq!(handed.remote, peer.local_addr().unwrap());
    let mut bytes = [0; 13];
    let mut io = handed.stream.open().unwrap();
    io.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"PGQ1 and more");
    io.write_all(b"back").await.unwrap();
    peer.read_exact(&mut bytes[..4]).await.unwrap();
    assert_eq!(&bytes[..4], b"back");
    // The queue holds one: the second that nobody takes is closed.
    let connect = async || {
        let mut peer = TcpStream::connect(served.address).await.unwrap();
        peer.write_all(b"PGQ1").await.unwrap();
        peer
    };
    let (mut first, mut second) = (connect().await, connect().await);
    let (mut one, mut other) = ([0; 1], [0; 1]);
    let closed = async {
        tokio::select! { read = first.read(&mut one) => read, read = second.read(&mut other) => read }
    };
    let read = tokio::time::timeout(DEADLINE, closed).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    // What only begins like a peer is HTTP, and wrong.
    let answer = exchange(TcpStream::connect(served.address).await.unwrap(), b"PGX1 / HTTP/9\r\n\r\n").await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_token_guards_everything_but_the_checks() {
    let config = RestConfig { token: Some("secret-of-tests\n".to_owned()), ..open_config() };
    let served = serve_with(&config, view(1), accept).await;
    for path in
        ["/is-leader", "/", "/primary", "/read-only", "/health", "/liveness", "/readiness", "/openapi.yaml"]
    {
        assert_eq!(served.get(path).await.status, 200, "{path}");
    }
    let wrong = [
        "",
        "x: y",
        "authorization: Bearer wrong-of-tests",
        "authorization: Bearer",
        "authorization: Basic secret-of-tests",
    ];
    for line in [
        "GET /map",
        "GET /map/",
        "GET /metrics",
        "GET /nothing",
        "GET //map",
        "DELETE /node/3",
        "GET /events",
        "GET /rpc",
    ] {
        for header in wrong.iter().skip(1) {
            let answer = served.send(line, &[header], "").await;
            assert_eq!((answer.status, answer.code().as_str()), (401, "token_required"), "{line} {header}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{answer:?}");
            assert!(!answer.body.contains("secret-of-tests"));
        }
    }
    for header in ["authorization: Bearer secret-of-tests", "Authorization: bearer secret-of-tests"] {
        assert_eq!(served.send("GET /map", &[header], "").await.status, 200);
    }
    assert_eq!(served.asked(), []);
}

#[tokio::test]
async fn foreign_web_pages_change_nothing() {
    let served = serve(view(1), accept).await;
    let host = served.address.to_string();
    let own = format!("origin: http://{host}");
    let ask = async |line: &str, host: &str, origin: &str| {
        let text = format!("{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{origin}\r\n\r\n");
        exchange(TcpStream::connect(served.address).await.unwrap(), text.as_bytes()).await
    };
    assert_eq!(ask("DELETE /node/3", &host, &own).await.status, 200);
    assert_eq!(ask("DELETE /node/3", "localhost:8080", "origin: http://localhost:8080").await.status, 200);
    for (host, origin) in [
        (host.as_str(), "origin: http://evil.example"),
        (host.as_str(), "origin: null"),
        (host.as_str(), "origin: http://127.0.0.1:1"),
        // A name that somebody made resolve to this machine.
        ("evil.example:8080", "origin: http://evil.example:8080"),
    ] {
        let answer = ask("DELETE /node/3", host, origin).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "foreign_origin"), "{origin}");
    }
    assert_eq!(ask("GET /map", &host, "origin: http://evil.example").await.status, 200);
}

#[tokio::test]
async fn long_bodies_are_refused_with_and_without_a_length() {
    let served = serve(view(1), accept).await;
    let long = format!("{{\"work_mem\": \"{}\"}}", "x".repeat(1024 * 1024));
    let answer = served.send("PATCH /db-config", &[], &long).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let mut chunked =
        "PATCH /db-config HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for part in long.as_bytes().chunks(64 * 1024) {
        chunked += &format!("{:x}\r\n{}\r\n", part.len(), str::from_utf8(part).unwrap());
    }
    chunked += "0\r\n\r\n";
    let answer = exchange(TcpStream::connect(served.address).await.unwrap(), chunked.as_bytes()).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let fits = format!("{{\"work_mem\": 1, {}\"jit\": true}}", " ".repeat(1024 * 1024 - 64));
    assert_eq!(served.send("PATCH /db-config", &[], &fits).await.status, 200);
}

#[tokio::test]
async fn shutdown_waits_for_running_requests_but_not_for_ever() {
    let served = serve(view(1), accept).await;
    let mut idle = TcpStream::connect(served.address).await.unwrap();
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    idle.write_all(b"GET /is-leader HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    // A request whose body never comes.
    let mut slow = TcpStream::connect(served.address).await.unwrap();
    slow.write_all(b"POST /config HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n")
        .await
        .unwrap();
    slow.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100");
    served.stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(3), served.done)
        .await
        .expect("idle connections hold it up")
        .unwrap();
    assert_eq!(silent.read(&mut first).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(served.address).await.is_err(), "the port is free again");
}

/// An authority, and a certificate of its own for 127.0.0.1.
pub(super) fn make_certificates(folder: &Path) -> TlsFiles {
    let file = |name: &str| folder.join(name);
    let openssl = |key: &str, cert: &str, more: &[&str]| {
        let made = std::process::Command::new("openssl")
            .current_dir(folder)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-keyout", key, "-out", cert])
            .args(more)
            .output()
            .expect("openssl is needed for this test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    openssl("ca.key", "ca.pem", &["-subj", "/CN=authority"]);
    let signed =
        ["-subj", "/CN=node", "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"];
    openssl(
        "node.key",
        "node.pem",
        &[&signed[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat(),
    );
    TlsFiles { cert: file("node.pem"), key: file("node.key"), ca: Some(file("ca.pem")) }
}

fn peer_connector(files: &TlsFiles) -> TlsConnector {
    let chain = CertificateDer::pem_file_iter(&files.cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(files.ca.as_ref().unwrap()).unwrap()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    client.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
    TlsConnector::from(Arc::new(client))
}

#[tokio::test]
async fn tls_serves_http_and_peers_and_reaches_the_leader() {
    let folder = tempfile::tempdir().unwrap();
    let files = make_certificates(folder.path());
    let config = RestConfig { tls: Some(files.clone()), ..open_config() };
    let mut leader = serve_with(&config, view(1), accept).await;
    let follower = serve_with(&config, view(2), accept).await;
    let connect = async |address: SocketAddr, protocol: Option<&[u8]>| {
        let mut client = (*Tls::load(&files).unwrap().client).clone();
        client.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap()
    };
    for protocol in [None, Some(b"http/1.1".as_slice())] {
        let stream = connect(leader.address, protocol).await;
        let answer = exchange(stream, request("GET /leader", &[], "").as_bytes()).await;
        assert_eq!(answer.json()["api"], "https://127.0.0.1:8001");
    }
    follower.change_view(|view| view.leader.as_mut().unwrap().api = leader.address);
    let stream = connect(follower.address, None).await;
    let answer = exchange(stream, request("POST /leader?node=2", &[], "").as_bytes()).await;
    assert_eq!((answer.status, leader.asked().len()), (200, 1), "{answer:?}");
    // A peer that shows no certificate is sent away.
    let mut peer = connect(leader.address, Some(PEER_PROTOCOL)).await;
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let stream = TcpStream::connect(leader.address).await.unwrap();
    let mut peer = peer_connector(&files).connect(ServerName::IpAddress(LOCAL.into()), stream).await.unwrap();
    peer.write_all(b"hello").await.unwrap();
    let handed = tokio::time::timeout(DEADLINE, leader.peers.recv()).await.unwrap().unwrap();
    let mut bytes = [0; 5];
    handed.stream.open().unwrap().read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
    // Without TLS nobody gets in, not even who speaks the peers' protocol.
    let mut plain = TcpStream::connect(leader.address).await.unwrap();
    plain.write_all(b"PGQ1 and whatever makes a record of TLS\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut rest)).await.expect("not closed");
    assert!(!rest.starts_with(b"HTTP") && leader.peers.try_recv().is_err());
    let missing = TlsFiles { cert: folder.path().join("none.pem"), ..files };
    let error = bind(&RestConfig { tls: Some(missing), ..open_config() }).await.err().unwrap().to_string();
    assert!(error.contains("none.pem"), "{error}");
}
