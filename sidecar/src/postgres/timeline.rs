//! Timeline history files: reading them, and steering which timeline a promotion takes.
//!
//! PostgreSQL promotes to "newest history file it finds, counted without a gap, plus one". Two branches of history must
//! never share a number, so the number comes from the appointment and the files in between are *planted*. A planted
//! file holds a comment and no ancestors: a server that reads it while streaming says that it is not a child of its
//! timeline and stays where it is, so a planted file can never become a recovery target that later blocks the way to
//! the real one (`rescanLatestTimeLine` in xlogrecovery.c). Only at a server's start would such a file, were it the
//! newest, be an error; therefore [`remove_futures`] runs before every start.

use super::durable;
use pgquorum_agent::types::{Lsn, Timeline};
use std::io;
use std::path::{Path, PathBuf};

const PLANTED: &str = "# pgquorum: this timeline was given out and is not part of this server's history\n";

pub fn history_path(wal_dir: &Path, timeline: Timeline) -> PathBuf {
    wal_dir.join(format!("{timeline:08X}.history"))
}

/// Ancestors in a history file, oldest first: each timeline and where it was left.
pub fn parse_history(text: &str) -> Result<Vec<(Timeline, Lsn)>, String> {
    let mut ancestors = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let timeline = words.next().and_then(|w| w.parse::<Timeline>().ok());
        let lsn = words.next().and_then(|w| w.parse::<Lsn>().ok());
        match (timeline, lsn) {
            (Some(timeline), Some(lsn)) => ancestors.push((timeline, lsn)),
            _ => return Err(format!("line {line:?} is not a timeline and an LSN")),
        }
    }
    Ok(ancestors)
}

