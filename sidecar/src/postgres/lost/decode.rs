//! Reads what `pg_waldump` prints: which transactions were committed in a range of WAL, and what each did.

use pgquorum_agent::types::Lsn;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Transactions that are remembered one by one; further ones are counted.
const COMMITTED_MAX: usize = 20_000;
/// Changed files of all transactions together that are remembered.
const CHANGES_MAX: usize = 200_000;

/// A relation's file: its database (0: shared by all) and its number.
pub type File = (u32, u32);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// What one transaction did, as far as the WAL shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub rows: BTreeMap<File, Rows>,
    /// Files that it made: of new, truncated and rewritten relations.
    pub made: BTreeSet<File>,
    /// Relations by oid whose description it changed.
    pub described: BTreeSet<u32>,
    /// It wrote at or after the beginning of the range.
    pub in_range: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub xid: u32,
    /// RFC 3339.
    pub at: String,
    pub changes: Changes,
}

/// Takes the lines one after the other.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Commits before this place are not lost; what a transaction did before it is still counted to it.
    from: Lsn,
    open: HashMap<u32, Changes>,
    changes: usize,
    pub committed: Vec<Committed>,
    /// Committed ones beyond those remembered.
    pub more: u64,
    pub aborted: u64,
    /// Something was left out for want of room.
    pub overflow: bool,
    /// The last record that was seen.
    pub last: Lsn,
}

impl Decoder {
    pub fn new(from: Lsn) -> Decoder {
        Decoder { from, ..Decoder::default() }
    }

    /// Transaction ids that wrote in the range and neither committed nor aborted in it.
    pub fn unfinished(&self) -> u64 {
        self.open.values().filter(|c| c.in_range).count() as u64
    }

    pub fn feed(&mut self, line: &str) {
        let Some((kind, xid, lsn, what)) = parse(line) else { return };
        self.last = self.last.max(lsn);
        match kind {
            "Heap" | "Heap2" => self.heap(xid, lsn, what),
            "Storage" => self.storage(xid, lsn, what),
            "Transaction" => self.transaction(xid, lsn, what),
            _ => {}
        }
    }

    fn of(&mut self, xid: u32, lsn: Lsn) -> Option<&mut Changes> {
        if xid == 0 {
            return None;
        }
        self.changes += 1;
        if self.changes > CHANGES_MAX && !self.open.contains_key(&xid) {
            self.overflow = true;
            return None;
        }
        let from = self.from;
        let changes = self.open.entry(xid).or_default();
        changes.in_range |= lsn >= from;
        Some(changes)
    }

    fn heap(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let word = what.split_whitespace().next().unwrap_or_default();
        let word = word.strip_suffix("+INIT").unwrap_or(word);
        let Some(file) = file_of(what) else { return };
        let (mut rows, mut back) = (Rows::default(), 0);
        match word {
            "INSERT" => rows.inserted = 1,
            "MULTI_INSERT" => rows.inserted = tuples(what),
            "UPDATE" | "HOT_UPDATE" => rows.updated = 1,
            // A row that lost against another of the same key is taken back at once.
            "DELETE" if flags(what) & 0x08 != 0 => back = 1,
            "DELETE" => rows.deleted = 1,
            _ => return,
        }
        if let Some(changes) = self.of(xid, lsn) {
            let all = changes.rows.entry(file).or_default();
            all.inserted = (all.inserted + rows.inserted).saturating_sub(back);
            all.updated += rows.updated;
            all.deleted += rows.deleted;
        }
    }

    fn storage(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let made =
            what.strip_prefix("CREATE ").and_then(|path| file_of_path(path.split_whitespace().next()?));
        if let (Some(file), Some(changes)) = (made, self.of(xid, lsn)) {
            changes.made.insert(file);
        }
    }

    fn transaction(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let Some((word, rest)) = what.split_once(' ') else { return };
        let commits = word.starts_with("COMMIT");
        if !commits && !word.starts_with("ABORT") {
            return;
        }
        // `COMMIT_PREPARED 734: …` names the transaction, whose record belongs to none.
        let prepared = word.ends_with("_PREPARED").then(|| rest.split_once(": ")).flatten();
        let (xid, rest) = match prepared {
            Some((number, rest)) => (number.trim().parse().unwrap_or(0), rest),
            None => (xid, rest),
        };
        let mut parts = rest.split("; ");
        let at = parts.next().unwrap_or_default();
        let mut changes = self.open.remove(&xid).unwrap_or_default();
        for part in parts {
            if let Some(children) = part.strip_prefix("subxacts: ") {
                for child in children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()) {
                    merge(&mut changes, self.open.remove(&child).unwrap_or_default());
                }
            } else if let Some(messages) = part.strip_prefix("inval msgs: ") {
                let words: Vec<&str> = messages.split_whitespace().collect();
                let oids =
                    words.windows(2).filter(|w| w[0] == "relcache").filter_map(|w| w[1].parse::<u32>().ok());
                changes.described.extend(oids);
            }
        }
        if lsn < self.from {
            return;
        }
        if !commits {
            self.aborted += 1;
        } else if self.committed.len() < COMMITTED_MAX {
            self.committed.push(Committed { xid, at: rfc3339(at), changes });
        } else {
            self.more += 1;
        }
    }
}

fn merge(into: &mut Changes, child: Changes) {
    for (file, rows) in child.rows {
        let all = into.rows.entry(file).or_default();
        all.inserted += rows.inserted;
        all.updated += rows.updated;
        all.deleted += rows.deleted;
    }
    into.made.extend(child.made);
    into.described.extend(child.described);
}

