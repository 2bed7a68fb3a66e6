//! Segments of a new timeline that hide what is here of the one before.
//!
//! A standby that goes over to a new timeline receives its first segment from the beginning again, although it has that part
//! on the old one. If it is killed while it does, and started, PostgreSQL reads the newer file because it is newer, finds its
//! WAL to end where that breaks off, and cannot go on: it gives up with "belongs to timeline 2, but previous recovered WAL
//! file came from timeline 3" (`WaitForWALToBecomeAvailable` in xlogrecovery.c), at each start anew. What it had acknowledged
//! is there, and not seen.
//!
//! Up to where the timelines part, both files are to hold the same bytes. Where they do not, one of them breaks off, or lost
//! pages with the machine's power; `pg_waldump`, which checks each record, tells which one.

use super::config::PostgresConfig;
use super::control::{ControlData, record_end, record_length};
use super::durable;
use super::error::{Result, blocking, failure, io as in_io};
use super::process;
use super::timeline::{read_history, segment_number};
use pgquorum_agent::types::{Lsn, Timeline};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const READ_LIMIT: Duration = Duration::from_secs(60);

/// Two files for the same part of the WAL that differ before their timelines part.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    /// The second half of their names.
    place: String,
    old: Timeline,
    new: Timeline,
    /// Where the segment begins.
    start: Lsn,
    /// Where the old timeline was left.
    left: Lsn,
    segment_bytes: u64,
}

/// Removes segments that break off before their timeline begins, where the same part of the WAL is whole on an older one:
/// nothing in them is of the new timeline that was ever acknowledged, since whatever is acknowledged was written, and synced,
/// with all that is before it. The server must be stopped. Returns their names.
pub async fn remove_shadows(config: &PostgresConfig) -> Result<Vec<String>> {
    let wal_dir = config.wal_dir();
    let pairs = {
        let wal_dir = wal_dir.clone();
        blocking(move || pairs(&wal_dir).map_err(in_io("looking for segments that hide others"))).await?
    };
    let mut removed = Vec::new();
    for pair in pairs {
        let name = file_name(pair.new, &pair.place);
        if removed.contains(&name)
            || !is_whole(config, &pair, pair.old).await?
            || is_whole(config, &pair, pair.new).await?
        {
            continue;
        }
        let wal_dir = wal_dir.clone();
        let path = wal_dir.join(&name);
        blocking(move || {
            std::fs::remove_file(path)
                .and_then(|()| durable::sync_dir(&wal_dir))
                .map_err(in_io("removing a segment that hides another"))
        })
        .await?;
        removed.push(name);
    }
    Ok(removed)
}

/// Removes segments of timelines beyond the control file's in which no record of these timelines is, where the same part of
/// the WAL is whole on the one before: a standby that goes over to a timeline receives its segment from the beginning, and
/// may never get what comes after the parting. As long as they are there, PostgreSQL takes that timeline as its target, and
/// cannot follow a primary that was promoted from the one before instead. The server must be stopped. Returns their names.
pub async fn remove_empty_branches(config: &PostgresConfig, control: &ControlData) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    loop {
        let (config_of, segment_bytes, known) = (config.clone(), control.segment_bytes, control.timeline());
        let newest = move || newest_branch(&config_of.wal_dir(), known, segment_bytes);
        let newest = blocking(move || newest().map_err(in_io("looking for segments of newer timelines")));
        let Some((branch, names)) = newest.await? else { return Ok(removed) };
        if begins(config, &branch).await? || !is_whole(config, &branch, branch.old).await? {
            return Ok(removed);
        }
        let (wal_dir, gone) = (config.wal_dir(), names.clone());
        blocking(move || {
            gone.iter()
                .try_for_each(|name| std::fs::remove_file(wal_dir.join(name)))
                .and_then(|()| durable::sync_dir(&wal_dir))
                .map_err(in_io("removing segments without anything of their own"))
        })
        .await?;
        removed.extend(names);
    }
}

