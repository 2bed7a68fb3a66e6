//! The server answers and takes no writes.

use super::{at_work, heals, next_primary, others};
use crate::machine::DiskFault;
use crate::world::{Setup, World};
use pgquorum_agent::request::Request;
use pgquorum_agent::types::NodeId;

/// Three times the node timeout, a look at the disk, an election.
const NOTICED_MS: u64 = 4500;

/// Breaks the leader's disk; another node must lead and acknowledge.
fn leader_loses_its_disk(seed: u64, nodes: u64, fault: DiskFault) {
    let (mut w, leader) = at_work(Setup::new(seed, nodes));
    let epoch = w.check.newest_epoch();
    w.break_disk(leader, fault);
    assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
    let acks = w.check.acks.len();
    w.run(500);
    assert!(w.check.acks.len() > acks, "seed {seed}: nothing is acknowledged: {}", w.describe());
    heals(w);
}

#[test]
fn a_leader_whose_disk_hangs_is_replaced() {
    for seed in 0..10 {
        leader_loses_its_disk(seed, if seed % 3 == 0 { 5 } else { 3 }, DiskFault::Hangs { state_too: false });
    }
}

/// Its sidecar stands still as soon as it has something to remember.
#[test]
fn a_leader_whose_disk_hangs_with_its_state_on_it_is_replaced() {
    for seed in 0..10 {
        leader_loses_its_disk(seed, 3, DiskFault::Hangs { state_too: true });
    }
}

#[test]
fn a_leader_whose_disk_is_full_is_replaced() {
    for seed in 0..10 {
        leader_loses_its_disk(seed, 3, DiskFault::Full);
    }
}

/// Its server lives and refuses writers: they learn where to go.
#[test]
fn a_leader_that_gives_its_place_up_names_its_successor() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.break_disk(leader, DiskFault::Full);
        next_primary(&mut w, epoch, NOTICED_MS);
        assert!(w.hints[&leader].starts_with("node "), "seed {seed}: {:?}", w.hints);
        heals(w);
    }
}

/// The checkpoint and the shutdown of a planned change wait for the disk.
#[test]
fn a_disk_that_hangs_does_not_hold_up_a_planned_change() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let node = others(&w, leader)[0];
        w.break_disk(leader, DiskFault::Hangs { state_too: false });
        w.request(leader, Request::ChangeLeader { node });
        assert_ne!(next_primary(&mut w, epoch, NOTICED_MS), leader, "seed {seed}");
        heals(w);
    }
}

/// What failed for want of room is not waited for with the patience that grows with failures.
#[test]
fn a_node_with_room_again_is_repaired_at_once() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.break_disk(leader, DiskFault::Full);
        next_primary(&mut w, epoch, NOTICED_MS);
        w.run(30_000);
        w.mend_disk(leader);
        let end = w.now + 6000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// How often leadership was given up, and to whom.
fn offers(w: &World) -> usize {
    w.traces.iter().filter(|(_, _, kind, text)| *kind == "hand-over" && text.contains("offered")).count()
}

#[test]
fn disks_that_are_full_everywhere_leave_the_leader_where_it_is() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for node in w.newest_members() {
            w.break_disk(node, DiskFault::Full);
        }
        w.run(30_000);
        assert_eq!((w.check.newest_epoch(), offers(&w)), (epoch, 0), "seed {seed}: leadership moved");
        assert_eq!(w.open_leader(), Some(leader), "seed {seed}");
        heals(w);
    }
}

/// Also used with the rule broken: the leader leaves its place to who cannot lead either.
pub(super) fn too_few_are_well(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    let other = others(&w, leader)[(seed % 2) as usize];
    w.break_disk(other, DiskFault::Hangs { state_too: false });
    w.run(4000);
    // Two of three cannot write now: the third would find nobody that pledges, and nobody that acknowledges.
    w.break_disk(leader, DiskFault::Full);
    w.run(2 * NOTICED_MS);
    w.check.newest_epoch() == epoch && offers(&w) == 0 && w.check.broken.is_none()
}

#[test]
fn a_stuck_leader_stays_where_too_few_others_are_well() {
    for seed in 0..10 {
        assert!(too_few_are_well(seed), "seed {seed}");
    }
}

#[test]
fn a_short_stall_deposes_nobody() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for _ in 0..5 {
            w.break_disk(leader, DiskFault::Hangs { state_too: false });
            w.run(2000);
            w.mend_disk(leader);
            w.run(300);
        }
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}");
        heals(w);
    }
}

