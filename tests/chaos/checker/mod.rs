//! Whether what the clients were told, and what is in the database at the end, can both be true. Each rule is a function
//! of its own with a forged history in `tests.rs` that breaks it.

mod lists;
mod writers;

#[cfg(test)]
mod tests;

use crate::history::{Call, Op, Outcome, Seen};
use crate::state::State;
use std::collections::{BTreeMap, BTreeSet};

pub use lists::Stale;

/// Of one rule no more than this many are told.
const TOLD: usize = 10;

/// A rule that was broken, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub text: String,
}

fn violation(rule: &'static str, text: String) -> Violation {
    Violation { rule, text }
}

/// Everything that is checked.
pub struct Evidence<'a> {
    pub calls: &'a [Call],
    /// By node; empty if they could not be read.
    pub states: &'a [(u64, State)],
    /// Accounts and their sum at the beginning.
    pub accounts: i64,
    pub start_balance: i64,
    /// After each heal: the seconds until a write was acknowledged, `None` if none was while it was awaited.
    pub recoveries: &'a [(String, Option<f64>)],
    /// How many seconds that may take.
    pub writable_within: f64,
}

/// All violations, and the reads that were older than they might be without breaking a promise.
pub fn check(evidence: &Evidence) -> (Vec<Violation>, Stale) {
    let mut found = Vec::new();
    found.extend(writable_again(evidence));
    found.extend(same_everywhere(evidence));
    found.extend(sums(evidence));
    found.extend(writers::one_at_a_time(evidence.calls));
    let mut stale = Stale::default();
    if let Some((_, last)) = evidence.states.first() {
        found.extend(acknowledged_is_there(evidence.calls, last));
        found.extend(refused_is_not_there(evidence.calls, last));
        found.extend(nothing_foreign(evidence.calls, last));
        found.extend(balances_add_up(evidence, last));
        found.extend(lists::check(evidence.calls, last, &mut stale));
    } else {
        found.push(violation("readable", "no node's data could be read at the end".to_owned()));
    }
    (found, stale)
}

/// The number of a write.
fn number(op: &Op) -> Option<u64> {
    match op {
        Op::Insert { id } | Op::Transfer { id, .. } | Op::Append { id, .. } => Some(*id),
        Op::Balances { .. } | Op::Read { .. } => None,
    }
}

fn is_there(op: &Op, state: &State) -> bool {
    match op {
        Op::Insert { id } => state.inserts.binary_search(id).is_ok(),
        Op::Transfer { id, .. } => state.transfers.contains_key(id),
        Op::Append { id, key } => state.lists.get(key).is_some_and(|list| list.contains(id)),
        Op::Balances { .. } | Op::Read { .. } => true,
    }
}

fn acknowledged_is_there(calls: &[Call], last: &State) -> Vec<Violation> {
    let missing = |c: &&Call| c.acknowledged() && !is_there(&c.op, last);
    told(calls.iter().filter(missing).map(|c| {
        let warned = if c.warned { ", with the warning that standbys were not waited for" } else { "" };
        let text = format!(
            "{:?} was acknowledged by node {} (session of epoch {}) from {:.3} s to {:.3} s{warned}, and is missing",
            c.op,
            c.node,
            c.epoch,
            seconds(c.start),
            seconds(c.end)
        );
        violation("acknowledged is there", text)
    }))
}

fn refused_is_not_there(calls: &[Call], last: &State) -> Vec<Violation> {
    let refused = calls.iter().filter_map(|c| match &c.outcome {
        Outcome::Failed(why) if c.op.is_write() && is_there(&c.op, last) => Some((c, why)),
        _ => None,
    });
    told(refused.map(|(c, why)| {
        let text = format!(
            "{:?} was refused by node {} at {:.3} s ({why}), and is there",
            c.op,
            c.node,
            seconds(c.end)
        );
        violation("refused is not there", text)
    }))
}

/// Only what was asked for is there, and once.
fn nothing_foreign(calls: &[Call], last: &State) -> Vec<Violation> {
    let asked: BTreeSet<u64> = calls.iter().filter_map(|c| number(&c.op)).collect();
    let there = last.inserts.iter().chain(last.transfers.keys()).chain(last.lists.values().flatten());
    let mut seen = BTreeSet::new();
    told(there.filter(|id| !seen.insert(**id) || !asked.contains(id)).map(|id| {
        let text = format!("number {id} is there twice, or was never asked for");
        violation("once and asked for", text)
    }))
}

/// In every snapshot there is as much money as at the beginning.
fn sums(evidence: &Evidence) -> Vec<Violation> {
    let whole = (evidence.accounts, evidence.accounts * evidence.start_balance);
    let seen = evidence.calls.iter().filter_map(|c| match c.outcome {
        Outcome::Ok(Seen::Balances(count, sum)) if (count, sum) != whole => Some((c, count, sum)),
        _ => None,
    });
    told(seen.map(|(c, count, sum)| {
        let text = format!(
            "at {:.3} s node {} showed {count} accounts with {sum}, there are {} with {}",
            seconds(c.start),
            c.node,
            whole.0,
            whole.1
        );
        violation("sums", text)
    }))
}

/// Every balance is what the transfers that are there make of it: no half of a transfer, none twice.
fn balances_add_up(evidence: &Evidence, last: &State) -> Vec<Violation> {
    let mut must: BTreeMap<i32, i64> =
        (1..=evidence.accounts as i32).map(|id| (id, evidence.start_balance)).collect();
    for moved in last.transfers.values() {
        *must.entry(moved.from).or_default() -= moved.amount;
        *must.entry(moved.to).or_default() += moved.amount;
    }
    if must == last.accounts {
        return Vec::new();
    }
    let text = format!("the transfers that are there make {must:?}, the accounts show {:?}", last.accounts);
    vec![violation("balances add up", text)]
}

fn same_everywhere(evidence: &Evidence) -> Vec<Violation> {
    let Some((first, reference)) = evidence.states.first() else { return Vec::new() };
    told(evidence.states.iter().filter(|(_, state)| state != reference).map(|(node, state)| {
        let differ = |name, same: bool| if same { "" } else { name };
        let text = format!(
            "nodes {first} and {node} differ in{}{}{}{}",
            differ(" inserts", state.inserts == reference.inserts),
            differ(" transfers", state.transfers == reference.transfers),
            differ(" accounts", state.accounts == reference.accounts),
            differ(" lists", state.lists == reference.lists)
        );
        violation("the same on all nodes", text)
    }))
}

fn writable_again(evidence: &Evidence) -> Vec<Violation> {
    let limit = evidence.writable_within;
    let late = |within: &Option<f64>| within.is_none_or(|s| s > limit);
    told(evidence.recoveries.iter().filter(|(_, within)| late(within)).map(|(faults, within)| {
        let when = within.map_or("not at all".to_owned(), |s| format!("after {s:.1} s"));
        violation(
            "writable soon",
            format!("after {faults} were healed, a write was acknowledged {when}, not within {limit} s"),
        )
    }))
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The first of them, and how many more there are.
fn told(all: impl Iterator<Item = Violation>) -> Vec<Violation> {
    let mut all: Vec<Violation> = all.collect();
    let more = all.len().saturating_sub(TOLD);
    all.truncate(TOLD);
    if more > 0 {
        let rule = all[0].rule;
        all.push(violation(rule, format!("… and {more} more")));
    }
    all
}
