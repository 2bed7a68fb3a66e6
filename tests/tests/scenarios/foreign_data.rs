//! A data directory that holds somebody else's database is left as it is, whether that runs or not.

use pgquorum_tests::{Cluster, PATIENCE, Plain, free_ports, pgquorum_program, poll_until, server_command};
use std::path::Path;
use std::process::Stdio;

/// Runs the node's sidecar, which is to end by itself; what it said.
fn refused(config: &Path) -> String {
    let said = config.with_file_name("refused.log");
    let log = std::fs::File::create(&said).expect("a file for what it says");
    let mut command = server_command(&pgquorum_program());
    command.arg("run").arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().expect("pgquorum run");
    let ended = poll_until(PATIENCE, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = std::fs::read_to_string(said).expect("what it said");
    assert!(ended.as_ref().is_ok_and(|status| !status.success()), "{ended:?}: {said}");
    said
}

/// All files of a directory that configure a server, with what is in them.
fn configured(dir: &Path) -> Vec<(String, Option<String>)> {
    ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "standby.signal", "recovery.signal"]
        .map(|name| (name.to_owned(), std::fs::read_to_string(dir.join(name)).ok()))
        .into()
}

#[test]
fn the_database_of_somebody_else_is_left_alone() {
    let cluster = Cluster::start_steady(3);
    let probe = cluster.probe();
    let id = cluster.follower();
    let own = cluster.node(id).data_dir;
    cluster.stop(id);
    let aside = own.with_file_name("own");
    std::fs::rename(&own, &aside).expect("the data moved aside");
    let [port] = free_ports();
    let mut other = Plain::init(&own, port, "");
    other.sql("CREATE TABLE theirs AS SELECT generate_series(1, 100) AS n");
    let before = configured(&own);

    let config = cluster.dir().join(format!("node{id}/node.toml"));
    let said = refused(&config);
    assert!(said.contains("belongs to another database") && said.contains("Nothing was changed"), "{said}");
    let mut session = other.connect().expect("it runs on");
    let row = session.query_one("SELECT count(*), pg_is_in_recovery() FROM theirs", &[]).expect("its rows");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (100, false));
    session.batch_execute("INSERT INTO theirs VALUES (101)").expect("it takes writes");
    drop(session);
    assert_eq!(configured(&own), before);

    other.stop();
    let said = refused(&config);
    assert!(said.contains("belongs to another database"), "{said}");
    assert_eq!(configured(&own), before);

    drop(other);
    std::fs::rename(&own, own.with_file_name("theirs")).expect("their data moved aside");
    std::fs::rename(&aside, &own).expect("the data back in its place");
    cluster.start_node(id);
    cluster.await_replicas(2);
    probe.finish().assert_nothing_lost();
}