/// The newest timeline beyond `known` that has segments here, and their names, if none of them is beyond its parting.
fn newest_branch(
    wal_dir: &Path,
    known: Timeline,
    segment_bytes: u64,
) -> io::Result<Option<(Pair, Vec<String>)>> {
    let mut segments: BTreeMap<Timeline, Vec<(u64, String)>> = BTreeMap::new();
    for entry in std::fs::read_dir(wal_dir)? {
        let name = entry?.file_name();
        if let Some((timeline, number)) = name.to_str().and_then(|n| segment_number(n, segment_bytes)) {
            segments.entry(timeline).or_default().push((number, name.to_string_lossy().into_owned()));
        }
    }
    let Some((new, segments)) = segments.pop_last().filter(|(timeline, _)| *timeline > known) else {
        return Ok(None);
    };
    let Some((old, left)) = read_history(wal_dir, new).unwrap_or_default().pop() else { return Ok(None) };
    let parting = left.0 / segment_bytes;
    if segments.iter().any(|(number, _)| *number > parting) {
        return Ok(None);
    }
    let names: Vec<String> = segments.into_iter().map(|(_, name)| name).collect();
    let per_id = (1 << 32) / segment_bytes;
    let place = format!("{:08X}{:08X}", parting / per_id, parting % per_id);
    let start = Lsn(parting * segment_bytes);
    Ok(Some((Pair { place, old, new, start, left, segment_bytes }, names)))
}

/// Whether the new timeline has a record of its own. A file that cannot be read may hold one: only where `pg_waldump` has
/// read it and says that there is none, there is none.
async fn begins(config: &PostgresConfig, pair: &Pair) -> Result<bool> {
    if !config.wal_dir().join(file_name(pair.new, &pair.place)).exists() {
        return Ok(false);
    }
    let mut command = waldump(config, pair.new, pair.left);
    command.arg("-n").arg("1").env("LC_ALL", "C");
    let ended = process::run_to_end("pg_waldump", command, READ_LIMIT).await?;
    Ok(ended.success() || !ended.stderr.contains("could not find a valid record after"))
}

/// Whether this timeline's file has sound records up to where the timelines part.
async fn is_whole(config: &PostgresConfig, pair: &Pair, timeline: Timeline) -> Result<bool> {
    if pair.start >= pair.left {
        return Ok(true);
    }
    let mut command = waldump(config, timeline, pair.start);
    command.arg("-e").arg(pair.left.to_string());
    let (last, status) = last_record(command).await?;
    // A record that goes on beyond the end is no error to it.
    Ok(status.success() && end_of(&String::from_utf8_lossy(&last), pair.segment_bytes) == Some(pair.left))
}

fn waldump(config: &PostgresConfig, timeline: Timeline, start: Lsn) -> Command {
    let mut command = Command::new(config.program("pg_waldump"));
    command
        .arg("-p")
        .arg(config.wal_dir())
        .arg("-t")
        .arg(timeline.to_string())
        .arg("-s")
        .arg(start.to_string());
    command
}

/// The last line about a record that `pg_waldump` prints, and how it ended.
async fn last_record(mut command: Command) -> Result<(Vec<u8>, ExitStatus)> {
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().map_err(in_io("starting pg_waldump"))?;
    let out = child.stdout.take().ok_or_else(|| failure("pg_waldump has no output"))?;
    let read = async {
        let mut lines = BufReader::new(out).split(b'\n');
        let mut last = Vec::new();
        while let Some(line) = lines.next_segment().await.map_err(in_io("reading pg_waldump's output"))? {
            if line.starts_with(b"rmgr: ") {
                last = line;
            }
        }
        Ok((last, child.wait().await.map_err(in_io("waiting for pg_waldump"))?))
    };
    let (last, status) =
        tokio::time::timeout(READ_LIMIT, read).await.map_err(|_| failure("pg_waldump does not end"))??;
    if status.code().is_none() {
        return Err(failure(format!("pg_waldump was ended: {status}")));
    }
    Ok((last, status))
}

/// Where the record that `pg_waldump` has in this line ends.
fn end_of(line: &str, segment_bytes: u64) -> Option<Lsn> {
    let (lsn, _) = line.split_once(", lsn: ")?.1.split_once(',')?;
    Some(record_end(lsn.parse().ok()?, record_length(line)?, segment_bytes))
}

fn pairs(wal_dir: &Path) -> io::Result<Vec<Pair>> {
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
    let mut found = Vec::new();
    for (place, timelines) in segments.iter().filter(|(_, timelines)| timelines.len() > 1) {
        for &new in timelines {
            // Without its history nothing is known of it; PostgreSQL does not take it either.
            let Ok(ancestors) = read_history(wal_dir, new) else { continue };
            for (old, left) in ancestors.into_iter().filter(|(old, _)| timelines.contains(old)) {
                found.extend(differs(wal_dir, place, (old, new), left)?);
            }
        }
    }
    Ok(found)
}

fn file_name(timeline: Timeline, place: &str) -> String {
    format!("{timeline:08X}{place}")
}

