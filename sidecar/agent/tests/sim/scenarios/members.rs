//! Changes of members, of k, and of the leader, as administrators ask for them.

use super::{at_work, heals, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::node::Input;
use pgquorum_agent::postgres::PgProcess;
use pgquorum_agent::request::Request;
use pgquorum_agent::settings::SettingsPatch;

fn replication_factor(k: u32) -> Request {
    let patch = SettingsPatch {
        quorum_replication: Some(false),
        replication_factor: Some(k),
        ..SettingsPatch::default()
    };
    Request::SetSettings { patch }
}

fn answered(world: &mut World, id: u64) -> bool {
    let end = world.now + 20_000;
    let done = world.run_until(end, |w| w.reply(id).is_some());
    world.assert_sound();
    assert!(done, "request {id} is not answered: {}", world.describe());
    world.reply(id).unwrap().is_ok()
}

#[test]
fn a_planned_change_of_leader_is_quick_and_loses_nothing() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let node = others(&w, leader)[1];
        let asked = w.now;
        let id = w.request(leader, Request::ChangeLeader { node });
        assert_eq!(next_primary(&mut w, epoch, 2500), node, "seed {seed}");
        assert!(w.now - asked < 1500, "seed {seed}: it took {} ms", w.now - asked);
        // Refused clients are told where to go, though nobody led when they were.
        assert_eq!(w.hints[&leader], format!("node {node} at 127.0.0.1:{}", 5000 + node), "seed {seed}");
        assert!(answered(&mut w, id));
        heals(w);
    }
}

#[test]
fn a_listener_never_votes_or_acknowledges() {
    let (mut w, leader) = at_work(Setup::new(5, 3));
    let listener = w.join(leader, Role::Listener);
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| w.machines[&listener].server.receiver.is_some()), "{}", w.describe());
    w.run(1000);
    let (epoch, standbys) = (w.check.newest_epoch(), others(&w, leader));
    for &n in standbys.iter().filter(|&&n| n != listener) {
        w.kill_node(n);
    }
    w.run(200);
    let acks = w.check.acks.len();
    w.run(4000);
    assert_eq!(w.check.acks.len(), acks, "only the listener was left to acknowledge");
    assert_eq!(w.check.newest_epoch(), epoch, "only the listener was left to vote");
    heals(w);
}

#[test]
fn a_new_node_is_copied_upgraded_and_counts() {
    let (mut w, leader) = at_work(Setup::new(6, 1));
    for expected in 2..=3 {
        let id = w.join(leader, Role::Node);
        let end = w.now + 20_000;
        let upgraded = w.run_until(end, |w| {
            let cluster = w.machines[&leader].agent.as_ref().unwrap().cluster();
            cluster.durability.voters.contains(&id) && cluster.durability.voters.len() == expected
        });
        assert!(upgraded, "{}", w.describe());
    }
    let epoch = w.check.newest_epoch();
    w.run(500);
    w.kill_node(leader);
    assert_ne!(next_primary(&mut w, epoch, 3000), leader);
    heals(w);
}

#[test]
fn a_node_is_removed_and_comes_back_as_another() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let node = others(&w, leader)[0];
        let id = w.request(leader, Request::RemoveNode { node });
        assert!(answered(&mut w, id), "{:?}", w.reply(id));
        let end = w.now + 5000;
        assert!(
            w.run_until(end, |w| w.machines[&node].server.process == PgProcess::Stopped),
            "{}",
            w.describe()
        );
        let new = w.join(leader, Role::Node);
        assert!(new > 3, "numbers are not given twice");
        let end = w.now + 20_000;
        assert!(w.run_until(end, |w| {
            w.machines[&leader].agent.as_ref().unwrap().cluster().durability.voters.contains(&new)
        }));
        heals(w);
    }
}

#[test]
fn a_dead_node_marked_down_is_not_waited_for_and_comes_back_by_itself() {
    let (mut w, leader) = at_work(Setup::new(3, 2));
    let node = others(&w, leader)[0];
    w.kill_node(node);
    w.run(200);
    let acks = w.check.acks.len();
    w.run(1000);
    assert_eq!(w.check.acks.len(), acks, "k = 1 of two: nothing is acknowledged without the other");
    heals(w);

    let mut setup = Setup::new(3, 2);
    setup.witness = true;
    let (mut w, leader) = at_work(setup);
    let node = others(&w, leader)[0];
    w.kill_node(node);
    w.run(200);
    let id = w.request(leader, Request::NodeDown { node, reason: "it burns".to_owned() });
    assert!(answered(&mut w, id), "{:?}", w.reply(id));
    let acks = w.check.acks.len();
    w.run(1000);
    assert!(w.check.acks.len() > acks);
    w.start(node);
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| {
        w.machines[&leader].agent.as_ref().unwrap().cluster().durability.voters.contains(&node)
    }));
    heals(w);
}

