//! What a sidecar must remember: its store is lost, torn, behind the others'; the majority of all is lost.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::request::Request;
use pgquorum_agent::settings::SettingsPatch;
use pgquorum_agent::standing::Outcast;

fn traced(world: &World, node: u64, kind: &str) -> bool {
    world.traces.iter().any(|t| t.1 == node && t.2 == kind)
}

/// A node pledges to a new leader, loses its store, and comes back empty under its number while only the old leader is
/// there: together they would be a majority that knows nothing of the new epoch. False when an invariant broke.
pub fn amnesia(seed: u64) -> bool {
    let (mut w, old) = at_work(Setup::new(seed, 3));
    let epoch = w.check.newest_epoch();
    isolate(&mut w, old);
    let new = next_primary(&mut w, epoch, 5000);
    let third = others(&w, old).into_iter().find(|&n| n != new).unwrap();
    let end = w.now + 5000;
    w.run_until(end, |w| w.machines[&third].server.receiver.is_some_and(|r| r.upstream == new));
    w.run(500);
    let epoch = w.check.newest_epoch();
    w.kill_node(new);
    w.lose_store(third);
    w.rebear(third);
    w.heal_network();
    w.run(8000);
    let quiet = w.check.newest_epoch() == epoch;
    let sound = w.check.broken.is_none();
    w.start(new);
    crate::seeds::finish(&mut w);
    quiet && sound && w.check.broken.is_none()
}

#[test]
fn a_node_that_lost_its_memory_is_not_heard_under_its_old_number() {
    for seed in 0..20 {
        assert!(amnesia(seed), "seed {seed}");
    }
}

#[test]
fn a_node_that_lost_its_memory_comes_back_as_a_new_member() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let lost = others(&w, leader)[0];
        w.lose_store(lost);
        w.rebear(lost);
        w.run(2000);
        assert!(traced(&w, lost, "outcast"), "seed {seed}: {}", w.describe());
        let view = w.machines[&lost].agent.as_ref().unwrap().view();
        assert_eq!(view.outcast, Some(Outcast::Forgotten));
        assert_eq!(w.open_leader(), Some(leader), "the others go on");
        w.replace_lost();
        w.run(1500);
        w.replace_lost();
        assert!(w.machines[&lost].retired, "seed {seed}: {}", w.describe());
        let new = w.join(leader, Role::Node);
        let end = w.now + 20_000;
        let counts = |w: &World| {
            w.machines[&leader].agent.as_ref().unwrap().cluster().durability.voters.contains(&new)
        };
        assert!(w.run_until(end, counts), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// Everything stops. One node has the newest log of the cluster, another all WAL: it leads in the end, and nothing is
/// lost.
#[test]
fn a_cold_start_elects_by_wal_though_another_log_is_fresher() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let epoch = w.check.newest_epoch();
        let (wal, log) = (others(&w, leader)[0], others(&w, leader)[1]);
        // One gets WAL and no word of the cluster's log, the other the words and no WAL.
        w.net.block_both(leader, wal);
        w.net.block_both(wal, log);
        w.net.wal_open.extend([(leader, wal), (wal, leader)]);
        w.net.wal_blocks.extend([(leader, log), (log, leader)]);
        w.run(100);
        for i in 0..3 {
            let value = Some(format!("{i}MB"));
            w.request(leader, Request::SetDbConfig { set: [("work_mem".to_owned(), value)].into() });
            w.run(150);
        }
        let applied = |w: &World, n: u64| w.machines[&n].agent.as_ref().unwrap().cluster().applied_index;
        assert!(applied(&w, log) > applied(&w, wal), "seed {seed}: the logs are equally fresh");
        assert!(
            w.machines[&wal].server.end() > w.machines[&log].server.end(),
            "seed {seed}: the WAL is the same"
        );
        for id in 1..=3 {
            w.kill_node(id);
        }
        w.heal_network();
        w.net.wal_blocks.clear();
        w.net.wal_open.clear();
        w.run(500);
        // The old leader, which has both, comes last or never.
        w.start(wal);
        w.start(log);
        assert_eq!(next_primary(&mut w, epoch, 8000), wal, "seed {seed}");
        heals(w);
    }
}

