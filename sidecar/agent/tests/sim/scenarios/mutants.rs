//! Each safety rule, when broken, is noticed by a named scenario or by a bounded number of seeds; unbroken, the same
//! passes. Only with `--features mutants`.
#![cfg(feature = "mutants")]

use super::{members, memory, pledges, rejoin, sizes, stuck};
use crate::seeds::run_seed;
use pgquorum_agent::cluster::Cluster;
use pgquorum_agent::gate::{Gate, Verdict};
use pgquorum_agent::message::WalEnd;
use pgquorum_agent::rules::{Rule, break_rule};
use pgquorum_agent::types::Lsn;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a check for each number until one notices something. Returns which.
fn noticed(limit: u64, check: impl Fn(u64) -> bool) -> Option<u64> {
    (0..limit).find(|&n| !catch_unwind(AssertUnwindSafe(|| check(n))).unwrap_or(false))
}

fn caught(rule: Rule, by: &str, limit: u64, check: impl Fn(u64) -> bool) {
    break_rule(Some(rule));
    let first = noticed(limit, &check);
    break_rule(None);
    let Some(first) = first else { panic!("{rule:?} is broken and {by} does not notice in {limit} runs") };
    println!("{rule:?}: caught by {by}, run {} of at most {limit}", first + 1);
    assert_eq!(noticed(first + 1, &check), None, "{by} fails although no rule is broken");
}

fn seed_is_sound(seed: u64) -> bool {
    run_seed(seed).check.broken.is_none()
}

#[test]
fn pledges_needed() {
    caught(Rule::PledgesNeeded, "random seeds", 300, seed_is_sound);
}

#[test]
fn pledge_durable() {
    caught(Rule::PledgeDurable, "a_pledge_survives_a_restart", 20, pledges::pledge_survives_a_restart);
}

#[test]
fn reception_cut() {
    caught(Rule::ReceptionCut, "random seeds", 4000, seed_is_sound);
}

#[test]
fn position_by_epoch() {
    caught(Rule::PositionByEpoch, "a_later_epoch_beats_a_longer_log", 10, pledges::the_later_epoch_wins);
}

#[test]
fn promote_after_commit() {
    let by = "nothing_is_promoted_before_its_appointment_is_committed";
    caught(Rule::PromoteAfterCommit, by, 10, pledges::appointment_is_not_committed);
}

#[test]
fn grow_first_shrink_last() {
    caught(Rule::GrowFirstShrinkLast, "k_grows_first_and_shrinks_last", 10, members::k_moves);
}

#[test]
fn spread_before_shrink() {
    let by = "what_was_acknowledged_is_spread_before_fewer_must_pledge";
    caught(Rule::SpreadBeforeShrink, by, 10, sizes::marked_down_before_the_rest_has_everything);
}

#[test]
fn forgotten_never_votes() {
    let by = "a_node_that_lost_its_memory_is_not_heard_under_its_old_number";
    caught(Rule::ForgottenNeverVotes, by, 20, memory::amnesia);
}

#[test]
fn witness_never_counts() {
    caught(Rule::WitnessNeverCounts, "random seeds", 100, seed_is_sound);
}

#[test]
fn sync_barrier() {
    let by = "k_grows_only_when_enough_standbys_have_everything";
    caught(Rule::SyncBarrier, by, 10, members::k_grows_while_partitioned);
}

#[test]
fn lease_shorter_than_timeout() {
    caught(Rule::LeaseShorterThanTimeout, "weak_replication_still_fails_over", 10, sizes::weak_failover);
}

#[test]
fn fresh_timeline() {
    let by = "an_epoch_that_died_between_promotion_and_opening_is_carried_on_or_left";
    caught(Rule::FreshTimeline, by, 60, pledges::stuck_epoch);
}

#[test]
fn opening_waits() {
    caught(Rule::OpeningWaits, "random seeds", 20, seed_is_sound);
}

/// A pledge of a primary that still runs, and of one standby out of three nodes: not enough for the standby.
fn running_primary_does_not_count(_: u64) -> bool {
    let world = crate::world::World::new(crate::world::Setup::new(1, 3));
    let cluster: &Cluster = world.machines[&1].agent.as_ref().unwrap().cluster();
    let end = |running_primary| WalEnd { timeline: 1, lsn: Lsn(100), running_primary, stuck: false };
    let mut gate = Gate::default();
    gate.record(1, end(true));
    gate.record(2, end(false));
    gate.judge(cluster, 2, true) == Verdict::Wait
}

#[test]
fn running_primary_never_counts() {
    let by = "the gate with a running primary's pledge";
    caught(Rule::RunningPrimaryNeverCounts, by, 1, running_primary_does_not_count);
}

#[test]
fn restart_barrier() {
    let by = "clients_see_nothing_on_a_restarted_primary_that_is_taken_back";
    caught(Rule::RestartBarrier, by, 10, rejoin::restarted_primary);
}

#[test]
fn stuck_stays_stuck() {
    let by = "a_stuck_leader_stays_where_too_few_others_are_well";
    caught(Rule::StuckStaysStuck, by, 10, stuck::too_few_are_well);
}
