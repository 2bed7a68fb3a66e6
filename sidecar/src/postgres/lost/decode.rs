//! Reads what `pg_waldump` prints: which transactions were committed in a range of WAL, and what each did.

use pgquorum_agent::types::Lsn;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Transactions that are remembered one by one; further ones are counted.
const COMMITTED_MAX: usize = 20_000;
/// Transactions, and what each of them changed (files, descriptions of tables), that are remembered all together.
const HELD_MAX: usize = 200_000;

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
    /// Something of it, beside its end, is in the WAL that was read. If not, it wrote before, or nothing.
    pub seen: bool,
}

impl Changes {
    fn weight(&self) -> usize {
        1 + self.rows.len() + self.made.len() + self.described.len()
    }
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
    /// Where the last record was: the next one knows it.
    chain: Option<Lsn>,
    open: HashMap<u32, Changes>,
    /// How much is remembered.
    held: usize,
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

    /// What comes now does not follow what came before.
    pub fn begin_piece(&mut self) {
        self.chain = None;
    }

    pub fn feed(&mut self, line: &str) {
        let Some(Record { kind, xid, lsn, prev, what }) = parse(line) else { return };
        // Words of clients stand in some records (names of prepared transactions, prefixes of messages), and with a line
        // break in them they can look like a record.
        if self.chain.is_some_and(|last| last != prev) {
            return;
        }
        self.chain = Some(lsn);
        self.last = self.last.max(lsn);
        match kind {
            "Transaction" => self.transaction(xid, lsn, what),
            "Heap" | "Heap2" => self.heap(xid, lsn, what),
            "Storage" => self.storage(xid, lsn, what),
            _ => drop(self.of(xid, lsn)),
        }
    }

    fn of(&mut self, xid: u32, lsn: Lsn) -> Option<&mut Changes> {
        if xid == 0 {
            return None;
        }
        if !self.open.contains_key(&xid) && !self.has_room() {
            return None;
        }
        let from = self.from;
        let changes = self.open.entry(xid).or_insert_with(|| {
            self.held += 1;
            Changes::default()
        });
        changes.in_range |= lsn >= from;
        changes.seen = true;
        Some(changes)
    }

    fn has_room(&mut self) -> bool {
        self.overflow |= self.held >= HELD_MAX;
        self.held < HELD_MAX
    }

    fn heap(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let word = what.split_whitespace().next().unwrap_or_default();
        let word = word.strip_suffix("+INIT").unwrap_or(word);
        let Some(changes) = self.of(xid, lsn) else { return };
        let Some(file) = file_of(what) else { return };
        let known = changes.rows.contains_key(&file);
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
        if !known {
            if !self.has_room() {
                return;
            }
            self.held += 1;
        }
        let all = self.open.entry(xid).or_default().rows.entry(file).or_default();
        all.inserted = (all.inserted + rows.inserted).saturating_sub(back);
        all.updated += rows.updated;
        all.deleted += rows.deleted;
    }

    fn storage(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let made =
            what.strip_prefix("CREATE ").and_then(|path| file_of_path(path.split_whitespace().next()?));
        let room = self.has_room();
        if let (Some(changes), Some(file)) = (self.of(xid, lsn), made.filter(|_| room))
            && changes.made.insert(file)
        {
            self.held += 1;
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
                    self.merge(&mut changes, child);
                }
            } else if let Some(messages) = part.strip_prefix("inval msgs: ") {
                let words: Vec<&str> = messages.split_whitespace().collect();
                let oids =
                    words.windows(2).filter(|w| w[0] == "relcache").filter_map(|w| w[1].parse::<u32>().ok());
                for oid in oids.filter(|_| commits) {
                    if self.has_room() && changes.described.insert(oid) {
                        self.held += 1;
                    }
                }
            }
        }
        if lsn < self.from || !commits {
            self.held = self.held.saturating_sub(changes.weight());
            self.aborted += u64::from(lsn >= self.from);
        } else if self.committed.len() < COMMITTED_MAX {
            self.committed.push(Committed { xid, at: rfc3339(at), changes });
        } else {
            self.more += 1;
        }
    }

    fn merge(&mut self, into: &mut Changes, child: u32) {
        let Some(child) = self.open.remove(&child) else { return };
        let (apart, before) = (child.weight(), into.weight());
        for (file, rows) in child.rows {
            let all = into.rows.entry(file).or_default();
            all.inserted += rows.inserted;
            all.updated += rows.updated;
            all.deleted += rows.deleted;
        }
        into.made.extend(child.made);
        into.seen |= child.seen;
        self.held = (self.held + into.weight()).saturating_sub(before + apart);
    }
}

/// A line of `pg_waldump`.
struct Record<'a> {
    kind: &'a str,
    xid: u32,
    lsn: Lsn,
    prev: Lsn,
    what: &'a str,
}

fn parse(line: &str) -> Option<Record<'_>> {
    let rest = line.strip_prefix("rmgr: ")?;
    let kind = rest.split_whitespace().next()?;
    let (_, rest) = rest.split_once(", tx:")?;
    let (xid, rest) = rest.split_once(", lsn: ")?;
    let (lsn, rest) = rest.split_once(", prev ")?;
    let (prev, what) = rest.split_once(", desc: ")?;
    let (xid, lsn, prev) = (xid.trim().parse().ok()?, lsn.parse().ok()?, prev.parse().ok()?);
    Some(Record { kind, xid, lsn, prev, what })
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
#[path = "decode_tests.rs"]
mod tests;
