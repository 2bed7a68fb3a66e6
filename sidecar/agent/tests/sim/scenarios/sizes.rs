//! Clusters of one, of two, with a witness, and without durability.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::request::Request;

#[test]
fn a_single_node_opens_and_comes_back() {
    let (mut w, leader) = at_work(Setup::new(1, 1));
    let epoch = w.check.newest_epoch();
    w.kill_node(leader);
    w.run(200);
    w.start(leader);
    assert_eq!(next_primary(&mut w, epoch, 1500), leader);
    heals(w);
}

#[test]
fn a_single_nodes_server_goes_on_when_only_its_sidecar_is_started_again() {
    let (mut w, leader) = at_work(Setup::new(2, 1));
    let (epoch, run) = (w.check.newest_epoch(), w.machines[&leader].server.run);
    w.kill_sidecar(leader);
    w.run(100);
    w.start(leader);
    next_primary(&mut w, epoch, 1500);
    assert_eq!(w.machines[&leader].server.run, run, "the server was adopted");
    heals(w);
}

#[test]
fn two_nodes_need_both_and_lose_nothing() {
    let (mut w, leader) = at_work(Setup::new(3, 2));
    let epoch = w.check.newest_epoch();
    w.kill_node(leader);
    w.run(5000);
    assert_eq!(w.check.newest_epoch(), epoch);
    w.start(leader);
    next_primary(&mut w, epoch, 5000);
    heals(w);
}

fn with_witness(seed: u64, nodes: u64) -> Setup {
    let mut setup = Setup::new(seed, nodes);
    setup.witness = true;
    setup
}

/// The survivor of two is elected with the witness's vote. It has everything that was acknowledged, but nobody waits
/// with it for more: its epoch opens when its standby is back, or when the log says that it is not waited for.
#[test]
fn the_survivor_of_two_leads_with_the_witness_and_opens_with_its_standby() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(with_witness(seed, 2));
        let (epoch, acks) = (w.check.newest_epoch(), w.check.acks.len());
        let standby = others(&w, leader)[0];
        w.kill_node(leader);
        let end = w.now + 3000;
        assert!(
            w.run_until(end, |w| w.machines[&standby].server.is_primary()),
            "seed {seed}: {}",
            w.describe()
        );
        w.run(4000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: it opened though nobody has its first row");
        assert_eq!(w.check.acks.len(), acks);
        let trouble = w.machines[&standby].agent.as_ref().unwrap().status().trouble.unwrap_or_default();
        assert!(trouble.contains(&format!("of the nodes {leader} must have its first row")), "{trouble}");
        w.start(leader);
        assert_eq!(next_primary(&mut w, epoch, 5000), standby, "seed {seed}");
        heals(w);
    }
}

/// An administrator decides that the lost leader is not waited for: the survivor opens, and the lost one, should it
/// come back, cannot go on without it.
#[test]
fn the_survivor_of_two_opens_alone_once_the_other_is_marked_down() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(with_witness(seed, 2));
        let epoch = w.check.newest_epoch();
        let standby = others(&w, leader)[0];
        w.kill_node(leader);
        let (from, end) = (w.now, w.now + 4000);
        let elected = |w: &World| w.traces.iter().any(|t| t.0 > from && t.1 == standby && t.2 == "elected");
        assert!(w.run_until(end, elected), "seed {seed}: {}", w.describe());
        // At any moment of its way: in the gate, appointed, promoted, waiting to open.
        w.run(seed * 40);
        let id = w.request(standby, Request::NodeDown { node: leader, reason: "it burns".to_owned() });
        assert_eq!(next_primary(&mut w, epoch, 3000), standby, "seed {seed}");
        let end = w.now + 1000;
        assert!(
            w.run_until(end, |w| w.reply(id).is_some_and(Result::is_ok)),
            "seed {seed}: {:?}",
            w.reply(id)
        );
        let durability = w.machines[&standby].agent.as_ref().unwrap().cluster().durability.clone();
        assert_eq!((durability.voters, durability.k), ([standby].into(), 0));
        let acks = w.check.acks.len();
        w.run(1000);
        assert!(w.check.acks.len() > acks + 10, "seed {seed}: nothing is acknowledged");
        // The survivor stops; what comes back knows nothing of what it acknowledged alone, and must wait for it.
        let epoch = w.check.newest_epoch();
        w.kill_node(standby);
        w.start(leader);
        w.run(5000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: it opened without what was acknowledged");
        w.start(standby);
        assert_eq!(next_primary(&mut w, epoch, 5000), standby, "seed {seed}");
        w.run(1000);
        let (db_port, api_port) = (5000 + leader as u16, 8000 + leader as u16);
        w.request(standby, Request::UpgradeNode { node: leader, db_port, api_port });
        let end = w.now + 20_000;
        let whole = |w: &World| w.machines[&standby].agent.as_ref().unwrap().cluster().durability.k == 1;
        assert!(w.run_until(end, whole), "seed {seed}: the node does not come back: {}", w.describe());
        heals(w);
    }
}

