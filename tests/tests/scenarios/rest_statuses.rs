//! Every route of the cluster's REST interface with every status that its description gives it, on real nodes in the
//! states in which they answer so. What must be seen is read from the description that the nodes themselves serve.

use pgquorum_tests::{
    Cluster, PATIENCE, StalledDisk, await_until, free_ports, pgquorum_program, request, server_command,
    server_directory,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use yaml_rust2::{Yaml, YamlLoader};

/// Method, path as the description writes it, status.
type Answer = (String, String, u16);

/// What members are asked, and what only members may be asked to do, with a body or parameters that are right.
const READS: [&str; 6] = ["/map", "/info", "/config", "/db-config", "/node", "/sql/readonly"];
const CHANGES: [(&str, &str, &str, &str); 8] = [
    ("POST", "/config", "", r#"{"replication-retry-interval": "310ms"}"#),
    ("PATCH", "/db-config", "", r#"{"work_mem": "5MB"}"#),
    ("POST", "/db-config", "", r#"{"work_mem": "6MB"}"#),
    ("POST", "/leader", "?node=2", ""),
    ("POST", "/node", "?ip=127.0.0.1&role=listener&db-port=1&api-port=2", ""),
    ("PATCH", "/node/{node}", "?db-port=1&api-port=2", ""),
    ("DELETE", "/node/{node}", "", ""),
    ("POST", "/node-down/{node}", "", ""),
];
const CHECKS: [&str; 15] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader-check",
    "/replica",
    "/read-only",
    "/synchronous",
    "/sync",
    "/quorum",
    "/asynchronous",
    "/async",
    "/health",
    "/liveness",
    "/readiness",
];

struct Seen {
    cluster: Cluster,
    answers: BTreeSet<Answer>,
}

impl Seen {
    /// Asks, notes the answer, and wants this status.
    fn want(&mut self, status: u16, port: u16, method: &str, path: &str, query: &str, body: &str) -> Value {
        let asked = path.replace("{node}", "3");
        self.want_at(status, port, method, path, &format!("{asked}{query}"), body)
    }

    fn want_at(&mut self, status: u16, port: u16, method: &str, path: &str, uri: &str, body: &str) -> Value {
        let body = (!body.is_empty()).then_some(body);
        let (got, answer) = request(port, method, uri, body).expect("an answer");
        assert_eq!(got, status, "{method} {uri} at port {port}: {answer}");
        if got >= 400 && got != 503 {
            assert!(answer["code"].is_string() && answer["message"].is_string(), "{method} {uri}: {answer}");
        }
        self.answers.insert((method.to_owned(), path.to_owned(), got));
        answer
    }

    /// The same status from every change.
    fn want_changes(&mut self, status: u16, port: u16) {
        for (method, path, query, body) in CHANGES {
            // This route knows no 410 and no 420: a node that cannot lead is one answer.
            let known = if path == "/leader" && matches!(status, 410 | 420) { 412 } else { status };
            self.want(known, port, method, path, query, body);
        }
    }

    fn want_reads(&mut self, status: u16, port: u16) {
        for path in READS.into_iter().chain(["/node/{node}"]) {
            self.want(status, port, "GET", path, "", "");
        }
    }

    fn port(&self, id: u64) -> u16 {
        self.cluster.node(id).api_port()
    }

    fn roles(&self) -> (u64, u64, u64) {
        let leader = self.cluster.leader();
        let mut others = (1..=3).filter(|id| *id != leader);
        (leader, others.next().expect("a follower"), others.next().expect("another"))
    }
}

#[test]
fn every_route_answers_with_every_status_of_its_description() {
    let refused = StalledDisk::refused();
    let mut seen = Seen { cluster: Cluster::start(3), answers: BTreeSet::new() };
    let described = described(&seen);
    healthy(&mut seen);
    wrong(&mut seen);
    stranger(&mut seen);
    done(&mut seen);
    in_flight_then_without_leader(&mut seen);
    gone_on_the_way(&mut seen);
    match &refused {
        None => stalled(&mut seen),
        Some(why) => eprintln!("SKIPPED: a sidecar whose disk stalls: {why}"),
    }
    removed(&mut seen);
    let missing: Vec<&Answer> = described
        .iter()
        // A 500 is a fault of the sidecar itself; what could be done from outside to cause one would be mended.
        .filter(|(_, _, status)| *status != 500)
        .filter(|(_, path, status)| {
            let by_stalling =
                *status == 531 || (*status == 503 && ["/health", "/liveness"].contains(&path.as_str()));
            !(refused.is_some() && by_stalling)
        })
        .filter(|answer| !seen.answers.contains(*answer))
        .collect();
    assert!(missing.is_empty(), "described and not seen: {missing:?}");
    let unknown =
        |(method, path, status): &&Answer| !described.contains(&(method.clone(), path.clone(), *status));
    let undescribed: Vec<&Answer> = seen.answers.iter().filter(unknown).collect();
    assert!(undescribed.is_empty(), "seen and not described: {undescribed:?}");
}

/// All pairs of route and status in `/openapi.yaml`.
fn described(seen: &Seen) -> BTreeSet<Answer> {
    let (_, text) =
        request(seen.port(seen.cluster.leader()), "GET", "/openapi.yaml", None).expect("an answer");
    let documents = YamlLoader::load_from_str(text.as_str().expect("text")).expect("YAML");
    let Yaml::Hash(paths) = &documents[0]["paths"] else { panic!("no paths") };
    let mut all = BTreeSet::new();
    for (path, item) in paths {
        for method in ["get", "post", "patch", "delete"] {
            let Yaml::Hash(responses) = &item[method]["responses"] else { continue };
            for status in responses.keys() {
                let status = status.as_str().and_then(|s| s.parse().ok()).expect("a status");
                all.insert((method.to_uppercase(), path.as_str().expect("a path").to_owned(), status));
            }
        }
    }
    assert!(all.len() > 100, "{all:?}");
    all
}

fn healthy(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (at_leader, at_follower) = (seen.port(leader), seen.port(follower));
    for port in [at_leader, at_follower] {
        seen.want_reads(200, port);
        for path in ["/leader", "/events", "/rpc", "/metrics", "/openapi.yaml", "/dashboard"] {
            seen.want(200, port, "GET", path, "", "");
        }
    }
    seen.want(200, at_leader, "GET", "/is-leader", "", "");
    seen.want(417, at_follower, "GET", "/is-leader", "", "");
    for (method, path, query, body) in CHANGES.into_iter().filter(|(_, path, ..)| *path != "/leader") {
        let answer = seen.want(417, at_follower, method, path, query, body);
        assert_eq!(answer["leader"]["id"], json!(leader), "{answer}");
    }
    for path in ["/", "/primary", "/master", "/read-write", "/leader-check"] {
        seen.want(200, at_leader, "GET", path, "", "");
        seen.want(503, at_follower, "GET", path, "", "");
    }
    for path in ["/replica", "/synchronous", "/sync", "/quorum"] {
        seen.want(200, at_follower, "GET", path, "", "");
        seen.want(503, at_leader, "GET", path, "", "");
    }
    for path in ["/asynchronous", "/async"] {
        seen.want(503, at_follower, "GET", path, "", "");
    }
    for path in ["/read-only", "/health", "/liveness", "/readiness"] {
        seen.want(200, at_follower, "GET", path, "", "");
        seen.want(200, at_leader, "GET", path, "", "");
    }
    let weak = r#"{"quorum-replication": false, "replication-factor": 0}"#;
    seen.want(200, at_leader, "POST", "/config", "", weak);
    await_until(PATIENCE, "commits wait for nobody", || {
        match request(at_follower, "GET", "/async", None).expect("an answer") {
            (200, _) => Ok(()),
            (_, body) => Err(body.to_string()),
        }
    });
    for path in ["/asynchronous", "/async"] {
        seen.want(200, at_follower, "GET", path, "", "");
    }
    seen.want(200, at_leader, "POST", "/config", "", r#"{"quorum-replication": true}"#);
}

/// What is asked wrongly, and what is not there.
fn wrong(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    let (port, at_follower) = (seen.port(leader), seen.port(follower));
    for (method, path, query, body) in [
        ("POST", "/config", "", "{"),
        ("PATCH", "/db-config", "", r#"{"work_mem": []}"#),
        ("POST", "/db-config", "", r#"{"work_mem": "much"}"#),
        ("POST", "/leader", "?node=two", ""),
        ("POST", "/node", "?ip=nowhere&role=listener", ""),
        ("PATCH", "/node/{node}", "?db-port=1", ""),
        ("DELETE", "/node/{node}", "?force=1", ""),
        ("POST", "/node-down/{node}", "?reason=%0a", ""),
        ("GET", "/events", "?after=x", ""),
        ("GET", "/rpc", "?limit=-1", ""),
    ] {
        seen.want(400, port, method, path, query, body);
    }
    seen.want_at(400, port, "GET", "/node/{node}", "/node/x", "");
    for path in [
        "/replica",
        "/read-only",
        "/synchronous",
        "/sync",
        "/quorum",
        "/asynchronous",
        "/async",
        "/readiness",
    ] {
        seen.want(400, at_follower, "GET", path, "?lag=far", "");
    }
    seen.want_at(410, port, "GET", "/node/{node}", "/node/99", "");
    seen.want_at(410, port, "PATCH", "/node/{node}", "/node/99?db-port=1&api-port=2", "");
    seen.want_at(410, port, "DELETE", "/node/{node}", "/node/99", "");
    seen.want_at(410, port, "POST", "/node-down/{node}", "/node-down/99", "");
    seen.want_at(412, port, "POST", "/leader", "/leader?node=99", "");
    seen.want_at(412, port, "POST", "/node-down/{node}", &format!("/node-down/{leader}"), "");
}

/// A sidecar that the cluster's nodes have not reached yet.
struct Stranger {
    child: Child,
    dir: PathBuf,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn stranger(seen: &mut Seen) {
    let cluster = Cluster::start(1);
    let dir = server_directory("pgquorum-stranger-");
    let node = dir.join("node");
    let [api_port, db_port] = free_ports();
    let mut join = server_command(&pgquorum_program());
    join.args(["join", "--no-run", "--no-upgrade", "--leader", &cluster.node(1).api, "--secrets"]);
    join.arg(cluster.node(1).state_dir().join("secrets.toml")).arg("--dir").arg(&node);
    join.args(["--api-port", &api_port.to_string(), "--db-port", &db_port.to_string()]);
    let joined = join.stdin(Stdio::null()).output().expect("pgquorum join");
    assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    cluster.stop(1);
    let mut run = server_command(&pgquorum_program());
    run.arg("run").arg("--config").arg(node.join("node.toml")).stdin(Stdio::null());
    let child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a sidecar");
    let _stranger = Stranger { child, dir };
    await_until(PATIENCE, "the sidecar answers", || {
        request(api_port, "GET", "/liveness", None).map_err(|e| e.to_string()).map(drop)
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(412, api_port, "GET", path, "", "");
    }
    seen.want_reads(412, api_port);
    seen.want_changes(412, api_port);
    for path in ["/read-only", "/readiness"] {
        seen.want(503, api_port, "GET", path, "", "");
    }
}

/// Each change once, and back again.
fn done(seen: &mut Seen) {
    let (leader, follower, other) = seen.roles();
    let port = seen.port(leader);
    for (method, path, query, body) in &CHANGES[..3] {
        seen.want(200, port, method, path, query, body);
    }
    let added = seen.want(200, port, "POST", "/node", "?ip=127.0.0.1&role=listener&db-port=1&api-port=2", "");
    let id = &added["id"];
    seen.want_at(412, port, "PATCH", "/node/{node}", &format!("/node/{id}?db-port=1&api-port=2"), "");
    seen.want_at(200, port, "DELETE", "/node/{node}", &format!("/node/{id}"), "");
    seen.want_at(200, port, "POST", "/node-down/{node}", &format!("/node-down/{other}"), "");
    let node = seen.cluster.node(other);
    let back = format!("/node/{other}?db-port={}&api-port={}", node.db_port, node.api_port());
    seen.want_at(200, port, "PATCH", "/node/{node}", &back, "");
    // Asked of a follower, which passes it on.
    let at_follower = seen.port(follower);
    seen.want_at(200, at_follower, "POST", "/leader", &format!("/leader?node={follower}"), "");
    seen.cluster.await_replicas(2);
}

/// The others stand still: what is asked of the leader stays on its way, and then the leader gives up.
fn in_flight_then_without_leader(seen: &mut Seen) {
    let (leader, follower, other) = seen.roles();
    let port = seen.port(leader);
    seen.want(200, port, "POST", "/config", "", r#"{"node-timeout": "6s"}"#);
    seen.cluster.freeze(follower, Some("sidecar"));
    seen.cluster.freeze(other, Some("sidecar"));
    let waiting = std::thread::spawn(move || {
        // A change of members: nothing overtakes it, also not the word that a node is lost.
        request(port, "POST", "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2", None)
            .expect("an answer")
    });
    await_until(PATIENCE, "a change is on its way", || {
        let (_, map) = request(port, "GET", "/map", None).expect("an answer");
        if map["change-in-flight"] == json!(true) { Ok(()) } else { Err(map.to_string()) }
    });
    seen.want_changes(420, port);
    let (status, answer) = waiting.join().expect("the thread");
    assert_eq!((status, &answer["code"]), (410, &json!("proposal_gone")), "{answer}");
    seen.answers.insert(("POST".to_owned(), "/node".to_owned(), 410));
    await_until(PATIENCE, "nobody leads", || {
        match request(port, "GET", "/leader", None).expect("an answer") {
            (530, _) => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(530, port, "GET", path, "", "");
    }
    seen.want_changes(530, port);
    for path in ["/read-only", "/readiness"] {
        seen.want(503, port, "GET", path, "", "");
    }
    seen.cluster.thaw(follower, Some("sidecar"));
    seen.cluster.thaw(other, Some("sidecar"));
    seen.cluster.await_replicas(2);
    seen.cluster.configure(json!({"node-timeout": "1s"}));
}

/// The leader loses its place while a change is on its way.
fn gone_on_the_way(seen: &mut Seen) {
    // Values that nothing has yet: what is so already is answered at once.
    for (method, path, body) in [
        ("POST", "/config", r#"{"replication-retry-interval": "320ms"}"#),
        ("PATCH", "/db-config", r#"{"work_mem": "7MB"}"#),
        ("POST", "/db-config", r#"{"work_mem": "9MB"}"#),
    ] {
        seen.cluster.await_replicas(2);
        let (leader, follower, other) = seen.roles();
        let port = seen.port(leader);
        seen.cluster.freeze(follower, Some("sidecar"));
        seen.cluster.freeze(other, Some("sidecar"));
        let answer = seen.want(410, port, method, path, "", body);
        assert_eq!(answer["code"], json!("proposal_gone"), "{answer}");
        seen.cluster.thaw(follower, Some("sidecar"));
        seen.cluster.thaw(other, Some("sidecar"));
    }
    seen.cluster.await_replicas(2);
}

/// The disk under a follower's state takes no writes: its loop waits, its port answers.
fn stalled(seen: &mut Seen) {
    let (leader, follower, _) = seen.roles();
    seen.cluster.stop(follower);
    let disk = StalledDisk::under(&seen.cluster.node(follower).state_dir());
    seen.cluster.start_node(follower);
    seen.cluster.await_replicas(2);
    let (port, node) = (seen.port(follower), seen.cluster.node(leader));
    disk.freeze();
    // Something that it must write down.
    let (status, answer) =
        request(node.api_port(), "POST", "/config", Some(r#"{"replication-retry-interval": "330ms"}"#))
            .expect("an answer");
    assert_eq!(status, 200, "the other two are a majority: {answer}");
    await_until(PATIENCE, "the loop stands still", || {
        match request(port, "GET", "/liveness", None).expect("an answer") {
            (503, _) => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(531, port, "GET", path, "", "");
    }
    seen.want_reads(531, port);
    seen.want_changes(531, port);
    for path in CHECKS {
        seen.want(503, port, "GET", path, "", "");
    }
    disk.thaw();
    seen.cluster.await_replicas(2);
    assert_eq!(seen.cluster.leader(), leader, "a follower's disk costs no election");
    seen.cluster.kill(follower, None);
    drop(disk);
}

fn removed(seen: &mut Seen) {
    let cluster = Cluster::start(3);
    let port = cluster.node(3).api_port();
    if cluster.leader() == 3 {
        assert_eq!(cluster.hand_over(1).0, 200);
    }
    let at_leader = cluster.node(cluster.leader()).api_port();
    seen.want(200, at_leader, "DELETE", "/node/{node}", "", "");
    await_until(PATIENCE, "the node knows that it was removed", || {
        match request(port, "GET", "/map", None).expect("an answer") {
            (412, answer) if answer["code"] == "removed" => Ok(()),
            (_, answer) => Err(answer.to_string()),
        }
    });
    for path in ["/is-leader", "/leader"] {
        seen.want(412, port, "GET", path, "", "");
    }
    seen.want_reads(412, port);
    seen.want_changes(410, port);
    seen.want(410, at_leader, "DELETE", "/node/{node}", "", "");
}
