//! Who comes back streams under a name that acknowledges nothing until it has replayed the beginning of the newest epoch.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use serde_json::json;

/// The names under which a node's server asked another one for WAL, in their order, as long as they last.
fn names(cluster: &Cluster, at: u64, of: u64) -> Vec<String> {
    let file = cluster.node(at).data_dir.with_file_name("state").join("postgres.log");
    let log = std::fs::read_to_string(file).expect("the server's log");
    let asked = log.lines().filter(|line| line.contains("received replication command: START_REPLICATION"));
    let known = [format!("pgquorum_{of}"), format!("pgquorum_{of}_rejoining")];
    let words = asked.filter_map(|line| line.split_whitespace().find(|word| known.iter().any(|k| k == word)));
    let mut names: Vec<String> = words.map(str::to_owned).collect();
    names.dedup();
    names
}

fn acknowledges_again(cluster: &Cluster, node: u64, epoch: &str) {
    let file = cluster.node(node).data_dir.with_file_name("sidecar.log");
    let said = format!("this server acknowledges again epoch={epoch}");
    await_until(PATIENCE, &said, || {
        let log = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
        if log.contains(&said) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_former_leader_and_a_copy_acknowledge_from_the_beginning_of_the_epoch_on() {
    // Of two nodes no epoch opens before the other one acknowledges again.
    let cluster = Cluster::start_steady(2);
    cluster.sql("CREATE TABLE kept (n int)");
    let (old, new) = (cluster.leader(), cluster.follower());
    let set = json!({"log_replication_commands": "on"});
    let (code, answer) = cluster.settled("PATCH", "/db-config", Some(&set));
    assert_eq!(code, 200, "{answer}");
    await_until(PATIENCE, "the parameter", || {
        match cluster.try_ask(new, "SHOW log_replication_commands")?.as_str() {
            "on" => Ok(()),
            other => Err(other.to_owned()),
        }
    });

    let (code, answer) = cluster.hand_over(new);
    assert_eq!(code, 200, "{answer}");
    cluster.await_leader(Some(old));
    cluster.sql("INSERT INTO kept VALUES (1)");
    let epoch = cluster.ask(new, "SELECT max(epoch)::text FROM quorum.leadership");
    acknowledges_again(&cluster, old, &epoch);
    assert_eq!(names(&cluster, new, old), [format!("pgquorum_{old}_rejoining"), format!("pgquorum_{old}")]);

    cluster.join(3, &[]);
    cluster.await_replicas(2);
    acknowledges_again(&cluster, 3, &epoch);
    // What it was copied from may have had the beginning of the epoch already.
    let joined = names(&cluster, new, 3);
    assert!(joined.ends_with(&["pgquorum_3".to_owned()]), "{joined:?}");

    // A follower that was away, and led nobody, is none of them.
    cluster.stop(3);
    cluster.start_node(3);
    cluster.await_replicas(2);
    cluster.await_replayed(3);
    assert_eq!(names(&cluster, new, 3), joined);
    cluster.assert_one_writable();
}
