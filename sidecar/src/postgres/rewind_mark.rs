//! The mark beside a data directory that a rewind is changing: on disk before the first change, and there until the
//! server is consistent again. A crash at any moment leaves behind what is true.

use super::config::PostgresConfig;
use super::durable;
use super::error::{Result, io};
use pgquorum_agent::types::{Lsn, Timeline};
use std::path::Path;

/// How far a rewind of the data directory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RewindMark {
    /// None is under way.
    #[default]
    None,
    /// `pg_rewind` writes into it, or was broken off: nothing is started on it, only a copy can replace it.
    Writing,
    /// The files of the source are there; they fit together once WAL up to here is replayed.
    Replaying(Timeline, Lsn),
}

const REPLAYING: &str = "replaying";

fn parse(text: &str) -> RewindMark {
    let mut words = text.split_whitespace();
    let first = words.next();
    match (first, words.next().and_then(|w| w.parse().ok()), words.next().and_then(|w| w.parse().ok())) {
        (Some(REPLAYING), Some(timeline), Some(lsn)) => RewindMark::Replaying(timeline, lsn),
        // Also what is empty or unreadable: a database is not trusted for want of words.
        _ => RewindMark::Writing,
    }
}

impl RewindMark {
    pub fn load(config: &PostgresConfig) -> RewindMark {
        load_from(&config.rewind_marker())
    }

    /// Makes this the mark, durably.
    pub fn store(self, config: &PostgresConfig) -> Result<()> {
        let path = config.rewind_marker();
        let done = match self {
            RewindMark::None => durable::remove(&path).map(drop),
            RewindMark::Writing => durable::replace(&path, b"writing\n"),
            RewindMark::Replaying(timeline, lsn) => {
                durable::replace(&path, format!("{REPLAYING} {timeline} {lsn}\n").as_bytes())
            }
        };
        done.map_err(io(format!("changing the mark of the rewind, {}", path.display())))
    }
}

fn load_from(path: &Path) -> RewindMark {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => RewindMark::None,
        Err(_) => RewindMark::Writing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_an_interrupted_rewind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.rewinding");
        assert_eq!(load_from(&path), RewindMark::None);
        for text in ["", "writing\n", "replaying", "replaying 3", "replaying x 0/1", "A rewind is under way."]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(load_from(&path), RewindMark::Writing, "{text:?}");
        }
        std::fs::write(&path, "replaying 3 0/5000028\n").unwrap();
        assert_eq!(load_from(&path), RewindMark::Replaying(3, Lsn(0x500_0028)));
    }
}
