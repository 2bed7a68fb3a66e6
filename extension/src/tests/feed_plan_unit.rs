//! Order, ticks and batch rows of a batch.

use super::*;

fn found(order_lsn: u64, xid: u64, part: u32, parts: u32, changes: u32, block: u32) -> Found {
    let place = Place { segment: 1, block, offset: 1 };
    Found { order_lsn, xid, part, changes, first: part == 0, last: part + 1 == parts, place }
}

fn xids(pieces: &[Piece]) -> Vec<u64> {
    pieces.iter().flat_map(|piece| &piece.transactions).map(|transaction| transaction.xid).collect()
}

#[test]
fn transactions_go_by_the_wal_and_then_by_xid() {
    // 12 began before 20 and wrote its log after it; 30 and 31 wrote theirs at the same moment.
    let rows = vec![
        found(900, 12, 0, 1, 1, 4),
        found(700, 31, 0, 1, 2, 3),
        found(700, 30, 0, 1, 1, 9),
        found(500, 20, 1, 2, 3, 1),
        found(500, 20, 0, 2, 2, 0),
        // Found again by a second look at the same pages.
        found(900, 12, 0, 1, 1, 4),
    ];
    let pieces = plan(rows, 101, PIECE_ROWS).expect("whole transactions");
    assert_eq!(xids(&pieces), [20, 30, 31, 12]);
    assert_eq!((pieces[0].first_tick, pieces[0].last_tick, pieces.len()), (101, 109, 1));
    let changes: Vec<u64> = pieces[0].transactions.iter().map(Transaction::changes).collect();
    assert_eq!(changes, [5, 1, 2, 1]);
    assert_eq!(plan(Vec::new(), 101, PIECE_ROWS), Ok(Vec::new()));
}

#[test]
fn incomplete_transactions_make_no_batch() {
    let problem = |rows: Vec<Found>| plan(rows, 1, PIECE_ROWS).expect_err("a part is missing").problem;
    assert_eq!(problem(vec![found(5, 9, 0, 3, 1, 0), found(5, 9, 2, 3, 1, 2)]), Problem::MissingPart(1));
    assert_eq!(problem(vec![found(5, 9, 1, 3, 1, 0), found(5, 9, 2, 3, 1, 2)]), Problem::MissingPart(0));
    assert_eq!(problem(vec![found(5, 9, 0, 3, 1, 0), found(5, 9, 1, 3, 1, 2)]), Problem::NoEnd);
    assert_eq!(problem(vec![found(5, 9, 0, 1, 0, 0)]), Problem::EndsInsideAChange);
    assert_eq!(problem(vec![found(5, 9, 0, 2, 1, 0), found(6, 9, 1, 2, 1, 2)]), Problem::TwoOrders);
}

#[test]
fn long_transactions_are_split_behind_a_row_with_a_change() {
    // Parts 2 to 4 hold one long change.
    let changes = [1, 2, 0, 0, 3, 1, 1];
    let rows: Vec<Found> =
        changes.iter().zip(0..).map(|(n, part)| found(5, 9, part, 7, *n, 10 + part)).collect();
    let mut all = rows.clone();
    all.push(found(4, 8, 0, 1, 1, 1));
    let pieces = plan(all, 1, 3).expect("a whole transaction");
    let ticks: Vec<(u64, u64)> = pieces.iter().map(|piece| (piece.first_tick, piece.last_tick)).collect();
    assert_eq!(ticks, [(1, 4), (5, 7), (8, 9)]);
    let second = &pieces[1].transactions[0];
    let expected = Continued { changes_before: 3, first: rows[0].place, previous: rows[1].place };
    assert_eq!(second.continued, Some(expected));
    let places: Vec<Place> = second.rows.iter().map(|row| row.place).collect();
    assert_eq!(places, rows[2..5].iter().map(|row| row.place).collect::<Vec<_>>());
    assert_eq!(pieces[2].transactions[0].continued.expect("the rest").changes_before, 6);
}