/// The leader that saw the node ill is gone, and the next one never saw it otherwise than well.
#[test]
fn a_mark_that_its_leader_did_not_take_away_goes_with_the_next_one() {
    let (mut w, leader) = at_work(Setup::new(5, 5));
    let epoch = w.check.newest_epoch();
    let node = others(&w, leader)[0];
    let id = w.request(leader, Request::NodeDown { node, reason: "it may be ill".to_owned() });
    assert!(answered(&mut w, id), "{:?}", w.reply(id));
    w.kill_node(leader);
    let next = next_primary(&mut w, epoch, 5000);
    w.start(leader);
    let is_down =
        |w: &World| w.machines[&next].agent.as_ref().unwrap().cluster().member(node).is_some_and(|m| m.down);
    w.run(30_000);
    assert!(is_down(&w), "work on the node may have yet to begin");
    let end = w.now + 40_000;
    assert!(w.run_until(end, |w| !is_down(w)), "{}", w.describe());
    heals(w);
}

/// k grows from 1 to 2 of five while only one standby streams. What one standby acknowledged before must not be
/// missed by three pledges of the others. False when an invariant broke.
pub fn k_grows_while_partitioned(seed: u64) -> bool {
    let (mut w, leader) = at_work(Setup::new(seed, 5).with_k(1));
    let near = others(&w, leader)[0];
    let far: Vec<u64> = others(&w, leader)[1..].to_vec();
    // The far ones do not stream; their sidecars are well.
    for &n in &far {
        w.machines.get_mut(&n).unwrap().server.conninfo = None;
        w.machines.get_mut(&n).unwrap().server.receiver = None;
    }
    w.run(400);
    w.request(leader, replication_factor(2));
    w.run(1500);
    w.kill_node(leader);
    w.kill_node(near);
    w.run(5000);
    w.heal_everything();
    let end = w.now + 30_000;
    w.run_until(end, World::converged);
    w.check_end();
    w.check.broken.is_none()
}

#[test]
fn k_grows_only_when_enough_standbys_have_everything() {
    for seed in 0..10 {
        assert!(k_grows_while_partitioned(seed), "seed {seed}");
    }
}

/// k goes up and down under faults. False when an invariant broke.
pub fn k_moves(seed: u64) -> bool {
    let (mut w, _) = at_work(Setup::new(seed, 5).with_k(1));
    for k in [3, 1, 4, 2, 1] {
        if let Some(leader) = w.open_leader() {
            w.request(leader, replication_factor(k));
        }
        w.run(30 + seed * 20);
        let standby = others(&w, 0)[seed as usize % 4];
        w.kill_node(standby);
        w.run(600);
        w.start(standby);
        w.run(600);
    }
    w.check.broken.is_none()
}

#[test]
fn k_grows_first_and_shrinks_last() {
    for seed in 0..10 {
        assert!(k_moves(seed), "seed {seed}");
    }
}

#[test]
fn a_node_that_is_told_to_stop_hands_over_first() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        w.input(leader, Input::Leave);
        assert_ne!(next_primary(&mut w, epoch, 2500), leader, "seed {seed}");
        assert!(w.hints[&leader].starts_with("node "), "seed {seed}: {:?}", w.hints);
        let end = w.now + 3000;
        assert!(w.run_until(end, |w| !w.machines[&leader].alive()), "seed {seed}: it does not exit");
        assert_eq!(w.machines[&leader].server.process, PgProcess::Stopped);
        heals(w);
    }
}

#[test]
fn a_node_that_missed_a_forgotten_part_of_the_log_gets_the_state() {
    let (mut w, leader) = at_work(Setup::new(8, 3));
    let node = others(&w, leader)[0];
    w.kill_node(node);
    for i in 0..900 {
        let value = Some(i.to_string());
        w.request(leader, Request::SetDbConfig { set: [("work_mem".to_owned(), value)].into() });
        w.run(25);
    }
    let applied = |w: &World, n: u64| w.machines[&n].agent.as_ref().unwrap().cluster().applied_index;
    assert!(applied(&w, leader) > 600, "the log has {} entries", applied(&w, leader));
    w.start(node);
    let end = w.now + 10_000;
    assert!(w.run_until(end, |w| applied(w, node) == applied(w, leader)));
    // What was taken from the log is on the disk too.
    w.kill_node(node);
    w.start(node);
    w.run(2000);
    heals(w);
}

