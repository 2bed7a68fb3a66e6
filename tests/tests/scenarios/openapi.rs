//! The description of the REST interface, tried on a running node by schemathesis: no answer is a 500, none is outside the
//! description, and each of its requests is made, but for those whose reasons stand in the script.

use pgquorum_tests::{Cluster, Login, PATIENCE, await_until, request_as};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const SCRIPT: &str = include_str!("../../data/openapi_schemathesis.py");
const TOKEN: &str = "a-token-of-this-test";
/// Each takes one or two minutes on two processors that have more to do; slow ones may need ten times as long.
const DEADLINE: Duration = Duration::from_secs(1200);

/// Where `.ci/clients` puts the packages: beside what cargo builds.
fn packages() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let packages = own.ancestors().nth(3).unwrap_or(Path::new("target")).join("python");
    assert!(
        packages.join("schemathesis").is_dir(),
        "{} has no schemathesis; `make test` fetches it",
        packages.display()
    );
    packages
}

/// A cluster of one node, whose token is asked for everything: users come and go while it is tried.
fn start() -> Cluster {
    let cluster = Cluster::start_with(1, &[("node-timeout", "3s")]);
    let node = cluster.node(1);
    cluster.stop(1);
    let file = node.state_dir().join("token");
    std::fs::write(&file, TOKEN).expect("the token");
    let config = cluster.dir().join("node1/node.toml");
    let text = std::fs::read_to_string(&config).expect("node.toml");
    std::fs::write(&config, format!("token-file = \"{}\"\n{text}", file.display())).expect("node.toml");
    cluster.start_node(1);
    cluster
}

/// What the script knows by name.
fn prepare(cluster: &Cluster) {
    let (port, key) = (cluster.node(1).api_port(), Login::bearer(TOKEN));
    for user in ["root", "bob", "spare"] {
        let body = format!(r#"{{"name": "{user}", "roles": ["admin"], "password": "correct horse"}}"#);
        await_until(PATIENCE, "the node leads and takes users", || {
            match request_as(&key, port, "POST", "/users", Some(&body)).map_err(|e| e.to_string())? {
                (200, _) => Ok(()),
                (status, answer) => Err(format!("{status} {answer}")),
            }
        });
    }
    await_until(PATIENCE, "clients are let in again", || {
        match request_as(&key, port, "GET", "/primary", None).map_err(|e| e.to_string())? {
            (200, _) => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    cluster.sql(
        "CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'a'); \
         CREATE TABLE notes (id int PRIMARY KEY, note text); INSERT INTO notes VALUES (1, 'a'); \
         CREATE TABLE spare (id int PRIMARY KEY); SELECT quorum.create_channel('shop'), quorum.create_channel('spare'), \
         quorum.create_channel('_logger', old_image => 'full')",
    );
    cluster.sql(
        "SELECT quorum.track('orders', 'shop'), quorum.track('spare', 'shop'), quorum.track('notes', '_logger'), \
         quorum.register_follower('shop', 'cache'), quorum.register_follower('shop', 'spare'), \
         quorum.subscribe('mirror', ARRAY['http://127.0.0.1:1'], 'shop', copy => 'none', start => 'now'), \
         quorum.subscribe('spare', ARRAY['http://127.0.0.1:1'], 'shop', copy => 'none', start => 'now'); \
         UPDATE orders SET note = 'b'; UPDATE notes SET note = 'b'",
    );
}

/// Has the script make up requests in these ways, at a cluster of their own: what they leave behind is in nobody's way.
fn tried(phases: &str) {
    let packages = packages();
    let cluster = start();
    prepare(&cluster);
    let directory = cluster.dir().join("schemathesis");
    std::fs::create_dir_all(&directory).expect("a directory");
    let said = directory.join("said.txt");
    let file = || std::fs::File::options().create(true).append(true).open(&said).expect("a file");
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let url = format!("http://127.0.0.1:{}", cluster.node(1).api_port());
    let mut child = Command::new(&python)
        .args(["-c", SCRIPT, &url, TOKEN, &directory.display().to_string()])
        .env("PHASES", phases)
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(file())
        .stderr(file())
        .spawn()
        .unwrap_or_else(|error| panic!("{python}: {error}"));
    let ended = pgquorum_tests::poll_until(DEADLINE, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("it is still running".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = std::fs::read_to_string(&said).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(400).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    assert!(ended.as_ref().is_ok_and(|status| status.success()), "{ended:?}\n{}", last.join("\n"));
}

#[test]
fn schemathesis_finds_no_answer_outside_the_description() {
    tried("examples,fuzzing");
}

/// What lies just within and just outside of what the description says of each parameter and field.
#[test]
fn schemathesis_finds_none_at_its_borders() {
    tried("coverage");
}
