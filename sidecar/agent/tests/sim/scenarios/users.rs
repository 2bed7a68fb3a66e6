//! Users are part of the state: they survive restarts, come with a state to new nodes, and are the same everywhere.

use super::{at_work, heals, isolate, next_primary, others};
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::request::{RejectionKind, Reply, Request};
use pgquorum_agent::types::NodeId;
use pgquorum_agent::users::{Secret, UserChange, UserRole, Users};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};

fn add(user: &str, role: UserRole) -> UserChange {
    let password = Some(Secret::new(format!("hash of {user}")));
    UserChange::Add { user: user.to_owned(), roles: [role].into(), password }
}

fn remove(user: &str) -> UserChange {
    UserChange::Remove { user: user.to_owned(), last: false }
}

/// The change is asked of the leader, which must make it.
fn must(w: &mut World, leader: NodeId, change: UserChange) {
    let text = format!("{change:?}");
    let id = w.request(leader, Request::User(change));
    let end = w.now + 5000;
    assert!(w.run_until(end, |w| w.reply(id).is_some()), "{text} is not answered: {}", w.describe());
    assert!(matches!(w.reply(id), Some(Ok(Reply::User { .. }))), "{text}: {:?}", w.reply(id));
}

fn users(w: &World, node: NodeId) -> Users {
    w.machines[&node].agent.as_ref().map(|agent| agent.cluster().users.clone()).unwrap_or_default()
}

/// Waits until all nodes know the same users as this one.
fn agree(w: &mut World, node: NodeId) -> Users {
    let end = w.now + 20_000;
    let known = users(w, node);
    let same = |w: &World| {
        let alive = w.machines.values().filter(|m| m.agent.is_some() && !m.retired);
        alive.map(|m| m.id).all(|id| users(w, id) == known)
    };
    assert!(w.run_until(end, same), "nodes know different users: {}", w.describe());
    w.assert_sound();
    known
}

#[test]
fn users_are_known_on_every_node_and_after_a_failover_and_a_power_cut() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        must(&mut w, leader, add("root", UserRole::Admin));
        must(&mut w, leader, add("bob", UserRole::Reader));
        assert!(agree(&mut w, leader).get("bob").is_some());
        let epoch = w.check.newest_epoch();
        w.kill_node(leader);
        let new = next_primary(&mut w, epoch, 8000);
        must(&mut w, new, remove("bob"));
        w.start(leader);
        let known = agree(&mut w, new);
        assert!(known.get("bob").is_none() && known.get("root").is_some(), "seed {seed}");
        for id in 1..=3 {
            w.kill_node(id);
        }
        for id in 1..=3 {
            w.start(id);
        }
        heals_with(w, &known);
    }
}

/// Heals everything; all must know these users then.
fn heals_with(mut w: World, known: &Users) {
    crate::seeds::finish(&mut w);
    w.assert_sound();
    let leader = w.open_leader().expect("it is healed");
    assert_eq!(&agree(&mut w, leader), known);
}

#[test]
fn a_state_brings_users_to_a_new_node_and_back_after_a_restart() {
    let (mut w, leader) = at_work(Setup::new(3, 3));
    must(&mut w, leader, add("root", UserRole::Admin));
    must(&mut w, leader, add("bob", UserRole::Reader));
    // More changes than the log holds without a state being taken, again and again.
    for i in 0..1200 {
        let role = [UserRole::Reader, UserRole::Follower][i % 2];
        let roles = Some(BTreeSet::from([role]));
        must(&mut w, leader, UserChange::Set { user: "bob".to_owned(), roles, password: None });
    }
    let snapshot = &w.machines[&leader].disk.state.snapshot;
    let taken = String::from_utf8(snapshot.data.clone()).expect("JSON");
    assert!(taken.contains("hash of bob") && snapshot.get_metadata().index > 1000, "no state was taken");
    let new = w.join(leader, Role::Node);
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| users(w, new).get("bob").is_some()), "{}", w.describe());
    let known = agree(&mut w, leader);
    // It has written it down by then.
    w.run(500);
    w.kill_node(new);
    w.start(new);
    assert!(users(&w, new).get("root").is_some(), "they come from its own disk");
    heals_with(w, &known);
}

