//! Users log in at every node, whoever leads, and are out at once when they are removed.

use pgquorum_tests::{
    Cluster, Login, PATIENCE, await_until, pgquorum, pgquorum_reading, request, request_as,
};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

const PASSWORD: &str = "correct horse battery";

/// A file with a password, as `--login-password-file` reads it.
fn password_file(cluster: &Cluster) -> PathBuf {
    let file = cluster.dir().join("password-of-root");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("the password");
    file
}

fn ports(cluster: &Cluster) -> Vec<u16> {
    cluster.status().nodes.iter().map(pgquorum_tests::Node::api_port).collect()
}

fn await_status(port: u16, login: &Login, path: &str, status: u16) -> Value {
    await_until(PATIENCE, &format!("{status} of {path} at port {port}"), || {
        let (got, answer) = request_as(login, port, "GET", path, None).map_err(|e| e.to_string())?;
        if got == status { Ok(answer) } else { Err(format!("{got} {answer}")) }
    })
}

#[test]
fn users_log_in_on_every_node_and_are_out_at_once() {
    let cluster = Cluster::start_steady(3);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let (url, follower_url) = (cluster.node(leader).api, cluster.node(follower).api);
    let (ports, file) = (ports(&cluster), password_file(&cluster).display().to_string());
    let root = Login::basic("root", PASSWORD);
    for &port in &ports {
        assert_eq!(request(port, "GET", "/map", None).expect("an answer").0, 200, "nobody has to log in yet");
    }
    // The first user must be able to administer.
    let first = ["user", "add", "bob", "--role", "reader", "--url", &url];
    assert_eq!(pgquorum_reading("correct horse\n", first).code, 1);
    let added =
        pgquorum_reading(&format!("{PASSWORD}\n"), ["user", "add", "root", "--role", "admin", "--url", &url]);
    assert_eq!(added.expect("user add")["roles"], json!(["admin"]));
    for &port in &ports {
        await_status(port, &root, "/users", 200);
        let (status, answer) = request(port, "GET", "/map", None).expect("an answer");
        assert_eq!((status, &answer["code"]), (401, &json!("login_required")), "{answer}");
        for wrong in [
            Login::basic("root", "correct horse batterY"),
            Login::basic("eve", PASSWORD),
            Login::bearer(PASSWORD),
            Login::bearer("pgq_000000000000_00"),
        ] {
            let (status, answer) = request_as(&wrong, port, "GET", "/map", None).expect("an answer");
            assert_eq!((status, &answer["code"]), (401, &json!("login_failed")), "{answer}");
        }
        assert_eq!(request(port, "GET", "/liveness", None).expect("an answer").0, 200, "health is open");
    }
    assert_eq!(cluster.status().leader, Some(leader), "commands of this machine are let in");

    // Asked of a follower, carried out by the leader.
    let as_root = |args: &[&str]| {
        let login = ["--login", "root", "--login-password-file", &file, "--url", &follower_url];
        pgquorum(args.iter().copied().chain(login))
    };
    as_root(&["user", "add", "cache", "--role", "follower,reader", "--no-password"]).expect("user add");
    let token = as_root(&["user", "token", "cache"]).expect("user token");
    let (id, token) = (token["id"].as_str().expect("an id"), token["token"].as_str().expect("a token"));
    let cache = Login::bearer(token);
    for &port in &ports {
        await_status(port, &cache, "/map", 200);
        for (method, path) in
            [("POST", "/config"), ("DELETE", "/node/3"), ("GET", "/users"), ("POST", "/channels")]
        {
            let (status, answer) = request_as(&cache, port, method, path, Some("{}")).expect("an answer");
            assert_eq!((status, &answer["code"]), (403, &json!("forbidden")), "{method} {path}: {answer}");
            assert!(
                answer["message"].as_str().is_some_and(|m| m.contains("cache") && m.contains("admin")),
                "{answer}"
            );
        }
    }
    let list = as_root(&["user", "list"]).expect("user list");
    assert_eq!((list[0]["name"].as_str(), list[0]["tokens"][0]["id"].as_str()), (Some("cache"), Some(id)));
    assert_eq!(as_root(&["user", "remove", "root"]).code, 1, "the last admin stays");
    assert_eq!(as_root(&["user", "remove", "eve"]).code, 4);
    assert_eq!(as_root(&["user", "add", "cache", "--role", "reader", "--no-password"]).code, 1);

    // Another leader knows the same users, and so does the old one when it is back.
    cluster.kill(leader, None);
    let new = cluster.await_leader(Some(leader));
    let port = cluster.node(new).api_port();
    await_status(port, &cache, "/map", 200);
    let (status, answer) = request_as(&root, port, "POST", "/config", Some("{}")).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    cluster.start_node(leader);
    let back = cluster.node(leader).api_port();
    await_until(PATIENCE, "the old leader answers", || {
        match request_as(&cache, back, "GET", "/map", None).map_err(|e| e.to_string())? {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    });

    // A stream of the user ends with the user; on every node.
    let streams: Vec<TcpStream> = ports.iter().map(|&port| follow_events(port, token)).collect();
    let url = cluster.node(new).api;
    let remove =
        ["user", "remove", "cache", "--login", "root", "--login-password-file", &file, "--url", &url];
    pgquorum(remove).expect("user remove");
    for &port in &ports {
        await_status(port, &cache, "/map", 401);
    }
    for mut stream in streams {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the stream ends");
    }
    assert_eq!(
        request_as(&cache, port, "GET", "/map", None).expect("an answer").1["code"],
        json!("login_failed")
    );
}

fn follow_events(port: u16, token: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let head = format!(
        "GET /events HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: text/event-stream\r\n\
         authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("a request");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert!(answer.ends_with(b"200"), "{}", String::from_utf8_lossy(&answer));
    stream
}

#[test]
fn passwords_and_roles_change_and_whoever_guesses_must_wait() {
    let cluster = Cluster::start_steady(1);
    let (port, url) = (cluster.node(1).api_port(), cluster.node(1).api);
    let file = password_file(&cluster).display().to_string();
    pgquorum(["user", "add", "root", "--role", "admin", "--password-file", &file, "--url", &url])
        .expect("user add");
    let login = ["--login", "root", "--login-password-file", &file, "--url", &url];
    let as_root = |args: &[&str], input: &str| pgquorum_reading(input, args.iter().copied().chain(login));
    as_root(&["user", "add", "bob", "--role", "reader"], "first password\n").expect("user add");
    let (first, second) = (Login::basic("bob", "first password"), Login::basic("bob", "second password"));
    let status =
        |login: &Login, method, path| request_as(login, port, method, path, Some("{}")).expect("an answer").0;
    assert_eq!((status(&first, "GET", "/map"), status(&first, "POST", "/config")), (200, 403));
    as_root(&["user", "set", "bob", "--role", "admin"], "").expect("user set");
    assert_eq!(status(&first, "POST", "/config"), 200);
    as_root(&["user", "set", "bob", "--role", "reader", "--password"], "second password\n")
        .expect("user set");
    assert_eq!(
        (status(&first, "GET", "/map"), status(&second, "GET", "/map")),
        (401, 200),
        "the old one is out"
    );
    for bad in ["short\n", "\n"] {
        assert_ne!(as_root(&["user", "set", "bob", "--password"], bad).code, 0);
    }
    // The wait grows until it is longer than a guess takes, however slow the machine is.
    let mut guesses = Vec::new();
    while guesses.len() < 20 && !guesses.contains(&429) {
        guesses.push(status(&Login::basic("bob", &format!("guess {}", guesses.len())), "GET", "/map"));
    }
    assert!(guesses.starts_with(&[401]) && guesses.ends_with(&[429]), "{guesses:?}");
    assert_eq!(status(&second, "GET", "/map"), 200, "whoever was right goes on");
    assert_eq!(status(&Login::basic("root", PASSWORD), "GET", "/map"), 200, "and so do others");
}
