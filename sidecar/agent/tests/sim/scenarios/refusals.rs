//! What a leader refuses to do for an administrator, by the word that programs go by.

use super::{at_work, heals, others};
use crate::postgres::What;
use crate::world::{Setup, World};
use pgquorum_agent::member::Role;
use pgquorum_agent::request::{Rejection, RejectionKind, Request};
use pgquorum_agent::settings::SettingsPatch;
use pgquorum_agent::types::NodeId;

/// A leader waits so long for its own work before it answers, and some more.
const ANSWER_MS: u64 = 8000;

/// Asks for what must be refused.
fn refused(w: &mut World, leader: NodeId, request: Request) -> Rejection {
    let text = format!("{request:?}");
    let id = w.request(leader, request);
    let end = w.now + ANSWER_MS;
    assert!(w.run_until(end, |w| w.reply(id).is_some()), "{text} is not answered: {}", w.describe());
    w.assert_sound();
    w.reply(id).unwrap().clone().unwrap_err()
}

/// The same for what the state of the cluster does not allow.
fn precondition(w: &mut World, leader: NodeId, request: Request) -> (String, String) {
    let rejection = refused(w, leader, request);
    assert_eq!(rejection.kind, RejectionKind::Precondition, "{rejection:?}");
    (rejection.code, rejection.message)
}

fn upgrade(node: NodeId) -> Request {
    Request::UpgradeNode { node, db_port: 5000 + node as u16, api_port: 8000 + node as u16 }
}

fn largest_number(text: &str) -> u64 {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
    numbers.max().unwrap_or(0)
}

#[test]
fn the_last_node_stays() {
    let (mut w, leader) = at_work(Setup::new(1, 1));
    assert_eq!(precondition(&mut w, leader, Request::RemoveNode { node: leader }).0, "last_node");
    heals(w);
}

#[test]
fn the_leader_is_neither_removed_nor_marked_down() {
    let (mut w, leader) = at_work(Setup::new(2, 3));
    let down = Request::NodeDown { node: leader, reason: "a mistake".to_owned() };
    assert_eq!(precondition(&mut w, leader, Request::RemoveNode { node: leader }).0, "is_leader");
    assert_eq!(precondition(&mut w, leader, down).0, "is_leader");
    heals(w);
}

#[test]
fn a_witness_becomes_no_node_and_is_not_marked_down() {
    let mut setup = Setup::new(3, 2);
    setup.witness = true;
    let (mut w, leader) = at_work(setup);
    let (witness, down) = (3, Request::NodeDown { node: 3, reason: "a mistake".to_owned() });
    assert_eq!(precondition(&mut w, leader, upgrade(witness)).0, "wrong_role");
    assert_eq!(precondition(&mut w, leader, down).0, "wrong_role");
    assert_eq!(precondition(&mut w, leader, Request::ChangeLeader { node: witness }).0, "cannot_lead");
    heals(w);
}

#[test]
fn a_node_is_one_already() {
    let (mut w, leader) = at_work(Setup::new(4, 3));
    for node in [leader, others(&w, leader)[0]] {
        assert_eq!(precondition(&mut w, leader, upgrade(node)).0, "already_a_node");
    }
    heals(w);
}

#[test]
fn a_listener_that_has_not_caught_up_becomes_no_node_and_it_is_said_what_it_lacks() {
    let (mut w, leader) = at_work(Setup::new(5, 3));
    let node = w.join(leader, Role::Listener);
    let added = w.next_request - 1;
    w.kill_node(node);
    let end = w.now + ANSWER_MS;
    assert!(w.run_until(end, |w| w.reply(added).is_some()), "{}", w.describe());
    let (code, message) = precondition(&mut w, leader, upgrade(node));
    assert!(code == "not_caught_up" && message.contains("never heard of"), "{code}: {message}");

    // It is known from its first word on; its copy takes longer.
    w.copy_ms = 10_000;
    w.start(node);
    let end = w.now + ANSWER_MS;
    let known = w.run_until(end, |w| {
        let cluster = w.machines[&leader].agent.as_ref().unwrap().cluster();
        cluster.member(node).is_some_and(|m| m.identity.is_some())
    });
    assert!(known, "{}", w.describe());
    let (code, message) = precondition(&mut w, leader, upgrade(node));
    assert!(code == "not_caught_up" && message.contains("does not stream"), "{code}: {message}");

    let end = w.now + 30_000;
    assert!(w.run_until(end, |w| w.machines[&node].server.receiver.is_some()), "{}", w.describe());
    w.run(1000);
    w.net.wal_blocks.insert((leader, node));
    w.append_of(leader, What::Write, 2 << 20);
    w.run(300);
    let (code, message) = precondition(&mut w, leader, upgrade(node));
    assert!(code == "not_caught_up" && largest_number(&message) >= 2 << 20, "{code}: {message}");

    w.net.wal_blocks.clear();
    w.run(1000);
    let id = w.request(leader, upgrade(node));
    let end = w.now + 20_000;
    assert!(w.run_until(end, |w| w.reply(id).is_some_and(|r| r.is_ok())), "{:?}", w.reply(id));
    heals(w);
}

#[test]
fn a_standby_that_is_far_behind_is_not_made_the_leader_and_it_is_said_how_far() {
    let (mut w, leader) = at_work(Setup::new(6, 3));
    let node = others(&w, leader)[0];
    w.net.wal_blocks.insert((leader, node));
    w.append_of(leader, What::Write, 17 << 20);
    w.run(300);
    let (code, message) = precondition(&mut w, leader, Request::ChangeLeader { node });
    assert!(code == "behind" && largest_number(&message) >= 17 << 20, "{code}: {message}");
    w.net.wal_blocks.clear();
    heals(w);
}

#[test]
fn one_change_at_a_time() {
    let (mut w, leader) = at_work(Setup::new(7, 3));
    let of = |k| {
        let quorum_replication = Some(false);
        let patch =
            SettingsPatch { quorum_replication, replication_factor: Some(k), ..SettingsPatch::default() };
        Request::SetSettings { patch }
    };
    // Cannot be complete: a standby is gone.
    w.kill_node(others(&w, leader)[0]);
    let first = w.request(leader, of(2));
    w.run(300);
    let second = refused(&mut w, leader, of(1));
    assert_eq!((second.kind, second.code.as_str()), (RejectionKind::ChangeInFlight, "change_in_flight"));
    assert!(w.reply(first).is_none(), "it still waits");
    heals(w);
}
