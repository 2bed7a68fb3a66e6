//! A former leader comes back: rewinds and copies, and who waits for them.

use super::{at_work, heals, isolate, next_primary, others};
use crate::seeds::finish;
use crate::world::{Setup, World};
use pgquorum_agent::entry::Entry;
use pgquorum_agent::lost::{Acknowledged, LostReport};
use pgquorum_agent::node::Input;
use pgquorum_agent::postgres::PgOp;
use pgquorum_agent::types::{Lsn, NodeId};

/// A cluster whose first leader wrote what nobody else has, and was replaced. Returns it, its successor and the third.
fn diverged(seed: u64) -> (World, NodeId, NodeId, NodeId) {
    let (mut w, old) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    for peer in others(&w, old) {
        w.net.wal_blocks.extend([(old, peer), (peer, old)]);
    }
    w.run(200);
    w.kill_node(old);
    w.net.wal_blocks.clear();
    let new = next_primary(&mut w, epoch, 4000);
    let third = others(&w, old).into_iter().find(|&n| n != new).expect("three nodes");
    // Until it has a checkpoint nobody is rewound to it.
    let end = w.now + 4000;
    assert!(w.run_until(end, |w| w.machines[&new].server.checkpointed));
    (w, old, new, third)
}

/// Runs until this node's server is being rewound or copied.
fn under_repair(w: &mut World, node: NodeId, what: fn(&PgOp) -> bool) {
    let end = w.now + 10_000;
    let repairs = |w: &World| w.machines[&node].process_op.as_ref().is_some_and(|o| what(&o.op));
    assert!(w.run_until(end, repairs), "{}", w.describe());
}

/// The node under repair and the third one must make a primary without the second.
fn needed_for_a_pledge(mut w: World, new: NodeId, within: u64) {
    let epoch = w.check.newest_epoch();
    w.machines.get_mut(&new).unwrap().reachable = false;
    isolate(&mut w, new);
    w.kill_node(new);
    assert_ne!(next_primary(&mut w, epoch, within), new);
    heals(w);
}

/// Two of eight runs with a black hole took five seconds longer than they should.
#[test]
fn a_rewind_that_cannot_begin_keeps_no_pledge_waiting() {
    for seed in 0..10 {
        let (mut w, old, new, third) = diverged(seed);
        // It is heard of, and its server does not answer.
        w.net.wal_blocks.extend([(old, new), (new, old)]);
        w.start(old);
        under_repair(&mut w, old, |op| matches!(op, PgOp::Rewind(_)));
        w.net.wal_blocks.clear();
        // The third is a voter as good as any other, but not enough alone.
        assert!(w.machines[&third].server.is_running());
        needed_for_a_pledge(w, new, 4500);
    }
}

#[test]
fn a_long_copy_of_a_node_with_data_is_given_up_for_a_pledge() {
    for seed in 0..10 {
        let (mut w, old, new, _) = diverged(seed);
        (w.rewinds_fail, w.copy_ms) = (true, 60_000);
        w.start(old);
        under_repair(&mut w, old, |op| matches!(op, PgOp::Clone(_)));
        // The next one, which the new primary needs to open, is quick.
        w.copy_ms = 300;
        needed_for_a_pledge(w, new, 6000);
    }
}

/// A rewind that writes is not broken off, or everything would have to be copied; and what it left behind is of use
/// only along its source's history.
#[test]
fn a_rewind_that_has_begun_is_finished_and_pledges_nothing_before_it_is_whole() {
    for seed in 0..30 {
        let (mut w, old, new, _) = diverged(seed);
        w.start(old);
        let end = w.now + 10_000;
        assert!(w.run_until(end, |w| w.machines[&old].server.rewinding), "{}", w.describe());
        w.run(seed * 20);
        let epoch = w.check.newest_epoch();
        w.kill_node(new);
        w.run(400);
        w.start(new);
        next_primary(&mut w, epoch, 15_000);
        heals(w);
    }
}

/// Also used with the rule broken. A primary is started again with commits that nobody else has; whether all that clients
/// saw stays.
pub(super) fn restarted_primary(seed: u64) -> bool {
    let (mut w, old, _, _) = diverged(seed);
    w.start(old);
    w.run(3000);
    finish(&mut w);
    w.check.broken.is_none()
}

#[test]
fn clients_see_nothing_on_a_restarted_primary_that_is_taken_back() {
    for seed in 0..10 {
        assert!(restarted_primary(seed), "seed {seed}");
    }
}

/// The barrier opens in the end, on a standby as on a primary.
#[test]
fn clients_are_let_in_again_where_it_is_settled() {
    for seed in 0..10 {
        let (mut w, old, _, _) = diverged(seed);
        w.start(old);
        let end = w.now + 30_000;
        let back = |w: &World| w.machines[&old].server.receiver.is_some();
        assert!(w.run_until(end, back), "seed {seed}: {}", w.describe());
        let end = w.now + 3000;
        assert!(w.run_until(end, |w| !w.machines[&old].server.held), "seed {seed}: it is held for ever");
        // All at once, as by a power cut: the one that is appointed lets clients in with its lease.
        let ids: Vec<NodeId> = w.machines.keys().copied().collect();
        let epoch = w.check.newest_epoch();
        ids.iter().for_each(|&id| w.kill_node(id));
        ids.iter().for_each(|&id| w.start(id));
        let primary = next_primary(&mut w, epoch, 10_000);
        w.run(100);
        assert!(!w.machines[&primary].server.held, "seed {seed}");
        heals(w);
    }
}

