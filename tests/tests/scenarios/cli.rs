//! The commands as scripts use them: documents and exit codes.

use pgquorum_tests::{
    Cluster, PATIENCE, await_until, free_ports, pgquorum, pgquorum_program, server_directory,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Refusals for something that passes by itself.
const PASSING: [&str; 3] = ["not_streaming", "change_in_flight", "no_leader"];

/// Waits until this is what a command says.
fn await_said(command: &str, expected: &Value, say: impl Fn() -> Value) {
    await_until(PATIENCE, command, || match say() {
        said if said == *expected => Ok(()),
        other => Err(other.to_string()),
    });
}

/// Runs a command, again while it is refused for something that passes.
fn carried_out(args: &[&str]) -> Value {
    await_until(PATIENCE, &args.join(" "), || match pgquorum(args.iter().copied()) {
        done if done.code == 0 => Ok(done.json),
        refused if PASSING.iter().any(|code| refused.said.contains(*code)) => Err(refused.said),
        other => panic!("{args:?}: {other:?}"),
    })
}

#[test]
fn commands_follow_the_leader_and_return_their_codes() {
    let cluster = Cluster::start_steady(3);
    let url = cluster.node(cluster.follower()).api;
    let leader = cluster.leader();
    let run = |args: &[&str]| pgquorum(args.iter().copied().chain(["--url", &url]));

    await_said("status", &json!(leader), || run(&["status"]).json["leader"].clone());
    await_said("leader", &json!(leader), || run(&["leader"]).json["id"].clone());
    // Asked of a follower, carried out by the leader.
    assert_eq!(
        run(&["config", "set", "node-timeout=5500ms"]).expect("config set")["node-timeout"],
        json!("5s 500ms")
    );
    assert_eq!(run(&["config", "get", "heartbeat-interval"]).expect("config get"), json!("100ms"));
    run(&["db-config", "set", "work_mem=5MB"]).expect("db-config set");
    // A follower hears a moment later of what the leader has done.
    await_said("db-config get", &json!("5MB"), || run(&["db-config", "get", "work_mem"]).json);
    assert!(run(&["events"]).expect("events").as_array().is_some_and(|events| !events.is_empty()));

    assert_eq!(run(&["config", "set", "node-timeout=soon"]).code, 1);
    assert_eq!(run(&["node", "remove", "99"]).code, 4);
    assert_eq!(run(&["leader", "set", "99"]).code, 4);
    assert_eq!(run(&["config", "get", "no-such-setting"]).code, 4);
    assert_eq!(run(&["node", "remove"]).code, 2);
    assert_eq!(pgquorum(["status", "--url", "http://127.0.0.1:1"]).code, 3);
    assert_eq!(pgquorum(["local", "status", "--dir", "/no/such/dir"]).code, 4);
    assert_eq!(pgquorum(["local", "destroy", "--dir", "/tmp"]).code, 4);
}

#[test]
fn doctor_finds_nothing_on_a_healthy_node_and_something_on_a_sick_one() {
    let cluster = Cluster::start_steady(1);
    let config = cluster.dir().join("node1/node.toml").display().to_string();
    // What does not answer in some seconds is sick to it, which a busy machine may be for a moment.
    await_until(PATIENCE, "a doctor who finds nothing", || {
        let well = pgquorum(["doctor", "--config", &config]);
        if well.code == 0 { Ok(()) } else { Err(format!("{} {}", well.said, well.json)) }
    });
    cluster.stop(1);
    let sick = pgquorum(["doctor", "--config", &config]);
    assert_eq!(sick.code, 1);
    let failed =
        sick.json.as_array().into_iter().flatten().any(|c| c["check"] == "sidecar" && c["verdict"] == "fail");
    assert!(failed, "{}", sick.json);
    assert_eq!(pgquorum(["doctor", "--config", "/no/such/file"]).code, 1);
}

#[test]
fn nodes_come_and_go_by_commands() {
    // Who led last is named for three times as long.
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    cluster.await_replicas(2);
    let (leader, follower) = (cluster.leader(), cluster.follower());
    let url = cluster.node(follower).api;
    let run = |args: &[&str]| pgquorum(args.iter().copied().chain(["--url", &url]));
    // Events as they come, from before all this.
    let mut events = Followed::start(&["events", "-f", "--url", &url]);

    carried_out(&["leader", "set", &follower.to_string(), "--url", &url]);
    assert_eq!(run(&["leader"]).expect("leader")["id"], json!(follower));
    assert_ne!(follower, leader);
    events.await_event(|event| event["kind"] == "appointed" && event["node"] == json!(follower));

    let [db, api] = free_ports().map(|port: u16| port.to_string());
    carried_out(&["node", "add", "--ip", "127.0.0.1", "--db-port", &db, "--api-port", &api, "--url", &url]);
    let map = run(&["status"]).expect("status");
    let added = map["nodes"].as_array().into_iter().flatten().find(|node| node["role"] == "listener");
    let id = added.and_then(|node| node["id"].as_u64()).unwrap_or_else(|| panic!("{map}")).to_string();
    // Nothing runs there, so it has caught up with nothing.
    let refused = run(&["node", "upgrade", &id]);
    assert_eq!(refused.code, 1, "{}", refused.said);
    assert!(refused.said.contains("code") && refused.said.contains("message"), "{}", refused.said);
    carried_out(&["node", "remove", &id, "--url", &url]);
    assert_eq!(run(&["node", "upgrade", &id]).code, 4);

    // Nodes that answer and have no leader.
    let others: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != leader).collect();
    let left = cluster.node(leader).api;
    for node in &others {
        cluster.kill(*node, None);
    }
    await_until(PATIENCE, "no leader, exit code 3", || match pgquorum(["status", "--url", &left]) {
        said if said.code == 3 && said.json["leader"].is_null() && said.json["nodes"].is_array() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for node in &others {
        cluster.start_node(*node);
    }
    cluster.await_replicas(2);
}

/// A command that prints a document a line until it is ended.
struct Followed {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Followed {
    fn start(args: &[&str]) -> Followed {
        let mut command = Command::new(pgquorum_program());
        command.arg("--json").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the command");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Followed { child, lines }
    }

    /// The next line that is so. The command is known to print one, or the test stands still until its runner ends it.
    fn await_event(&mut self, is_it: impl Fn(&Value) -> bool) {
        for line in self.lines.by_ref() {
            let line = line.expect("a line");
            if is_it(&serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))) {
                return;
            }
        }
        panic!("it ended");
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_runs_a_server_refuses_root() {
    // Whoever is not root cannot try, and has nothing to fear.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = server_directory("pgquorum-root-");
    let file = dir.join("node.toml").display().to_string();
    let (secrets, node) =
        (dir.join("secrets.toml").display().to_string(), dir.join("node").display().to_string());
    let tried: [&[&str]; 4] = [
        &["run", "--config", &file],
        &["init", "--dir", &node],
        &["join", "--leader", "http://127.0.0.1:1", "--secrets", &secrets, "--dir", &node],
        &["force-leader", "--config", &file],
    ];
    for args in tried {
        let refused = pgquorum(args.iter().copied());
        assert_eq!(refused.code, 1, "{args:?}: {}", refused.said);
        assert!(refused.said.contains("root"), "{args:?}: {}", refused.said);
    }
    assert!(!dir.join("node").exists(), "nothing was made");
    let _ = std::fs::remove_dir_all(dir);
}
