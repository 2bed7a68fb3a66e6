//! From lines to transactions of the remote: what is whole can be written; what is not waits here, or is written without a commit
//! when it is large.
//!
//! Most providers write a transaction without a break. Some mix them, so each is gathered by its number.

use super::events::{Change, Event};
use super::fault::{Fault, Result};
use std::collections::BTreeMap;

/// An incomplete transaction of more bytes than this is written before its end has come.
const HELD_BYTES: usize = 4 << 20;
/// All that are incomplete together.
const HELD_BYTES_MAX: usize = 64 << 20;

/// A transaction of the remote, or a piece of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Where it ended.
    pub tick: u64,
    /// Where the log must be read again by whoever has this and everything before it.
    pub resume: u64,
    pub changes: Vec<Change>,
}

/// What is to be done about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// A whole transaction; where one is being written piece by piece, in that one's transaction here.
    Whole(Unit),
    /// A piece of a large transaction: nothing is committed before its end.
    Piece(Vec<Change>),
    /// The last piece.
    Last(Unit),
    /// What was written of a large transaction is to be undone, if something was, and the log to be read again with what is
    /// known now ([`Transactions::known`]).
    Undo,
    /// Something that happens to no document.
    Other(Event),
}

#[derive(Debug, Default)]
struct Open {
    /// Where it began.
    begun: u64,
    changes: Vec<Change>,
    bytes: usize,
    /// It is large, and seems to be here already: its changes are passed over.
    passed: bool,
}

/// What one reading of the log finds out for the next one, by the numbers of transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Those that were begun piece by piece and did not come to their end: they are passed over.
    aborted: Vec<u64>,
    /// Large ones of which a part is behind the last whole transaction that is here, and so their end.
    due: Vec<u64>,
}

/// Transactions as the log brings them.
#[derive(Debug, Default)]
pub struct Transactions {
    /// What ended at this tick or before is here already.
    applied: u64,
    open: BTreeMap<u64, Open>,
    bytes: usize,
    /// The one that is written piece by piece.
    flowing: Option<u64>,
    known: Known,
}

impl Transactions {
    /// `known`: from the reading before this one.
    pub fn new(applied: u64, known: Known) -> Transactions {
        Transactions { applied, known, ..Transactions::default() }
    }

    /// For the next reading.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Some transaction is incomplete.
    pub fn is_incomplete(&self) -> bool {
        !self.open.is_empty()
    }

    /// Where the log must be read again, if everything else up to this tick is here.
    pub fn resume(&self, processed: u64) -> u64 {
        let begun = self.open.values().map(|open| open.begun.saturating_sub(1)).min();
        begun.map_or(processed, |begun| begun.min(processed))
    }

    /// # Errors
    /// There are more incomplete transactions than can be held.
    pub fn take(&mut self, tick: u64, event: Event) -> Result<Step> {
        let step = match event {
            Event::Begin(tid) => {
                self.forget(tid);
                self.open.insert(tid, Open { begun: tick, ..Open::default() });
                Step::Nothing
            }
            Event::Change(tid, change) => match self.open.get_mut(&tid) {
                Some(_) if self.known.aborted.contains(&tid) => Step::Nothing,
                Some(open) if open.passed => self.pass(tick, tid),
                Some(open) => {
                    let size = change.line.len();
                    open.bytes += size;
                    self.bytes += size;
                    open.changes.push(change);
                    self.pieces(tick, tid)?
                }
                None if tick <= self.applied => Step::Nothing,
                None => Step::Whole(Unit { tick, resume: self.resume(tick), changes: vec![change] }),
            },
            Event::Commit(tid) => self.commit(tick, tid),
            // What is incomplete beside it is read again, too.
            Event::Abort(tid) if self.flowing == Some(tid) => self.break_off(),
            Event::Abort(tid) => {
                self.forget(tid);
                Step::Nothing
            }
            Event::Break => self.break_off(),
            Event::Fate(..) if tick <= self.applied => Step::Nothing,
            other => Step::Other(other),
        };
        Ok(step)
    }

