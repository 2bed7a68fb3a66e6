//! The replication interface as a client that was written for ArangoDB uses it: python-arango, unmodified.

use pgquorum_tests::{Cluster, pgquorum_reading, request};
use std::path::PathBuf;
use std::process::Command;

const CLIENT: &str = include_str!("../../data/replication_client.py");
const PASSWORD: &str = "correct horse battery";

/// Where `make test` puts it.
fn packages() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into());
    let packages = target.join("python");
    assert!(
        packages.join("arango").is_dir(),
        "python-arango is not in {}: run `make test`",
        packages.display()
    );
    packages
}

fn run(url: &str, way: &str) {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let out = Command::new(&python)
        .args(["-c", CLIENT, url, way, "root", PASSWORD])
        .env("PYTHONPATH", packages())
        .output()
        .unwrap_or_else(|error| panic!("{python}: {error}"));
    let (said, failed) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{way}: {said}\n{failed}");
    assert_eq!(said.lines().last(), Some("done"), "{way}: {said}");
}

#[test]
fn python_arango_reads_everything_unmodified() {
    let cluster = Cluster::start_steady(1);
    let node = cluster.node(1);
    let port = node.api_port();
    cluster.sql(
        "CREATE TABLE users (id int PRIMARY KEY, name text); CREATE INDEX ON users (name); \
         INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 100) AS g",
    );
    let (status, answer) = request(port, "PUT", "/_api/replication/logger-start", None).expect("an answer");
    assert_eq!(status, 200, "{answer}");
    cluster.sql("SELECT quorum.track('users', channel => '_logger')");
    cluster.sql("CREATE DATABASE mirror");
    let mut mirror = cluster.connect_to(1, "mirror").expect("a session");
    mirror.batch_execute("CREATE EXTENSION pgquorum").expect("the extension");
    let url = format!("http://127.0.0.1:{port}");
    // As long as nobody has to log in, then with a password, then with a web token.
    run(&url, "basic");
    // What the client had made here is as it is there.
    let sum = "SELECT md5(string_agg(u::text, ',' ORDER BY id)) FROM users AS u";
    let copied: String = mirror.query_one(sum, &[]).expect("a table").get(0);
    assert_eq!(copied, cluster.ask(1, sum));
    let added = ["user", "add", "root", "--role", "admin", "--url", &node.api];
    pgquorum_reading(&format!("{PASSWORD}\n"), added).expect("user add");
    run(&url, "basic");
    run(&url, "jwt");
    let wrong = request(port, "GET", "/_api/replication/logger-state", None).expect("an answer");
    assert_eq!((wrong.0, wrong.1["errorNum"].as_u64()), (401, Some(11)), "{}", wrong.1);
}
