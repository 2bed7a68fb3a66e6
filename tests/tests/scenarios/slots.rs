//! WAL that an absent node needs is kept for it, up to a bound, and for nobody who is no member any more.

use pgquorum_tests::{Cluster, PATIENCE, await_answer, await_until, request, run, text};
use postgres::Client;
use serde_json::json;

/// Sets for a while what the cluster keeps itself, so that little WAL is enough. The sidecar takes it out when it writes the
/// server's settings the next time.
fn set_for_now(client: &mut Client, name: &str, value: &str) {
    run(client, &format!("ALTER SYSTEM SET {name} = '{value}'"));
    run(client, "SELECT pg_reload_conf()");
    await_answer(client, PATIENCE, &format!("SHOW {name}"), value);
}

/// So many segments of 16 MB come to their end.
fn write_segments(client: &mut Client, count: usize) {
    for _ in 0..count {
        run(client, "INSERT INTO written VALUES (1)");
        run(client, "SELECT pg_switch_wal()");
    }
}

/// The end of the name of the segment from which on a node's slot keeps WAL, whatever the timeline.
fn first_kept(client: &mut Client, node: u64) -> String {
    let sql = format!(
        "SELECT right(pg_walfile_name(restart_lsn + 1), 16) FROM pg_replication_slots \
         WHERE slot_name = 'pgquorum_{node}'"
    );
    text(client, &sql)
}

fn is_there(segment: &str) -> String {
    format!("SELECT (count(*) > 0)::text FROM pg_ls_waldir() WHERE right(name, 16) = '{segment}'")
}

/// A value of a node's slot; nothing in the moment in which there is none.
fn of_slot(node: u64, value: &str) -> String {
    format!("SELECT max(({value})::text) FROM pg_replication_slots WHERE slot_name = 'pgquorum_{node}'")
}

/// WAL that nobody needs goes with a checkpoint.
fn await_gone(client: &mut Client, segment: &str) {
    await_until(PATIENCE, &format!("segment {segment} is not kept any more"), || {
        run(client, "CHECKPOINT");
        match text(client, &is_there(segment)).as_str() {
            "false" => Ok(()),
            _ => Err("it is there".to_owned()),
        }
    });
}

