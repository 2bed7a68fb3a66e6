//! From the log rows of a batch to its order, its ticks and its batch rows. Pure.
//!
//! The order: transactions by (`order_lsn`, xid), each in one piece, its log rows by their part. `order_lsn` is where
//! the WAL stood when the transaction, about to commit, wrote its first log row. A transaction that depends on another
//! one (same row, same unique key, a foreign key) could only get there after the other one's commit record was in the
//! WAL, so its value is greater; transactions with the same value do not depend on each other. Ordering by xid or by
//! the first change would be wrong: a transaction that began early may commit late.
//!
//! A snapshot sees a transaction with all its rows or not at all. A transaction of which a part is missing therefore
//! shows damage or a fault, and no batch is made with it.

use super::entries::{Continued, Place, RowRef, Transaction};

/// A batch row lists about so many log rows, so that neither writing nor reading one needs much memory.
pub const PIECE_ROWS: usize = 8192;

/// A log row as the scan found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub order_lsn: u64,
    pub xid: u64,
    pub part: u32,
    pub changes: u32,
    pub first: bool,
    pub last: bool,
    pub place: Place,
}

/// One batch row to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub first_tick: u64,
    pub last_tick: u64,
    /// The oldest segment that it points into.
    pub lowest_segment: u32,
    pub transactions: Vec<Transaction>,
}

/// The log rows of a transaction do not make up a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    pub xid: u64,
    /// The segment in which it was noticed.
    pub segment: u32,
    pub problem: Problem,
}

/// What is wrong with a transaction's log rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    MissingPart(u32),
    NoEnd,
    EndsInsideAChange,
    TwoOrders,
}

/// Orders the rows of one batch, numbers their changes from `next_tick` on, and packs them into batch rows of about
/// `piece_rows` log rows. Rows that were found twice count once.
///
/// # Errors
/// A transaction is incomplete.
pub fn plan(mut found: Vec<Found>, next_tick: u64, piece_rows: usize) -> Result<Vec<Piece>, Incomplete> {
    found.sort_unstable_by_key(|row| (row.order_lsn, row.xid, row.part, row.place));
    found.dedup_by_key(|row| row.place);
    let mut packer = Packer::new(next_tick, piece_rows);
    for rows in found.chunk_by(|a, b| a.xid == b.xid) {
        check(rows)?;
        packer.add(rows);
    }
    Ok(packer.finish())
}

fn check(rows: &[Found]) -> Result<(), Incomplete> {
    let first = &rows[0];
    let wrong = |problem| Incomplete { xid: first.xid, segment: first.place.segment, problem };
    for (row, part) in rows.iter().zip(0..) {
        if row.order_lsn != first.order_lsn {
            return Err(wrong(Problem::TwoOrders));
        }
        if row.part != part || row.first != (part == 0) {
            return Err(wrong(Problem::MissingPart(part)));
        }
        if row.last && part as usize + 1 != rows.len() {
            return Err(wrong(Problem::TwoOrders));
        }
    }
    match rows.last() {
        Some(row) if !row.last => Err(wrong(Problem::NoEnd)),
        Some(row) if row.changes == 0 => Err(wrong(Problem::EndsInsideAChange)),
        _ => Ok(()),
    }
}

struct Packer {
    pieces: Vec<Piece>,
    piece: Piece,
    rows: usize,
    piece_rows: usize,
}

impl Packer {
    fn new(next_tick: u64, piece_rows: usize) -> Self {
        Self { pieces: Vec::new(), piece: empty(next_tick), rows: 0, piece_rows }
    }

    /// A whole transaction. It is split only behind a row in which a change ends, so that what follows needs just that
    /// one row to begin with.
    fn add(&mut self, rows: &[Found]) {
        if self.is_full() {
            self.close();
        }
        let xid = rows[0].xid;
        let mut part = Transaction { xid, continued: None, rows: Vec::new() };
        let mut changes_before = 0;
        for (index, row) in rows.iter().enumerate() {
            part.rows.push(RowRef { place: row.place, changes: row.changes });
            changes_before += u64::from(row.changes);
            self.piece.last_tick += u64::from(row.changes);
            self.piece.lowest_segment = self.piece.lowest_segment.min(row.place.segment);
            self.rows += 1;
            if self.is_full() && row.changes > 0 && index + 1 < rows.len() {
                self.piece.transactions.push(part);
                self.close();
                let (first, previous) = (rows[0].place, row.place);
                // Those two are read with the piece, so their segments count for it.
                self.piece.lowest_segment = first.segment.min(previous.segment);
                part = Transaction {
                    xid,
                    continued: Some(Continued { changes_before, first, previous }),
                    rows: Vec::new(),
                };
            }
        }
        self.piece.transactions.push(part);
    }

    fn is_full(&self) -> bool {
        self.rows >= self.piece_rows
    }

    fn close(&mut self) {
        let next = empty(self.piece.last_tick + 1);
        self.pieces.push(std::mem::replace(&mut self.piece, next));
        self.rows = 0;
    }

    fn finish(mut self) -> Vec<Piece> {
        if self.rows > 0 {
            self.close();
        }
        self.pieces
    }
}

fn empty(first_tick: u64) -> Piece {
    Piece { first_tick, last_tick: first_tick - 1, lowest_segment: u32::MAX, transactions: Vec::new() }
}

#[cfg(test)]
#[path = "../tests/feed_plan_unit.rs"]
mod unit;
