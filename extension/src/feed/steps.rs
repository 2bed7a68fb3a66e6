//! From a batch row to the log rows that a reader needs. Pure.

use super::entries::{Place, Transaction};

/// A log row to read, and which ticks it holds. How many changes end in it, the row itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub xid: u64,
    pub place: Place,
    pub ticks: Ticks,
}

/// What is known of a row's ticks before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticks {
    /// The first change that ends in it.
    From(u64),
    /// The last change that ends in it; if none does, the one before the change under way.
    UpTo(u64),
}

impl Ticks {
    /// First and last tick of a row in which so many changes end. None: the first is one above the last.
    pub fn of(self, changes: u64) -> (u64, u64) {
        match self {
            Self::From(first) => (first, first + changes - 1),
            Self::UpTo(last) => (last + 1 - changes, last),
        }
    }
}

/// The rows of a piece that a reader needs who has everything up to `after`. `begins`: it has no row of this reading
/// yet; then a transaction that it enters in the middle starts with its first row, for what that says about the whole
/// transaction, and with the row in which the change `after` ends, because the next one may begin there.
pub fn steps(transactions: &[Transaction], first_tick: u64, after: u64, begins: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut tick = first_tick - 1;
    for transaction in transactions {
        let before = tick;
        tick += transaction.changes();
        if tick > after {
            let from = steps.len();
            add(&mut steps, transaction, before, after);
            if begins && from == 0 {
                enter(&mut steps, transaction, before, after);
            }
        }
    }
    steps
}

/// The rows of one transaction, from the one on in which the change `after` ends.
fn add(steps: &mut Vec<Step>, transaction: &Transaction, before: u64, after: u64) {
    let mut tick = before;
    for row in &transaction.rows {
        tick += u64::from(row.changes);
        if after <= before || tick >= after {
            steps.push(Step { xid: transaction.xid, place: row.place, ticks: Ticks::UpTo(tick) });
        }
    }
}

/// Puts before the first step what is needed to begin there.
fn enter(steps: &mut Vec<Step>, transaction: &Transaction, before: u64, after: u64) {
    let Some(starts_at) = steps.first().map(|step| step.place) else { return };
    let xid = transaction.xid;
    let at_front = transaction.rows.first().is_some_and(|row| row.place == starts_at);
    let (first, changes_before) = match transaction.continued {
        None if at_front => return,
        None => (transaction.rows[0].place, 0),
        Some(continued) => {
            if at_front && after <= before {
                steps.insert(0, Step { xid, place: continued.previous, ticks: Ticks::UpTo(before) });
            }
            (continued.first, continued.changes_before)
        }
    };
    if steps[0].place != first {
        steps.insert(0, Step { xid, place: first, ticks: Ticks::From(before + 1 - changes_before) });
    }
}

#[cfg(test)]
#[path = "../tests/feed_steps_unit.rs"]
mod unit;