fn await_slots(cluster: &Cluster, node: u64, expected: &str) {
    let sql =
        "SELECT coalesce(string_agg(slot_name::text, ' ' ORDER BY slot_name), '') FROM pg_replication_slots";
    await_until(PATIENCE, &format!("node {node} has the slots {expected:?}"), || {
        match cluster.try_ask(node, sql)? {
            slots if slots == expected => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn wal_for_an_absent_node_has_a_bound_and_the_slot_goes_with_the_node() {
    let cluster = Cluster::start(1);
    let mut leader = cluster.connect(1).expect("a session on the leader");
    run(&mut leader, "CREATE TABLE written (n int)");
    run(&mut leader, "CHECKPOINT");
    let node = cluster.node(1);
    let (db_port, api_port) = (node.db_port + 1, node.api_port() + 1);
    let add = format!("/node?ip=127.0.0.1&role=listener&db-port={db_port}&api-port={api_port}");
    let (code, added) = cluster.post(1, &add, None);
    assert_eq!((code, &added["id"]), (200, &json!(2)), "{added}");
    await_slots(&cluster, 1, "pgquorum_2");
    let bounded = of_slot(2, "safe_wal_size BETWEEN 1 AND pg_size_bytes('9GB')");
    assert_eq!(text(&mut leader, &bounded), "true", "the documents say 8 GB");

    // It is kept beyond the margin that PostgreSQL has for everybody …
    let needed = first_kept(&mut leader, 2);
    set_for_now(&mut leader, "wal_keep_size", "0");
    write_segments(&mut leader, 3);
    run(&mut leader, "CHECKPOINT");
    assert_eq!(text(&mut leader, &is_there(&needed)), "true", "the absent node needs it");
    // … and not beyond the bound.
    set_for_now(&mut leader, "max_slot_wal_keep_size", "32MB");
    write_segments(&mut leader, 4);
    await_gone(&mut leader, &needed);
    assert_eq!(text(&mut leader, &of_slot(2, "wal_status")), "lost");
    for name in ["wal_keep_size", "max_slot_wal_keep_size"] {
        run(&mut leader, &format!("ALTER SYSTEM RESET {name}"));
    }
    run(&mut leader, "SELECT pg_reload_conf()");

    // Once it is here, what it needs is kept again.
    cluster.join(2, &["--node", "2"]);
    cluster.await_replicas(1);
    await_answer(&mut leader, PATIENCE, &of_slot(2, "wal_status <> 'lost'"), "true");
    let end = text(&mut leader, "SELECT pg_current_wal_flush_lsn()::text");
    await_answer(&mut leader, PATIENCE, &of_slot(2, &format!("restart_lsn >= '{end}'")), "true");

    let (code, answer) = cluster.send(1, "DELETE", "/node/2", None);
    assert_eq!(code, 200, "{answer}");
    await_slots(&cluster, 1, "");
}

#[test]
fn a_follower_that_was_away_finds_its_wal_and_a_removed_one_leaves_no_slot() {
    let cluster = Cluster::start(3);
    let (old, away) = (cluster.leader(), cluster.follower());
    let other = (1..=3).find(|id| *id != old && *id != away).expect("the third");
    cluster.sql("CREATE TABLE written (n int)");
    cluster.await_replayed(away);
    cluster.stop(away);
    // A copy would not have it.
    let mark = cluster.node(away).data_dir.join("as_it_was");
    std::fs::write(&mark, "").expect("a mark");

    let mut leader = cluster.connect(old).expect("a session on the leader");
    let needed = first_kept(&mut leader, away);
    set_for_now(&mut leader, "wal_keep_size", "0");
    write_segments(&mut leader, 3);
    // The other one has it all, so it is not kept for that one.
    let end = text(&mut leader, "SELECT pg_current_wal_flush_lsn()::text");
    await_answer(&mut leader, PATIENCE, &of_slot(other, &format!("restart_lsn >= '{end}'")), "true");
    run(&mut leader, "CHECKPOINT");
    assert_eq!(text(&mut leader, &is_there(&needed)), "true", "the follower that is away needs it");

    cluster.start_node(away);
    cluster.await_replicas(2);
    cluster.await_replayed(away);
    assert_eq!(cluster.ask(away, "SELECT count(*)::text FROM written"), "3");
    assert!(mark.exists(), "its data were copied");
    await_gone(&mut leader, &needed);
    drop(leader);

    // It is removed while another node leads; the one that led before has a slot for it still, and drops it when it leads.
    assert_eq!(cluster.hand_over(other).0, 200);
    cluster.await_replicas(2);
    let (code, answer) = cluster.send(other, "DELETE", &format!("/node/{away}"), None);
    assert_eq!(code, 200, "{answer}");
    await_slots(&cluster, other, &format!("pgquorum_{old}"));
    cluster.await_replicas(1);
    assert_eq!(cluster.hand_over(old).0, 200);
    await_slots(&cluster, old, &format!("pgquorum_{other}"));
}

/// It is refused each time it asks for more, for 20 s; then its history is looked at, in which nothing is wrong; and after
/// 20 s more there is nothing else left.
#[test]
fn a_node_that_was_away_for_too_long_is_copied_and_has_its_wal_kept_again() {
    let cluster = Cluster::start(1);
    cluster.join(2, &["--no-upgrade"]);
    cluster.await_replicas(1);
    let mut leader = cluster.connect(1).expect("a session on the leader");
    run(&mut leader, "CREATE TABLE written (n int)");
    cluster.await_replayed(2);
    cluster.stop(2);
    // A copy would not have it.
    let mark = cluster.node(2).data_dir.join("as_it_was");
    std::fs::write(&mark, "").expect("a mark");
    let needed = first_kept(&mut leader, 2);
    set_for_now(&mut leader, "wal_keep_size", "0");
    set_for_now(&mut leader, "max_slot_wal_keep_size", "32MB");
    write_segments(&mut leader, 7);
    await_gone(&mut leader, &needed);

    cluster.start_node(2);
    let port = cluster.node(1).api_port();
    await_until(PATIENCE * 3, "it is copied and streams", || {
        let (_, map) = request(port, "GET", "/map", None).map_err(|error| error.to_string())?;
        let mut nodes = map["nodes"].as_array().into_iter().flatten();
        let streams = nodes.any(|n| n["id"] == 2 && n["state"] == "replica" && n["streaming"] == true);
        if streams && !mark.exists() { Ok(()) } else { Err(map.to_string()) }
    });
    cluster.await_replayed(2);
    assert_eq!(cluster.ask(2, "SELECT count(*)::text FROM written"), "7");
    await_answer(&mut leader, PATIENCE, &of_slot(2, "wal_status <> 'lost'"), "true");
}
