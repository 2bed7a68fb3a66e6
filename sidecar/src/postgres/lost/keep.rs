//! The lost WAL on this node's disk: `data.lost/<what>/` holds its segments and the report of what is in them.

use super::divergence::Piece;
use crate::postgres::durable;
use pgquorum_agent::lost::LostReport;
use pgquorum_agent::types::{Lsn, Timeline};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Not yet in the cluster's log.
const OPEN: &str = "report.json";
const DONE: &str = "reported.json";
/// Reports that are kept, whatever their size.
const REPORTS_MAX: usize = 100;

fn segment_name(timeline: Timeline, number: u64, bytes: u64) -> String {
    let per_file = 0x1_0000_0000 / bytes;
    format!("{timeline:08X}{:08X}{:08X}", number / per_file, number % per_file)
}

/// The segments that hold these pieces.
pub fn segments(pieces: &[Piece], bytes: u64) -> Vec<String> {
    let of = |p: &Piece| {
        let (timeline, first, last) = (p.timeline, p.from.0 / bytes, p.to.0.saturating_sub(1) / bytes);
        (first..=last.max(first)).map(move |n| segment_name(timeline, n, bytes))
    };
    pieces.iter().flat_map(of).collect()
}

/// Where the segment begins in which this place lies.
pub fn segment_start(at: Lsn, bytes: u64) -> Lsn {
    Lsn(at.0 / bytes * bytes)
}

/// Copies what is there of the files, and syncs it. Returns the names of those that are not there.
pub fn copy(wal_dir: &Path, names: &[String], to: &Path) -> io::Result<Vec<String>> {
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_dir_all(&temporary);
    create_private(&temporary)?;
    let copied = copy_files(wal_dir, names, &temporary).and_then(|missing| {
        let _ = std::fs::remove_dir_all(to);
        durable::rename(&temporary, to).map(|()| missing)
    });
    if copied.is_err() {
        // The disk may be full, and the node needs what is left of it more.
        let _ = std::fs::remove_dir_all(&temporary);
    }
    copied
}

fn copy_files(wal_dir: &Path, names: &[String], to: &Path) -> io::Result<Vec<String>> {
    let mut missing = Vec::new();
    for name in names {
        match std::fs::copy(wal_dir.join(name), to.join(name)) {
            Ok(_) => std::fs::File::open(to.join(name))?.sync_all()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(name.clone()),
            Err(e) => return Err(e),
        }
    }
    durable::sync_dir(to)?;
    Ok(missing)
}

pub fn create_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

pub fn is_known(directory: &Path) -> bool {
    directory.join(OPEN).exists() || directory.join(DONE).exists()
}

pub fn save(directory: &Path, report: &LostReport) -> io::Result<()> {
    create_private(directory)?;
    durable::replace(&directory.join(OPEN), &serde_json::to_vec_pretty(report)?)
}

/// The cluster's log holds the report.
pub fn reported(directory: &Path) -> io::Result<()> {
    match durable::rename(&directory.join(OPEN), &directory.join(DONE)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Reports that the cluster's log does not hold yet.
pub fn open_reports(root: &Path) -> Vec<LostReport> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let read = |directory: PathBuf| serde_json::from_slice(&std::fs::read(directory.join(OPEN)).ok()?).ok();
    entries.filter_map(|e| read(e.path())).collect()
}

fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), e.metadata().ok()?.len()))).collect()
}

fn is_wal(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.len() == 24)
}

/// Removes the oldest WAL until no more than `limit` bytes are kept, and the oldest reports beyond their number. A
/// report that is not in the cluster's log yet stays.
pub fn prune(root: &Path, limit: u64) {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let made = |path: &Path| path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut kept: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    kept.sort_by_key(|path| std::cmp::Reverse(made(path)));
    let mut bytes = 0;
    for (place, directory) in kept.iter().enumerate() {
        let wal: Vec<(PathBuf, u64)> = files(directory).into_iter().filter(|(p, _)| is_wal(p)).collect();
        bytes += wal.iter().map(|(_, size)| size).sum::<u64>();
        let removed = if place >= REPORTS_MAX && !directory.join(OPEN).exists() {
            std::fs::remove_dir_all(directory)
        } else if bytes > limit {
            wal.iter().try_for_each(|(path, _)| std::fs::remove_file(path))
        } else {
            Ok(())
        };
        if let Err(error) = removed {
            tracing::warn!(%error, directory = %directory.display(), "old lost WAL could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let piece = |timeline, from, to| Piece { timeline, from: Lsn(from), to: Lsn(to) };
        let pieces = [piece(2, 0x2FF_FFFF0, 0x301_00010), piece(3, 0x301_00010, 0x301_00010 + 1)];
        assert_eq!(
            segments(&pieces, 16 * MIB),
            ["00000002000000000000002F", "000000020000000000000030", "000000030000000000000030"]
        );
        assert_eq!(segments(&[piece(1, 16 * MIB, 32 * MIB)], 16 * MIB), ["000000010000000000000001"]);
        assert_eq!(segment_start(Lsn(0x301_00010), 16 * MIB), Lsn(0x300_00000));
    }

    #[test]
    fn old_wal_goes_first_and_an_open_report_stays() {
        let root = tempfile::tempdir().unwrap();
        let wal = root.path().join("wal");
        std::fs::create_dir(&wal).unwrap();
        let name = segment_name(1, 1, 16 * MIB);
        std::fs::write(wal.join(&name), vec![7; 1000]).unwrap();
        let kept = root.path().join("lost");
        for (number, id) in ["a", "b", "c"].iter().enumerate() {
            let to = kept.join(id);
            create_private(&kept).unwrap();
            let missing = copy(&wal, &[name.clone(), "gone".to_owned()], &to).unwrap();
            assert_eq!(missing, ["gone"]);
            std::fs::write(to.join(OPEN), "{}").unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            std::fs::File::open(&to).unwrap().set_modified(time).unwrap();
        }
        prune(&kept, 2000);
        let there = |id: &str| (kept.join(id).join(&name).exists(), is_known(&kept.join(id)));
        assert_eq!([there("a"), there("b"), there("c")], [(false, true), (true, true), (true, true)]);
        reported(&kept.join("a")).unwrap();
        reported(&kept.join("a")).unwrap();
        assert!(is_known(&kept.join("a")) && !kept.join("a").join(OPEN).exists());
    }
}
