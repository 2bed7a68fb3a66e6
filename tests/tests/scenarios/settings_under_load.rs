//! Settings change while clients write.

use pgquorum_tests::{Cluster, PATIENCE, ProbeOptions, await_until};
use serde_json::json;

#[test]
fn timings_and_replication_change_without_an_election() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    let epoch = cluster.node(leader).epoch;
    let probe = cluster.probe_with(&ProbeOptions { clients: 4, interval_ms: 2, ..ProbeOptions::default() });
    for settings in [
        json!({"node-timeout": "6s"}),
        json!({"heartbeat-interval": "200ms", "node-timeout": "4s"}),
        json!({"pre-voting-timeout": "200ms", "leader-voting-timeout": "400ms", "replication-retry-interval": "100ms"}),
        json!({"quorum-replication": false, "replication-factor": 2}),
        json!({"replication-factor": 1}),
        json!({"quorum-replication": true, "node-timeout": "3s", "heartbeat-interval": "100ms"}),
    ] {
        cluster.configure(settings.clone());
        for id in 1..=3 {
            await_until(PATIENCE, "every node has the setting", || {
                let (_, now) = cluster.get(id, "/config");
                let same = settings.as_object().into_iter().flatten().all(|(k, v)| now[k] == *v);
                if same { Ok(()) } else { Err(now.to_string()) }
            });
        }
    }
    assert_eq!((cluster.leader(), cluster.node(leader).epoch), (leader, epoch), "the leader kept its place");
    probe.finish().assert_nothing_lost();
}

#[test]
fn weak_replication_is_said() {
    let cluster = Cluster::start_steady(2);
    cluster.configure(json!({"quorum-replication": false, "replication-factor": 0}));
    let (_, config) = cluster.get(cluster.leader(), "/config");
    assert!(config["warning"].is_string(), "{config}");
}
