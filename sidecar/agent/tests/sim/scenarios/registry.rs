//! Servers of others that register: none is lost, whoever leads, and all nodes know the same ones.

use super::{at_work, isolate, next_primary};
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::registry::{Registration, Registry, RegistryChange, RegistryOutcome};
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::types::NodeId;
use rand::Rng;
use std::collections::BTreeMap;

fn register(name: &str, at: u64) -> RegistryChange {
    let server = Registration {
        server: name.to_owned(),
        public_url: "https://shop".to_owned(),
        cluster_url: format!("http://{name}"),
        location: serde_json::Value::Null,
    };
    RegistryChange::Register { kind: "shop".to_owned(), service: "id".to_owned(), server, at }
}

fn remove(name: &str, not_after: Option<u64>) -> RegistryChange {
    RegistryChange::Remove { service: "id".to_owned(), server: name.to_owned(), not_after, at: 1 }
}

fn ask(w: &mut World, node: NodeId, changes: Vec<RegistryChange>) -> u64 {
    let batch = w.rng.random();
    w.request(node, Request::Registry { batch, changes })
}

fn must(w: &mut World, leader: NodeId, changes: Vec<RegistryChange>) -> Vec<RegistryOutcome> {
    let id = ask(w, leader, changes);
    let end = w.now + 5000;
    assert!(w.run_until(end, |w| w.reply(id).is_some()), "it is not answered: {}", w.describe());
    match w.reply(id) {
        Some(Ok(Reply::Registry { outcomes })) => outcomes.clone(),
        other => panic!("{other:?}: {}", w.describe()),
    }
}

fn registry(w: &World, node: NodeId) -> Registry {
    let agent = w.machines[&node].agent.as_ref();
    agent.map(|agent| Registry::clone(&agent.cluster().registry)).unwrap_or_default()
}

fn names(registry: &Registry) -> Vec<String> {
    registry.of_type("shop").map_or_else(Vec::new, |shop| shop.servers.keys().cloned().collect())
}

/// Waits until all nodes know the same servers as this one.
fn agree(w: &mut World, node: NodeId) -> Vec<String> {
    let end = w.now + 20_000;
    let known = registry(w, node);
    let same = |w: &World| {
        let alive = w.machines.values().filter(|m| m.agent.is_some() && !m.retired);
        alive.map(|m| m.id).all(|id| registry(w, id) == known)
    };
    assert!(w.run_until(end, same), "nodes know different servers: {}", w.describe());
    w.assert_sound();
    names(&known)
}

#[test]
fn servers_are_known_on_every_node_and_after_a_failover_and_a_power_cut() {
    for seed in 0..10 {
        let (mut w, leader) = at_work(Setup::new(seed, 3));
        let done = [RegistryOutcome::Done, RegistryOutcome::Done];
        assert_eq!(must(&mut w, leader, vec![register("a", 1), register("b", 2)]), done);
        assert_eq!(agree(&mut w, leader), ["a", "b"]);
        let epoch = w.check.newest_epoch();
        w.kill_node(leader);
        let new = next_primary(&mut w, epoch, 8000);
        assert!(matches!(must(&mut w, new, vec![remove("a", Some(0))])[..], [RegistryOutcome::Newer { .. }]));
        must(&mut w, new, vec![remove("a", Some(1)), register("c", 3)]);
        w.start(leader);
        assert_eq!(agree(&mut w, new), ["b", "c"], "seed {seed}");
        for id in 1..=3 {
            w.kill_node(id);
        }
        for id in 1..=3 {
            w.start(id);
        }
        crate::seeds::finish(&mut w);
        let leader = w.open_leader().expect("it is healed");
        assert_eq!(agree(&mut w, leader), ["b", "c"], "seed {seed}");
    }
}

