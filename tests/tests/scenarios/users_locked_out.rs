//! Nobody is locked out of a machine that is his own: whoever can read a node's secrets.toml is let in, and so is the
//! token of node.toml.

use pgquorum_tests::{
    Cluster, Login, PATIENCE, await_until, pgquorum, pgquorum_reading, request, request_as,
};
use serde_json::json;

#[test]
fn whoever_has_the_secrets_of_a_node_gets_back_in() {
    let cluster = Cluster::start_steady(1);
    let (port, url) = (cluster.node(1).api_port(), cluster.node(1).api);
    let config = cluster.dir().join("node1/node.toml").display().to_string();
    pgquorum_reading("long forgotten\n", ["user", "add", "root", "--role", "admin", "--url", &url])
        .expect("user add");
    let refused = pgquorum(["user", "list", "--url", &url]);
    assert_eq!(refused.code, 1, "{}", refused.said);
    assert!(refused.said.contains("login_required"), "{}", refused.said);
    // Without a login, with the node's configuration.
    let own = |args: &[&str], input: &str| {
        pgquorum_reading(input, args.iter().copied().chain(["--config", &config]))
    };
    own(&["user", "set", "root", "--password"], "well remembered\n").expect("user set");
    let root = Login::basic("root", "well remembered");
    assert_eq!(request_as(&root, port, "GET", "/users", None).expect("an answer").0, 200);
    let kept = own(&["user", "remove", "root"], "");
    assert!(
        kept.code == 1 && kept.said.contains("last_admin") && kept.said.contains("--last"),
        "{}",
        kept.said
    );
    assert_eq!(pgquorum(["doctor", "--config", &config]).code, 0);
    own(&["user", "remove", "root", "--last"], "").expect("user remove");
    assert_eq!(
        request(port, "GET", "/users", None).expect("an answer"),
        (200, json!([])),
        "nobody must log in"
    );
}

#[test]
fn the_token_of_the_configuration_is_as_mighty_as_an_admin() {
    let cluster = Cluster::start_with(1, &[("node-timeout", "3s")]);
    let (node, token) = (cluster.node(1), "a-token-of-this-test");
    cluster.stop(1);
    let file = node.state_dir().join("token");
    std::fs::write(&file, token).expect("the token");
    let config = cluster.dir().join("node1/node.toml");
    let text = std::fs::read_to_string(&config).expect("node.toml");
    std::fs::write(&config, format!("token-file = \"{}\"\n{text}", file.display())).expect("node.toml");
    cluster.start_node(1);
    let port = node.api_port();
    let ask = |login: &Login, method: &str, path: &str, body: Option<&str>| {
        request_as(login, port, method, path, body).expect("an answer")
    };
    let key = Login::bearer(token);
    let root = r#"{"name": "root", "roles": ["super_user"], "password": "correct horse"}"#;
    await_until(PATIENCE, "the node leads and takes the user", || {
        match request_as(&key, port, "POST", "/users", Some(root)).map_err(|e| e.to_string())? {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("{status} {answer}")),
        }
    });
    for login in [key.clone(), Login::basic("root", "correct horse")] {
        assert_eq!(ask(&login, "GET", "/users", None).0, 200);
        assert_eq!(ask(&login, "POST", "/config", Some("{}")).0, 200);
    }
    assert_eq!(
        ask(&Login::bearer("a-token-of-this-tesT"), "GET", "/map", None).1["code"],
        json!("login_failed")
    );
    assert_eq!(ask(&key, "DELETE", "/users/root?last=true", None).0, 200);
    assert_eq!(request(port, "GET", "/map", None).expect("an answer").1["code"], json!("token_required"));
    assert_eq!(ask(&key, "GET", "/map", None).0, 200);
}
