//! What is learned, on its way from memory into the table: the saver's on a primary, the sidecar's from a standby.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::entry::{Entry, Known, Texts, flag};
use super::shared;
use super::table::{self, Place};
use crate::pg::encoding;

/// Counters are saved at most so often.
const COUNTERS_US: u64 = 10_000_000;
/// So many at a time are saved of those that can wait: they come in any number, and each costs as much as several executions.
const LATER_MAX: usize = 128;

/// One statement.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub place: Place,
    version: u32,
    pub hash: u64,
    check: u64,
    length: u64,
    pub path: Vec<u8>,
    words: u64,
    depends: Vec<u32>,
    on_all: bool,
    /// `None`: nothing is to be said about it.
    pub known: Option<Known>,
    pub barred: bool,
    /// It was proven when it was seen writing, and that is news.
    pub lied: bool,
    clean: u64,
    calls: u64,
    used_us: u64,
    query_id: u64,
    pub text: Vec<u8>,
    pub reason: Vec<u8>,
    /// On a standby: what had been replayed when the verdict was made.
    pub lsn: Option<u64>,
}

/// How soon it is to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// It takes away from what is served.
    AtOnce,
    /// What is served may grow by it.
    Soon,
    Counters,
    /// It has run once: most of those never come again.
    Young,
}

fn urgency(entry: &Entry, now_us: u64) -> Option<Urgency> {
    let (calls, saved_us) = (entry.calls.load(Relaxed), entry.saved_us.load(Relaxed));
    if entry.has(flag::UNSAVED) {
        // One that is new may have the hash of one that is served, under another search path.
        let is_there = || saved_us != 0 || shared::may_be_given(entry.hash.load(Relaxed));
        return Some(if entry.has(flag::BARRED) || entry.is_negative() && is_there() {
            Urgency::AtOnce
        } else if calls > 1 || saved_us != 0 {
            Urgency::Soon
        } else {
            Urgency::Young
        });
    }
    let is_observed = || entry.known() == Known::Unproven && entry.clean.load(Relaxed) > 0;
    (calls > 0 && now_us >= saved_us + COUNTERS_US).then(|| match () {
        () if is_observed() => Urgency::Soon,
        () if calls > 1 || saved_us != 0 => Urgency::Counters,
        () => Urgency::Young,
    })
}

/// What is to be taken.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Nothing that can wait longer than this.
    pub least: Urgency,
    pub most: usize,
}

impl Wanted {
    /// At most so many, of whatever there is.
    pub fn any(most: usize) -> Self {
        Self { least: Urgency::Young, most }
    }
}

/// Is there anything of that kind to save in this database?
pub fn is_anything_due(database: u32, now_us: u64, least: Urgency) -> bool {
    let _kept = shared::share();
    table::of_database(database)
        .any(|(_, entry, _)| urgency(entry, now_us).is_some_and(|urgency| urgency <= least))
}

/// Takes what is to be saved, the most urgent first; what is not saved then is to be [given back](give_back).
pub fn take(database: u32, now_us: u64, wanted: Wanted, in_recovery: bool) -> Vec<Record> {
    let _kept = shared::share();
    let mut due: Vec<_> = table::of_database(database)
        .filter_map(|(place, entry, texts)| {
            let urgency = urgency(entry, now_us).filter(|urgency| *urgency <= wanted.least)?;
            // Those whose turn comes round are taken in turn, or some would never be saved.
            let rank = match urgency {
                Urgency::Counters => entry.saved_us.load(Relaxed),
                _ => !entry.calls.load(Relaxed),
            };
            Some(((urgency, rank), place, entry, texts))
        })
        .collect();
    due.sort_by_key(|(rank, ..)| *rank);
    let later = due.partition_point(|((urgency, _), ..)| *urgency < Urgency::Counters);
    due.truncate(wanted.most.min(later + LATER_MAX));
    due.into_iter().map(|(_, place, entry, texts)| record(place, entry, texts, now_us, in_recovery)).collect()
}

fn record(place: Place, entry: &Entry, texts: &Texts, now_us: u64, in_recovery: bool) -> Record {
    // Looked at before what it counts: a change meanwhile is saved the next time.
    let version = entry.version.load(Relaxed);
    let known = entry.known_on(in_recovery);
    let barred = entry.has(flag::BARRED);
    entry.saved_us.store(now_us, Relaxed);
    Record {
        place,
        version,
        hash: entry.hash.load(Relaxed),
        check: entry.check.load(Relaxed),
        length: entry.length.load(Relaxed),
        path: texts.path.get(),
        words: entry.words.load(Relaxed),
        depends: entry.depends().collect(),
        on_all: entry.has(flag::ON_ALL),
        known: (known != Known::Nothing && !entry.has(flag::HANDED_OVER)).then_some(known),
        barred,
        lied: barred && entry.has(flag::LIED) && entry.has(flag::UNSAVED),
        clean: entry.clean.swap(0, Relaxed),
        calls: entry.calls.swap(0, Relaxed),
        used_us: entry.used_us.load(Relaxed),
        query_id: entry.query_id.load(Relaxed),
        text: texts.text.get(),
        reason: if known.is_negative() || barred { texts.reason.get() } else { Vec::new() },
        lsn: in_recovery.then(|| entry.lsn.load(Relaxed)),
    }
}

