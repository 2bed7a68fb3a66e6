//! A listener becomes a node when somebody says so: not before it has caught up, and from then on it counts.

use pgquorum_tests::{Cluster, PATIENCE, await_until, pgquorum, poll_until, request, run, text};
use serde_json::{Value, json};
use std::time::Duration;

/// A listener that lacks no more than this has caught up.
const CAUGHT_UP_BYTES: u64 = 1 << 20;
const RULE: &str = "SHOW synchronous_standby_names";

fn entry(map: &Value, id: u64) -> Value {
    map["nodes"].as_array().into_iter().flatten().find(|node| node["id"] == id).cloned().unwrap_or_default()
}

/// Writes much more than a listener may lack, and waits until the leader's sidecar knows of it.
fn write_much(cluster: &Cluster, leader: u64, port: u16) -> Result<(), String> {
    let mut client = cluster.connect(leader).map_err(|error| format!("{error:?}"))?;
    run(&mut client, "INSERT INTO filled SELECT repeat(md5(i::text), 40) FROM generate_series(1, 6000) AS i");
    let end = text(&mut client, "SELECT pg_current_wal_flush_lsn()::text");
    poll_until(Duration::from_secs(2), || {
        let (_, map) = request(port, "GET", "/map", None).map_err(|error| error.to_string())?;
        let known = entry(&map, leader)["lsn"].as_str().unwrap_or("0/0").to_owned();
        let reached = text(&mut client, &format!("SELECT ('{known}'::pg_lsn >= '{end}'::pg_lsn)::text"));
        if reached == "true" {
            Ok(())
        } else {
            Err(format!("the sidecar knows of {known}, written is {end}"))
        }
    })
}

#[test]
fn a_listener_is_upgraded_when_it_has_caught_up_and_counts_from_then_on() {
    let cluster = Cluster::start(2);
    cluster.join(3, &["--no-upgrade"]);
    cluster.await_node(3, "listener", "replica");
    let probe = cluster.probe();
    cluster.sql("CREATE TABLE filled (t text)");
    let leader = cluster.leader();
    let (other, port) = (3 - leader, cluster.node(leader).api_port());
    let follower = cluster.node(other).api;
    let upgrade = || pgquorum(["node", "upgrade", "3", "--url", &follower]);

    // Its server stands still. A stream of which nothing is heard for 5 s is ended, and then nobody knows how far it is.
    let refused = await_until(PATIENCE, "it is said how far the listener is behind", || {
        cluster.freeze(3, Some("postgres"));
        let asked = write_much(&cluster, leader, port).map(|()| upgrade());
        cluster.thaw(3, Some("postgres"));
        let refused = asked?;
        assert_eq!(refused.code, 1, "what it lacks was never sent: {} {}", refused.json, refused.said);
        assert!(refused.said.contains("not_caught_up"), "{}", refused.said);
        if refused.said.contains("bytes of WAL behind") { Ok(refused.said) } else { Err(refused.said) }
    });
    let behind = refused.split("it is ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(behind.is_some_and(|bytes| bytes > CAUGHT_UP_BYTES), "{refused}");
    let (_, map) = cluster.get(leader, "/map");
    assert_eq!(entry(&map, 3)["role"], json!("listener"), "{map}");
    let rule = cluster.ask(leader, RULE);
    assert!(!rule.contains("pgquorum_3"), "{rule}");

    let upgraded = await_until(PATIENCE, "it has caught up and is upgraded", || match upgrade() {
        done if done.code == 0 => Ok(done.json),
        refused => Err(refused.said),
    });
    assert_eq!((&upgraded["id"], &upgraded["role"]), (&json!(3), &json!("node")), "{upgraded}");
    let (_, config) = cluster.get(leader, "/config");
    assert_eq!(config["effective"]["data-nodes"], json!(3), "{config}");
    let rule = cluster.ask(leader, RULE);
    assert!(rule.starts_with("ANY 1") && rule.contains("pgquorum_3"), "{rule}");
    let (_, events) = cluster.get(leader, "/events");
    let mut events = events.as_array().into_iter().flatten();
    assert!(events.any(|event| event["kind"] == "node-upgraded" && event["node"] == 3), "no event of it");

    // Of two nodes the other one would be missed: the third acknowledges now, votes, and can lead.
    cluster.kill(other, None);
    cluster.sql("INSERT INTO filled VALUES ('acknowledged by the third')");
    assert_eq!(cluster.hand_over(3).0, 200);
    assert_eq!(cluster.leader(), 3);
    cluster.start_node(other);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