/// A standby that needs WAL which only others have: it was shut down before it had replayed all, and lost it.
fn starts_in_vain(seed: u64) -> (World, NodeId, NodeId) {
    let (mut w, leader) = at_work(Setup::new(seed, 3));
    let node = others(&w, leader)[0];
    w.lose_wal(node);
    w.run(500);
    w.start(node);
    (w, leader, node)
}

#[test]
fn a_standby_that_does_not_come_up_by_itself_gets_its_upstream() {
    for seed in 0..10 {
        let (mut w, _, node) = starts_in_vain(seed);
        w.run(15_000);
        assert!(!w.machines[&node].server.is_running(), "seed {seed}: it may be slow");
        let end = w.now + 10_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

#[test]
fn a_standby_whose_upstream_does_not_help_is_copied() {
    let (mut w, leader, node) = starts_in_vain(1);
    w.wal_recycled = true;
    w.run(600_000);
    assert!(!w.machines[&node].server.is_running(), "it is given its time");
    let end = w.now + 60_000;
    assert!(w.run_until(end, World::converged), "{}", w.describe());
    assert_eq!(w.open_leader(), Some(leader));
    heals(w);
}

/// The others have given up the WAL that it would need.
#[test]
fn a_standby_that_was_away_for_too_long_is_copied() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let node = others(&w, leader)[0];
        w.kill_node(node);
        w.run(2000);
        w.wal_gone_for = Some(node);
        w.start(node);
        let end = w.now + 60_000;
        assert!(w.run_until(end, |w| w.wal_gone_for.is_none()), "seed {seed}: {}", w.describe());
        assert_eq!(w.open_leader(), Some(leader), "seed {seed}");
        heals(w);
    }
}

/// It starts again each time, and must not do so for ever.
#[test]
fn a_standby_that_ends_whenever_it_gets_its_upstream_is_copied() {
    for seed in 0..10 {
        let (mut w, ..) = starts_in_vain(seed);
        w.fed_servers_end = true;
        let end = w.now + 60_000;
        assert!(w.run_until(end, World::converged), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// What has to come from an upstream is nothing to pledge, and the others suffice.
#[test]
fn a_standby_that_is_given_wal_keeps_no_election_waiting() {
    for seed in 0..10 {
        let (mut w, leader, node) = starts_in_vain(seed);
        let epoch = w.check.newest_epoch();
        w.wal_recycled = true;
        w.run(25_000);
        w.kill_server(leader);
        assert_ne!(next_primary(&mut w, epoch, 4000), node, "seed {seed}");
        w.wal_recycled = false;
        heals(w);
    }
}

fn report(node: NodeId, timeline: u32) -> LostReport {
    LostReport {
        id: format!("{node}-{timeline}-30-40"),
        node,
        timeline,
        from: Lsn(0x30),
        to: Lsn(0x40),
        acknowledged: Acknowledged::No,
        committed: 0,
        transactions: Vec::new(),
        internal: 0,
        aborted: 0,
        unfinished: 0,
        kept: None,
        problem: None,
    }
}

/// How often the newest log holds a report of this node, and what it says.
fn told(w: &World, node: NodeId) -> (usize, Option<Acknowledged>) {
    let clusters = w.machines.values().filter_map(|m| m.agent.as_ref()).map(|a| a.cluster());
    let newest = clusters.max_by_key(|c| c.applied_index).expect("somebody lives");
    let mut of_node = newest.log.iter().filter_map(|r| match &r.payload {
        Entry::LostTransactions(report) if report.node == node => Some(report.acknowledged),
        _ => None,
    });
    (of_node.clone().count(), of_node.next_back())
}

#[test]
fn a_report_of_lost_transactions_gets_through_once() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (epoch, node) = (w.check.newest_epoch(), others(&w, leader)[0]);
        (w.net.loss, w.net.duplication) = (0.3, 0.3);
        let lost = report(node, w.machines[&leader].server.timeline);
        w.input(node, Input::Lost(Box::new(lost.clone())));
        if seed % 2 == 0 {
            // The leader may have it in its log already, and nobody else.
            w.run(seed * 10);
            w.kill_node(leader);
            next_primary(&mut w, epoch, 10_000);
            w.start(leader);
        }
        let end = w.now + 10_000;
        assert!(w.run_until(end, |w| told(w, node).0 > 0), "seed {seed}: {}", w.describe());
        // Told again after a restart, as long as its disk does not know that it is known.
        w.kill_sidecar(node);
        w.start(node);
        w.input(node, Input::Lost(Box::new(lost)));
        w.run(3000);
        assert_eq!(told(&w, node), (1, Some(Acknowledged::No)), "seed {seed}");
        heals(w);
    }
}

#[test]
fn what_was_written_while_commits_waited_for_nobody_may_have_been_acknowledged() {
    let (mut w, leader) = at_work(Setup::new(1, 3).with_k(0));
    let node = others(&w, leader)[0];
    let lost = report(node, w.machines[&leader].server.timeline);
    w.input(node, Input::Lost(Box::new(lost)));
    let end = w.now + 5000;
    assert!(w.run_until(end, |w| told(w, node).0 > 0));
    assert_eq!(told(&w, node), (1, Some(Acknowledged::Possibly)));
}
