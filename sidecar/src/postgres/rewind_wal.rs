//! The WAL that both servers have, across a rewind.
//!
//! `pg_rewind` copies every file that holds no table, so all WAL of its source, which may be gigabytes that this server has
//! as well (up to PostgreSQL 18 at least). Therefore the extension there does not show that WAL to a `pg_rewind` that says
//! where the histories part (see [`application_name`]). What is not shown would be removed here, so it
//! is kept beside, by links, and put back at the end.

use super::config::{PostgresConfig, beside};
use super::durable;
use super::lost::Parted;
use super::timeline::segment_number;
use pgquorum_agent::types::Timeline;
use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

/// By this name the extension knows that it is asked for its files by a node that has all WAL before this place.
pub fn application_name(parted: Option<Parted>) -> String {
    match parted {
        Some(parted) => format!("pgquorum rewind {:X}@{}", parted.timeline, parted.at),
        None => "pgquorum rewind".to_owned(),
    }
}

/// Segments that were kept beside.
#[derive(Debug)]
pub struct KeptWal {
    wal_dir: PathBuf,
    beside: PathBuf,
}

impl KeptWal {
    /// Keeps all whole segments of the history up to this place; those of an earlier attempt are removed. Others than those
    /// are of no use: files set aside for reuse, or timelines that led nowhere.
    ///
    /// # Errors
    /// There is no place for links on the disk of the WAL: its directory is a mount point, or what is above it belongs
    /// to somebody else.
    pub fn keep(config: &PostgresConfig, parted: Parted) -> io::Result<KeptWal> {
        let wal_dir = config.wal_dir().canonicalize()?;
        let kept = KeptWal { beside: place(config, &wal_dir), wal_dir };
        kept.remove()?;
        std::fs::create_dir(&kept.beside)?;
        if let Err(error) = kept.link(parted) {
            let _ = kept.remove();
            return Err(error);
        }
        Ok(kept)
    }

    fn link(&self, parted: Parted) -> io::Result<()> {
        let last = parted.at.0 / parted.segment_bytes;
        for entry in std::fs::read_dir(&self.wal_dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let found = name.to_str().and_then(|name| segment_number(name, parted.segment_bytes));
            let common = |(timeline, number): (Timeline, u64)| match timeline.cmp(&parted.timeline) {
                // Timelines before were left at that place at the latest.
                Ordering::Less => number <= last,
                Ordering::Equal => number < last,
                Ordering::Greater => false,
            };
            if found.is_some_and(common) {
                std::fs::hard_link(entry.path(), self.beside.join(name))?;
            }
        }
        Ok(())
    }

    /// Puts back what is missing now; how many segments that were.
    ///
    /// # Errors
    /// The directories cannot be read or written.
    pub fn put_back(&self) -> io::Result<usize> {
        let mut put = 0;
        for entry in std::fs::read_dir(&self.beside)? {
            let entry = entry?;
            let to = self.wal_dir.join(entry.file_name());
            if !to.try_exists()? {
                std::fs::rename(entry.path(), to)?;
                put += 1;
            }
        }
        durable::sync_dir(&self.wal_dir)?;
        self.remove()?;
        Ok(put)
    }

    /// Removes what a rewind kept that was broken off.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_left(config: &PostgresConfig) -> io::Result<()> {
        match config.wal_dir().canonicalize() {
            Ok(wal_dir) => KeptWal { beside: place(config, &wal_dir), wal_dir }.remove(),
            Err(_) => Ok(()),
        }
    }

    /// Gives up what was kept.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Beside the directory of the WAL, and in no case in the data directory: what is there would be removed, too.
fn place(config: &PostgresConfig, wal_dir: &Path) -> PathBuf {
    let elsewhere = config.wal_dir().symlink_metadata().is_ok_and(|found| found.is_symlink());
    beside(if elsewhere { wal_dir } else { &config.data_dir }, ".rewind-wal")
}

#[cfg(test)]
mod tests {
    use super::super::config::Secrets;
    use super::*;
    use pgquorum_agent::types::Lsn;

    const MIB: u64 = 1 << 20;

    /// On timeline 2, so many bytes into the fifth segment.
    fn parted(bytes: u64) -> Parted {
        Parted { timeline: 2, at: Lsn(4 * 16 * MIB + bytes), segment_bytes: 16 * MIB }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn data(root: &Path) -> PostgresConfig {
        let secrets = Secrets { superuser_password: String::new(), replication_password: String::new() };
        let config =
            PostgresConfig::new(1, root.join("data"), "/bin".into(), [127, 0, 0, 1].into(), 5432, secrets);
        std::fs::create_dir(&config.data_dir).unwrap();
        config
    }

    #[test]
    fn the_place_is_in_the_name() {
        assert_eq!(application_name(Some(parted(10))), "pgquorum rewind 2@0/400000A");
        assert_eq!(application_name(None), "pgquorum rewind");
    }

    fn keeps_and_puts_back(config: &PostgresConfig, expected_beside: &Path) {
        let wal = config.wal_dir();
        let before = ["000000010000000000000003", "000000010000000000000004", "000000020000000000000003"];
        let others = [
            "000000020000000000000004",
            "00000002.history",
            "00000001000000000000000A",
            "000000030000000000000003",
            "00000003000000000000000A",
        ];
        for name in before.iter().chain(&others) {
            std::fs::write(wal.join(name), *name).unwrap();
        }
        std::fs::create_dir(wal.join("archive_status")).unwrap();
        // In the middle of the segment 4.
        let kept = KeptWal::keep(config, parted(100)).unwrap();
        assert_eq!(names(expected_beside), before);
        // One was removed, one is there as the source has it, one as it was.
        std::fs::remove_file(wal.join(before[0])).unwrap();
        std::fs::write(wal.join("new"), "of the source").unwrap();
        std::fs::rename(wal.join("new"), wal.join(before[1])).unwrap();
        assert_eq!(kept.put_back().unwrap(), 1);
        assert_eq!(std::fs::read_to_string(wal.join(before[0])).unwrap(), before[0]);
        assert_eq!(std::fs::read_to_string(wal.join(before[1])).unwrap(), "of the source");
        assert!(!expected_beside.exists());
    }

    #[test]
    fn wal_in_the_data_directory() {
        let root = tempfile::tempdir().unwrap();
        let config = data(root.path());
        std::fs::create_dir(config.wal_dir()).unwrap();
        keeps_and_puts_back(&config, &root.path().join("data.rewind-wal"));
    }

    #[test]
    fn wal_on_a_disk_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let config = data(root.path());
        let disk = root.path().join("disk");
        std::fs::create_dir_all(disk.join("wal")).unwrap();
        std::os::unix::fs::symlink(disk.join("wal"), config.wal_dir()).unwrap();
        keeps_and_puts_back(&config, &disk.canonicalize().unwrap().join("wal.rewind-wal"));
    }

    #[test]
    fn what_an_earlier_attempt_left_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let config = data(root.path());
        std::fs::create_dir(config.wal_dir()).unwrap();
        let left = root.path().join("data.rewind-wal");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("000000010000000000000001"), "old").unwrap();
        let kept = KeptWal::keep(&config, parted(0)).unwrap();
        assert!(names(&left).is_empty());
        kept.remove().unwrap();
        assert!(!left.exists());
    }
}