/// The same by the settings instead of an administrator.
#[test]
fn the_survivor_of_two_opens_alone_where_automatic_removal_is_on() {
    for seed in 0..5 {
        let mut setup = with_witness(seed, 2);
        setup.settings.autoremove_enabled = true;
        setup.settings.autoremove_minimum = 2;
        let (mut w, leader) = at_work(setup);
        let epoch = w.check.newest_epoch();
        let standby = others(&w, leader)[0];
        w.kill_node(leader);
        assert_eq!(next_primary(&mut w, epoch, 15_000), standby, "seed {seed}");
        let end = w.now + 2000;
        assert!(w.run_until(end, |w| w.newest_members() == [standby]), "{}", w.describe());
        w.machines.get_mut(&leader).unwrap().retired = true;
        heals(w);
    }
}

/// Only the standby is there that did not acknowledge the last commits: one pledge is not enough then.
#[test]
fn a_witness_does_not_stand_in_for_what_was_acknowledged() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(with_witness(seed, 4).with_k(1));
        let epoch = w.check.newest_epoch();
        let (near, far) = (others(&w, leader)[0], others(&w, leader)[1..].to_vec());
        for &n in &far {
            w.net.wal_blocks.extend([(leader, n), (n, leader)]);
        }
        w.run(400);
        w.kill_node(leader);
        w.kill_node(near);
        w.net.wal_blocks.clear();
        w.run(6000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: {}", w.describe());
        // Marking them down does not make it forget that one of them is needed.
        let elected = w.traces.iter().rev().find(|t| t.2 == "elected").map(|t| t.1).unwrap();
        w.request(elected, Request::NodeDown { node: near, reason: "a mistake".to_owned() });
        w.run(4000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: {}", w.describe());
        w.start(near);
        next_primary(&mut w, epoch, 8000);
        heals(w);
    }
}

/// One standby has the last acknowledged write. It is elected, the lost leader is marked down, and then the standby is
/// lost too before the third node got that write: the third must not lead. False when an invariant broke.
pub fn marked_down_before_the_rest_has_everything(seed: u64) -> bool {
    let (mut w, leader) = at_work(with_witness(seed, 3));
    let (near, far) = (others(&w, leader)[0], others(&w, leader)[1]);
    w.net.wal_blocks.extend([(leader, far), (far, leader), (near, far), (far, near)]);
    w.run(400);
    let from = w.now;
    w.kill_node(leader);
    let elected = |w: &World| w.traces.iter().any(|t| t.0 > from && t.1 == near && t.2 == "elected");
    if !w.run_until(from + 8000, elected) {
        return false;
    }
    w.request(near, Request::NodeDown { node: leader, reason: "it burns".to_owned() });
    w.run(3000 + seed * 10);
    w.kill_node(near);
    w.net.wal_blocks.clear();
    let from = w.now;
    let elected = |w: &World| w.traces.iter().any(|t| t.0 > from && t.1 == far && t.2 == "elected");
    w.run_until(from + 4000, elected);
    w.request(far, Request::NodeDown { node: near, reason: "it burns too".to_owned() });
    w.run(4000);
    let sound = w.check.broken.is_none();
    crate::seeds::finish(&mut w);
    sound && w.check.broken.is_none()
}

#[test]
fn what_was_acknowledged_is_spread_before_fewer_must_pledge() {
    for seed in 0..10 {
        assert!(marked_down_before_the_rest_has_everything(seed), "seed {seed}");
    }
}

/// Two of four are lost at once. The other two and the witness elect; one of them has what was acknowledged.
#[test]
fn four_and_a_witness_survive_two() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(with_witness(seed, 4));
        let epoch = w.check.newest_epoch();
        let lost = [leader, others(&w, leader)[seed as usize % 3]];
        lost.iter().for_each(|&n| w.kill_node(n));
        let end = w.now + 5000;
        let opening = |w: &World| {
            w.traces.iter().rev().find(|t| t.2 == "promoted").is_some_and(|t| !lost.contains(&t.1))
        };
        assert!(w.run_until(end, opening), "seed {seed}: {}", w.describe());
        let next = w.traces.iter().rev().find(|t| t.2 == "promoted").unwrap().1;
        w.run(1000);
        assert_eq!(w.check.newest_epoch(), epoch, "two must acknowledge, and one is there");
        w.request(next, Request::NodeDown { node: lost[0], reason: "lost".to_owned() });
        assert_eq!(next_primary(&mut w, epoch, 5000), next, "seed {seed}");
        heals(w);
    }
}

#[test]
fn a_dead_witness_disturbs_nobody() {
    let (mut w, _) = at_work(with_witness(4, 2));
    let epoch = w.check.newest_epoch();
    w.kill_node(3);
    w.run(4000);
    assert_eq!(w.check.newest_epoch(), epoch);
    heals(w);
}

/// Without durability the lease alone keeps two primaries apart. False when an invariant broke.
pub fn weak_failover(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 3).with_k(0));
    let epoch = w.check.newest_epoch();
    w.client_ms = 3;
    // Its sidecar cannot fence it: nothing but the lease ends its writes.
    w.freeze(leader);
    isolate(&mut w, leader);
    let end = w.now + 6000;
    let opened = w.run_until(end, |w| w.check.newest_epoch() > epoch);
    w.run(3000);
    opened && w.check.broken.is_none()
}

#[test]
fn weak_replication_still_fails_over() {
    for seed in 0..20 {
        assert!(weak_failover(seed), "seed {seed}");
    }
    let (mut w, leader) = at_work(Setup::new(7, 3).with_k(0));
    let epoch = w.check.newest_epoch();
    w.kill_node(leader);
    assert!(others(&w, leader).contains(&next_primary(&mut w, epoch, 3500)));
    heals(w);
}
