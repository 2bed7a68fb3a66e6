//! Faults that the simulator found once.

use super::{at_work, heals, next_primary, others};
use crate::machine::DiskFault;
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::request::Request;
use pgquorum_agent::settings::SettingsPatch;
use pgquorum_agent::view::State;

/// The epoch could not open without a standby that could not be rewound before the epoch was open.
#[test]
fn a_diverged_standby_that_is_needed_to_open_is_rewound_first() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3).with_k(2));
        let epoch = w.check.newest_epoch();
        let standbys = others(&w, leader);
        // The old primary has WAL that nobody else has.
        w.net.block_both(leader, standbys[0]);
        w.net.block_both(leader, standbys[1]);
        w.run(300);
        w.kill_node(leader);
        w.run(100);
        w.heal_network();
        w.run(1500);
        w.start(leader);
        next_primary(&mut w, epoch, 12_000);
        heals(w);
    }
}

/// A lone voter sent no heartbeats, and a lost state was never sent again: a new node could wait for ever.
#[test]
fn a_new_node_gets_its_state_over_a_bad_network() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 1));
        w.net.loss = 0.5;
        let id = w.join(leader, Role::Node);
        w.run(3000);
        w.net.loss = 0.0;
        let end = w.now + 20_000;
        assert!(
            w.run_until(end, |w| w.machines[&id].server.receiver.is_some()),
            "seed {seed}: {}",
            w.describe()
        );
        heals(w);
    }
}

/// Only one checkpoint was tried, and without one nobody can be rewound.
#[test]
fn a_failed_checkpoint_is_tried_again() {
    let (mut w, leader) = at_work(Setup::new(3, 3));
    let epoch = w.check.newest_epoch();
    w.net.block_both(leader, others(&w, leader)[0]);
    w.net.block_both(leader, others(&w, leader)[1]);
    w.run(300);
    w.kill_node(leader);
    w.heal_network();
    next_primary(&mut w, epoch, 4000);
    w.op_failures = 1.0;
    w.run(400);
    heals(w);
}

/// Leadership was offered for ever to a node that had no vote.
#[test]
fn a_node_marked_down_that_is_needed_gets_its_vote_back() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 5).with_k(1));
        let epoch = w.check.newest_epoch();
        let node = others(&w, leader)[0];
        // Only this node gets the last writes; it is marked down, and the leader dies before that has any effect on
        // the durability.
        for &far in &others(&w, leader)[1..] {
            w.net.wal_blocks.extend([(leader, far), (far, leader)]);
        }
        w.run(200);
        w.request(leader, Request::NodeDown { node, reason: "a mistake".to_owned() });
        w.run(4 + seed);
        w.kill_node(leader);
        w.net.wal_blocks.clear();
        next_primary(&mut w, epoch, 12_000);
        heals(w);
    }
}

/// A removed node was counted for pledges and acknowledgements that it could not give any more.
#[test]
fn a_removal_that_the_leader_does_not_survive_strands_nobody() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let node = others(&w, leader)[0];
        w.request(leader, Request::RemoveNode { node });
        w.run(1 + seed * 3);
        w.kill_node(leader);
        w.run(2000);
        w.start(leader);
        next_primary(&mut w, epoch, 10_000);
        heals(w);
    }
}

/// A node elected without a vote of its own: the only voter took the time together with what it said, and began to campaign
/// with entries that were not on its disk yet.
#[test]
fn the_only_voter_listens_to_a_leader_that_has_no_vote() {
    let mut voteless = 0;
    for seed in 0..200 {
        let (mut w, leader) = at_work(Setup::new(seed, 2));
        let other = others(&w, leader)[0];
        // The leader hears nothing of the entry, which the other has.
        w.net.block(other, leader);
        w.request(leader, Request::NodeDown { node: other, reason: "a mistake".to_owned() });
        w.run(2000);
        w.heal_network();
        let end = w.now + 4000;
        let leads_without = |w: &World| {
            w.machines[&other].agent.as_ref().is_some_and(|agent| {
                let cluster = agent.cluster();
                matches!(agent.view().state, State::Leader | State::Electing)
                    && cluster.member(other).is_some_and(|m| !m.is_voter())
            })
        };
        voteless += u32::from(w.run_until(end, leads_without));
        heals(w);
    }
    assert!(voteless > 0, "the entry always came too early or too late");
}