#[test]
fn registrations_at_the_same_time_are_all_there() {
    let (mut w, leader) = at_work(Setup::new(5, 3));
    let asked: Vec<u64> =
        (0..8).map(|i| ask(&mut w, leader, vec![register(&format!("s{i}"), 10 - i)])).collect();
    let end = w.now + 5000;
    assert!(w.run_until(end, |w| asked.iter().all(|id| w.reply(*id).is_some())), "{}", w.describe());
    for id in asked {
        assert!(matches!(w.reply(id), Some(Ok(Reply::Registry { .. }))), "{:?}", w.reply(id));
    }
    assert_eq!(agree(&mut w, leader).len(), 8);
}

#[test]
fn a_state_brings_servers_to_a_new_node() {
    let (mut w, leader) = at_work(Setup::new(3, 3));
    must(&mut w, leader, (0..200).map(|i| register(&format!("s{i}"), i)).collect());
    // More entries than the log holds without a state being taken.
    for i in 0..1200 {
        must(&mut w, leader, vec![register("again", i)]);
    }
    let snapshot = &w.machines[&leader].disk.state.snapshot;
    let taken = String::from_utf8(snapshot.data.clone()).expect("JSON");
    assert!(taken.contains("http://s7") && snapshot.get_metadata().index > 1000, "no state was taken");
    assert!(
        w.machines[&leader].agent.as_ref().expect("it runs").cluster().log.len() < 100,
        "it is in no log"
    );
    let new = w.join(leader, Role::Node);
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| registry(w, new).len() == 201), "{}", w.describe());
    agree(&mut w, leader);
    crate::seeds::finish(&mut w);
    w.assert_sound();
}

#[test]
fn what_is_too_much_is_refused_and_without_a_majority_nothing_is_confirmed() {
    let (mut w, old) = at_work(Setup::new(4, 3));
    let id = ask(&mut w, old, (0..300).map(|i| register(&format!("s{i}"), i)).collect());
    let end = w.now + 1000;
    assert!(w.run_until(end, |w| w.reply(id).is_some()));
    assert_eq!(w.reply(id).unwrap().clone().unwrap_err().code, "batch_too_large");
    let epoch = w.check.newest_epoch();
    isolate(&mut w, old);
    let id = ask(&mut w, old, vec![register("lost", 1)]);
    let new = next_primary(&mut w, epoch, 8000);
    must(&mut w, new, vec![register("kept", 1)]);
    w.heal_network();
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| w.reply(id).is_some()), "{}", w.describe());
    assert_eq!(w.reply(id).unwrap().clone().unwrap_err().code, "proposal_gone");
    assert_eq!(agree(&mut w, new), ["kept"]);
    crate::seeds::finish(&mut w);
}

/// What was confirmed under faults of all kinds is so in the end, and on every node.
#[test]
fn what_was_confirmed_lasts() {
    for seed in 0..40 {
        let (mut w, _) = at_work(Setup::new(seed, 3));
        let mut asked: Vec<(u64, String, bool)> = Vec::new();
        for i in 0..12u64 {
            let pause = w.rng.random_range(5..800);
            w.run(pause);
            if let Some(leader) = w.open_leader() {
                let (name, adds) = (format!("s{}", i % 5), w.rng.random_bool(0.7));
                let change = if adds { register(&name, i + 1) } else { remove(&name, None) };
                asked.push((ask(&mut w, leader, vec![change]), name, adds));
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
        // Only of a name that was asked for once it is certain which change came last.
        let mut last: BTreeMap<&str, Vec<(bool, bool)>> = BTreeMap::new();
        for (id, name, adds) in &asked {
            last.entry(name).or_default().push((*adds, w.reply(*id).is_some_and(Result::is_ok)));
        }
        for (name, changes) in last {
            let (adds, confirmed) = changes[changes.len() - 1];
            if confirmed && changes.iter().all(|(_, confirmed)| *confirmed) {
                assert_eq!(known.contains(&name.to_owned()), adds, "seed {seed}: {name}: {}", w.describe());
            }
        }
    }
}