/// A power cut takes what was not synced; nothing that was promised was among it.
#[test]
fn what_was_not_synced_may_be_lost() {
    for seed in 0..20 {
        let (mut w, _) = at_work(Setup::new(seed, 3));
        for round in 0..4 {
            let epoch = w.check.newest_epoch();
            for id in 1..=3 {
                w.kill_node(id);
            }
            w.run(50 + round * 13);
            for id in 1..=3 {
                w.start(id);
            }
            next_primary(&mut w, epoch, 8000);
            w.run(seed * 20);
        }
        heals(w);
    }
}

/// What a node knew before it was started again is no news; what it hears then is.
#[test]
fn a_sidecar_that_starts_again_tells_no_old_entries() {
    let (mut w, leader) = at_work(Setup::new(3, 3));
    let node = others(&w, leader)[0];
    let set = |w: &mut World, name: &str| {
        let value = Some("1000".to_owned());
        w.request(leader, Request::SetDbConfig { set: [(name.to_owned(), value)].into() });
        w.run(1000);
    };
    let lines = |w: &World, from: u64, words: &str| {
        w.traces.iter().filter(|t| t.0 >= from && t.1 == node && t.3.contains(words)).count()
    };
    set(&mut w, "work_mem");
    assert_eq!(lines(&w, 0, "were changed: work_mem"), 1, "{}", w.describe());
    // With this one it is on disk for good that the one before is committed.
    set(&mut w, "temp_buffers");
    w.kill_sidecar(node);
    let from = w.now;
    w.start(node);
    w.run(1000);
    set(&mut w, "bgwriter_lru_maxpages");
    w.assert_sound();
    assert_eq!(lines(&w, from, "were changed: work_mem"), 0, "{}", w.describe());
    assert_eq!(lines(&w, from, "entries of the cluster's log are from before this start"), 1);
    assert_eq!(lines(&w, from, "were changed: bgwriter_lru_maxpages"), 1, "{}", w.describe());
}

/// Two of three are lost for good. The survivor is forced, opens with what it has, and takes new members. The lost ones
/// turn up again, the two of them a majority of what once was: they are told that they are of the past.
#[test]
fn a_forced_survivor_goes_on_and_those_left_behind_do_not() {
    for seed in 0..20 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let (survivor, lost) = (others(&w, leader)[0], [leader, others(&w, leader)[1]]);
        lost.iter().for_each(|&n| w.kill_node(n));
        w.run(3000);
        assert_eq!(w.open_leader(), None);
        let before = w.machines[&survivor].server.end();
        let epoch = w.check.newest_epoch();
        w.kill_node(survivor);
        w.force(survivor);
        w.start(survivor);
        assert_eq!(next_primary(&mut w, epoch, 3000), survivor, "seed {seed}");
        assert!(
            w.check.newest_epoch() >= epoch + 1000,
            "its epoch is far above any that the others may have got to"
        );
        assert!(w.machines[&survivor].server.end() > before, "what it had is there");
        let cluster = w.machines[&survivor].agent.as_ref().unwrap().cluster().clone();
        assert_eq!(cluster.members.keys().copied().collect::<Vec<_>>(), [survivor]);
        assert!(
            cluster.log.iter().any(|r| format!("{:?}", r.payload).contains("forced-leader")),
            "it is audited"
        );
        let acks = w.check.acks.len();
        w.run(500);
        assert!(w.check.acks.len() > acks);
        // Now the two are back.
        lost.iter().for_each(|&n| w.start(n));
        w.run(6000);
        w.assert_sound();
        for n in lost {
            assert!(
                w.machines[&n].disk.state.superseded,
                "seed {seed}: node {n} was not told: {}",
                w.describe()
            );
            assert!(!w.machines[&n].server.is_running(), "seed {seed}: its server runs");
            // Also alone with the other one, later.
            w.kill_sidecar(n);
            w.start(n);
            assert!(!w.machines[&n].alive(), "it does not start again");
            w.machines.get_mut(&n).unwrap().retired = true;
        }
        let new = w.join(survivor, Role::Node);
        let end = w.now + 20_000;
        let counts = |w: &World| {
            w.machines[&survivor].agent.as_ref().unwrap().cluster().durability.voters.contains(&new)
        };
        assert!(w.run_until(end, counts), "seed {seed}: {}", w.describe());
        heals(w);
    }
}