/// The two files, if they part in this segment and the old one has all pages up to there, but they do not hold the same.
fn differs(
    wal_dir: &Path,
    place: &str,
    (old, new): (Timeline, Timeline),
    left: Lsn,
) -> io::Result<Option<Pair>> {
    let open = |timeline| File::open(wal_dir.join(file_name(timeline, place)));
    let files = (open(old)?, open(new)?);
    let Some((start, page)) = layout(&files.0, place)? else { return Ok(None) };
    let segment_bytes = files.0.metadata()?.len();
    // Nothing of the old timeline is in it, or all: then it is not where they part.
    if left.0 <= start || left.0 >= start + segment_bytes {
        return Ok(None);
    }
    for at in 0..=(left.0 - 1 - start) / page {
        if !has_page(&files.0, start, page, at)? {
            return Ok(None);
        }
    }
    if same(&files.0, &files.1, left.0 - start)? {
        return Ok(None);
    }
    Ok(Some(Pair { place: place.to_owned(), old, new, start: Lsn(start), left, segment_bytes }))
}

/// Do both begin with the same so many bytes?
fn same(one: &File, other: &File, length: u64) -> io::Result<bool> {
    const PIECE: u64 = 1 << 16;
    let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    for at in (0..length).step_by(PIECE as usize) {
        let size = PIECE.min(length - at) as usize;
        for (file, buffer) in [one, other].into_iter().zip(&mut buffers) {
            match file.read_exact_at(&mut buffer[..size], at) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if buffers[0][..size] != buffers[1][..size] {
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

    /// Timeline 2 has so many pages here and was left at `left`, timeline 3 has so many.
    fn parted(old: usize, new: usize, left: u64) -> Vec<Pair> {
        let dir = tempfile::tempdir().unwrap();
        let left = Lsn(left);
        std::fs::write(dir.path().join("00000002.history"), "1\t0/400000\tbefore\n").unwrap();
        std::fs::write(dir.path().join("00000003.history"), format!("1\t0/400000\tx\n2\t{left}\tx\n"))
            .unwrap();
        segment(dir.path(), 2, old);
        segment(dir.path(), 3, new);
        pairs(dir.path()).unwrap()
    }

    #[test]
    fn segments_that_differ_before_their_timelines_part_are_looked_into() {
        let left = Lsn(START + 10 * PAGE as u64 + 100);
        let (place, start) = (PLACE.to_owned(), Lsn(START));
        let pair = vec![Pair { place, old: 2, new: 3, start, left, segment_bytes: SIZE as u64 }];
        assert_eq!(parted(11, 4, left.0), pair);
        assert_eq!(parted(11, 0, left.0), pair, "created, and nothing received");
        assert_eq!(parted(11, 10, left.0), pair);
    }

    #[test]
    fn whatever_may_hold_more_stays() {
        let left = START + 10 * PAGE as u64 + 100;
        assert!(parted(11, 11, left).is_empty(), "they are the same");
        assert!(parted(11, 20, left).is_empty());
        assert!(parted(8, 4, left).is_empty(), "neither is whole");
        assert!(parted(8, 20, left).is_empty());
        assert!(parted(11, 4, START).is_empty(), "nothing in it is of the old timeline");
        assert!(parted(11, 4, START + SIZE as u64 * 3).is_empty(), "they part elsewhere");
    }

    #[test]
    fn a_branch_that_has_no_segment_beyond_its_parting_is_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let size = SIZE as u64;
        let left = Lsn(START + 100);
        let newest = |known| newest_branch(dir.path(), known, size).unwrap();
        segment(dir.path(), 2, 11);
        segment(dir.path(), 3, 4);
        assert_eq!(newest(2), None, "nothing is known of it");
        std::fs::write(dir.path().join("00000003.history"), format!("2\t{left}\tx\n")).unwrap();
        let pair =
            Pair { place: PLACE.to_owned(), old: 2, new: 3, start: Lsn(START), left, segment_bytes: size };
        assert_eq!(newest(2), Some((pair, vec![file_name(3, PLACE)])));
        assert_eq!(newest(3), None, "it replayed some of it");
        std::fs::write(dir.path().join(file_name(3, "0000000000000006")), "").unwrap();
        assert_eq!(newest(2), None, "what follows is its own");
    }

    #[test]
    fn a_new_timeline_without_a_history_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        segment(dir.path(), 2, 11);
        segment(dir.path(), 3, 4);
        assert!(pairs(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_record_ends_with_its_padding_and_the_headers_of_pages() {
        let line = "rmgr: Heap        len (rec/tot):     54/   150, tx:        733, lsn: 0/01529B50, prev 0/01529B18, desc: INSERT off 2";
        assert_eq!(end_of(line, 16 << 20), Some(Lsn(0x0152_9BE8)));
        assert_eq!(end_of("", 16 << 20), None);
    }
}
