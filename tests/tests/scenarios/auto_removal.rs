//! A node that is gone for long is taken out by itself where the settings say so, and by nobody where they do not.

use pgquorum_tests::{Cluster, PATIENCE, await_until, request};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NODE_TIMEOUT: &str = "600ms";
/// A node that is not seen for ten times that is taken out, and this is some more.
const LONG_GONE: Duration = Duration::from_secs(8);

/// The numbers of all members.
fn members(port: u16) -> Result<Vec<u64>, String> {
    let (code, map) = request(port, "GET", "/map", None).map_err(|e| e.to_string())?;
    if code != 200 {
        return Err(map.to_string());
    }
    Ok(map["nodes"].as_array().into_iter().flatten().filter_map(|node| node["id"].as_u64()).collect())
}

/// The members stay what they are for as long as it takes to miss somebody.
fn stay(port: u16, expected: &[u64]) {
    let since = Instant::now();
    await_until(PATIENCE, "all that time has passed", || {
        assert_eq!(members(port)?, expected, "after {:?}", since.elapsed());
        if since.elapsed() >= LONG_GONE { Ok(()) } else { Err(format!("{:?}", since.elapsed())) }
    });
}

/// The events of this kind about a node.
fn events(port: u16, kind: &str, node: u64) -> Vec<Value> {
    let (_, events) = request(port, "GET", "/events", None).expect("an answer");
    let all = events.as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|event| event["kind"] == kind && event["node"] == node).collect()
}

#[test]
fn a_node_that_is_gone_for_long_is_removed_where_the_settings_say_so() {
    let cluster = Cluster::start(4);
    cluster.configure(json!({"node-timeout": NODE_TIMEOUT}));
    let leaders_port = || cluster.node(cluster.leader()).api_port();
    let probe = cluster.probe();
    // Listed, and nothing runs there: as a node whose data is still being copied.
    let listed = "/node?ip=127.0.0.1&role=listener&db-port=1&api-port=2";
    let (code, new) = cluster.post(cluster.leader(), listed, None);
    assert_eq!((code, &new["id"]), (200, &json!(5)), "{new}");

    let gone = cluster.follower();
    cluster.kill(gone, None);
    stay(leaders_port(), &[1, 2, 3, 4, 5]);

    cluster.configure(json!({"autoremove-enabled": true, "autoremove-minimum": 4}));
    let port = leaders_port();
    await_until(PATIENCE, "it is taken out", || match members(port)? {
        left if left.contains(&gone) => Err(format!("{left:?}")),
        _ => Ok(()),
    });
    let left: Vec<u64> = (1..=5).filter(|id| *id != gone).collect();
    assert_eq!(members(port).as_ref(), Ok(&left), "who was never seen is not missed");
    let said = events(port, "node-removed", gone);
    assert!(said.iter().any(|event| event["message"].to_string().contains("auto-remove")), "{said:?}");
    let recorded = format!(
        "SELECT count(*)::text FROM quorum.event WHERE kind = 'node-removed' AND node = {gone} \
         AND message LIKE '%auto-remove%'"
    );
    await_until(PATIENCE, "the database has it, too", || {
        match cluster.try_ask(cluster.leader(), &recorded)?.as_str() {
            "1" => Ok(()),
            other => Err(other.to_owned()),
        }
    });

    // Of four voters two are no majority, and commits would wait for two standbys; of three they are, and wait for one.
    await_until(PATIENCE, "the quorum is that of three", || {
        let (_, config) = request(port, "GET", "/config", None).map_err(|e| e.to_string())?;
        let effective = &config["effective"];
        let three = effective["data-nodes"] == 3 && effective["acknowledging-standbys"] == 1;
        if three { Ok(()) } else { Err(config.to_string()) }
    });
    let second = cluster.follower();
    cluster.kill(second, None);
    cluster.sql("CREATE TABLE two_of_three (n int); INSERT INTO two_of_three VALUES (1)");
    stay(leaders_port(), &left);
    cluster.sql("INSERT INTO two_of_three VALUES (2)");

    // It does not come back as if nothing had happened …
    cluster.start_node(gone);
    await_until(PATIENCE, "it is told, and its server stops", || {
        let node = cluster.node(gone);
        let (code, answer) =
            request(node.api_port(), "GET", "/map", None).map_err(|error| error.to_string())?;
        let told = code == 412 && answer["code"] == "removed";
        if told && node.postgres_pid == 0 { Ok(()) } else { Err(answer.to_string()) }
    });
    assert_eq!(members(leaders_port()).as_ref(), Ok(&left));
    // … but as a new node.
    cluster.stop(gone);
    cluster.start_node(second);
    cluster.await_replicas(2);
    std::fs::remove_dir_all(cluster.dir().join(format!("node{gone}"))).expect("moved away");
    cluster.up(4);
    cluster.await_replicas(3);
    let whole: Vec<u64> = left.iter().copied().chain([6]).collect();
    assert_eq!(members(leaders_port()).as_ref(), Ok(&whole));
    cluster.await_replayed(6);
    assert_eq!(cluster.ask(6, "SELECT count(*)::text FROM two_of_three"), "2");
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
