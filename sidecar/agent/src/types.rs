//! The small values everything else is made of: node ids, epochs, LSNs and positions.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A node's number in the cluster. Given once by the leader, never used again after a removal.
pub type NodeId = u64;

/// The Raft term in which a primary was appointed. Orders histories of WAL: everything that an earlier epoch
/// acknowledged is part of every later epoch's history.
pub type Epoch = u64;

/// PostgreSQL's timeline id. Each appointment that promotes a server gets one that was never used before, so two
/// branches of history never share a number.
pub type Timeline = u32;

/// A point in time in milliseconds on a clock that never runs backwards and counts while the machine sleeps
/// (`CLOCK_BOOTTIME` in the sidecar, simulated time in tests).
pub type Millis = u64;

/// A byte position in the write-ahead log, printed as PostgreSQL prints it (`16/B374D848`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `other` to `self`; 0 when `other` is ahead.
    pub fn bytes_after(self, other: Lsn) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// The text was not two hexadecimal numbers of at most 32 bits with a slash between them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an LSN: {0:?} (expected two hexadecimal numbers such as 16/B374D848)")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let part = |s: &str| {
            let digits = !s.is_empty() && s.len() <= 8 && s.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(s, 16).ok()).flatten().ok_or_else(error)
        };
        Ok(Lsn((part(high)? << 32) | part(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// How far a node's WAL reaches: ordered by epoch first, then by LSN, because a shorter log of a later epoch holds
/// everything that was acknowledged while a longer one of an earlier epoch may hold what never was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} at {}", self.epoch, self.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_round_trips_and_rejects_nonsense() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.0, 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        for bad in ["", "/", "1", "1/", "/1", "G/1", "1/1/1", "+1/1", "100000000/0", " 1/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} was taken for an LSN");
        }
    }

    #[test]
    fn a_later_epoch_beats_a_longer_log() {
        let old = Position { epoch: 4, lsn: Lsn(1000) };
        let new = Position { epoch: 5, lsn: Lsn(10) };
        assert!(new > old);
        assert!(Position { epoch: 5, lsn: Lsn(11) } > new);
    }
}
