//! The majority is lost for good, and an administrator lets the survivor go on alone.

use pgquorum_tests::{Cluster, PATIENCE, await_until, pgquorum_as_server};

fn force(cluster: &Cluster, node: u64, accept: bool) -> pgquorum_tests::Outcome {
    let config = cluster.dir().join(format!("node{node}/node.toml")).display().to_string();
    let mut args = vec!["force-leader", "--config", &config];
    args.extend(accept.then_some("--i-accept-data-loss"));
    pgquorum_as_server(args)
}

#[test]
fn a_survivor_is_forced_only_when_it_must_be_and_those_left_behind_stay_out() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    let survivor = cluster.follower();
    let third = 6 - leader - survivor;
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 100)");
    cluster.await_replayed(survivor);

    // While it is needless it is refused, and changes nothing.
    let refused = force(&cluster, survivor, true);
    assert!(refused.code == 1 && refused.said.contains("sidecar_runs"), "{}", refused.said);
    cluster.stop(survivor);
    let refused = force(&cluster, survivor, true);
    assert!(refused.code == 1 && refused.said.contains("there_is_a_leader"), "{}", refused.said);
    cluster.kill(third, None);
    cluster.start_node(survivor);
    cluster.await_replicas(1);
    cluster.await_replayed(survivor);

    // The majority is lost. It says what that means before it does anything.
    cluster.kill(leader, None);
    cluster.stop(survivor);
    let refused = force(&cluster, survivor, false);
    assert!(refused.code == 1 && refused.said.contains("not_accepted"), "{}", refused.said);
    assert!(refused.said.contains("ACKNOWLEDGED TRANSACTIONS"), "{}", refused.said);
    let done = force(&cluster, survivor, true);
    assert_eq!(done.code, 0, "{}", done.said);
    let after = done.json["after-epoch"].as_u64().expect("the epoch");
    cluster.start_node(survivor);
    assert_eq!(cluster.await_leader(None), survivor);
    assert!(cluster.node(survivor).epoch > after);
    assert_eq!(cluster.ask(survivor, "SELECT count(*)::text FROM kept"), "100");
    cluster.sql("INSERT INTO kept VALUES (101)");
    let audit = "SELECT count(*)::text FROM quorum.event WHERE kind = 'forced-leader'";
    await_until(PATIENCE, "the database has the event", || {
        let found = cluster.try_ask(survivor, audit)?;
        if found == "1" { Ok(()) } else { Err(found) }
    });
    let (_, events) = cluster.get(survivor, "/events");
    assert!(events.to_string().contains("was forced to lead"), "{events}");

    // The two are back, a majority of what once was.
    for node in [leader, third] {
        cluster.start_node(node);
    }
    for node in [leader, third] {
        await_until(PATIENCE, &format!("node {node} is told"), || {
            let (code, answer) = cluster.try_get(node, "/map")?;
            if code == 412 && answer["code"] == "superseded" { Ok(()) } else { Err(answer.to_string()) }
        });
    }
    await_until(PATIENCE, "their servers stop", || {
        let running: Vec<u64> =
            [leader, third].into_iter().filter(|&n| cluster.node(n).postgres_pid != 0).collect();
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?} run")) }
    });
    for node in [leader, third] {
        cluster.kill(node, None);
        let config = cluster.dir().join(format!("node{node}/node.toml")).display().to_string();
        let again = pgquorum_as_server(["run", "--config", &config]);
        assert!(again.code == 1 && again.said.contains("this node must not run"), "{}", again.said);
        // Back as a new node, in the place of the old one.
        std::fs::remove_dir_all(cluster.dir().join(format!("node{node}"))).expect("moved away");
    }
    cluster.up(3);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    assert_eq!(cluster.ask(cluster.leader(), "SELECT count(*)::text FROM kept"), "101");
}
