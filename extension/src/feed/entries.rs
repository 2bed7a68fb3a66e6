//! What a batch row lists: its transactions in order, and where their log rows are.
//!
//! Written once by the cutter, read by every reader, so it is small (about six bytes for a transaction of one log row)
//! and says how many changes end in each log row: a reader finds its place without touching the log.
//!
//! ```text
//! entries     = version (1 byte), count of transactions, transaction…
//! transaction = count of rows << 1 | continued?, xid (difference to the one before),
//!               [changes before, place of its first row, place of the row before this piece], run…
//! run         = count << 1 | other segment?, [segment], block (difference), offset, changes
//! place       = segment, block, offset
//! ```
//! All numbers are LEB128, differences are zigzag. A run stands for rows in consecutive blocks that are alike in offset
//! and changes, as large transactions leave them.

use super::varint::{Bad, Reader, put, put_signed};

const VERSION: u8 = 1;
/// More than any writer puts into one piece, even when one change fills many log rows; it bounds what damaged bytes can claim.
const ROWS_MAX: u64 = 1 << 24;

/// Where a log row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of the channel's segment.
    pub segment: u32,
    pub block: u32,
    pub offset: u16,
}

/// A log row, and how many changes end in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef {
    pub place: Place,
    pub changes: u32,
}

/// The rest of a transaction that began in an earlier piece of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continued {
    /// How many of its changes the earlier pieces hold.
    pub changes_before: u64,
    /// Its first row, which has what is said about the whole transaction.
    pub first: Place,
    /// The row before this piece: a change may begin in it that ends here.
    pub previous: Place,
}

/// A transaction, or the part of it that is in this piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub xid: u64,
    pub continued: Option<Continued>,
    pub rows: Vec<RowRef>,
}

impl Transaction {
    /// How many changes end in this piece.
    pub fn changes(&self) -> u64 {
        self.rows.iter().map(|row| u64::from(row.changes)).sum()
    }
}

/// Encodes the transactions of one batch row.
pub fn encode(transactions: &[Transaction]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put(&mut out, transactions.len() as u64);
    let mut last = Last::default();
    for transaction in transactions {
        put(&mut out, (transaction.rows.len() as u64) << 1 | u64::from(transaction.continued.is_some()));
        put_signed(&mut out, transaction.xid.wrapping_sub(last.xid).cast_signed());
        last.xid = transaction.xid;
        if let Some(continued) = transaction.continued {
            put(&mut out, continued.changes_before);
            put_place(&mut out, continued.first);
            put_place(&mut out, continued.previous);
        }
        let mut rows = transaction.rows.as_slice();
        while let Some(first) = rows.first() {
            let count = rows.iter().zip(0..).take_while(|(row, step)| follows(first, row, *step)).count();
            put_run(&mut out, &mut last, first, count);
            rows = &rows[count..];
        }
    }
    out
}

/// What differences are taken to.
#[derive(Default)]
struct Last {
    xid: u64,
    segment: u32,
    block: u32,
}

fn follows(first: &RowRef, row: &RowRef, step: u32) -> bool {
    let there = Place { block: first.place.block.wrapping_add(step), ..first.place };
    row.changes == first.changes && row.place == there
}

fn put_place(out: &mut Vec<u8>, place: Place) {
    put(out, u64::from(place.segment));
    put(out, u64::from(place.block));
    put(out, u64::from(place.offset));
}

fn put_run(out: &mut Vec<u8>, last: &mut Last, first: &RowRef, count: usize) {
    let Place { segment, block, offset } = first.place;
    let other = segment != last.segment;
    put(out, (count as u64) << 1 | u64::from(other));
    if other {
        put(out, u64::from(segment));
        *last = Last { segment, block: 0, ..*last };
    }
    put_signed(out, i64::from(block) - i64::from(last.block));
    put(out, u64::from(offset));
    put(out, u64::from(first.changes));
    last.block = block.wrapping_add(count as u32 - 1);
}

/// Decodes what [`encode`] made.
///
/// # Errors
/// The bytes are damaged, or of a later version.
pub fn decode(bytes: &[u8]) -> Result<Vec<Transaction>, Bad> {
    let mut from = Reader::new(bytes);
    if from.byte()? != VERSION {
        return Err(Bad);
    }
    let count = from.number()?;
    let (mut last, mut total) = (Last::default(), 0);
    let mut transactions = Vec::new();
    for _ in 0..count {
        transactions.push(take_transaction(&mut from, &mut last, &mut total)?);
    }
    if from.is_empty() { Ok(transactions) } else { Err(Bad) }
}

fn take_transaction(from: &mut Reader<'_>, last: &mut Last, total: &mut u64) -> Result<Transaction, Bad> {
    let head = from.number()?;
    let count = head >> 1;
    last.xid = last.xid.wrapping_add_signed(from.signed()?);
    let continued = if head & 1 == 1 {
        let changes_before = from.number()?;
        Some(Continued { changes_before, first: take_place(from)?, previous: take_place(from)? })
    } else {
        None
    };
    *total = total.checked_add(count).filter(|total| *total <= ROWS_MAX).ok_or(Bad)?;
    let mut rows = Vec::new();
    while (rows.len() as u64) < count {
        take_run(from, last, &mut rows, count)?;
    }
    Ok(Transaction { xid: last.xid, continued, rows })
}

fn take_run(
    from: &mut Reader<'_>,
    last: &mut Last,
    rows: &mut Vec<RowRef>,
    rows_max: u64,
) -> Result<(), Bad> {
    let head = from.number()?;
    let count = head >> 1;
    if count == 0 || rows.len() as u64 + count > rows_max {
        return Err(Bad);
    }
    if head & 1 == 1 {
        *last = Last { segment: from.small()?, block: 0, ..*last };
    }
    let block = i64::from(last.block).checked_add(from.signed()?).ok_or(Bad)?;
    let offset = from.small()?;
    let changes = from.small()?;
    for step in 0..count.cast_signed() {
        let block = block.checked_add(step).and_then(|block| u32::try_from(block).ok()).ok_or(Bad)?;
        rows.push(RowRef { place: Place { segment: last.segment, block, offset }, changes });
        last.block = block;
    }
    Ok(())
}

fn take_place(from: &mut Reader<'_>) -> Result<Place, Bad> {
    Ok(Place { segment: from.small()?, block: from.small()?, offset: from.small()? })
}

#[cfg(test)]
#[path = "../tests/feed_entries_unit.rs"]
mod unit;
