//! Clusters of one, of two, with a witness, and without durability.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::Setup;

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

#[test]
fn two_nodes_and_a_witness_lose_nothing() {
    for seed in 0..5 {
        let mut setup = Setup::new(seed, 2);
        setup.witness = true;
        let (mut w, leader) = at_work(setup);
        let epoch = w.check.newest_epoch();
        w.kill_node(leader);
        w.run(3000);
        w.start(leader);
        next_primary(&mut w, epoch, 5000);
        heals(w);
    }
}

#[test]
fn a_dead_witness_disturbs_nobody() {
    let mut setup = Setup::new(4, 2);
    setup.witness = true;
    let (mut w, _) = at_work(setup);
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
