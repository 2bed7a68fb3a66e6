//! Positions in a channel: what readers give, and whether it is one of this history.
//!
//! A tick is the number of a change; ticks are dense, and each change has one for good. A position `EPOCH:TICK` says "I
//! have everything up to this tick, as it was in this epoch". An epoch is one uninterrupted history: another one begins
//! when another server goes on with the data. What an epoch's end has lost (that is possible without synchronous
//! standbys, or after a forced leader) has ticks that the next epoch gives to other changes, so a tick alone would
//! mislead; with its epoch it is found out.

use std::fmt;
use std::str::FromStr;

/// A reader has the changes up to and including `tick`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    pub tick: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.epoch, self.tick)
    }
}

/// Where a reader asks to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    At(Position),
    /// A tick of the present history.
    Tick(u64),
    /// Before the oldest change that is kept.
    Start,
    /// Behind the newest change.
    Now,
}

/// The text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPosition;

impl FromStr for Asked {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let number = |text: &str| {
            // Ticks and epochs are `bigint` in SQL. `u64::from_str` would take a sign.
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.then(|| text.parse::<i64>().ok()).flatten();
            number.map(i64::unsigned_abs).ok_or(NotAPosition)
        };
        match text.trim() {
            "start" => Ok(Self::Start),
            "now" => Ok(Self::Now),
            text => match text.split_once(':') {
                Some((epoch, tick)) => Ok(Self::At(Position { epoch: number(epoch)?, tick: number(tick)? })),
                None => Ok(Self::Tick(number(text)?)),
            },
        }
    }
}

/// An epoch in which at least one batch was cut, and the first tick that was given in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub epoch: u64,
    pub first_tick: u64,
}

/// What a server knows of a channel.
#[derive(Clone, Debug)]
pub struct History {
    /// Ascending by epoch and by tick.
    pub spans: Vec<Span>,
    /// The oldest tick that is kept; one above `last_tick` if none is.
    pub first_tick: u64,
    /// The newest tick that is shown; one below the channel's very first tick if none was given.
    pub last_tick: u64,
    /// The newest change that is known here. Behind the last one that is shown are those of which it is not known yet
    /// whether they are durable; a reader may have got them before a restart, or elsewhere.
    pub known_tick: u64,
    /// This server gives the ticks (it is the primary), so it knows all epochs.
    pub complete: bool,
}

/// Why a position cannot be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The change after it is gone; the oldest tick that is kept.
    Purged { first_tick: u64 },
    /// It belongs to changes that this history does not have; the last tick that both have, if that is known.
    OtherHistory { shared: Option<u64> },
    /// This server is not that far; the newest tick here.
    Future { last_tick: u64 },
}

impl History {
    /// The position at a tick of this history.
    pub fn at(&self, tick: u64) -> Position {
        let known = self.spans.iter().rev().find(|span| span.first_tick <= tick).or(self.spans.first());
        Position { epoch: known.map_or(0, |span| span.epoch), tick }
    }

    pub fn start(&self) -> Position {
        self.at(self.first_tick - 1)
    }

    pub fn end(&self) -> Position {
        self.at(self.last_tick)
    }

    /// The tick after which to read.
    pub fn find(&self, asked: Asked) -> Result<u64, Unusable> {
        let tick = match asked {
            Asked::Start => return Ok(self.first_tick - 1),
            Asked::Now => return Ok(self.last_tick),
            Asked::Tick(tick) => tick,
            // Before the first change all histories are alike.
            Asked::At(Position { tick: 0, .. }) => 0,
            Asked::At(position) => self.check_epoch(position)?,
        };
        if tick > self.last_tick.max(self.known_tick) {
            return Err(Unusable::Future { last_tick: self.last_tick });
        }
        if tick + 1 < self.first_tick {
            return Err(Unusable::Purged { first_tick: self.first_tick });
        }
        Ok(tick)
    }

