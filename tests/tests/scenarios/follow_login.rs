//! A source that wants to know who follows it.

use pgquorum_tests::{Login, Pair, request_as};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY)";

/// As an administrator of the source.
fn ask(pair: &Pair, method: &str, path: &str, body: &Value) {
    let (port, root) = (pair.source.node(1).api_port(), Login::basic("root", "root's password"));
    let (status, answer) =
        request_as(&root, port, method, path, Some(&body.to_string())).expect("the source answers");
    assert_eq!(status, 200, "{method} {path}: {answer}");
}

fn log_in_as(pair: &Pair, login: &str, secret: &str) {
    let body = json!({"login": login, "secret": secret});
    let (status, answer) = pair.target.send(1, "PATCH", "/subscriptions/mirror", Some(&body));
    assert_eq!(status, 200, "{answer}");
    assert!(!answer.to_string().contains(secret), "{answer}");
}

#[test]
fn whoever_may_not_follow_is_told_so_and_goes_on_with_the_right_login() {
    let pair = Pair::start((1, 1), TABLES);
    pair.source.sql("INSERT INTO t SELECT generate_series(1, 10)");
    pair.track(&["t"]);
    let user = |name: &str, role: &str| json!({"name": name, "roles": [role], "password": format!("{name}'s password")});
    let (status, answer) = pair.source.post(1, "/users", Some(&user("root", "admin")));
    assert_eq!(status, 200, "{answer}");
    ask(&pair, "POST", "/users", &user("paris", "follower"));
    ask(&pair, "POST", "/users", &user("reader", "reader"));

    // Without a login, with a wrong password, as somebody whom nobody knows.
    pair.subscribe(&json!({}));
    let state = pair.await_state("stopped", Some("login"));
    assert!(state["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{state}");
    for (login, secret) in [("paris", "a wrong password"), ("nobody", "nobody's password")] {
        log_in_as(&pair, login, secret);
        let state = pair.await_state("stopped", Some("login"));
        assert!(!state.to_string().contains(secret), "{state}");
    }
    // Known, and not allowed to follow.
    log_in_as(&pair, "reader", "reader's password");
    let state = pair.await_state("stopped", Some("forbidden"));
    assert!(!state.to_string().contains("reader's password"), "{state}");
    log_in_as(&pair, "paris", "paris's password");
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO t VALUES (11)");
    pair.await_applied();
    pair.assert_same("t");

    // Whoever is let in no more is told so, too, and goes on where it was.
    ask(&pair, "PATCH", "/users/paris", &json!({"password": "another password"}));
    pair.source.sql("INSERT INTO t VALUES (12)");
    pair.await_state("stopped", Some("login"));
    log_in_as(&pair, "paris", "another password");
    pair.await_state("following", None);
    pair.source.sql("INSERT INTO t VALUES (13)");
    pair.await_applied();
    pair.assert_same("t");
}
