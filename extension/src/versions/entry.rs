//! What a transaction has done to rows whose versions are kept, in the order in which it did it. Lies in the transaction's
//! buffer beside the changes themselves, so that savepoints and large transactions are no matter here.

use std::collections::HashMap;

use pgquorum_change::KEY_BYTES;

use crate::pg::version_rows::Place;

/// What it did, the number of the table's versions, the key.
pub const ENTRY_BYTES: usize = 1 + 4 + KEY_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The row is there.
    Live,
    /// The row was deleted, or its key changed.
    Deleted,
    /// The whole table was emptied.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    pub place: Place,
}

impl Entry {
    pub fn put(&self, out: &mut Vec<u8>) {
        let what = match self.what {
            What::Live => 0,
            What::Deleted => 1,
            What::Truncated => 2,
        };
        out.push(what);
        out.extend_from_slice(&self.place.keeping.to_le_bytes());
        out.extend_from_slice(&self.place.key);
    }

    pub fn truncated(keeping: i32) -> Self {
        Self { what: What::Truncated, place: Place { keeping, key: [0; KEY_BYTES] } }
    }

    fn take(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let (what, rest) = (bytes[0], &bytes[1..]);
        let mut keeping = [0; 4];
        keeping.copy_from_slice(&rest[..4]);
        let mut key = [0; KEY_BYTES];
        key.copy_from_slice(&rest[4..]);
        let what = match what {
            0 => What::Live,
            1 => What::Deleted,
            _ => What::Truncated,
        };
        Self { what, place: Place { keeping: i32::from_le_bytes(keeping), key } }
    }
}

/// The entries of what was put at a time.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Entry> {
    bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::take)
}

/// Which tables were emptied, and by which entry, counted from 0, for the last time.
#[derive(Debug, Default)]
pub struct Emptied {
    last: HashMap<i32, u64>,
    seen: u64,
}

impl Emptied {
    pub fn see(&mut self, entry: &Entry) {
        if entry.what == What::Truncated {
            self.last.insert(entry.place.keeping, self.seen);
        }
        self.seen += 1;
    }

    /// Is this entry, counted from 0, one of a row that did not go with its table?
    pub fn counts(&self, number: u64, entry: &Entry) -> bool {
        entry.what != What::Truncated
            && self.last.get(&entry.place.keeping).is_none_or(|emptied| number > *emptied)
    }

    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    pub fn tables(&self) -> impl Iterator<Item = i32> {
        self.last.keys().copied()
    }
}

/// Leaves the last entry of each row, in the order of the index.
pub fn last_of_each(entries: &mut Vec<Entry>) {
    // Stable: entries of one row stay in their order.
    entries.sort_by_key(|entry| entry.place);
    let mut kept: usize = 0;
    for at in 0..entries.len() {
        if kept > 0 && entries[kept - 1].place == entries[at].place {
            entries[kept - 1] = entries[at];
        } else {
            entries[kept] = entries[at];
            kept += 1;
        }
    }
    entries.truncate(kept);
}

#[cfg(test)]
mod unit {
    use super::*;

    fn entry(what: What, keeping: i32, key: u8) -> Entry {
        Entry { what, place: Place { keeping, key: [key; KEY_BYTES] } }
    }

    #[test]
    fn entries_are_taken_as_they_were_put() {
        let all = [entry(What::Live, 1, 7), entry(What::Deleted, -1, 255), Entry::truncated(i32::MAX)];
        let mut bytes = Vec::new();
        all.iter().for_each(|entry| entry.put(&mut bytes));
        assert_eq!(bytes.len(), 3 * ENTRY_BYTES);
        assert_eq!(entries(&bytes).collect::<Vec<_>>(), all);
    }

    #[test]
    fn the_last_entry_of_a_row_is_left() {
        use What::{Deleted, Live};
        let mut all = vec![
            entry(Live, 2, 1),
            entry(Live, 1, 9),
            entry(Deleted, 2, 1),
            entry(Deleted, 1, 3),
            entry(Live, 2, 1),
            entry(Deleted, 1, 9),
        ];
        last_of_each(&mut all);
        assert_eq!(all, [entry(Deleted, 1, 3), entry(Deleted, 1, 9), entry(Live, 2, 1)]);
        let mut none = Vec::new();
        last_of_each(&mut none);
        assert_eq!(none, []);
    }

    #[test]
    fn what_came_before_a_truncate_went_with_it() {
        let all =
            [entry(What::Live, 1, 1), entry(What::Live, 2, 1), Entry::truncated(1), entry(What::Live, 1, 2)];
        let mut emptied = Emptied::default();
        all.iter().for_each(|entry| emptied.see(entry));
        let counts: Vec<bool> =
            (0..).zip(&all).map(|(number, entry)| emptied.counts(number, entry)).collect();
        assert_eq!(counts, [false, true, false, true]);
        assert_eq!(emptied.tables().collect::<Vec<_>>(), [1]);
    }
}