#[test]
fn only_a_leader_changes_users_and_the_first_and_the_last_are_looked_at() {
    let (mut w, leader) = at_work(Setup::new(8, 3));
    let refused = |w: &mut World, node, change| {
        let id = w.request(node, Request::User(change));
        let end = w.now + 2000;
        assert!(w.run_until(end, |w| w.reply(id).is_some()), "it is not answered");
        let rejection = w.reply(id).unwrap().clone().unwrap_err();
        (rejection.kind, rejection.code)
    };
    let follower = others(&w, leader)[0];
    assert_eq!(refused(&mut w, follower, add("root", UserRole::Admin)).0, RejectionKind::NotLeader);
    let first = refused(&mut w, leader, add("bob", UserRole::Reader));
    assert_eq!(first, (RejectionKind::Precondition, "first_user_is_no_admin".to_owned()));
    must(&mut w, leader, add("root", UserRole::Admin));
    assert_eq!(refused(&mut w, leader, remove("root")).1, "last_admin");
    assert_eq!(
        refused(&mut w, leader, remove("eve")),
        (RejectionKind::UnknownUser, "unknown_user".to_owned())
    );
    assert_eq!(refused(&mut w, leader, add("root", UserRole::Reader)).0, RejectionKind::Exists);
    // Two changes at once of which each is fine and both are not.
    must(&mut w, leader, add("other", UserRole::Admin));
    let (one, two) =
        (w.request(leader, Request::User(remove("root"))), w.request(leader, Request::User(remove("other"))));
    let end = w.now + 2000;
    assert!(w.run_until(end, |w| w.reply(one).is_some() && w.reply(two).is_some()));
    assert!(w.reply(one).unwrap().is_ok());
    assert_eq!(w.reply(two).unwrap().clone().unwrap_err().code, "last_admin");
    assert!(agree(&mut w, leader).get("other").is_some());
    heals(w);
}

/// Nothing keeps somebody in who is to be put out: not a node that is being added, nor durability that waits.
#[test]
fn users_are_changed_while_members_are() {
    let (mut w, leader) = at_work(Setup::new(4, 3));
    must(&mut w, leader, add("root", UserRole::Admin));
    must(&mut w, leader, add("bob", UserRole::Reader));
    let patch = pgquorum_agent::settings::SettingsPatch {
        quorum_replication: Some(false),
        replication_factor: Some(2),
        ..Default::default()
    };
    // Cannot be complete: a standby is gone.
    w.kill_node(others(&w, leader)[0]);
    let settings = w.request(leader, Request::SetSettings { patch });
    w.run(300);
    assert!(w.reply(settings).is_none(), "it waits");
    must(&mut w, leader, remove("bob"));
    assert!(w.reply(settings).is_none(), "it still waits");
    heals(w);
}

/// A leader that is cut off promises nothing about users.
#[test]
fn a_change_without_a_majority_is_not_confirmed() {
    for seed in 0..10 {
        let (mut w, old) = at_work(Setup::new(seed, 3));
        must(&mut w, old, add("root", UserRole::Admin));
        let epoch = w.check.newest_epoch();
        isolate(&mut w, old);
        let id = w.request(old, Request::User(add("eve", UserRole::Admin)));
        let new = next_primary(&mut w, epoch, 8000);
        must(&mut w, new, add("bob", UserRole::Reader));
        w.heal_network();
        let end = w.now + 20_000;
        assert!(w.run_until(end, |w| w.reply(id).is_some()), "seed {seed}: {}", w.describe());
        let rejection = w.reply(id).unwrap().clone().unwrap_err();
        assert_eq!(rejection.code, "proposal_gone", "seed {seed}");
        let known = agree(&mut w, new);
        assert!(known.get("eve").is_none() && known.get("bob").is_some(), "seed {seed}");
    }
}

/// What was confirmed under faults of all kinds is so in the end, and on every node.
#[test]
fn what_was_confirmed_lasts() {
    for seed in 0..60 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        must(&mut w, leader, add("root", UserRole::Admin));
        let mut asked: Vec<(u64, String, bool)> = Vec::new();
        let mut there = BTreeSet::new();
        for i in 0..12 {
            let pause = w.rng.random_range(5..800);
            w.run(pause);
            if let Some(leader) = w.open_leader() {
                let name = format!("u{i}");
                let other = there.iter().next().cloned().filter(|_| w.rng.random_bool(0.4));
                let (name, adds) = other.map_or((name, true), |other| (other, false));
                let change = if adds { add(&name, UserRole::Reader) } else { remove(&name) };
                let id = w.request(leader, Request::User(change));
                if adds {
                    there.insert(name.clone())
                } else {
                    there.remove(&name)
                };
                asked.push((id, name, adds));
            }
            if w.rng.random_bool(0.5) {
                w.fault();
            }
        }
        crate::seeds::finish(&mut w);
        w.assert_sound();
        let Some(leader) = w.open_leader() else { continue };
        w.run(16_000);
        let known = agree(&mut w, leader);
        // What was asked for last, by name; a change that was refused, or not answered, may or may not have come.
        let mut last: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for (id, name, adds) in &asked {
            let confirmed = w.reply(*id).is_some_and(Result::is_ok);
            last.insert(name, (*adds, confirmed));
        }
        for (name, (adds, confirmed)) in last {
            let is_there = known.get(name).is_some();
            assert!(!confirmed || is_there == adds, "seed {seed}: {name} {adds}: {}", w.describe());
        }
    }
}
