//! A primary that crashed may have commits that nobody else has. Nobody reads them before it is settled what becomes of
//! them.

use pgquorum_tests::{Cluster, PATIENCE, await_until};
use postgres::error::SqlState;
use postgres::{Client, Config, NoTls};

fn others(cluster: &Cluster, than: u64) -> Vec<u64> {
    cluster.status().nodes.iter().map(|n| n.id).filter(|id| *id != than).collect()
}

/// What the sidecar sees: its sessions are not held.
fn ask_inside(cluster: &Cluster, id: u64, query: &str) -> Result<String, String> {
    let options = "-c pgquorum.bypass_fence=on";
    let mut client = connect(cluster, id, options).map_err(|e| format!("{e:?}"))?;
    let row = client.query_one(query, &[]).map_err(|e| format!("{e:?}"))?;
    row.try_get::<_, Option<String>>(0).map(Option::unwrap_or_default).map_err(|e| e.to_string())
}

fn connect(cluster: &Cluster, id: u64, options: &str) -> Result<Client, postgres::Error> {
    let status = cluster.status();
    let dsn: Config = status.dsn.parse().expect("a connection string");
    let node = status.nodes.iter().find(|n| n.id == id).expect("the node");
    let mut config = Config::new();
    config.host(&node.db_host).port(node.db_port).user("postgres").dbname("postgres");
    config.password(dsn.get_password().unwrap_or_default()).options(options);
    config.connect(NoTls)
}

/// Waits until the server of a node is up again, and returns the moment at which it was started.
fn await_restarted(cluster: &Cluster, id: u64, before: &str) -> String {
    await_until(PATIENCE, "the server is started again", || {
        match ask_inside(cluster, id, "SELECT pg_postmaster_start_time()::text") {
            Ok(at) if at != before => Ok(at),
            other => Err(format!("{other:?}")),
        }
    })
}

fn assert_held(cluster: &Cluster, id: u64) {
    // The last two only look as if they asked for it.
    for options in [
        "-c work_mem=4MB",
        "-c application_name=pgquorum.bypass_fence=on",
        "-c pgquorum.bypass_fence=on -c pgquorum.bypass_fence=off",
    ] {
        let Err(refused) = connect(cluster, id, options) else {
            panic!("node {id} lets clients in: {options}")
        };
        let error = refused.as_db_error().unwrap_or_else(|| panic!("an answer of the server: {refused:?}"));
        assert_eq!(*error.code(), SqlState::CANNOT_CONNECT_NOW, "{options}: {error:?}");
        assert!(error.message().contains("not open for clients yet"), "{error:?}");
    }
    for path in ["/health", "/replica", "/read-only", "/readiness", "/primary"] {
        // The sidecar sees a moment later than this test that the server runs again.
        await_until(PATIENCE, &format!("node {id} {path} says that it starts"), || {
            let (code, answer) = cluster.try_get(id, path)?;
            assert_eq!(code, 503, "node {id} {path}: {answer}");
            if answer["state"] == "starting" { Ok(()) } else { Err(answer.to_string()) }
        });
    }
}

#[test]
fn commits_that_no_standby_has_are_not_shown_after_a_crash() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let old = cluster.leader();
    let standbys = others(&cluster, old);
    cluster.sql("CREATE TABLE t (n int)");
    let mut at = ask_inside(&cluster, old, "SELECT pg_postmaster_start_time()::text").expect("a server");
    for id in &standbys {
        cluster.freeze(*id, Some("postgres"));
    }
    let mut client = cluster.connect(old).expect("a session on the leader");
    let writer = std::thread::spawn(move || client.batch_execute("INSERT INTO t VALUES (1)"));
    await_until(PATIENCE, "the commit waits", || {
        let waits = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        match cluster.try_ask(old, waits)?.as_str() {
            "0" => Err("it does not".to_owned()),
            _ => Ok(()),
        }
    });
    // Again and again: the mark outlives each crash.
    for _ in 0..3 {
        cluster.kill(old, Some("postgres"));
        at = await_restarted(&cluster, old, &at);
        assert_eq!(
            ask_inside(&cluster, old, "SELECT count(*)::text FROM t"),
            Ok("1".to_owned()),
            "it is there"
        );
        assert_held(&cluster, old);
    }
    assert!(writer.join().expect("the writer").is_err(), "a commit without a standby was called a success");
    // Its sidecar as well: a new one finds the mark.
    cluster.kill(old, None);
    cluster.start_node(old);
    await_restarted(&cluster, old, &at);
    assert_held(&cluster, old);

    for id in &standbys {
        cluster.thaw(*id, Some("postgres"));
    }
    let seen = await_until(PATIENCE, "the former primary lets clients in", || {
        cluster.try_ask(old, "SELECT count(*)::text FROM t")
    });
    // What is seen there first is what all have, without waiting for anything; a crash of this node takes nothing away.
    let have = standbys
        .iter()
        .filter(|id| cluster.try_ask(**id, "SELECT count(*)::text FROM t").is_ok_and(|rows| rows == seen));
    assert!(have.count() >= 1, "{seen} rows are shown that are on no standby");
    cluster.await_replicas(2);
    for id in standbys {
        cluster.await_replayed(id);
        assert_eq!(cluster.ask(id, "SELECT count(*)::text FROM t"), seen);
    }
}

