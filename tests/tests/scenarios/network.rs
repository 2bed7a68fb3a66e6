//! The network fails, not the machines: packets are dropped without a sound, in both directions or in one.

use pgquorum_tests::{NetCluster, Network, PATIENCE, ProbeOptions, await_until, skipped};
use std::time::SystemTime;

/// Says why a scenario cannot run here, so that nobody takes it for done.
#[track_caller]
fn possible() -> bool {
    let refused = Network::refused();
    if let Some(why) = &refused {
        skipped(why);
    }
    refused.is_none()
}

fn writers() -> ProbeOptions {
    ProbeOptions { clients: 4, interval_ms: 2, ..ProbeOptions::default() }
}

#[test]
fn a_leader_in_a_black_hole_is_replaced_and_comes_back() {
    if !possible() {
        return;
    }
    let cluster = NetCluster::start(3);
    let (old, epoch) = cluster.leader();
    let probe = cluster.probe(&writers());
    let mut session = cluster.connect(old).expect("a session on the leader");
    session.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").expect("a write");
    for other in cluster.others(old) {
        cluster.network.cut(old, other);
    }
    // The client still reaches all three.
    let (new, later) = cluster.await_leader(&cluster.others(old));
    assert!(later > epoch, "a new leader, a new epoch");
    assert_eq!(cluster.leads(old), None, "the old leader does not say that it leads");
    let refused = cluster.write(old);
    assert!(refused.is_err(), "the old leader takes writes that nobody else has");
    await_until(PATIENCE, "the old leader ends its sessions", || match session.simple_query("SELECT 1") {
        Ok(_) => Err("the session goes on".to_owned()),
        Err(_) => Ok(()),
    });
    await_until(PATIENCE, "the new leader takes writes", || cluster.write(new));
    cluster.network.heal();
    cluster.await_streaming(2);
    cluster.await_replayed(old);
    assert_eq!(cluster.ask(old, "SELECT count(*)::text FROM kept"), Ok("1".to_owned()));
    cluster.assert_one_writable();
    let report = probe.finish();
    report.assert_nothing_lost();
    assert!(report.longest_gap_ms < 30_000.0, "writes stood still for {} ms", report.longest_gap_ms);
}

/// What is dropped between the leader and each other one.
#[track_caller]
fn leader_half_heard(drop: fn(&NetCluster, u64, u64)) {
    if !possible() {
        return;
    }
    let cluster = NetCluster::start(3);
    let (old, epoch) = cluster.leader();
    let probe = cluster.probe(&writers());
    for other in cluster.others(old) {
        drop(&cluster, old, other);
    }
    let (_, later) = cluster.await_leader(&cluster.others(old));
    assert!(later > epoch, "a new leader, a new epoch");
    assert_eq!(cluster.leads(old), None, "the old leader says that it leads");
    assert!(cluster.write(old).is_err(), "the old leader takes writes that nobody else has");
    cluster.network.heal();
    cluster.await_streaming(2);
    cluster.assert_one_writable();
    probe.finish().assert_nothing_lost();
}

/// It goes on sending, so the others could believe for ever that all is well.
#[test]
fn a_leader_that_hears_nobody_gives_up_its_place() {
    leader_half_heard(|cluster, old, other| cluster.network.drop_packets(other, old));
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    leader_half_heard(|cluster, old, other| cluster.network.drop_packets(old, other));
}

/// A leader knows the others by what they told it. What they told it in an earlier term of its own is no knowledge.
#[test]
fn a_new_leader_does_not_call_a_node_a_replica_that_it_has_not_heard() {
    if !possible() {
        return;
    }
    let cluster = NetCluster::start(3);
    // Each has led, the last one now: the others heard of it as a replica a moment ago.
    for id in [3, 1, 2] {
        cluster.hand_over(id);
        cluster.await_streaming(2);
    }
    for other in cluster.others(2) {
        cluster.network.cut(2, other);
    }
    let (new, _) = cluster.await_leader(&cluster.others(2));
    let (code, map) = cluster.request(new, "GET", "/map").expect("the map");
    let mut nodes = map["nodes"].as_array().into_iter().flatten();
    let gone = nodes.find(|n| n["id"] == 2).expect("the node is still a member");
    assert!(code == 200 && gone["state"] != "replica" && gone["streaming"] != true, "{gone}");
}

/// What is cut between a follower and the others, and how it looks from the leader.
#[track_caller]
fn follower_behind(cut: fn(&NetCluster, u64, u64, u64)) {
    if !possible() {
        return;
    }
    let cluster = NetCluster::start(3);
    // A leader that stands still for a second is not to be taken for one that was deposed.
    cluster.set_node_timeout("2s");
    let (leader, epoch) = cluster.leader();
    let others = cluster.others(leader);
    let (deaf, well) = (others[0], others[1]);
    let probe = cluster.probe(&writers());
    cut(&cluster, leader, deaf, well);
    let cut_at =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_millis() as u64;
    // Long enough that every timer of the follower has run out several times.
    await_until(PATIENCE, "the follower does not stream", || {
        let sql = format!(
            "SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'pgquorum_{deaf}'"
        );
        match cluster.ask(leader, &sql)?.as_str() {
            "0" => Ok(()),
            n => Err(format!("{n} streams")),
        }
    });
    assert_eq!(cluster.leader(), (leader, epoch), "the follower deposed a healthy leader");
    assert_eq!(cluster.leads(deaf), None);
    assert!(cluster.write(deaf).is_err(), "a follower takes writes");
    await_until(PATIENCE, "the leader and one follower are a majority", || cluster.write(leader));
    cluster.network.heal();
    cluster.await_streaming(2);
    cluster.await_replayed(deaf);
    assert_eq!(cluster.leader(), (leader, epoch), "the leader kept its place");
    cluster.assert_one_writable();
    let report = probe.finish();
    report.assert_nothing_lost();
    // The other follower acknowledges all the time, and not only when the stream of the first one has run out, after 5 s.
    let next = report.first_ack_after(cut_at + 100);
    assert!(next.is_some_and(|at| at < cut_at + 4_500), "cut at {cut_at}, written at {next:?}");
    assert!(report.longest_gap_ms < 30_000.0, "writes stood still for {} ms", report.longest_gap_ms);
}

#[test]
fn a_follower_that_is_cut_off_catches_up() {
    follower_behind(|cluster, leader, deaf, well| {
        cluster.network.cut(deaf, leader);
        cluster.network.cut(deaf, well);
    });
}

#[test]
fn a_follower_that_does_not_hear_the_leader_deposes_nobody() {
    follower_behind(|cluster, leader, deaf, _| cluster.network.drop_packets(leader, deaf));
}

/// It reaches the other follower, which hears the leader well.
#[test]
fn a_follower_that_is_cut_from_the_leader_alone_deposes_nobody() {
    follower_behind(|cluster, leader, deaf, _| cluster.network.cut(leader, deaf));
}
