//! Just before the commit: versions of the rows that the transaction has written.

use std::collections::HashMap;

use pgquorum_change::{Header, commit_time};

use super::entry::{self, Emptied, Entry};
use super::{HERE, kept, order, origins};
use crate::pg::version_rows::{Found, Place, Stored, VersionRows};

/// So many rows are dealt with at a time: sorted, each once.
const BATCH: usize = 8192;

/// What the transaction has put into its buffer, as often as it is wanted.
pub type Entries<'a> = dyn FnMut(&mut dyn FnMut(&[u8])) + 'a;

/// Keeps the versions, and returns the time that the log is to give as that of the commit: the header's, but later than
/// that of every version that is replaced. Else another cluster, which has that version already, would take this write for
/// the older one.
pub fn keep(entries: &mut Entries, header: &Header) -> i64 {
    order::be_among_others();
    // The extension may have gone with this transaction.
    let Some(mut rows) = VersionRows::open_for_writing() else { return header.commit_us };
    let mut emptied = Emptied::default();
    entries(&mut |bytes| entry::entries(bytes).for_each(|entry| emptied.see(&entry)));
    let mut commit_us = header.commit_us;
    let mut only = None;
    // Changes that were made elsewhere have been given their time there.
    if header.origin_commit_us.is_none() {
        let mut latest_us = emptied.tables().filter_map(kept::truncated_us).max();
        let mut batches: usize = 0;
        // Later also than what was written first and went with its table then: the log has that, too.
        let everything = Emptied::default();
        let seen = if emptied.is_empty() { &emptied } else { &everything };
        each_batch(entries, seen, |batch| {
            let found: Vec<Option<Found>> = batch.iter().map(|entry| rows.find(&entry.place)).collect();
            let of_rows = found.iter().flatten().map(|found| found.stored.commit_us).max();
            latest_us = latest_us.max(of_rows).max(truncated_us(batch));
            batches += 1;
            only = (batches == 1 && emptied.is_empty()).then(|| (batch.clone(), found));
        });
        commit_us = commit_time(header.commit_us, latest_us);
    }
    let stored = |deleted| Stored {
        commit_us: header.origin_commit_us.unwrap_or(commit_us),
        origin: header.origin.map_or(HERE, origins::number),
        deleted,
    };
    let (live, deleted) = (stored(false), stored(true));
    let renewed: HashMap<i32, i32> =
        emptied.tables().filter_map(|old| Some((old, kept::truncate(old, &deleted)?))).collect();
    let put = |rows: &VersionRows, entry: &Entry, found: Option<Found>| {
        let version = if entry.what == entry::What::Live { &live } else { &deleted };
        match renewed.get(&entry.place.keeping) {
            None => rows.put(&entry.place, found, version),
            Some(&keeping) => {
                let place = Place { keeping, ..entry.place };
                rows.put(&place, rows.find(&place), version);
            }
        }
    };
    if let Some((batch, found)) = only {
        batch.iter().zip(found).for_each(|(entry, found)| put(&rows, entry, found));
    } else {
        let mut first = true;
        each_batch(entries, &emptied, |batch| {
            if !std::mem::take(&mut first) {
                rows.look_again();
            }
            batch.iter().for_each(|entry| put(&rows, entry, rows.find(&entry.place)));
        });
    }
    commit_us
}

/// When the tables of these rows, which are in order, were emptied last.
fn truncated_us(batch: &[Entry]) -> Option<i64> {
    let tables = batch.chunk_by(|one, next| one.place.keeping == next.place.keeping);
    tables.filter_map(|rows| kept::truncated_us(rows[0].place.keeping)).max()
}

/// Gives what counts, piece by piece. A row may be in several pieces: the later one counts.
fn each_batch(entries: &mut Entries, emptied: &Emptied, mut take: impl FnMut(&mut Vec<Entry>)) {
    let mut batch = Vec::new();
    let mut number = 0;
    let mut give = |batch: &mut Vec<Entry>| {
        pgrx::check_for_interrupts!();
        entry::last_of_each(batch);
        take(batch);
        batch.clear();
    };
    entries(&mut |bytes| {
        for entry in entry::entries(bytes) {
            if emptied.counts(number, &entry) {
                batch.push(entry);
            }
            number += 1;
            if batch.len() == BATCH {
                give(&mut batch);
            }
        }
    });
    if !batch.is_empty() {
        give(&mut batch);
    }
}
