//! Segments of a new timeline that hide what is here of the one before.
//!
//! A standby that goes over to a new timeline receives its first segment from the beginning again, although it has that part
//! on the old one. If it is killed while it does, and started, PostgreSQL reads the newer file because it is newer, finds its
//! WAL to end where that breaks off, and cannot go on: it gives up with "belongs to timeline 2, but previous recovered WAL
//! file came from timeline 3" (`WaitForWALToBecomeAvailable` in xlogrecovery.c), at each start anew. What it had acknowledged
//! is there, and not seen.

use super::durable;
use super::timeline::read_history;
use pgquorum_agent::types::{Lsn, Timeline};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Removes segments that break off before their timeline begins, where the same part of the WAL is whole on an older one.
/// WAL is written in its order, so nothing in them is of the new timeline. The server must be stopped. Returns their names.
pub fn remove_shadows(wal_dir: &Path) -> io::Result<Vec<String>> {
    let mut segments: BTreeMap<String, Vec<Timeline>> = BTreeMap::new();
    for entry in std::fs::read_dir(wal_dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit()))
        else {
            continue;
        };
        if let Ok(timeline) = Timeline::from_str_radix(&name[..8], 16) {
            segments.entry(name[8..].to_owned()).or_default().push(timeline);
        }
    }
    let mut removed = Vec::new();
    for (place, timelines) in segments {
        for &new in &timelines {
            // Without its history nothing is known of it; PostgreSQL does not take it either.
            let Ok(ancestors) = read_history(wal_dir, new) else { continue };
            for (old, left) in ancestors.into_iter().filter(|(old, _)| timelines.contains(old)) {
                if is_hidden(wal_dir, &place, (old, new), left)? {
                    let name = file_name(new, &place);
                    std::fs::remove_file(wal_dir.join(&name))?;
                    removed.push(name);
                    break;
                }
            }
        }
    }
    if !removed.is_empty() {
        durable::sync_dir(wal_dir)?;
    }
    Ok(removed)
}

fn file_name(timeline: Timeline, place: &str) -> String {
    format!("{timeline:08X}{place}")
}

/// Whether this segment is whole up to `left`, where the old timeline was left, on the old one and not on the new one.
fn is_hidden(wal_dir: &Path, place: &str, (old, new): (Timeline, Timeline), left: Lsn) -> io::Result<bool> {
    let open = |timeline| File::open(wal_dir.join(file_name(timeline, place)));
    let (old, new) = (open(old)?, open(new)?);
    let Some((start, page)) = layout(&old, place)? else { return Ok(false) };
    let size = old.metadata()?.len();
    // Nothing of the old timeline is in it, or all: then it is not where they part.
    if left.0 <= start || left.0 >= start + size {
        return Ok(false);
    }
    let last = (left.0 - 1 - start) / page;
    if has_page(&new, start, page, last)? {
        return Ok(false);
    }
    for at in 0..=last {
        if !has_page(&old, start, page, at)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where a segment begins, and how long its pages are, by its first page (`XLogLongPageHeaderData`). `None`: it is no segment
/// that was written.
fn layout(segment: &File, place: &str) -> io::Result<Option<(u64, u64)>> {
    let mut header = [0; 40];
    let size = segment.metadata()?.len();
    if size < 40 {
        return Ok(None);
    }
    segment.read_exact_at(&mut header, 0)?;
    let number = |at: usize| {
        u64::from(u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
    };
    let part = |digits: &str| u64::from_str_radix(digits, 16).unwrap_or(0);
    let start = (part(&place[..8]) << 32) + part(&place[8..]) * size;
    let page = number(36);
    let sound = number(32) == size && page >= 1024 && page.is_power_of_two() && size % page == 0;
    Ok(sound.then_some((start, page)))
}

/// Whether this page of the segment was written: a page says where it is (`xlp_pageaddr`), and one of a file that is used again
/// says where it was.
fn has_page(segment: &File, start: u64, page: u64, at: u64) -> io::Result<bool> {
    let mut address = [0; 8];
    match segment.read_exact_at(&mut address, at * page + 8) {
        Ok(()) => Ok(u64::from_ne_bytes(address) == start + at * page),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1 << 20;
    const PAGE: usize = 8192;
    /// The sixth segment.
    const START: u64 = 5 << 20;
    const PLACE: &str = "0000000000000005";

    /// A segment with so many pages, the rest as in a file that was used before.
    fn segment(dir: &Path, timeline: Timeline, pages: usize) {
        let mut bytes = vec![0; SIZE];
        for at in 0..SIZE / PAGE {
            let used = if at < pages { 0 } else { 1 << 30 };
            let address = START + (at * PAGE) as u64 + used;
            bytes[at * PAGE + 8..at * PAGE + 16].copy_from_slice(&address.to_ne_bytes());
        }
        bytes[32..36].copy_from_slice(&(SIZE as u32).to_ne_bytes());
        bytes[36..40].copy_from_slice(&(PAGE as u32).to_ne_bytes());
        std::fs::write(dir.join(file_name(timeline, PLACE)), bytes).unwrap();
    }

    /// Timeline 2 has so many pages here and was left in page 10, timeline 3 has so many.
    fn parted(old: usize, new: usize, left: u64) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let left = Lsn(left);
        std::fs::write(dir.path().join("00000002.history"), "1\t0/400000\tbefore\n").unwrap();
        std::fs::write(dir.path().join("00000003.history"), format!("1\t0/400000\tx\n2\t{left}\tx\n"))
            .unwrap();
        segment(dir.path(), 2, old);
        segment(dir.path(), 3, new);
        let removed = remove_shadows(dir.path()).unwrap();
        assert!(dir.path().join(file_name(2, PLACE)).exists());
        assert_eq!(dir.path().join(file_name(3, PLACE)).exists(), removed.is_empty());
        removed
    }

    #[test]
    fn a_segment_that_breaks_off_before_its_timeline_begins_is_removed() {
        let left = START + 10 * PAGE as u64 + 100;
        let hidden = vec![file_name(3, PLACE)];
        assert_eq!(parted(11, 4, left), hidden);
        assert_eq!(parted(11, 0, left), hidden, "created, and nothing received");
        assert_eq!(parted(11, 10, left), hidden);
    }

    #[test]
    fn whatever_may_hold_more_stays() {
        let left = START + 10 * PAGE as u64 + 100;
        assert!(parted(11, 11, left).is_empty(), "the page in which they part is there");
        assert!(parted(11, 20, left).is_empty());
        assert!(parted(8, 4, left).is_empty(), "neither is whole");
        assert!(parted(8, 20, left).is_empty());
        assert!(parted(11, 4, START).is_empty(), "nothing in it is of the old timeline");
        assert!(parted(11, 4, START + SIZE as u64 * 3).is_empty(), "they part elsewhere");
    }

    #[test]
    fn a_new_timeline_without_a_history_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        segment(dir.path(), 2, 11);
        segment(dir.path(), 3, 4);
        assert!(remove_shadows(dir.path()).unwrap().is_empty());
    }
}
