//! `local up` makes a cluster in which every node knows the same.

use pgquorum_tests::{Cluster, Node, PATIENCE, await_until};

#[test]
fn three_nodes_from_one_command() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    cluster.await_replicas(2);
    let status = await_until(PATIENCE, "all nodes run", || {
        let status = cluster.status();
        let runs = |n: &Node| n.role == "node" && n.sidecar_pid > 0 && n.postgres_pid > 0;
        if status.nodes.iter().all(runs) { Ok(status) } else { Err(format!("{:?}", status.nodes)) }
    });
    assert!(status.dsn.contains("target_session_attrs=read-write"), "one string for all nodes");
    for node in &status.nodes {
        let (leads, follows) = if node.id == leader { ((200, 200), 503) } else { ((417, 503), 200) };
        let expected: [u16; 5] = [200, leads.0, 200, leads.1, follows];
        // Each node says what it has heard, and the database what the leader has written by then.
        await_until(PATIENCE, &format!("node {} knows who leads", node.id), || {
            let found = ["/map", "/is-leader", "/health", "/primary", "/replica"]
                .map(|path| cluster.get(node.id, path).0);
            let map = cluster.get(node.id, "/map").1;
            if found == expected && map["leader"] == leader {
                Ok(())
            } else {
                Err(format!("{found:?} {map}"))
            }
        });
        await_until(PATIENCE, &format!("the database of node {} knows the nodes", node.id), || match cluster
            .try_ask(node.id, "SELECT count(*)::text FROM quorum.node")?
            .as_str()
        {
            "3" => Ok(()),
            other => Err(other.to_owned()),
        });
    }
}

#[test]
fn commits_wait_for_a_quorum() {
    let cluster = Cluster::start_steady(3);
    let leader = cluster.leader();
    await_until(PATIENCE, "the rule of acknowledgement", || {
        let rule = cluster.try_ask(leader, "SHOW synchronous_standby_names")?;
        if rule.starts_with("ANY 1") { Ok(()) } else { Err(rule) }
    });
    assert_eq!(cluster.ask(leader, "SHOW data_checksums"), "on");
    assert_eq!(cluster.ask(leader, "SHOW password_encryption"), "scram-sha-256");
    cluster.assert_one_writable();
}

#[test]
fn one_node_is_a_cluster_and_up_again_changes_nothing() {
    let cluster = Cluster::start_steady(1);
    let before = cluster.status();
    cluster.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)");
    cluster.up(1);
    let after = cluster.status();
    assert_eq!(before.nodes[0].postgres_pid, after.nodes[0].postgres_pid);
    assert_eq!(cluster.ask(1, "SELECT count(*)::text FROM kept"), "1");
}

/// Each begins as a new process with settings of its own.
#[test]
fn parallel_workers_start_on_every_node() {
    let cluster = Cluster::start_steady(3);
    cluster.sql("CREATE TABLE many AS SELECT n FROM generate_series(1, 200000) n; ANALYZE many");
    for id in 1..=3 {
        cluster.await_replayed(id);
        let mut session = cluster.connect(id).expect("a session");
        session
            .batch_execute(
                "SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; \
                 SET min_parallel_table_scan_size = 0",
            )
            .expect("settings");
        let plan =
            session.query("EXPLAIN (ANALYZE, COSTS OFF) SELECT count(*) FROM many", &[]).expect("a plan");
        let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
        let launched = lines.iter().find_map(|line| line.trim().strip_prefix("Workers Launched: "));
        assert!(launched.is_some_and(|n| n != "0"), "node {id}: {lines:#?}");
    }
    // Indexes are built by them, too.
    cluster.sql(
        "SET max_parallel_maintenance_workers = 2; SET min_parallel_table_scan_size = 0; CREATE INDEX ON many (n)",
    );
}
