//! Which log rows a reader gets, wherever it begins.

use super::super::entries::{decode, encode};
use super::super::plan::{Found, plan};
use super::*;
use std::collections::HashMap;

/// A batch of transactions given by the numbers of changes that end in each of their rows.
fn batch(transactions: &[&[u32]]) -> Vec<Found> {
    let mut block = 0;
    let mut all = Vec::new();
    for (changes, xid) in transactions.iter().zip(100..) {
        for (count, part) in changes.iter().zip(0..) {
            block += 1;
            all.push(Found {
                order_lsn: xid,
                xid,
                part,
                changes: *count,
                first: part == 0,
                last: part as usize + 1 == changes.len(),
                place: Place { segment: 1 + block / 9, block, offset: 1 },
            });
        }
    }
    all
}

#[test]
fn from_every_tick_a_reader_gets_what_it_needs() {
    let transactions: [&[u32]; 6] =
        [&[1], &[2, 0, 0, 3, 1], &[0, 0, 0, 1], &[5], &[1, 1, 1, 1, 1, 1, 1, 1], &[0, 2]];
    let rows = batch(&transactions);
    let by_place: HashMap<Place, Found> = rows.iter().map(|row| (row.place, *row)).collect();
    let total: u64 = rows.iter().map(|row| u64::from(row.changes)).sum();
    for piece_rows in 1..25 {
        let pieces = plan(rows.clone(), 11, piece_rows).expect("whole transactions");
        assert_eq!(pieces.last().expect("a piece").last_tick, 10 + total);
        for after in 10..=10 + total {
            let mut given = Vec::new();
            for piece in pieces.iter().filter(|piece| piece.last_tick > after) {
                let transactions = decode(&encode(&piece.transactions)).expect("as encoded");
                given.extend(steps(&transactions, piece.first_tick, after, given.is_empty()));
            }
            check(&given, &rows, &by_place, after);
        }
    }
}

/// The true ticks of each row, counted from the front.
fn check(given: &[Step], rows: &[Found], by_place: &HashMap<Place, Found>, after: u64) {
    let mut tick = 10;
    let mut truth = HashMap::new();
    for row in rows {
        tick += u64::from(row.changes);
        truth.insert(row.place, (tick + 1 - u64::from(row.changes), tick));
    }
    let mut previous: Option<Found> = None;
    for step in given {
        let row = by_place[&step.place];
        assert_eq!(step.xid, row.xid);
        assert_eq!(step.ticks.of(u64::from(row.changes)), truth[&step.place], "after {after}");
        match previous {
            // What the decoder of chunks asks for.
            Some(before) if !before.last => {
                assert_eq!(before.xid, row.xid);
                assert!(row.part == before.part + 1 || before.part == 0, "after {after}");
            }
            _ => assert_eq!(row.part, 0, "after {after}"),
        }
        previous = Some(row);
    }
    let new: Vec<&Found> = rows.iter().filter(|row| truth[&row.place].1 > after).collect();
    let tail: Vec<Place> = given[given.len() - new.len()..].iter().map(|step| step.place).collect();
    assert_eq!(tail, new.iter().map(|row| row.place).collect::<Vec<_>>(), "after {after}");
    if let Some(first) = new.first() {
        // All that is given before is the header's row and the rows in which the first new change may begin.
        let begins =
            rows.iter().rfind(|row| row.xid == first.xid && row.part < first.part && row.changes > 0);
        if let Some(begins) = begins {
            assert!(given.iter().any(|step| step.place == begins.place), "after {after}");
        }
        assert!(
            given
                .iter()
                .filter(|step| truth[&step.place].1 <= after && by_place[&step.place].changes > 0)
                .count()
                <= 2
        );
    } else {
        assert!(given.is_empty());
    }
}