/// The ancestors of `timeline`. Timeline 1 has none and no file.
pub fn read_history(wal_dir: &Path, timeline: Timeline) -> Result<Vec<(Timeline, Lsn)>, String> {
    if timeline <= 1 {
        return Ok(Vec::new());
    }
    let path = history_path(wal_dir, timeline);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    parse_history(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Timelines that have a history file here, in ascending order.
pub fn histories(wal_dir: &Path) -> io::Result<Vec<Timeline>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(wal_dir)? {
        if let Some(timeline) = entry?.file_name().to_str().and_then(history_timeline) {
            found.push(timeline);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn history_timeline(name: &str) -> Option<Timeline> {
    let digits = name.strip_suffix(".history")?;
    (digits.len() == 8).then(|| Timeline::from_str_radix(digits, 16).ok()).flatten()
}

/// The timeline of a WAL segment file (24 hexadecimal digits, perhaps `.partial`).
fn segment_timeline(name: &str) -> Option<Timeline> {
    let digits = name.strip_suffix(".partial").unwrap_or(name);
    let valid = digits.len() == 24 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| Timeline::from_str_radix(&digits[..8], 16).ok()).flatten()
}

/// The timeline of a whole WAL segment and its number, by the name of its file: the bytes before it, in segments.
pub fn segment_number(name: &str, segment_bytes: u64) -> Option<(Timeline, u64)> {
    let valid = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let part = |digits| u64::from_str_radix(digits, 16).ok();
    let number =
        valid.then(|| Some(part(&name[8..16])? * (0x1_0000_0000 / segment_bytes) + part(&name[16..])?));
    Some((segment_timeline(name)?, number.flatten()?))
}

/// What stands between a standby and promotion to exactly one timeline.
#[derive(Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The timeline is not newer than where the server is, or was used already.
    Used(Timeline),
    /// A real history of a timeline that this server is not on. PostgreSQL may have taken it as its target already,
    /// and would then write it into the new history; a restart after [`remove_futures`] clears it.
    Foreign(Timeline),
}

/// Looks for what would make a promotion from `present` to `wanted` go wrong.
pub fn find_obstacle(wal_dir: &Path, present: Timeline, wanted: Timeline) -> io::Result<Option<Obstacle>> {
    if wanted <= present {
        return Ok(Some(Obstacle::Used(present)));
    }
    let mut foreign = None;
    for timeline in histories(wal_dir)?.into_iter().filter(|t| *t > present) {
        if timeline >= wanted {
            return Ok(Some(Obstacle::Used(timeline)));
        }
        if std::fs::read_to_string(history_path(wal_dir, timeline))? != PLANTED {
            foreign = Some(Obstacle::Foreign(timeline));
        }
    }
    Ok(foreign)
}

/// Plants the missing files between `present` and `wanted`, durably. Returns how many.
pub fn plant(wal_dir: &Path, present: Timeline, wanted: Timeline) -> io::Result<usize> {
    let mut planted = 0;
    for timeline in present + 1..wanted {
        let path = history_path(wal_dir, timeline);
        if path.exists() {
            continue;
        }
        // The name counts only once the content is there: PostgreSQL must never read an empty file.
        let temporary = wal_dir.join("pgquorum.history.tmp");
        std::fs::write(&temporary, PLANTED)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        planted += 1;
    }
    if planted > 0 {
        durable::sync_dir(wal_dir)?;
    }
    Ok(planted)
}

/// Removes the histories of timelines on which this server has nothing, neither by its control file (`known`) nor in
/// any WAL segment. They are fetched again from the next upstream if they matter. The server must be stopped.
pub fn remove_futures(wal_dir: &Path, known: Timeline) -> io::Result<Vec<Timeline>> {
    let mut newest = known;
    for entry in std::fs::read_dir(wal_dir)? {
        if let Some(timeline) = entry?.file_name().to_str().and_then(segment_timeline) {
            newest = newest.max(timeline);
        }
    }
    let futures: Vec<Timeline> = histories(wal_dir)?.into_iter().filter(|t| *t > newest).collect();
    for timeline in &futures {
        std::fs::remove_file(history_path(wal_dir, *timeline))?;
    }
    if !futures.is_empty() {
        durable::sync_dir(wal_dir)?;
    }
    Ok(futures)
}

/// Timelines that a standby on `present`, whose WAL ends at `end`, may have taken as its target while its upstream is on
/// `wanted`, in whose history they are not: as long as it aims at one of them it cannot go over to `wanted`, although
/// that goes on from where it is. Empty where this is not so, or not known before the upstream's history is here.
pub fn beside(wal_dir: &Path, present: Timeline, end: Lsn, wanted: Timeline) -> Vec<Timeline> {
    let ancestors = |timeline| read_history(wal_dir, timeline).unwrap_or_default();
    let way = ancestors(wanted);
    if wanted != present && !way.iter().any(|(t, left)| *t == present && *left >= end) {
        return Vec::new();
    }
    let newer = histories(wal_dir).unwrap_or_default().into_iter().filter(|t| *t > present && *t != wanted);
    // What was planted has no ancestors and is nobody's target.
    newer.filter(|t| !way.iter().any(|(w, _)| w == t) && !ancestors(*t).is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_have_numbers() {
        const SIZE: u64 = 16 << 20;
        assert_eq!(segment_number("0000000A0000000000000003", SIZE), Some((10, 3)));
        assert_eq!(segment_number("0000000A00000001000000FF", SIZE), Some((10, 511)));
        assert_eq!(segment_number("000000010000000200000000", 1 << 30), Some((1, 8)));
        for name in [
            "0000000A.history",
            "0000000A0000000000000003.partial",
            "0000000A000000000000000G",
            "",
            "archive_status",
        ] {
            assert_eq!(segment_number(name, SIZE), None, "{name}");
        }
    }

    fn wal_dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn write(dir: &Path, timeline: Timeline, text: &str) {
        std::fs::write(history_path(dir, timeline), text).unwrap();
    }

    #[test]
    fn history_files_are_read_oldest_first() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# a comment\n2\t0/4000028\treason\n";
        assert_eq!(parse_history(text).unwrap(), [(1, Lsn(0x300_0000)), (2, Lsn(0x400_0028))]);
        assert_eq!(parse_history(PLANTED).unwrap(), []);
        assert!(parse_history("one 0/1").is_err());
        assert!(parse_history("1").is_err());
    }

    #[test]
    fn gaps_are_planted_and_real_files_left_alone() {
        let dir = wal_dir();
        write(dir.path(), 3, "1\t0/1\tr\n");
        assert_eq!(plant(dir.path(), 1, 6).unwrap(), 3);
        assert_eq!(histories(dir.path()).unwrap(), [2, 3, 4, 5]);
        assert_eq!(std::fs::read_to_string(history_path(dir.path(), 3)).unwrap(), "1\t0/1\tr\n");
        assert_eq!(plant(dir.path(), 1, 6).unwrap(), 0);
        assert_eq!(plant(dir.path(), 1, 2).unwrap(), 0);
    }

    #[test]
    fn obstacles_are_told_apart() {
        let dir = wal_dir();
        assert_eq!(find_obstacle(dir.path(), 2, 3).unwrap(), None);
        assert_eq!(find_obstacle(dir.path(), 2, 2).unwrap(), Some(Obstacle::Used(2)));
        plant(dir.path(), 2, 5).unwrap();
        assert_eq!(find_obstacle(dir.path(), 2, 5).unwrap(), None);
        write(dir.path(), 4, "2\t0/1\tr\n");
        assert_eq!(find_obstacle(dir.path(), 2, 5).unwrap(), Some(Obstacle::Foreign(4)));
        assert_eq!(find_obstacle(dir.path(), 2, 4).unwrap(), Some(Obstacle::Used(4)));
    }

    #[test]
    fn futures_are_removed_unless_wal_lies_on_them() {
        let dir = wal_dir();
        plant(dir.path(), 1, 5).unwrap();
        std::fs::write(dir.path().join("000000030000000000000002.partial"), "").unwrap();
        assert_eq!(remove_futures(dir.path(), 1).unwrap(), [4]);
        assert_eq!(histories(dir.path()).unwrap(), [2, 3]);
        assert!(remove_futures(dir.path(), 7).unwrap().is_empty());
    }

    #[test]
    fn a_target_beside_the_upstream_is_found_where_one_can_go_on() {
        let dir = wal_dir();
        plant(dir.path(), 1, 7).unwrap();
        let found = |end, wanted| beside(dir.path(), 1, Lsn(end), wanted);
        assert!(found(0x500, 1).is_empty(), "what was planted is nobody's target");
        write(dir.path(), 5, "1\t0/500\tr\n");
        assert_eq!(found(0x500, 1), [5], "the upstream goes on as it was");
        assert!(found(0x500, 5).is_empty(), "it is the upstream's");
        assert!(found(0x500, 6).is_empty(), "the upstream's history is not here yet");
        write(dir.path(), 6, "1\t0/600\tr\n");
        assert_eq!(found(0x500, 6), [5]);
        assert!(found(0x601, 6).is_empty(), "it cannot go on along it anyway");
        write(dir.path(), 6, "1\t0/500\tr\n5\t0/600\tr\n");
        assert!(found(0x500, 6).is_empty(), "it is on the upstream's way");
    }
}