    fn commit(&mut self, tick: u64, tid: u64) -> Step {
        let flowed = self.flowing == Some(tid);
        let Some(open) = self.forget(tid) else { return Step::Nothing };
        if open.passed {
            return self.pass(tick, tid);
        }
        let unit = Unit { tick, resume: self.resume(tick), changes: open.changes };
        match flowed {
            true => {
                self.flowing = None;
                Step::Last(unit)
            }
            false if tick <= self.applied || self.known.aborted.contains(&tid) => Step::Nothing,
            false => Step::Whole(unit),
        }
    }

    /// More of a large transaction that seemed to be here already. Something of it behind what is here says that it is not.
    fn pass(&mut self, tick: u64, tid: u64) -> Step {
        if tick <= self.applied {
            return Step::Nothing;
        }
        self.known.due.push(tid);
        Step::Undo
    }

    /// Nothing that is incomplete will be completed.
    fn break_off(&mut self) -> Step {
        self.open.clear();
        self.bytes = 0;
        match self.flowing.take() {
            Some(tid) => {
                self.known.aborted.push(tid);
                Step::Undo
            }
            None => Step::Nothing,
        }
    }

    fn forget(&mut self, tid: u64) -> Option<Open> {
        let open = self.open.remove(&tid)?;
        self.bytes -= open.bytes;
        Some(open)
    }

