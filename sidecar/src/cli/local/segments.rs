//! Shared memory that a killed server leaves in `/dev/shm`. PostgreSQL takes it away at its next start, which a node that
//! is killed for good never has. The names are random numbers and say nothing of the server, so what a server has is
//! read from its living processes, before they are killed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const PLACE: &str = "/dev/shm";
const PREFIX: &str = "/dev/shm/PostgreSQL.";

/// A segment that a process had mapped. The inode tells it from a later one with the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    path: String,
    inode: u64,
}

/// The segments of a server.
#[derive(Debug, Default)]
pub struct Segments(BTreeSet<Segment>);

impl Segments {
    /// Takes note of what these processes have mapped.
    pub fn note(&mut self, pids: &[i32]) {
        self.0.extend(pids.iter().flat_map(|pid| mapped(*pid)));
    }

    /// Removes what was noted and is in nobody's hands any more. What cannot be removed stays: it is only memory.
    pub fn remove(self) {
        if self.0.is_empty() {
            return;
        }
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        let in_use: BTreeSet<Segment> = pids.flat_map(mapped).collect();
        for segment in self.0.difference(&in_use) {
            let same = std::fs::metadata(&segment.path).is_ok_and(|m| m.ino() == segment.inode);
            if same && Path::new(&segment.path).parent() == Some(Path::new(PLACE)) {
                let _ = std::fs::remove_file(&segment.path);
            }
        }
    }
}

fn mapped(pid: i32) -> Vec<Segment> {
    let maps = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().filter_map(parse_map).collect()
}

/// `from-to perms offset device inode path`
fn parse_map(line: &str) -> Option<Segment> {
    let path = &line[line.find(PREFIX)?..];
    // One that is removed already, and only lives in its processes, has " (deleted)" behind its name.
    let number = path.strip_prefix(PREFIX)?;
    let inode = line.split_whitespace().nth(4)?.parse().ok()?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        .then(|| Segment { path: path.to_owned(), inode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_segments_of_postgresql_that_are_still_there_count() {
        let line = "7f2b5c000000-7f2b5c100000 rw-s 00000000 00:1a 4711                       /dev/shm/PostgreSQL.905383986";
        let segment = parse_map(line).unwrap();
        assert_eq!((segment.path.as_str(), segment.inode), ("/dev/shm/PostgreSQL.905383986", 4711));
        assert_eq!(parse_map(&format!("{line} (deleted)")), None);
        assert_eq!(parse_map("7f2b-7f2c rw-s 0 00:1a 9 /dev/shm/other"), None);
        assert_eq!(parse_map("7f2b-7f2c rw-s 0 00:1a 9 /dev/shm/PostgreSQL.1/../x"), None);
        assert_eq!(parse_map("7f2b-7f2c rw-p 0 00:00 0"), None);
    }
}