    /// An epoch's history is everything up to its own last tick.
    fn check_epoch(&self, position: Position) -> Result<u64, Unusable> {
        // What a reader got while nothing was cut yet.
        let before_all = self.spans.first().is_none_or(|span| position.tick < span.first_tick);
        if position.epoch == 0 && before_all {
            return Ok(position.tick);
        }
        let index = self.spans.partition_point(|span| span.epoch < position.epoch);
        match self.spans.get(index) {
            Some(span) if span.epoch == position.epoch => match self.spans.get(index + 1) {
                Some(next) if position.tick >= next.first_tick => {
                    Err(Unusable::OtherHistory { shared: Some(next.first_tick - 1) })
                }
                _ => Ok(position.tick),
            },
            // A newer epoch than all known ones: perhaps the news has not arrived here.
            None if !self.complete => Err(Unusable::Future { last_tick: self.last_tick }),
            // An epoch of which nothing became part of this history.
            _ => Err(Unusable::OtherHistory { shared: None }),
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn asked(text: &str) -> Asked {
        text.parse().expect("a position")
    }

    fn history(complete: bool) -> History {
        let spans = [(1, 1), (4, 101), (9, 151)].map(|(epoch, first_tick)| Span { epoch, first_tick });
        History { spans: spans.to_vec(), first_tick: 41, last_tick: 200, known_tick: 200, complete }
    }

    #[test]
    fn texts() {
        assert_eq!(asked("5:1234"), Asked::At(Position { epoch: 5, tick: 1234 }));
        assert_eq!(asked(" 17 "), Asked::Tick(17));
        assert_eq!((asked("start"), asked("now")), (Asked::Start, Asked::Now));
        for text in ["", ":", "1:", ":1", "-1", "+1", "1:2:3", "a", "Start", "9223372036854775808", "1: 2"] {
            assert_eq!(text.parse::<Asked>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn positions_of_this_history() {
        let history = history(true);
        assert_eq!(history.start().to_string(), "1:40");
        assert_eq!(history.at(100).to_string(), "1:100");
        assert_eq!(history.at(101).to_string(), "4:101");
        assert_eq!(history.end().to_string(), "9:200");
        for (text, tick) in [
            ("start", 40),
            ("now", 200),
            ("1:100", 100),
            ("4:150", 150),
            // What an epoch found when it began is part of it.
            ("4:100", 100),
            ("9:60", 60),
            ("9:200", 200),
            ("40", 40),
            ("200", 200),
        ] {
            assert_eq!(history.find(asked(text)), Ok(tick), "{text}");
        }
    }

    #[test]
    fn positions_that_cannot_be_read_from() {
        let primary = history(true);
        let purged = Err(Unusable::Purged { first_tick: 41 });
        let future = Err(Unusable::Future { last_tick: 200 });
        assert_eq!(primary.find(asked("1:39")), purged);
        assert_eq!(primary.find(asked("0")), purged);
        assert_eq!(primary.find(asked("7:0")), purged, "the beginning is the same in all histories");
        assert_eq!(primary.find(asked("9:201")), future);
        assert_eq!(primary.find(asked("201")), future);
        // Epoch 1 ended with tick 100 here; whoever saw its tick 101 saw what was lost.
        assert_eq!(primary.find(asked("1:101")), Err(Unusable::OtherHistory { shared: Some(100) }));
        assert_eq!(primary.find(asked("4:151")), Err(Unusable::OtherHistory { shared: Some(150) }));
        for text in ["3:90", "10:150", "5:150"] {
            assert_eq!(primary.find(asked(text)), Err(Unusable::OtherHistory { shared: None }), "{text}");
        }
        // A standby may be behind.
        assert_eq!(history(false).find(asked("10:150")), future);
        assert_eq!(history(false).find(asked("3:90")), Err(Unusable::OtherHistory { shared: None }));
    }

    #[test]
    fn a_position_behind_what_is_shown_is_good_where_the_change_is_known() {
        let recovered = History { last_tick: 180, ..history(true) };
        assert_eq!(recovered.find(asked("now")), Ok(180));
        assert_eq!(recovered.find(asked("9:200")), Ok(200));
        assert_eq!(recovered.find(asked("9:201")), Err(Unusable::Future { last_tick: 180 }));
    }

    #[test]
    fn an_empty_channel() {
        let empty = History { spans: Vec::new(), first_tick: 1, last_tick: 0, known_tick: 0, complete: true };
        assert_eq!(empty.start().to_string(), "0:0");
        assert_eq!(empty.find(asked("0:0")), Ok(0));
        assert_eq!(empty.find(asked("now")), Ok(0));
        assert_eq!(empty.find(asked("1")), Err(Unusable::Future { last_tick: 0 }));
        // One that was made anew under its old name: its ticks begin above the old ones.
        let anew = History { first_tick: 502, last_tick: 501, ..empty };
        assert_eq!(anew.start().to_string(), "0:501");
        assert_eq!(anew.find(anew.end().to_string().parse().expect("a position")), Ok(501));
        assert_eq!(anew.find(asked("500")), Err(Unusable::Purged { first_tick: 502 }));
        let begun = History { spans: vec![Span { epoch: 5, first_tick: 502 }], last_tick: 510, ..anew };
        assert_eq!(begun.find(asked("0:501")), Ok(501));
        assert_eq!(begun.find(asked("0:505")), Err(Unusable::OtherHistory { shared: None }));
    }
}
