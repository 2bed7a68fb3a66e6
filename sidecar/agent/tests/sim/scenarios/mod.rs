//! Named scenarios: one thing at a time, each with the fault that it is about.

mod failover;
mod members;
mod memory;
mod mutants;
mod pledges;
mod refusals;
mod registry;
mod regressions;
mod rejoin;
mod sizes;
mod standstill;
mod stuck;
mod users;

use crate::seeds::finish;
use crate::world::{Setup, World};
use pgquorum_agent::types::NodeId;

/// A cluster at work: one primary is open, all stream, writes are acknowledged.
fn at_work(setup: Setup) -> (World, NodeId) {
    let mut world = World::new(setup);
    assert!(world.run_until(10_000, |w| w.converged() && w.check.acks.len() > 5), "{}", world.describe());
    let leader = world.open_leader().expect("it converged");
    (world, leader)
}

/// Nodes other than `leader` that hold data.
fn others(world: &World, leader: NodeId) -> Vec<NodeId> {
    world.newest_members().into_iter().filter(|&n| n != leader).collect()
}

/// Waits until another epoch than `old` is open. Returns its primary.
fn next_primary(world: &mut World, old: u64, within: u64) -> NodeId {
    let end = world.now + within;
    let opened = world.run_until(end, |w| w.check.newest_epoch() > old);
    world.assert_sound();
    assert!(opened, "no new primary within {within} ms: {}", world.describe());
    world.check.opened[&world.check.newest_epoch()].1
}

/// Cuts a node off from the sidecars of all others.
fn isolate(world: &mut World, node: NodeId) {
    let peers: Vec<NodeId> = world.machines.keys().copied().filter(|&n| n != node).collect();
    for peer in peers {
        world.net.block_both(node, peer);
    }
}

/// Heals everything; the cluster must be whole again, with all that was acknowledged.
fn heals(mut world: World) {
    finish(&mut world);
    world.assert_sound();
}
