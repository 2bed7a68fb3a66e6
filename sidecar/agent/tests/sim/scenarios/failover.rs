//! Something dies, and another node takes over.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::postgres::PgProcess;

#[test]
fn a_killed_leader_is_replaced_within_a_second() {
    let mut gaps = Vec::new();
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, killed_at) = (w.check.newest_epoch(), w.now);
        w.kill_node(leader);
        let next = next_primary(&mut w, epoch, 1000);
        assert_ne!(next, leader);
        let acks = w.check.acks.len();
        w.run(500);
        assert!(w.check.acks.len() > acks, "nothing is acknowledged {} ms after the kill", w.now - killed_at);
        gaps.push(w.check.longest_gap(killed_at));
        w.start(leader);
        heals(w);
    }
    gaps.sort_unstable();
    println!("time without an acknowledged write after a kill: {gaps:?} ms");
    assert!(gaps[gaps.len() / 2] < 600, "{gaps:?}");
}

#[test]
fn a_silent_machine_is_replaced_after_the_timeout() {
    let (mut w, leader) = at_work(Setup::new(1, 3));
    let epoch = w.check.newest_epoch();
    w.machines.get_mut(&leader).unwrap().reachable = false;
    isolate(&mut w, leader);
    w.kill_node(leader);
    assert_ne!(next_primary(&mut w, epoch, 3500), leader);
    heals(w);
}

/// Each time that its timer runs out, a quiet node is woken for nothing.
#[test]
fn a_follower_takes_the_time_from_what_it_hears_and_from_its_timer_when_it_hears_nothing() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        w.run(3000);
        let follower = others(&w, leader)[0];
        let agent = |w: &World| w.machines[&follower].agent.as_ref().map(|a| (a.ticked_at(), a.next_tick()));
        let ran_out =
            |w: &World| agent(w).is_some_and(|(_, next)| w.machines[&follower].clock(w.now) >= next);
        let end = w.now + 2000;
        assert!(!w.run_until(end, ran_out), "seed {seed}: at {} of {end}: {}", w.now, w.describe());
        isolate(&mut w, follower);
        w.run(10);
        let (before, end) = (agent(&w), w.now + 250);
        assert!(w.run_until(end, |w| agent(w) > before), "seed {seed}: its timer did not run out");
        heals(w);
    }
}

#[test]
fn a_killed_server_is_replaced_though_its_sidecar_lives() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.kill_server(leader);
        assert_ne!(next_primary(&mut w, epoch, 1000), leader, "seed {seed}");
        heals(w);
    }
}

/// Nobody closes a connection and nobody hands over; what tells is the stream of WAL.
#[test]
fn a_server_that_dies_beside_a_frozen_sidecar_is_replaced_before_the_timeout() {
    let mut gaps = Vec::new();
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, killed_at) = (w.check.newest_epoch(), w.now);
        w.freeze(leader);
        w.kill_server(leader);
        assert_ne!(next_primary(&mut w, epoch, 4000), leader, "seed {seed}");
        gaps.push(w.now - killed_at);
        w.thaw(leader);
        heals(w);
    }
    gaps.sort_unstable();
    assert!(gaps[gaps.len() / 2] < 900, "time until the next primary is open: {gaps:?} ms");
}

/// The leader is well and says so, whatever happened to the streams.
#[test]
fn streams_that_break_depose_no_leader_that_lives() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for peer in others(&w, leader) {
            w.net.wal_blocks.extend([(leader, peer), (peer, leader)]);
        }
        w.run(3000);
        w.net.wal_blocks.clear();
        w.run(1000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}");
        heals(w);
    }
}

#[test]
fn two_candidates_at_once_end_with_one_primary() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 5));
        let epoch = w.check.newest_epoch();
        w.kill_node(leader);
        // Everybody learns of it in the same instant.
        w.upkeep();
        next_primary(&mut w, epoch, 2500);
        heals(w);
    }
}

#[test]
fn a_frozen_sidecar_cannot_lose_what_its_server_acknowledges() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        // One standby hears the frozen node's server, the other does not.
        let far = others(&w, leader)[seed as usize % 2];
        w.freeze(leader);
        w.net.block_both(leader, far);
        w.client_ms = 3;
        let before = w.check.acks.len();
        let next = next_primary(&mut w, epoch, 4000);
        assert_ne!(next, leader);
        assert!(w.check.acks.len() > before, "the frozen node's server went on for its lease");
        w.run(1000);
        w.thaw(leader);
        heals(w);
    }
}

#[test]
fn a_partitioned_primary_acknowledges_nothing_after_its_successor() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        isolate(&mut w, leader);
        // Streams of WAL live on: only the pledges can end them.
        for peer in others(&w, leader) {
            w.net.wal_open.extend([(leader, peer), (peer, leader)]);
        }
        let next = next_primary(&mut w, epoch, 4000);
        assert_ne!(next, leader);
        w.run(3000);
        heals(w);
    }
}

#[test]
fn a_healthy_primary_elected_again_keeps_its_server_and_timeline() {
    let mut kept = 0;
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, run) = (w.check.newest_epoch(), w.machines[&leader].server.run);
        let timeline = w.machines[&leader].server.timeline;
        // It hears nobody for just long enough to lose its place; nobody else can win meanwhile.
        let standbys = others(&w, leader);
        isolate(&mut w, leader);
        w.net.block_both(standbys[0], standbys[1]);
        let (from, end) = (w.now, w.now + 4000);
        let deposed = |t: &(u64, u64, &str, String)| t.0 >= from && t.1 == leader && t.2 == "deposed";
        assert!(w.run_until(end, |w| w.traces.iter().any(deposed)));
        w.heal_network();
        let next = next_primary(&mut w, epoch, 5000);
        if next == leader && w.machines[&leader].server.run == run {
            assert_eq!(w.machines[&leader].server.timeline, timeline);
            kept += 1;
        }
        heals(w);
    }
    assert!(kept > 0, "no seed elected the healthy primary again");
}

#[test]
fn the_whole_cluster_starts_again_with_everything() {
    for seed in 0..10 {
        let (mut w, _) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for id in 1..=3 {
            w.kill_node(id);
        }
        w.run(500);
        assert!(w.machines.values().all(|m| m.server.process == PgProcess::Stopped));
        for id in [2, 3, 1] {
            w.start(id);
            w.run(100);
        }
        next_primary(&mut w, epoch, 5000);
        heals(w);
    }
}
