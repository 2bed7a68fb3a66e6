//! Pledges and appointments: what is promised, to whom, and who may be appointed.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::types::NodeId;

fn follows(world: &World, node: NodeId, upstream: NodeId) -> bool {
    world.machines[&node].server.conninfo == Some(upstream)
}

/// Runs until a node has put a pledge on its disk that is newer than `term`.
fn pledged_after(world: &mut World, node: NodeId, term: u64) {
    let end = world.now + 5000;
    assert!(world.run_until(end, |w| w.traces.iter().any(|(_, _, kind, text)| {
        *kind == "pledged"
            && text.starts_with(&format!("node {node} pledged term"))
            && text.split([' ', ',']).nth(4).and_then(|t| t.parse::<u64>().ok()).is_some_and(|t| t > term)
    })));
}

/// True when the pledged standby stays away from the old primary after its sidecar was started again.
pub fn pledge_survives_a_restart(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    let standbys = others(&w, leader);
    isolate(&mut w, leader);
    for &peer in &standbys {
        w.net.wal_open.extend([(leader, peer), (peer, leader)]);
    }
    // The first standby that pledges to the other is started again, and hears nobody then.
    let end = w.now + 6000;
    let pledger = |w: &World| {
        standbys.iter().copied().find(|&n| !follows(w, n, leader) && w.machines[&n].server.is_running())
    };
    assert!(w.run_until(end, |w| pledger(w).is_some()), "{}", w.describe());
    let node = pledger(&w).unwrap();
    if w.check.newest_epoch() > epoch
        || w.machines[&node].agent.as_ref().unwrap().cluster().applied_index == 0
    {
        return true;
    }
    w.kill_sidecar(node);
    isolate(&mut w, node);
    w.start(node);
    let end = w.now + 1500;
    let back = w.run_until(end, |w| follows(w, node, leader));
    !back && w.check.broken.is_none()
}

#[test]
fn a_pledge_survives_a_restart() {
    for seed in 0..20 {
        assert!(pledge_survives_a_restart(seed), "seed {seed}");
    }
}

#[test]
fn an_abandoned_pledge_does_not_strand_anybody() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let standbys = others(&w, leader);
        w.kill_node(leader);
        // Whoever gets the other's pledge dies at once.
        pledged_after(&mut w, standbys[0], epoch);
        let elected = w.traces.iter().rev().find(|t| t.2 == "elected").map(|t| t.1).unwrap();
        w.kill_node(elected);
        w.run(300);
        w.start(leader);
        next_primary(&mut w, epoch, 8000);
        heals(w);
    }
}

#[test]
fn a_node_that_is_ahead_leads_in_the_end() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let (near, far) = (others(&w, leader)[0], others(&w, leader)[1]);
        // Only one standby gets the last writes.
        w.net.block_both(leader, far);
        w.run(400);
        w.kill_node(leader);
        w.net.block_both(leader, near);
        let ahead = w.machines[&near].server.end();
        assert!(ahead > w.machines[&far].server.end());
        assert_eq!(next_primary(&mut w, epoch, 5000), near, "seed {seed}");
        heals(w);
    }
}

/// A later epoch's shorter WAL against an earlier epoch's longer one; false when what was acknowledged is lost.
pub fn the_later_epoch_wins(seed: u64) -> bool {
    let (mut w, first) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    // The first primary writes much that nobody gets.
    isolate(&mut w, first);
    w.client_ms = 1;
    w.run(700);
    w.client_ms = 15;
    w.kill_node(first);
    let second = next_primary(&mut w, epoch, 5000);
    w.run(150);
    let third = others(&w, first).into_iter().find(|&n| n != second).unwrap();
    let (longer, shorter) = (w.machines[&first].server.end(), w.machines[&third].server.end());
    assert!(longer > shorter, "the scenario needs the old branch to be longer");
    w.kill_node(second);
    w.heal_network();
    isolate(&mut w, second);
    w.start(first);
    let end = w.now + 8000;
    w.run_until(end, |w| w.check.newest_epoch() > epoch + 1 && w.open_leader().is_some());
    w.heal_everything();
    let end = w.now + 15_000;
    w.run_until(end, World::converged);
    w.check_end();
    w.check.broken.is_none()
}

#[test]
fn a_later_epoch_beats_a_longer_log() {
    for seed in 0..10 {
        assert!(the_later_epoch_wins(seed), "seed {seed}");
    }
}

/// A primary dies right after its promotion, `wait` ms later at most. False when an invariant broke.
pub fn stuck_epoch(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    w.kill_node(leader);
    let end = w.now + 5000;
    while w.now < end && !w.traces.iter().any(|t| t.2 == "promoted" && t.1 != leader) {
        w.run(1);
    }
    let Some(promoted) = w.traces.iter().rev().find(|t| t.2 == "promoted").map(|t| t.1) else { return false };
    w.run(seed % 6);
    w.kill_node(promoted);
    w.run(200);
    w.start(leader);
    w.run(seed * 150);
    w.start(promoted);
    let end = w.now + 8000;
    let opened = w.run_until(end, |w| w.check.newest_epoch() > epoch && w.open_leader().is_some());
    crate::seeds::finish(&mut w);
    opened && w.check.broken.is_none()
}

#[test]
fn an_epoch_that_died_between_promotion_and_opening_is_carried_on_or_left() {
    for seed in 0..20 {
        assert!(stuck_epoch(seed), "seed {seed}");
    }
}

/// A leader gets its last pledge, and its appointment reaches nobody. False when an invariant broke.
pub fn appointment_is_not_committed(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 3));
    let standbys = others(&w, leader);
    w.kill_node(leader);
    let elected = |w: &World| w.traces.iter().rev().find(|t| t.2 == "elected" && t.1 != leader).map(|t| t.1);
    let end = w.now + 5000;
    while w.now < end {
        w.run(1);
        if let Some(elected) = elected(&w) {
            let other = standbys[usize::from(standbys[0] == elected)];
            if w.machines[&other].server.conninfo.is_none() {
                w.net.block(elected, other);
                break;
            }
        }
    }
    w.run(1000);
    let sound = w.check.broken.is_none();
    crate::seeds::finish(&mut w);
    sound && w.check.broken.is_none()
}

#[test]
fn nothing_is_promoted_before_its_appointment_is_committed() {
    for seed in 0..10 {
        assert!(appointment_is_not_committed(seed), "seed {seed}");
    }
}