/// They are saved, or on a standby about to be handed over.
pub fn saved(records: &[Record], in_recovery: bool) {
    let _kept = shared::share();
    for record in records {
        if let Some(entry) = record.place.entry()
            && entry.version.load(Relaxed) == record.version
        {
            entry.flags.fetch_and(!flag::UNSAVED, Relaxed);
            if in_recovery && entry.known() != Known::Nothing {
                entry.flags.fetch_or(flag::HANDED_OVER, Relaxed);
            }
        }
    }
}

/// They could not be saved: what they count counts again.
pub fn give_back(records: &[Record]) {
    let _kept = shared::share();
    for record in records {
        if let Some(entry) = record.place.entry() {
            entry.calls.fetch_add(record.calls, Relaxed);
            if entry.version.load(Relaxed) == record.version {
                entry.clean.fetch_add(record.clean, Relaxed);
            }
        }
    }
}

/// What was handed over may not have arrived: it is handed over again.
pub fn not_handed_over(database: u32) {
    let _alone = shared::exclusive();
    for (_, entry, _) in table::of_database(database) {
        if entry.has(flag::HANDED_OVER | flag::BARRED) {
            entry.flags.fetch_and(!flag::HANDED_OVER, Relaxed);
            entry.is_unsaved_now();
        }
    }
}

impl Record {
    /// Is there nothing in it that the table would be the better for?
    pub fn says_nothing(&self) -> bool {
        self.known.is_none() && !self.barred && self.calls == 0
    }

    fn write(&self, out: &mut String) {
        let depends: Vec<String> = self.depends.iter().map(ToString::to_string).collect();
        let _ = write!(
            out,
            r#"{{"hash":{},"path":"{}","words":{},"depends":[{}],"all":{},"verdict":{},"barred":{},"lied":{},"clean":{},"calls":{},"used":{},"check":{},"length":{},"query_id":{},"text":"{}","reason":{},"lsn":{}}}"#,
            self.hash.cast_signed(),
            hex(&self.path),
            self.words.cast_signed(),
            depends.join(","),
            self.on_all,
            self.known.unwrap_or(Known::Nothing) as u32,
            self.barred,
            self.lied,
            self.clean,
            self.calls,
            self.used_us,
            self.check.cast_signed(),
            self.length,
            if self.query_id == 0 { "null".to_owned() } else { self.query_id.cast_signed().to_string() },
            hex(&self.text),
            if self.reason.is_empty() { "null".to_owned() } else { format!("\"{}\"", hex(&self.reason)) },
            self.lsn.map_or("null".to_owned(), |lsn| format!("\"{:X}/{:X}\"", lsn >> 32, lsn & 0xFFFF_FFFF)),
        );
    }
}

/// As `quorum.save_statements` and `quorum.merge_statements` take it: ASCII only, whatever the encodings are.
pub fn to_json(records: &[Record]) -> String {
    let mut out = String::from("[");
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        record.write(&mut out);
    }
    out.push(']');
    out
}

/// The digits of a text, in UTF-8 and without zeroes whatever its bytes are.
fn hex(text: &[u8]) -> String {
    let text = encoding::valid_utf8(text);
    text.bytes().fold(String::with_capacity(text.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn records_are_json_in_ascii() {
        let record = Record {
            hash: u64::MAX,
            path: "straße".into(),
            depends: vec![1, 4_000_000_000],
            known: Some(Known::Proven),
            text: b"select \"\xff\0\"".to_vec(),
            barred: true,
            lied: true,
            lsn: Some(0x1_0000_00AB),
            ..Record::default()
        };
        let json = to_json(&[record.clone(), Record { lsn: None, ..record }]);
        assert!(json.is_ascii());
        assert!(
            json.starts_with(r#"[{"hash":-1,"path":"73747261c39f65","words":0,"depends":[1,4000000000],"#),
            "{json}"
        );
        assert!(json.contains(r#","barred":true,"lied":true,"clean":0,"#), "{json}");
        assert!(json.contains(r#""lsn":"1/AB"}"#) && json.ends_with(r#""lsn":null}]"#), "{json}");
        assert!(
            json.contains("73656c65637420 22efbfbd2022".replace(' ', "").as_str())
                || json.contains("22efbfbd"),
            "{json}"
        );
        assert_eq!(to_json(&[]), "[]");
    }
}
