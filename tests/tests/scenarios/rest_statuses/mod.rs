//! Every route of the cluster's REST interface with every status that its description gives it, on real nodes in the
//! states in which they answer so. What must be seen is read from the description that the nodes themselves serve.

mod at_work;
mod channels;
mod outside;
mod registry;
mod subscriptions;
mod troubled;
mod users;

use pgquorum_tests::{Cluster, PATIENCE, StalledDisk, await_until, request, skipped};
use serde_json::Value;
use std::collections::BTreeSet;
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
        let ask = || request(port, method, uri, body).map_err(|e| e.to_string());
        // A node that is looked at may be held up for a moment, and says so.
        let (got, answer) = match method {
            "GET" => await_until(PATIENCE, &format!("{status} of {uri} at port {port}"), || match ask()? {
                (got, answer) if got == status => Ok((got, answer)),
                other => Err(format!("{other:?}")),
            }),
            _ => ask().expect("an answer"),
        };
        assert_eq!(got, status, "{method} {uri} at port {port}: {answer}");
        if got >= 400 && got != 503 {
            assert!(answer["code"].is_string() && answer["message"].is_string(), "{method} {uri}: {answer}");
        }
        self.answers.insert((method.to_owned(), path.to_owned(), got));
        answer
    }

    /// The same status from every change, and the same word for programs.
    fn want_changes(&mut self, status: u16, code: &str, port: u16) {
        for (method, path, query, body) in CHANGES {
            // This route knows no 410 and no 420: a node that cannot lead is one answer.
            let known = if path == "/leader" && matches!(status, 410 | 420) { 412 } else { status };
            let answer = self.want(known, port, method, path, query, body);
            assert_eq!(answer["code"], code, "{method} {path}: {answer}");
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

    /// What happens at the port of a leader that no other sidecar answers; then they go on.
    fn with_silent_followers(&mut self, act: impl FnOnce(&mut Seen, u16)) {
        self.cluster.await_replicas(2);
        let (leader, follower, other) = self.roles();
        let port = self.port(leader);
        for id in [follower, other] {
            self.cluster.freeze(id, Some("sidecar"));
        }
        act(self, port);
        for id in [follower, other] {
            self.cluster.thaw(id, Some("sidecar"));
        }
        self.cluster.await_replicas(2);
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
    let mut seen =
        Seen { cluster: Cluster::start_with(3, &[("node-timeout", "4s")]), answers: BTreeSet::new() };
    let described = described(&seen);
    at_work::healthy(&mut seen);
    channels::healthy(&mut seen);
    users::healthy(&mut seen);
    registry::healthy(&mut seen);
    at_work::wrong(&mut seen);
    channels::wrong(&mut seen);
    users::wrong(&mut seen);
    registry::wrong(&mut seen);
    outside::stranger(&mut seen);
    at_work::done(&mut seen);
    troubled::in_flight_then_without_leader(&mut seen);
    troubled::gone_on_the_way(&mut seen);
    match &refused {
        None => troubled::stalled(&mut seen),
        Some(why) => skipped(&format!("a sidecar whose disk stalls: {why}")),
    }
    outside::removed(&mut seen);
    let missing: Vec<&Answer> = described
        .iter()
        // A 500 is a fault of the sidecar itself; what could be done from outside to cause one would be mended.
        .filter(|(_, _, status)| *status != 500)
        .filter(|(_, path, status)| {
            let in_other_words = path.starts_with("/itResources") || path.starts_with("/cluster/");
            let by_stalling = *status == 531
                || (*status == 503 && (in_other_words || ["/health", "/liveness"].contains(&path.as_str())));
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
    // Interfaces with bodies and statuses of their own have scenarios of their own.
    let own = |path: &str, method| {
        let delta = path.contains("/rest/v5/") || path.ends_with("/oauth/token");
        delta || path.starts_with("/_") || (path, method) == ("/", "post")
    };
    for (path, item) in paths {
        let path = path.as_str().expect("a path");
        for method in ["get", "post", "patch", "put", "delete"].into_iter().filter(|one| !own(path, one)) {
            let Yaml::Hash(responses) = &item[method]["responses"] else { continue };
            for status in responses.keys() {
                let status = status.as_str().and_then(|s| s.parse().ok()).expect("a status");
                all.insert((method.to_uppercase(), path.to_owned(), status));
            }
        }
    }
    assert!(all.len() > 100, "{all:?}");
    all
}
