//! `local up` makes a cluster in which every node knows the same.

use pgquorum_tests::Cluster;
use serde_json::json;

#[test]
fn three_nodes_from_one_command() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    cluster.await_replicas(2);
    let status = cluster.status();
    assert!(status.nodes.iter().all(|n| n.role == "node" && n.sidecar_pid > 0 && n.postgres_pid > 0));
    assert!(status.dsn.contains("target_session_attrs=read-write"), "one string for all nodes");
    for node in &status.nodes {
        let (code, map) = cluster.get(node.id, "/map");
        assert_eq!((code, &map["leader"]), (200, &json!(leader)), "node {}", node.id);
        assert_eq!(cluster.get(node.id, "/is-leader").0, if node.id == leader { 200 } else { 417 });
        assert_eq!(cluster.get(node.id, "/health").0, 200);
        assert_eq!(cluster.get(node.id, "/primary").0, if node.id == leader { 200 } else { 503 });
        assert_eq!(cluster.get(node.id, "/replica").0, if node.id == leader { 503 } else { 200 });
        cluster.await_replayed(node.id);
        assert_eq!(cluster.ask(node.id, "SELECT count(*)::text FROM quorum.node"), "3");
    }
}

#[test]
fn commits_wait_for_a_quorum() {
    let cluster = Cluster::start(3);
    let leader = cluster.leader();
    assert!(cluster.ask(leader, "SHOW synchronous_standby_names").starts_with("ANY 1"));
    assert_eq!(cluster.ask(leader, "SHOW data_checksums"), "on");
    assert_eq!(cluster.ask(leader, "SHOW password_encryption"), "scram-sha-256");
    cluster.assert_one_writable();
}

#[test]
fn one_node_is_a_cluster_and_up_again_changes_nothing() {
    let cluster = Cluster::start(1);
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
    let cluster = Cluster::start(3);
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
