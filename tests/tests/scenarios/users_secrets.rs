//! What would help somebody to log in is in no log, no list of processes, no event, no table and no error: not the
//! passwords and tokens themselves, and not their hashes.

use pgquorum_tests::{
    Cluster, Login, Outcome, PATIENCE, await_until, pgquorum, pgquorum_reading, request, request_as,
};
use serde_json::json;
use std::path::Path;

const PASSWORD: &str = "n0body-must-see-this";
const OTHER: &str = "n0body-must-see-that";

/// A hash of the program's makes has this in it.
const HASH: &str = "argon2id";

/// What was seen where.
#[derive(Default)]
struct Shown(Vec<(String, String)>);

impl Shown {
    fn say(&mut self, what: &str, text: String) {
        self.0.push((what.to_owned(), text));
    }

    fn run(&mut self, what: &str, outcome: Outcome) {
        self.say(what, format!("{outcome:?}"));
    }
}

#[test]
fn nothing_that_is_secret_is_seen_anywhere() {
    let cluster = Cluster::start_steady(2);
    // As much is logged as can be.
    cluster.down();
    for id in [1, 2] {
        let config = cluster.dir().join(format!("node{id}/node.toml"));
        let text = std::fs::read_to_string(&config).expect("node.toml");
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("log =")).collect();
        std::fs::write(&config, format!("log = \"trace\"\n{}\n", text.join("\n"))).expect("node.toml");
    }
    cluster.up(2);
    let all = json!({"log_statement": "all", "log_min_duration_statement": "0"});
    let (status, answer) = cluster.send(cluster.leader(), "PATCH", "/db-config", Some(&all));
    assert_eq!(status, 200, "{answer}");
    let (leader, url) = (cluster.leader(), cluster.node(cluster.leader()).api);
    let mut shown = Shown::default();
    shown.run(
        "user add",
        pgquorum_reading(&format!("{PASSWORD}\n"), ["user", "add", "root", "--role", "admin", "--url", &url]),
    );
    let file = cluster.dir().join("password");
    std::fs::write(&file, PASSWORD).expect("the password");
    let file = file.display().to_string();
    let login = ["--login", "root", "--login-password-file", &file, "--url", &url];
    let as_root = |args: &[&str], input: &str| pgquorum_reading(input, args.iter().copied().chain(login));
    shown.run("user add", as_root(&["user", "add", "bob", "--role", "reader"], &format!("{OTHER}\n")));
    shown.run(
        "user set",
        as_root(&["user", "set", "bob", "--role", "follower", "--password"], &format!("{OTHER}\n")),
    );
    let token = as_root(&["user", "token", "bob"], "").expect("user token");
    let (id, token) = (
        token["id"].as_str().expect("an id").to_owned(),
        token["token"].as_str().expect("a token").to_owned(),
    );
    shown.run("user list", as_root(&["user", "list"], ""));
    shown
        .run("a refused change", as_root(&["user", "add", "bob", "--role", "reader"], &format!("{OTHER}\n")));
    shown.run("a wrong name", as_root(&["user", "add", "b:b", "--role", "reader"], &format!("{OTHER}\n")));
    shown.run("events", as_root(&["events"], ""));
    shown.run(
        "a wrong login",
        pgquorum(["user", "list", "--login", "bob", "--login-password-file", &file, "--url", &url]),
    );
    let (root, bob) = (Login::basic("root", PASSWORD), Login::bearer(&token));
    for node in [1, 2] {
        let port = cluster.node(node).api_port();
        await_until(PATIENCE, "the user is known there", || {
            match request_as(&bob, port, "GET", "/map", None).map_err(|e| e.to_string())? {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status} {answer}")),
            }
        });
        for path in ["/users", "/users/bob", "/events", "/rpc", "/info", "/config", "/map", "/metrics"] {
            let (status, answer) = request_as(&root, port, "GET", path, None).expect("an answer");
            assert_eq!(status, 200, "{path}: {answer}");
            shown.say(&format!("{path} of node {node}"), answer.to_string());
        }
        for (login, path) in [
            (Login::basic("bob", PASSWORD), "/map"),
            (Login::basic(PASSWORD, OTHER), "/map"),
            (Login::bearer(&token.replace("pgq_", "pgq_0")), "/map"),
            (bob.clone(), "/users"),
        ] {
            let (status, answer) = request_as(&login, port, "GET", path, None).expect("an answer");
            assert!(matches!(status, 401 | 403), "{answer}");
            shown.say("a refusal", answer.to_string());
        }
        let body = format!(r#"{{"name": "eve", "roles": [], "password": "{OTHER}", "more": "{token}"}}"#);
        shown.say(
            "a bad body",
            format!("{:?}", request_as(&root, port, "POST", "/users", Some(&body)).expect("an answer")),
        );
        let body = format!(r#"{{"name": "eve", "password": "{OTHER}"#);
        shown.say(
            "a broken body",
            format!("{:?}", request_as(&root, port, "POST", "/users", Some(&body)).expect("an answer")),
        );
        shown.say(
            "a request without a login",
            format!("{:?}", request(port, "GET", "/users", None).expect("an answer")),
        );
    }
    shown.run("revoke", as_root(&["user", "token", "bob", "--revoke", &id], ""));
    shown.run("user remove", as_root(&["user", "remove", "bob"], ""));
    await_until(PATIENCE, "the database records what was done", || {
        let sql = "SELECT count(*)::text FROM quorum.event WHERE kind = 'user-removed'";
        match cluster.try_ask(leader, sql)?.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    for node in [1, 2] {
        cluster.await_replayed(node);
        for table in ["cluster_log", "event", "config", "db_config", "node"] {
            let sql = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM quorum.{table} AS t");
            shown.say(&format!("quorum.{table} on node {node}"), cluster.ask(node, &sql));
        }
        for log in ["sidecar.log", "state/postgres.log"] {
            let file = cluster.dir().join(format!("node{node}/{log}"));
            shown.say(log, String::from_utf8_lossy(&std::fs::read(&file).expect("a log")).into_owned());
        }
    }
    shown.say("ps", processes());
    let log = cluster.ask(
        leader,
        "SELECT string_agg(kind, ' ' ORDER BY index) FROM quorum.event WHERE kind ~ 'user|token'",
    );
    assert_eq!(log, "user-added user-added user-changed token-added token-removed user-removed");

    let secret_part = token.rsplit('_').next().expect("the secret part").to_owned();
    for (what, text) in &shown.0 {
        for secret in [PASSWORD, OTHER, &secret_part, HASH] {
            // Who types a password where the name belongs finds it in the log of failed logins: it is shown as a name.
            let name = format!("user=\"{PASSWORD}\"");
            let text = if what == "sidecar.log" { text.replace(&name, "") } else { text.clone() };
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(secret)).collect();
            assert!(lines.is_empty(), "{secret} is in {what}: {lines:?}");
        }
    }
    let failures =
        std::fs::read_to_string(cluster.dir().join(format!("node{leader}/sidecar.log"))).expect("the log");
    assert!(
        failures.contains("a login failed") && failures.contains("address=127.0.0.1"),
        "it says who failed"
    );
    assert!(failures.contains("user=\"bob\""), "{failures}");
}

/// The command lines of all processes of this machine.
fn processes() -> String {
    let mut all = String::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read(Path::new(&entry.path()).join("cmdline")).unwrap_or_default();
        all.push_str(&String::from_utf8_lossy(&line).replace('\0', " "));
        all.push('\n');
    }
    all
}
