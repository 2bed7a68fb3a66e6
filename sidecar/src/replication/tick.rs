//! Ticks of this interface: one number for a place in the log, growing over failovers.
//!
//! A position of a channel is an epoch and the number of a change; the number alone may mean another change after a
//! failover that lost some. Here both are in one number, and what is written about one change takes four steps:
//!
//! ```text
//! tick = epoch (20 bits) · number of the change (42 bits) · step (2 bits)
//! step = 0: its transaction begins | 1: the row under its old key goes | 2: the change | 3: its transaction ends
//! ```
//!
//! A change that is a transaction of its own has step 3. So the last line of a transaction always has step 3, and with it
//! the end of the log.

use super::error::Failure;
use crate::feed::Position;
use std::fmt;

const STEP_BITS: u32 = 2;
const CHANGE_BITS: u32 = 42;
const CHANGE_MAX: u64 = (1 << CHANGE_BITS) - 1;
const EPOCH_MAX: u64 = (1 << (64 - CHANGE_BITS - STEP_BITS)) - 1;

/// What is written about one change, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Begin = 0,
    OldKey = 1,
    Change = 2,
    End = 3,
}

/// A place in the log. 0 is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    pub const MAX: Tick = Tick(u64::MAX);

    /// # Errors
    /// There have been more epochs or changes than a tick can say.
    pub fn new(at: Position, step: Step) -> Result<Tick, Failure> {
        if at.epoch > EPOCH_MAX || at.tick > CHANGE_MAX {
            return Err(Failure::internal(format!(
                "position {at} is beyond what a tick of this interface holds (epoch {EPOCH_MAX}, change {CHANGE_MAX}); \
                 follow the channel itself, with GET /channels/_logger/stream"
            )));
        }
        Ok(Tick((at.epoch << (CHANGE_BITS + STEP_BITS)) | (at.tick << STEP_BITS) | step as u64))
    }

    /// Where the log ends that ends with this change.
    ///
    /// # Errors
    /// As [`Tick::new`].
    pub fn end(at: Position) -> Result<Tick, Failure> {
        Tick::new(at, Step::End)
    }

    /// After which position the log is read by whoever has everything up to this tick. It may bring a change once more
    /// of which the reader has only a part.
    pub fn read_after(self) -> Position {
        let (epoch, tick) = (self.epoch(), (self.0 >> STEP_BITS) & CHANGE_MAX);
        let whole = self.0 & 3 == Step::End as u64;
        Position { epoch, tick: if whole { tick } else { tick.saturating_sub(1) } }
    }

    pub fn epoch(self) -> u64 {
        self.0 >> (CHANGE_BITS + STEP_BITS)
    }

    /// As it stands in a query; `None`: no number of 64 bits.
    pub fn parse(text: &str) -> Option<Tick> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok().map(Tick)).flatten()
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, tick: u64) -> Position {
        Position { epoch, tick }
    }

    #[test]
    fn ticks_grow_with_the_log_and_over_epochs() {
        let steps = [Step::Begin, Step::OldKey, Step::Change, Step::End];
        let mut all = vec![Tick(0)];
        // Epoch 6 begins with a tick that epoch 5 had used, too.
        for position in
            [at(0, 1), at(5, 1), at(5, 2), at(5, 103), at(6, 101), at(6, 102), at(EPOCH_MAX, CHANGE_MAX)]
        {
            all.extend(steps.map(|step| Tick::new(position, step).unwrap()));
        }
        assert!(all.windows(2).all(|two| two[0] < two[1]), "{all:?}");
        assert_eq!(all.last(), Some(&Tick::MAX));
        assert!(Tick::new(at(EPOCH_MAX + 1, 1), Step::End).is_err());
        assert!(Tick::new(at(1, CHANGE_MAX + 1), Step::End).is_err());
    }

    #[test]
    fn who_has_part_of_a_change_reads_it_again() {
        let tick = |step| Tick::new(at(5, 17), step).unwrap().read_after();
        assert_eq!(tick(Step::End), at(5, 17));
        for step in [Step::Begin, Step::OldKey, Step::Change] {
            assert_eq!(tick(step), at(5, 16));
        }
        assert_eq!(Tick(0).read_after(), at(0, 0));
    }

    #[test]
    fn ticks_are_decimal_numbers_of_64_bits() {
        assert_eq!(Tick::parse("18446744073709551615"), Some(Tick::MAX));
        assert_eq!(Tick::parse("0"), Some(Tick(0)));
        for wrong in ["", "-1", "+1", " 1", "1.0", "18446744073709551616", "x"] {
            assert_eq!(Tick::parse(wrong), None, "{wrong:?}");
        }
    }
}
