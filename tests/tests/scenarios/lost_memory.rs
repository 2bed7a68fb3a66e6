//! A node's `raft.redb` is gone or damaged: it does not vote with what it does not know.

use pgquorum_tests::{Cluster, pgquorum, pgquorum_as_server};

#[test]
fn a_node_without_its_log_refuses_to_start_and_comes_back_as_a_new_one() {
    let cluster = Cluster::start_steady(3);
    let lost = cluster.follower();
    let probe = cluster.probe();
    cluster.kill(lost, None);
    let home = cluster.dir().join(format!("node{lost}"));
    let (store, config) = (home.join("state/raft.redb"), home.join("node.toml").display().to_string());
    let whole = std::fs::read(&store).expect("the log");
    let run = || pgquorum_as_server(["run", "--config", &config]);

    std::fs::write(&store, &whole[..whole.len() / 2]).expect("torn");
    let refused = run();
    assert!(refused.code == 1 && refused.said.contains("is damaged"), "{}", refused.said);
    std::fs::remove_file(&store).expect("removed");
    let refused = run();
    assert!(refused.code == 1 && refused.said.contains("is gone, and with it the vote"), "{}", refused.said);
    assert!(refused.said.contains(&format!("pgquorum node remove {lost}")), "{}", refused.said);
    assert_eq!(cluster.node(lost).postgres_pid, 0, "nothing was started");

    // Its number cannot be taken over by a directory that knows nothing.
    let leader = cluster.node(cluster.leader());
    let secrets = cluster.dir().join(format!("node{}/state/secrets.toml", leader.id)).display().to_string();
    let elsewhere = pgquorum_tests::server_directory("pgquorum-test-");
    let dir = elsewhere.join("node").display().to_string();
    let number = lost.to_string();
    let refused = pgquorum_as_server([
        "join",
        "--no-run",
        "--leader",
        &leader.api,
        "--secrets",
        &secrets,
        "--ip",
        "127.0.0.1",
        "--node",
        &number,
        "--dir",
        &dir,
        "--api-port",
        "3",
        "--db-port",
        "4",
    ]);
    assert!(refused.code == 1 && refused.said.contains("number_in_use"), "{}", refused.said);
    std::fs::remove_dir_all(&elsewhere).expect("removed");

    // What it was told to do.
    let url = leader.api.clone();
    let removed = pgquorum(["node", "remove", &number, "--url", &url]);
    assert_eq!(removed.code, 0, "{}", removed.said);
    std::fs::remove_dir_all(&home).expect("moved away");
    cluster.up(3);
    cluster.await_replicas(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}