/// The others were quicker with their pledges, and the named node gave its leadership to one of them.
#[test]
fn a_planned_change_goes_to_a_node_with_a_slow_server() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let node = others(&w, leader)[0];
        w.slow_server = Some(node);
        w.request(leader, Request::ChangeLeader { node });
        assert_eq!(next_primary(&mut w, epoch, 4000), node, "seed {seed}");
        w.slow_server = None;
        heals(w);
    }
}

/// One node comes and another is lost at the same time: in between all of both were to acknowledge, the lost one too.
#[test]
fn a_node_is_replaced_by_another_while_it_is_lost() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 5));
        let node = others(&w, leader)[0];
        let new = w.join(leader, Role::Node);
        let counts = |w: &World| {
            let cluster = w.machines[&leader].agent.as_ref().unwrap().cluster();
            cluster.member(new).is_some_and(|m| m.is_data_voter())
                && !cluster.durability.voters.contains(&new)
        };
        let end = w.now + 20_000;
        while w.now < end && !counts(&w) {
            w.run(1);
        }
        w.kill_node(node);
        let id = w.request(leader, Request::NodeDown { node, reason: "it burns".to_owned() });
        w.run(3000);
        assert!(w.reply(id).is_some_and(Result::is_ok), "seed {seed}: {:?}: {}", w.reply(id), w.describe());
        heals(w);
    }
}

/// A change that waits for a lost node kept anybody from saying that the node is lost, for ever.
#[test]
fn a_node_is_marked_down_though_a_change_waits_for_it() {
    for (seed, remove) in (0..5).flat_map(|s| [(s, false), (s, true)]) {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let node = others(&w, leader)[0];
        w.kill_node(node);
        let patch = SettingsPatch {
            quorum_replication: Some(false),
            replication_factor: Some(2),
            ..SettingsPatch::default()
        };
        let grows = w.request(leader, Request::SetSettings { patch });
        w.run(1000);
        assert!(w.reply(grows).is_none(), "seed {seed}: two standbys cannot acknowledge, one is dead");
        let lost = match remove {
            false => Request::NodeDown { node, reason: "it burns".to_owned() },
            true => Request::RemoveNode { node },
        };
        let lost = w.request(leader, lost);
        w.run(2000);
        assert!(
            w.reply(lost).is_some_and(Result::is_ok),
            "seed {seed}: {:?}: {}",
            w.reply(lost),
            w.describe()
        );
        assert_eq!(w.reply(grows).unwrap().as_ref().unwrap_err().code, "overtaken");
        let acks = w.check.acks.len();
        w.run(1000);
        assert!(w.check.acks.len() > acks, "seed {seed}: commits wait for it still");
        if remove {
            w.machines.get_mut(&node).unwrap().retired = true;
        }
        heals(w);
    }
}

/// Each pledge that could not be given on its full disk made a standby wait longer before it followed the new leader.
#[test]
fn a_standby_that_could_not_pledge_follows_soon() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let full = others(&w, leader)[0];
        w.break_disk(full, DiskFault::Full);
        w.kill_node(leader);
        // Asked for its pledge, again and again.
        w.run(4000);
        w.start(leader);
        let primary = next_primary(&mut w, epoch, 12_000);
        w.mend_disk(full);
        let end = w.now + 3000;
        assert!(
            w.run_until(end, |w| w.machines[&full].server.receiver.is_some_and(|r| r.upstream == primary)),
            "seed {seed}: {}",
            w.describe()
        );
        heals(w);
    }
}
