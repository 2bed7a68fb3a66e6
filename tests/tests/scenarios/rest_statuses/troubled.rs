//! What is answered while others are silent, and by a sidecar whose disk stands still.

use super::{CHECKS, Seen, channels, registry, users};
use pgquorum_tests::{PATIENCE, StalledDisk, await_until, request};
use serde_json::json;

/// The others stand still: what is asked of the leader stays on its way, and then the leader gives up.
pub(super) fn in_flight_then_without_leader(seen: &mut Seen) {
    seen.cluster.configure(json!({"node-timeout": "6s"}));
    seen.with_silent_followers(in_flight);
    seen.cluster.configure(json!({"node-timeout": "4s"}));
}

fn in_flight(seen: &mut Seen, port: u16) {
    let waiting = std::thread::spawn(move || {
        // A change of members: nothing overtakes it, also not the word that a node is lost.
        request(port, "POST", "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2", None)
            .expect("an answer")
    });
    await_until(PATIENCE, "a change is on its way", || {
        let (_, map) = request(port, "GET", "/map", None).expect("an answer");
        if map["change-in-flight"] == json!(true) { Ok(()) } else { Err(map.to_string()) }
    });
    seen.want_changes(420, "change_in_flight", port);
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
    seen.want_changes(530, "no_leader", port);
    channels::want_changes(seen, 530, port);
    users::want_changes(seen, 530, port);
    registry::want_changes(seen, 503, port);
    for path in ["/read-only", "/readiness"] {
        seen.want(503, port, "GET", path, "", "");
    }
}

/// The leader loses its place while a change is on its way.
pub(super) fn gone_on_the_way(seen: &mut Seen) {
    // Values that nothing has yet: what is so already is answered at once.
    for (method, path, body) in [
        ("POST", "/config", r#"{"replication-retry-interval": "320ms"}"#),
        ("PATCH", "/db-config", r#"{"work_mem": "7MB"}"#),
        ("POST", "/db-config", r#"{"work_mem": "9MB"}"#),
    ] {
        seen.with_silent_followers(|seen, port| {
            let answer = seen.want(410, port, method, path, "", body);
            assert_eq!(answer["code"], json!("proposal_gone"), "{answer}");
        });
    }
}

/// The disk under a follower's state takes no writes: its loop waits, its port answers.
pub(super) fn stalled(seen: &mut Seen) {
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
    seen.want_changes(531, "driver_stalled", port);
    channels::want_reads(seen, 531, port);
    channels::want_changes(seen, 531, port);
    users::want_reads(seen, 531, port);
    users::want_changes(seen, 531, port);
    registry::stalled(seen, port);
    for path in CHECKS {
        seen.want(503, port, "GET", path, "", "");
    }
    disk.thaw();
    seen.cluster.await_replicas(2);
    assert_eq!(seen.cluster.leader(), leader, "a follower's disk costs no election");
    seen.cluster.kill(follower, None);
    drop(disk);
}
