//! For each key there is one order: the list at the end. Every list that anybody saw is a beginning of it, and it agrees
//! with what was over before what began.

use super::{Violation, seconds, told, violation};
use crate::history::{Call, Op, Outcome, Seen};
use crate::state::State;
use std::collections::BTreeMap;

/// Reads that a replaced leader answered with what it knew. That is not promised away (docs/guarantees.md), so they are
/// counted and not condemned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    pub reads: u64,
    /// Microseconds between the acknowledgement that the oldest of them lacks and its own beginning.
    pub oldest: u64,
}

/// What somebody saw of a key, or an append of which it is known when it was over.
struct Step<'a> {
    call: &'a Call,
    /// How much of the list at the end it saw, its own append included.
    length: usize,
}

pub fn check(calls: &[Call], last: &State, stale: &mut Stale) -> Vec<Violation> {
    let mut by_key: BTreeMap<i64, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        if let Op::Append { key, .. } | Op::Read { key } = call.op {
            by_key.entry(key).or_default().push(call);
        }
    }
    let empty = Vec::new();
    let mut found = Vec::new();
    for (key, calls) in by_key {
        let order = last.lists.get(&key).unwrap_or(&empty);
        let (steps, strange) = prefixes(key, &calls, order);
        found.extend(strange);
        found.extend(real_time(key, &calls, &steps, order, stale));
    }
    let (prefix, order): (Vec<_>, Vec<_>) = found.into_iter().partition(|v| v.rule == PREFIX);
    [told(prefix.into_iter()), told(order.into_iter())].concat()
}

const PREFIX: &str = "lists are beginnings of one order";
const REAL_TIME: &str = "the order agrees with real time";

fn prefixes<'a>(key: i64, calls: &[&'a Call], order: &[u64]) -> (Vec<Step<'a>>, Vec<Violation>) {
    let (mut steps, mut found) = (Vec::new(), Vec::new());
    for call in calls {
        let Outcome::Ok(Seen::List(list)) = &call.outcome else { continue };
        let own_last = match call.op {
            Op::Append { id, .. } => list.last() == Some(&id),
            _ => true,
        };
        if own_last && order.starts_with(list) {
            steps.push(Step { call, length: list.len() });
            continue;
        }
        let at = list.iter().zip(order).take_while(|(a, b)| a == b).count();
        let text = format!(
            "node {} (session of epoch {}) answered {:?} at {:.3} s with {} numbers; from number {} on they are {:?}, at the \
             end {:?}",
            call.node,
            call.epoch,
            call.op,
            seconds(call.end),
            list.len(),
            at + 1,
            &list[at..list.len().min(at + 5)],
            &order[at..order.len().min(at + 5)]
        );
        found.push(violation(PREFIX, format!("key {key}: {text}")));
    }
    (steps, found)
}

/// What began after an answer must see at least what that answer saw, and is no earlier in the order.
fn real_time(key: i64, calls: &[&Call], steps: &[Step], order: &[u64], stale: &mut Stale) -> Vec<Violation> {
    let mut ended: Vec<&Step> = steps.iter().collect();
    ended.sort_by_key(|s| s.call.end);
    let position = |id: u64| order.iter().position(|n| *n == id);
    // Those whose answer is not known take part as soon as they are found in the order.
    let mut later: Vec<(&Call, usize)> = calls
        .iter()
        .filter_map(|call| match (&call.outcome, &call.op) {
            (Outcome::Unknown(_), Op::Append { id, .. }) => Some((*call, position(*id)? + 1)),
            _ => None,
        })
        .chain(steps.iter().map(|s| (s.call, s.length)))
        .collect();
    later.sort_by_key(|(call, _)| call.start);
    let mut ended = ended.into_iter().peekable();
    let mut most: Option<&Step> = None;
    let mut found = Vec::new();
    for (call, length) in later {
        while let Some(step) = ended.next_if(|s| s.call.end < call.start) {
            if most.is_none_or(|m| step.length > m.length) {
                most = Some(step);
            }
        }
        let Some(before) = most else { continue };
        let is_append = matches!(call.op, Op::Append { .. });
        // An append adds one to what was there.
        if length >= before.length + usize::from(is_append) {
            continue;
        }
        if !is_append && call.node != before.call.node && call.epoch < before.call.epoch {
            stale.reads += 1;
            stale.oldest = stale.oldest.max(call.start - before.call.end);
            continue;
        }
        let text = format!(
            "{:?} by node {} (session of epoch {}) began at {:.3} s and takes place {length}, but {:?} by node {} (session of \
             epoch {}) had seen {} at {:.3} s",
            call.op,
            call.node,
            call.epoch,
            seconds(call.start),
            before.call.op,
            before.call.node,
            before.call.epoch,
            before.length,
            seconds(before.call.end)
        );
        found.push(violation(REAL_TIME, format!("key {key}: {text}")));
    }
    found
}