/// A minority was forced although the majority was only elsewhere. Who has a primary is not stopped by that; both
/// sides say what is wrong.
#[test]
fn a_majority_that_works_is_not_ended_by_a_forced_minority() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let forced = others(&w, leader)[0];
        isolate(&mut w, forced);
        w.run(1500);
        w.kill_node(forced);
        w.force(forced);
        // Its acknowledgements are of another cluster; here it only speaks.
        w.machines.get_mut(&forced).unwrap().server.process = pgquorum_agent::postgres::PgProcess::Absent;
        w.start(forced);
        w.heal_network();
        w.run(3000);
        assert_eq!(w.open_leader(), Some(leader), "seed {seed}: {}", w.describe());
        assert!(traced(&w, leader, "two-clusters"), "seed {seed}: the leader says nothing");
        let trouble = w.machines[&leader].agent.as_ref().unwrap().status().trouble.unwrap_or_default();
        assert!(trouble.contains("two clusters accept writes"), "{trouble}");
    }
}

/// The same while the majority is between two primaries.
#[test]
fn a_majority_that_elects_is_not_ended_by_a_forced_minority() {
    for seed in 0..5 {
        let (mut w, leader) = at_work(Setup::new(seed, 5));
        let (forced, epoch) = (others(&w, leader)[0], w.check.newest_epoch());
        isolate(&mut w, forced);
        w.run(1500);
        w.kill_node(forced);
        w.force(forced);
        w.machines.get_mut(&forced).unwrap().server.process = pgquorum_agent::postgres::PgProcess::Absent;
        w.start(forced);
        w.machines.get_mut(&leader).unwrap().reachable = false;
        w.kill_node(leader);
        w.run(300);
        w.heal_network();
        assert_ne!(next_primary(&mut w, epoch, 5000), forced, "seed {seed}: {}", w.describe());
    }
}

/// A listener that never ran votes for nothing and is not upgraded; a new witness votes once it was heard of.
#[test]
fn a_witness_that_does_not_run_yet_is_no_voter() {
    let (mut w, leader) = at_work(Setup::new(4, 1));
    let ip = [127, 0, 0, 1].into();
    let (db_port, api_port) = (Some(6000), Some(9000));
    let role = Role::Witness;
    let id = w.request(leader, Request::AddNode { ip, db_port, api_port, role, auto_upgrade: false });
    w.run(3000);
    w.assert_sound();
    assert!(w.reply(id).is_some_and(Result::is_ok), "{:?}", w.reply(id));
    assert_eq!(
        w.open_leader(),
        Some(leader),
        "a witness that does not run would have been half of the voters"
    );
    let patch = SettingsPatch { autoremove_minimum: Some(5), ..SettingsPatch::default() };
    let id = w.request(leader, Request::SetSettings { patch });
    w.run(1000);
    assert!(w.reply(id).is_some_and(Result::is_ok));
    // Another one that does run.
    let witness = w.join(leader, Role::Witness);
    let end = w.now + 5000;
    let votes = |w: &World| w.machines[&leader].agent.as_ref().unwrap().cluster().durability.witnesses == 1;
    assert!(w.run_until(end, votes), "{}", w.describe());
    w.kill_node(witness);
    w.run(3000);
    assert_eq!(w.open_leader(), None, "of two voters both are needed");
    w.start(witness);
    let end = w.now + 5000;
    assert!(w.run_until(end, |w| w.open_leader().is_some()), "{}", w.describe());
    w.assert_sound();
}
