//! Where a reader is in a channel.

use std::fmt;
use std::str::FromStr;

/// The change with this tick, in the history that this epoch belongs to. Ticks alone are not compared across epochs:
/// a history that was given up may have used the same ones for something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    pub epoch: u64,
    pub tick: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.tick)
    }
}

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Position, BadPosition> {
        let (epoch, tick) = text.split_once(':').ok_or(BadPosition)?;
        Ok(Position { epoch: number(epoch)?, tick: number(tick)? })
    }
}

/// Not a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is EPOCH:TICK, for example 5:1234, or a tick alone, or `start`, or `now`")]
pub struct BadPosition;

/// After what a reader wants the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Everything that is kept.
    Start,
    /// Only what comes.
    Now,
    /// What follows this tick in the present history.
    Tick(u64),
    At(Position),
}

impl After {
    /// The last tick that the reader has, if it has any.
    pub fn tick(self) -> Option<u64> {
        match self {
            After::Start | After::Now => None,
            After::Tick(tick) => Some(tick),
            After::At(position) => Some(position.tick),
        }
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            After::Start => f.write_str("start"),
            After::Now => f.write_str("now"),
            After::Tick(tick) => write!(f, "{tick}"),
            After::At(position) => write!(f, "{position}"),
        }
    }
}

impl FromStr for After {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<After, BadPosition> {
        match text {
            "start" => Ok(After::Start),
            "now" => Ok(After::Now),
            _ if text.contains(':') => text.parse().map(After::At),
            _ => number(text).map(After::Tick),
        }
    }
}

/// Digits only, and not more than the database's own numbers hold.
fn number(text: &str) -> Result<u64, BadPosition> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadPosition);
    }
    text.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok()).ok_or(BadPosition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_as_they_are_written() {
        for text in ["start", "now", "0", "17", "5:1234", "9223372036854775807:9223372036854775807"] {
            assert_eq!(text.parse::<After>().unwrap().to_string(), text);
        }
        assert_eq!("5:1234".parse::<After>().unwrap().tick(), Some(1234));
        assert_eq!(After::Start.tick(), None);
        let wrong = [
            "",
            ":",
            "5:",
            ":5",
            "-1",
            "+1",
            "1:2:3",
            "a",
            "Start",
            " 1",
            "1 ",
            "9223372036854775808",
            "5:x",
        ];
        for text in wrong {
            assert_eq!(text.parse::<After>(), Err(BadPosition), "{text:?}");
        }
    }
}