/// Resource manager, transaction, place and description.
fn parse(line: &str) -> Option<(&str, u32, Lsn, &str)> {
    let rest = line.strip_prefix("rmgr: ")?;
    let kind = rest.split_whitespace().next()?;
    let (_, rest) = rest.split_once(", tx:")?;
    let (xid, rest) = rest.split_once(", lsn: ")?;
    let (lsn, rest) = rest.split_once(", prev ")?;
    let (_, what) = rest.split_once(", desc: ")?;
    Some((kind, xid.trim().parse().ok()?, lsn.parse().ok()?, what))
}

/// The file of the first block, `blkref #0: rel 1663/5/16384 …`.
fn file_of(what: &str) -> Option<File> {
    let (_, rest) = what.split_once("blkref #0: rel ")?;
    let mut numbers = rest.split([' ', ',']).next()?.split('/').map(str::parse::<u32>);
    let (_, database, file) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((database, file))
}

/// `base/5/16384`, `global/1262`, `pg_tblspc/16400/PG_15_202209061/5/16401`.
fn file_of_path(path: &str) -> Option<File> {
    let mut parts = path.rsplit('/');
    // Forks have a suffix of their own, `16384_init`.
    let file = parts.next()?.parse().ok()?;
    let database = parts.next()?;
    Some((if database == "global" { 0 } else { database.parse().ok()? }, file))
}

/// How many rows: `185 tuples …` up to PostgreSQL 15, `ntuples: 185` later.
fn tuples(what: &str) -> u64 {
    let words: Vec<&str> = what.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let number = words.windows(2).find_map(|w| match w {
        [number, "tuples"] | ["ntuples:", number] => number.parse().ok(),
        _ => None,
    });
    number.unwrap_or(1)
}

fn flags(what: &str) -> u32 {
    let text = what.split_once("flags").map(|(_, rest)| rest.trim_start_matches([':', ' ']));
    let digits = text.and_then(|t| t.strip_prefix("0x")).and_then(|t| t.split([' ', ',', ';']).next());
    digits.and_then(|d| u32::from_str_radix(d, 16).ok()).unwrap_or(0)
}

/// `2026-01-01 00:00:00.123 UTC` as RFC 3339.
fn rfc3339(at: &str) -> String {
    let at = at.trim().trim_end_matches(';');
    let at = at.strip_suffix(" UTC").map_or_else(|| at.to_owned(), |t| format!("{t}Z"));
    at.replacen(' ', "T", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("sample.txt");

    fn decoded(from: &str) -> Decoder {
        let mut decoder = Decoder::new(from.parse().unwrap());
        SAMPLE.lines().for_each(|line| decoder.feed(line));
        decoder
    }

    fn rows(decoder: &Decoder, xid: u32, file: u32) -> (u64, u64, u64) {
        let committed = decoder.committed.iter().find(|c| c.xid == xid).unwrap();
        let r = committed.changes.rows.get(&(5, file)).copied().unwrap_or_default();
        (r.inserted, r.updated, r.deleted)
    }

    /// The sample is what PostgreSQL 15 wrote for the statements named here.
    #[test]
    fn rows_are_counted_by_transaction_and_file() {
        let decoder = decoded("0/0");
        assert_eq!(rows(&decoder, 725, 16384), (2, 0, 0), "two rows in one statement");
        assert_eq!(rows(&decoder, 726, 16384), (31, 4, 1), "with its savepoints");
        assert_eq!(rows(&decoder, 729, 16384), (1, 0, 0), "on conflict");
        assert_eq!(rows(&decoder, 730, 16391), (500, 0, 0), "COPY");
        assert_eq!(rows(&decoder, 731, 16397), (1, 0, 0), "into the file that TRUNCATE made");
        assert_eq!(rows(&decoder, 734, 16397), (1, 0, 0), "a prepared transaction");
        assert_eq!(decoder.aborted, 1);
        assert_eq!(decoder.unfinished(), 0);
        let xids: Vec<u32> = decoder.committed.iter().map(|c| c.xid).collect();
        assert_eq!(xids, [725, 726, 729, 730, 731, 732, 733, 734, 736, 737]);
        assert_eq!(decoder.committed[0].at, "2026-11-25T16:35:02.593958Z");
    }

    #[test]
    fn files_that_were_made_are_known_with_the_tables_they_belong_to() {
        let decoder = decoded("0/0");
        let truncated = &decoder.committed.iter().find(|c| c.xid == 731).unwrap().changes;
        assert_eq!(truncated.made, BTreeSet::from([(5, 16397)]));
        assert_eq!(truncated.described, BTreeSet::from([16391]));
    }

    #[test]
    fn only_what_was_committed_in_the_range_is_lost() {
        // From the prepared transaction's commit on; what it wrote lies before.
        let decoder = decoded("0/01789780");
        let xids: Vec<u32> = decoder.committed.iter().map(|c| c.xid).collect();
        assert_eq!(xids, [734, 736, 737]);
        assert_eq!(rows(&decoder, 734, 16397), (1, 0, 0));
        assert_eq!(decoder.aborted, 1);
    }

    #[test]
    fn other_versions_and_odd_lines_are_read_too() {
        assert_eq!(tuples("MULTI_INSERT ntuples: 185, flags: 0x02"), 185);
        assert_eq!(flags("DELETE xmax: 7, off: 5, infobits: [], flags: 0x08, blkref"), 8);
        assert_eq!(file_of_path("pg_tblspc/16400/PG_15_202209061/5/16401"), Some((5, 16401)));
        assert_eq!(file_of_path("global/1262"), Some((0, 1262)));
        let mut decoder = Decoder::default();
        for line in
            ["", "rmgr: Heap", "pg_waldump: error", "rmgr: Heap len, tx: x, lsn: 0/1, prev 0/0, desc: INSERT"]
        {
            decoder.feed(line);
        }
        assert!(decoder.committed.is_empty() && decoder.unfinished() == 0);
    }
}