/// The leader's stream reaches nobody, while every sidecar hears every other.
fn streams_stand_still(w: &mut World, leader: NodeId) {
    for peer in others(w, leader) {
        w.net.wal_blocks.extend([(leader, peer), (peer, leader)]);
    }
}

#[test]
fn a_leader_whose_wal_reaches_nobody_leaves_its_place_in_the_end() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        streams_stand_still(&mut w, leader);
        w.run(9_000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: not at once");
        assert_ne!(next_primary(&mut w, epoch, 35_000), leader, "seed {seed}");
        let acks = w.check.acks.len();
        w.run(500);
        assert!(w.check.acks.len() > acks, "seed {seed}: nothing is acknowledged: {}", w.describe());
        heals(w);
    }
}

/// A planned change whose new primary is promoted and whose WAL then reaches nobody. Returns it, and the epoch before.
fn opens_in_vain(seed: u64, nodes: u64) -> (World, NodeId, u64) {
    let (mut w, leader) = at_work(Setup::new(seed, nodes));
    let epoch = w.check.newest_epoch();
    let node = others(&w, leader)[0];
    for peer in others(&w, node).into_iter().filter(|&n| n != leader) {
        w.net.wal_blocks.extend([(node, peer), (peer, node)]);
    }
    w.request(leader, Request::ChangeLeader { node });
    let appointed =
        |w: &World| w.check.appointments.last_key_value().is_some_and(|(&e, a)| e > epoch && a.node == node);
    let end = w.now + 5000;
    assert!(w.run_until(end, appointed), "seed {seed}: {}", w.describe());
    streams_stand_still(&mut w, node);
    (w, node, epoch)
}

#[test]
fn an_epoch_whose_wal_reaches_nobody_is_left_to_another_node() {
    for seed in 0..10 {
        let (mut w, node, epoch) = opens_in_vain(seed, if seed % 3 == 0 { 5 } else { 3 });
        w.run(8_000);
        assert_eq!(w.check.newest_epoch(), epoch, "seed {seed}: not at once");
        assert_ne!(next_primary(&mut w, epoch, 7_000), node, "seed {seed}");
        let acks = w.check.acks.len();
        w.run(500);
        assert!(w.check.acks.len() > acks, "seed {seed}: nothing is acknowledged: {}", w.describe());
        heals(w);
    }
}

/// Every node is needed, and one is long being rewound. When it is back, the epoch opens: the leader does not go just then,
/// though its epoch has been waiting for long. Two of three hours of faults on real servers failed by that.
#[test]
fn a_standby_that_is_long_repaired_finds_the_leader_that_waits_for_it() {
    for seed in 0..20 {
        let (mut w, old) = at_work(Setup::new(seed, 3).with_k(2));
        let epoch = w.check.newest_epoch();
        for peer in others(&w, old) {
            w.net.wal_blocks.extend([(old, peer), (peer, old)]);
        }
        w.run(200);
        w.kill_node(old);
        w.net.wal_blocks.clear();
        let appointed = |w: &World| w.check.appointments.last_key_value().is_some_and(|(&e, _)| e > epoch);
        let end = w.now + 4000;
        assert!(w.run_until(end, appointed), "seed {seed}: {}", w.describe());
        w.rewind_ms = 12_000..15_000;
        w.start(old);
        next_primary(&mut w, epoch, 20_000);
        assert_eq!(offers(&w), 0, "seed {seed}: leadership moved");
        heals(w);
    }
}

/// Nobody's WAL reaches anybody: each try takes longer than the one before.
#[test]
fn leadership_does_not_go_round_where_no_epoch_can_open() {
    for seed in 0..5 {
        let (mut w, _, epoch) = opens_in_vain(seed, 3);
        for node in w.newest_members() {
            streams_stand_still(&mut w, node);
        }
        w.run(300_000);
        let tried = w.check.appointments.range(epoch + 1..).count();
        assert!((2..=7).contains(&tried), "seed {seed}: {tried} appointments in five minutes");
        heals(w);
    }
}

#[test]
fn standbys_that_are_gone_are_waited_for() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        for peer in others(&w, leader) {
            w.kill_server(peer);
            w.break_disk(peer, DiskFault::Hangs { state_too: false });
        }
        w.run(45_000);
        assert_eq!((w.check.newest_epoch(), w.open_leader()), (epoch, Some(leader)), "seed {seed}");
        heals(w);
    }
}