    /// Lets a transaction flow that has become large.
    fn pieces(&mut self, tick: u64, tid: u64) -> Result<Step> {
        let may = self.flowing.is_none_or(|flowing| flowing == tid);
        // Read again because of another one that was incomplete. It may have ended before what is here, and then what it says
        // of its rows is old.
        let doubtful = tick <= self.applied && !self.known.due.contains(&tid);
        match self.open.get_mut(&tid) {
            Some(open) if doubtful && open.bytes > HELD_BYTES => {
                open.passed = true;
                open.changes.clear();
                self.bytes -= std::mem::take(&mut open.bytes);
                Ok(Step::Nothing)
            }
            Some(open) if may && open.bytes > HELD_BYTES => {
                self.flowing = Some(tid);
                self.bytes -= std::mem::take(&mut open.bytes);
                Ok(Step::Piece(std::mem::take(&mut open.changes)))
            }
            _ if self.bytes > HELD_BYTES_MAX => Err(Fault::stopped(
                500,
                format!(
                    "several large transactions of the remote are open at a time, more than {HELD_BYTES_MAX} bytes together"
                ),
            )),
            _ => Ok(Step::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::{Collection, Op};
    use super::*;

    fn change(tick: u64, size: usize) -> Change {
        let collection = Collection::Name("t".to_owned());
        Change { tick, collection, key: tick.to_string(), op: Op::Remove, line: "x".repeat(size) }
    }

    fn take(all: &mut Transactions, tick: u64, event: Event) -> Step {
        all.take(tick, event).unwrap()
    }

    #[test]
    fn a_transaction_is_whole_at_its_end() {
        let mut all = Transactions::new(10, Known::default());
        // What is here already is passed over.
        assert_eq!(take(&mut all, 9, Event::Begin(1)), Step::Nothing);
        assert_eq!(take(&mut all, 9, Event::Change(1, change(9, 1))), Step::Nothing);
        assert_eq!(take(&mut all, 10, Event::Commit(1)), Step::Nothing);
        assert_eq!(take(&mut all, 10, Event::Change(0, change(10, 1))), Step::Nothing);
        // Two that mix, and one change between them.
        assert_eq!(take(&mut all, 11, Event::Begin(2)), Step::Nothing);
        assert_eq!(take(&mut all, 12, Event::Begin(3)), Step::Nothing);
        assert_eq!(take(&mut all, 13, Event::Change(2, change(13, 1))), Step::Nothing);
        let alone = Step::Whole(Unit { tick: 14, resume: 10, changes: vec![change(14, 1)] });
        assert_eq!(take(&mut all, 14, Event::Change(0, change(14, 1))), alone);
        assert_eq!(all.resume(14), 10);
        let three = Step::Whole(Unit { tick: 15, resume: 10, changes: vec![] });
        assert_eq!(take(&mut all, 15, Event::Commit(3)), three);
        let two = Step::Whole(Unit { tick: 16, resume: 16, changes: vec![change(13, 1)] });
        assert_eq!(take(&mut all, 16, Event::Commit(2)), two);
        assert_eq!(all.resume(16), 16);
        // One that was given up, and one that the logger's end left incomplete.
        take(&mut all, 17, Event::Begin(4));
        take(&mut all, 18, Event::Change(4, change(18, 1)));
        assert_eq!(take(&mut all, 19, Event::Abort(4)), Step::Nothing);
        take(&mut all, 20, Event::Begin(5));
        assert_eq!(take(&mut all, 21, Event::Break), Step::Nothing);
        assert_eq!(take(&mut all, 22, Event::Commit(5)), Step::Nothing);
        assert_eq!(all.resume(22), 22);
    }

    #[test]
    fn a_large_transaction_flows() {
        let mut all = Transactions::new(0, Known::default());
        take(&mut all, 1, Event::Begin(7));
        assert_eq!(take(&mut all, 2, Event::Change(7, change(2, 1000))), Step::Nothing);
        let Step::Piece(piece) = take(&mut all, 3, Event::Change(7, change(3, HELD_BYTES))) else { panic!() };
        assert_eq!((piece.len(), all.flowing, all.resume(3)), (2, Some(7), 0));
        assert_eq!(take(&mut all, 4, Event::Change(7, change(4, 1))), Step::Nothing);
        let last = Step::Last(Unit { tick: 5, resume: 5, changes: vec![change(4, 1)] });
        assert_eq!(take(&mut all, 5, Event::Commit(7)), last);
        assert_eq!((all.flowing, all.resume(5), all.bytes), (None, 5, 0));
        // One that is given up, and is passed over when it is read again.
        take(&mut all, 6, Event::Begin(8));
        take(&mut all, 7, Event::Change(8, change(7, HELD_BYTES + 1)));
        assert_eq!(take(&mut all, 8, Event::Abort(8)), Step::Undo);
        let mut again = Transactions::new(5, all.known());
        take(&mut again, 6, Event::Begin(8));
        assert_eq!(take(&mut again, 7, Event::Change(8, change(7, HELD_BYTES + 1))), Step::Nothing);
        assert_eq!(take(&mut again, 8, Event::Abort(8)), Step::Nothing);
    }

    #[test]
    fn a_large_transaction_that_is_here_already_is_not_written_again() {
        // The first one was open at the last position, so everything since it began is read again.
        let begun = |known: Known| {
            let mut all = Transactions::new(16, known);
            take(&mut all, 11, Event::Begin(1));
            take(&mut all, 12, Event::Begin(2));
            all
        };
        let large = || Event::Change(2, change(13, HELD_BYTES + 1));
        let mut all = begun(Known::default());
        assert_eq!(take(&mut all, 13, large()), Step::Nothing);
        assert_eq!(take(&mut all, 14, Event::Change(1, change(14, 1))), Step::Nothing);
        assert_eq!(take(&mut all, 15, Event::Commit(2)), Step::Nothing);
        let first = Step::Whole(Unit { tick: 17, resume: 17, changes: vec![change(14, 1)] });
        assert_eq!(take(&mut all, 17, Event::Commit(1)), first);
        assert_eq!((all.known(), all.bytes), (Known::default(), 0));
        // One that ends behind what is here is read again, and flows then.
        for end in [Event::Change(2, change(17, 1)), Event::Commit(2)] {
            let mut all = begun(Known::default());
            assert_eq!(take(&mut all, 13, large()), Step::Nothing);
            assert_eq!(take(&mut all, 17, end), Step::Undo);
            let mut again = begun(all.known());
            assert_eq!(take(&mut again, 13, large()), Step::Piece(vec![change(13, HELD_BYTES + 1)]));
            let last = Step::Last(Unit { tick: 18, resume: 10, changes: vec![] });
            assert_eq!(take(&mut again, 18, Event::Commit(2)), last);
        }
    }

    #[test]
    fn what_is_incomplete_has_a_limit() {
        let mut all = Transactions::new(0, Known::default());
        let mut refused = None;
        for tid in 1..100 {
            take(&mut all, tid, Event::Begin(tid));
            refused = all.take(tid, Event::Change(tid, change(tid, HELD_BYTES - 1))).err();
            if refused.is_some() {
                break;
            }
        }
        assert!(refused.unwrap().message.contains("large transactions"));
    }
}
