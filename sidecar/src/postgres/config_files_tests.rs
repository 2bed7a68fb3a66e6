use super::*;
use crate::postgres::config::Secrets;
use std::collections::BTreeSet;
use std::net::IpAddr;

fn config(dir: &Path) -> PostgresConfig {
    let secrets = Secrets { superuser_password: "p:w\\1".into(), replication_password: "repl".into() };
    PostgresConfig::new(2, dir.join("data"), "/bin".into(), IpAddr::from([127, 0, 0, 1]), 5702, secrets)
}

fn upstream() -> Upstream {
    Upstream { node: 1, ip: IpAddr::from([10, 0, 0, 1]), port: 5701, epoch: 4, timeline: 3 }
}

#[test]
fn nobody_acknowledges_unless_it_is_said_so() {
    let set = |k, nodes: &[u64]| SyncSet { k, standbys: nodes.iter().copied().collect::<BTreeSet<_>>() };
    assert_eq!(synchronous_standby_names(None), "ANY 1 (pgquorum_nobody)");
    assert_eq!(synchronous_standby_names(Some(&set(0, &[2, 3]))), "");
    assert_eq!(synchronous_standby_names(Some(&set(2, &[]))), "ANY 2 (pgquorum_nobody)");
    assert_eq!(synchronous_standby_names(Some(&set(1, &[3, 2]))), "ANY 1 (pgquorum_2, pgquorum_3)");
}

#[test]
fn the_state_is_read_back_and_ours_wins() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    std::fs::create_dir(&config.data_dir).unwrap();
    std::fs::write(config.data_dir.join("postgresql.conf"), "#x = 1").unwrap();
    std::fs::write(
        config.data_dir.join("postgresql.auto.conf"),
        "# c\nprimary_conninfo = 'host=bad'\nwork_mem='1MB'\nrestore_command='x'\nshared_preload_libraries = ''\n",
    )
    .unwrap();
    let parameters = BTreeMap::from([
        ("work_mem".to_owned(), "it's\nport = 1".to_owned()),
        ("fsync".to_owned(), "off".to_owned()),
        ("shared_preload_libraries".to_owned(), "pg_stat_statements, pgquorum".to_owned()),
    ]);
    let desired =
        Desired { upstream: Some(upstream()), parameters, primary_on: Some(7), ..Desired::default() };
    write_configuration(&config, &desired).unwrap();
    write_configuration(&config, &desired).unwrap();
    assert_eq!(load(&config), desired);
    let read = |name: &str| std::fs::read_to_string(config.data_dir.join(name)).unwrap();
    assert_eq!(read("postgresql.conf"), "#x = 1\ninclude 'pgquorum.conf'\n");
    assert_eq!(read("postgresql.auto.conf"), "# c\nwork_mem='1MB'\n");
    let conf = read("pgquorum.conf");
    assert!(conf.contains("work_mem = 'it''s\\nport = 1'\n"), "{conf}");
    assert!(conf.contains("shared_preload_libraries = 'pgquorum, pg_stat_statements'\n"), "{conf}");
    assert!(!conf.contains("fsync = 'off'"), "{conf}");
    assert!(
        conf.contains("host=10.0.0.1 port=5701 user=quorum_replicator application_name=pgquorum_2"),
        "{conf}"
    );
    assert!(!conf.contains("repl'") && !conf.contains("p:w"), "a password is in the configuration: {conf}");
    let pass = std::fs::read_to_string(config.passfile()).unwrap();
    assert_eq!(pass, "*:*:*:quorum_replicator:repl\n*:*:*:postgres:p\\:w\\\\1\n");
}

#[test]
fn every_parameter_that_is_written_is_owned() {
    let dir = tempfile::tempdir().unwrap();
    for (name, _) in owned_values(&config(dir.path()), &Desired::default()) {
        assert!(is_owned(name), "{name} could be changed by ALTER SYSTEM");
    }
}

#[test]
fn a_standby_never_sets_less_than_its_primary() {
    let dir = tempfile::tempdir().unwrap();
    let floors = ["max_connections", "max_wal_senders", "max_worker_processes"].map(|n| (n.to_owned(), 40));
    let mut desired = Desired { floors: floors.into(), ..Desired::default() };
    desired.parameters.insert("max_connections".to_owned(), "100".to_owned());
    let text = render(&config(dir.path()), &desired);
    let last = |name: &str| text.lines().rfind(|l| l.starts_with(name)).unwrap().to_owned();
    assert_eq!(last("max_connections"), "max_connections = '100'");
    assert_eq!(last("max_wal_senders"), "max_wal_senders = '40'");
    assert_eq!(last("max_worker_processes"), "max_worker_processes = '40'");
}