#[test]
fn a_node_that_nobody_sees_is_removed_where_that_is_allowed() {
    let mut setup = Setup::new(9, 4);
    setup.settings.autoremove_enabled = true;
    let (mut w, leader) = at_work(setup);
    let node = others(&w, leader)[0];
    w.kill_node(node);
    let end = w.now + 30_000;
    assert!(w.run_until(end, |w| w.newest_members().len() == 3), "{}", w.describe());
    w.machines.get_mut(&node).unwrap().retired = true;
    let another = others(&w, leader)[0];
    w.kill_node(another);
    w.run(20_000);
    assert_eq!(w.newest_members().len(), 3, "no more than autoremove-minimum are left");
    heals(w);
}

/// It is listed first and copied then, and its sidecar starts when that is done.
#[test]
fn a_new_node_is_not_removed_while_it_is_copied() {
    let mut setup = Setup::new(14, 4);
    setup.settings.autoremove_enabled = true;
    let (mut w, leader) = at_work(setup);
    let dead = others(&w, leader)[0];
    let new = w.join(leader, Role::Listener);
    w.kill_node(new);
    let end = w.now + 10_000;
    assert!(w.run_until(end, |w| w.newest_members().contains(&new)), "{}", w.describe());
    w.kill_node(dead);
    let end = w.now + 30_000;
    assert!(w.run_until(end, |w| !w.newest_members().contains(&dead)), "{}", w.describe());
    w.machines.get_mut(&dead).unwrap().retired = true;
    w.run(20_000);
    assert!(w.newest_members().contains(&new), "it is still on its way: {}", w.describe());
    w.start(new);
    heals(w);
}

/// One of three is dead; marking the other one that is well down by mistake would end the majority.
#[test]
fn nobody_is_marked_down_or_removed_when_that_ends_the_majority() {
    let (mut w, leader) = at_work(Setup::new(11, 3));
    let (dead, well) = (others(&w, leader)[0], others(&w, leader)[1]);
    w.kill_node(dead);
    w.run(500);
    for request in
        [Request::NodeDown { node: well, reason: "a mistake".to_owned() }, Request::RemoveNode { node: well }]
    {
        let id = w.request(leader, request);
        assert!(!answered(&mut w, id));
        assert_eq!(w.reply(id).unwrap().as_ref().unwrap_err().code, "no_majority_left");
    }
    let id = w.request(leader, Request::NodeDown { node: dead, reason: "it is dead".to_owned() });
    assert!(answered(&mut w, id), "{:?}", w.reply(id));
    heals(w);
}

/// A leader wakes up from a freeze and finds a request to mark a node down before it hears that the third one lost its
/// memory: it must not go by what it saw before it slept.
#[test]
fn a_leader_that_was_frozen_marks_nobody_down_before_it_heard_of_the_others() {
    let (mut w, leader) = at_work(Setup::new(12, 3));
    let (forgetful, well) = (others(&w, leader)[0], others(&w, leader)[1]);
    // The others cannot elect one of themselves meanwhile.
    w.freeze(well);
    w.freeze(leader);
    let id = w.request(leader, Request::NodeDown { node: well, reason: "it does not answer".to_owned() });
    w.lose_store(forgetful);
    w.start(forgetful);
    w.run(1500);
    w.thaw(leader);
    w.thaw(well);
    answered(&mut w, id);
    assert_eq!(w.reply(id).unwrap().as_ref().unwrap_err().code, "no_majority_left");
    heals(w);
}

/// Listeners count as members; when they are away too, fewer than half can say that a node is.
#[test]
fn nobody_is_removed_without_half_of_the_cluster() {
    let mut setup = Setup::new(10, 3);
    setup.settings.autoremove_enabled = true;
    setup.settings.autoremove_minimum = 1;
    let (mut w, leader) = at_work(setup);
    let standbys = others(&w, leader);
    let mut listeners = Vec::new();
    for _ in 0..3 {
        let listener = w.join(leader, Role::Listener);
        let end = w.now + 20_000;
        assert!(w.run_until(end, |w| w.machines[&listener].server.receiver.is_some()), "{}", w.describe());
        listeners.push(listener);
    }
    w.run(1000);
    for &node in listeners.iter().chain([&standbys[0]]) {
        w.kill_node(node);
    }
    w.run(30_000);
    w.assert_sound();
    assert_eq!(w.open_leader(), Some(leader));
    assert_eq!(w.newest_members().len(), 6, "two of six agree, and that is not half");
    // With a third that says the same the first of them go.
    w.start(standbys[0]);
    let end = w.now + 30_000;
    assert!(w.run_until(end, |w| w.newest_members().len() == 3), "{}", w.describe());
    for node in listeners {
        w.machines.get_mut(&node).unwrap().retired = true;
    }
    heals(w);
}