/// A load balancer that believes its checks sends nobody to a server that refuses him.
#[test]
fn health_checks_say_yes_only_where_clients_are_let_in() {
    let cluster = Cluster::start(3);
    for _ in 0..3 {
        let old = cluster.leader();
        cluster.kill(old, Some("postgres"));
        let mut lies = 0;
        await_until(PATIENCE, "the former leader is a replica for load balancers", || {
            let codes = ["/health", "/replica", "/read-only"].map(|path| (path, cluster.get(old, path).0));
            let good: Vec<&str> =
                codes.iter().filter(|(_, code)| *code == 200).map(|(path, _)| *path).collect();
            if good.is_empty() {
                return Err("it is not".to_owned());
            }
            match connect(&cluster, old, "") {
                // What was said before anybody noticed that the server had died is none, as long as it is not said again.
                Err(e) if e.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {
                    lies += 1;
                    assert!(lies < 3, "{good:?} of node {old} say 200, and a client gets {e:?}");
                    return Err(format!("{e:?}"));
                }
                Err(error) => return Err(format!("{error:?}")),
                Ok(_) => {}
            }
            if good.len() == codes.len() { Ok(()) } else { Err(format!("{codes:?}")) }
        });
        cluster.await_replicas(2);
    }
}

fn marked(cluster: &Cluster, id: u64) -> bool {
    let file = cluster.node(id).data_dir.join("pgquorum.conf");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    !text.contains("\npgquorum.last_primary_timeline = '0'\n")
}

#[test]
fn only_a_former_primary_is_held_and_only_until_it_follows() {
    let cluster = Cluster::start_with(3, &[("node-timeout", "3s")]);
    let leader = cluster.leader();
    let follower = cluster.follower();
    assert!(marked(&cluster, leader) && !marked(&cluster, follower));
    // A standby is open as soon as it is up, whoever leads.
    let at = ask_inside(&cluster, follower, "SELECT pg_postmaster_start_time()::text").expect("a server");
    cluster.kill(follower, Some("postgres"));
    await_restarted(&cluster, follower, &at);
    assert_eq!(cluster.ask(follower, "SELECT quorum.admits_clients()::text"), "true");

    cluster.await_replicas(2);
    let (code, answer) = cluster.hand_over(follower);
    assert_eq!(code, 200, "{answer}");
    await_until(PATIENCE, "the former leader lets clients in", || {
        cluster.try_ask(leader, "SELECT quorum.admits_clients()::text").map(drop)
    });
    await_until(PATIENCE, "its mark is gone", || {
        if marked(&cluster, leader) { Err("it is there".to_owned()) } else { Ok(()) }
    });
    cluster.await_replicas(2);
    // Now it is a standby like others.
    let at = ask_inside(&cluster, leader, "SELECT pg_postmaster_start_time()::text").expect("a server");
    cluster.kill(leader, Some("postgres"));
    await_restarted(&cluster, leader, &at);
    assert_eq!(cluster.ask(leader, "SELECT quorum.admits_clients()::text"), "true");
    assert!(marked(&cluster, follower), "the new leader is marked");
}
