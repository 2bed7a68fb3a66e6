//! Log rows on their way to a reader: chunks with their ticks, one after the other.
//!
//! ```text
//! row = 'R' · length of what follows u32 · epoch u64 · first tick u64 · last tick u64 · transaction u64 · flags u32 · chunk
//! ```
//! Integers are little-endian.

/// A row's first byte, which tells it from other things in a stream.
pub const ROW: u8 = b'R';

const PREFIX: usize = 1 + 4;
const NUMBERS: usize = 4 * 8 + 4;

/// What is said of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRow {
    pub epoch: u64,
    /// The first change that ends in this chunk; where none does, the one that is under way.
    pub first_tick: u64,
    /// The last change that ends in this chunk; where none does, `first_tick - 1`.
    pub last_tick: u64,
    /// The transaction.
    pub xid: u64,
    /// 1: the transaction's first chunk, 2: its last one.
    pub flags: u32,
}

impl LogRow {
    /// Is there a change that ends in this chunk?
    #[must_use]
    pub fn ends_a_change(&self) -> bool {
        self.last_tick >= self.first_tick
    }
}

/// Appends a row.
pub fn put_row(out: &mut Vec<u8>, row: &LogRow, chunk: &[u8]) {
    let mut head = [0; PREFIX + NUMBERS];
    head[0] = ROW;
    // A chunk fits a page, so this always fits.
    let length = u32::try_from(NUMBERS + chunk.len()).unwrap_or(u32::MAX);
    head[1..PREFIX].copy_from_slice(&length.to_le_bytes());
    let numbers = [row.epoch, row.first_tick, row.last_tick, row.xid];
    for (place, number) in head[PREFIX..].chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    head[PREFIX + 32..].copy_from_slice(&row.flags.to_le_bytes());
    out.reserve(head.len() + chunk.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(chunk);
}

/// Takes the row at the beginning of `bytes`, which it shortens by it. `None`: there is no whole row.
pub fn take_row<'a>(bytes: &mut &'a [u8]) -> Option<(LogRow, &'a [u8])> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    let [ROW, length @ ..] = *prefix else { return None };
    let body = rest.get(..u32::from_le_bytes(length) as usize)?;
    let (numbers, chunk) = body.split_first_chunk::<NUMBERS>()?;
    let (longs, flags) = numbers.split_last_chunk::<4>()?;
    let long = |at: usize| Some(u64::from_le_bytes(*longs[8 * at..].first_chunk()?));
    let row = LogRow {
        epoch: long(0)?,
        first_tick: long(1)?,
        last_tick: long(2)?,
        xid: long(3)?,
        flags: u32::from_le_bytes(*flags),
    };
    *bytes = &rest[body.len()..];
    Some((row, chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_as_they_were_put() {
        let row = |tick| LogRow { epoch: 5, first_tick: tick, last_tick: tick + 1, xid: u64::MAX, flags: 3 };
        let mut bytes = Vec::new();
        put_row(&mut bytes, &row(7), b"chunk");
        put_row(&mut bytes, &row(9), b"");
        let mut rest = bytes.as_slice();
        assert_eq!(take_row(&mut rest), Some((row(7), b"chunk".as_slice())));
        assert_eq!(take_row(&mut rest), Some((row(9), b"".as_slice())));
        assert_eq!((take_row(&mut rest), rest.len()), (None, 0));
    }

    #[test]
    fn what_is_no_row_is_left() {
        let row = LogRow { epoch: 1, first_tick: 2, last_tick: 1, xid: 3, flags: 0 };
        assert!(!row.ends_a_change());
        let mut bytes = Vec::new();
        put_row(&mut bytes, &row, b"chunk");
        for length in 0..bytes.len() {
            let mut cut = &bytes[..length];
            assert_eq!((take_row(&mut cut), cut.len()), (None, length));
        }
        let short = [&[ROW, 35, 0, 0, 0], [0; 64].as_slice()].concat();
        assert_eq!(take_row(&mut short.as_slice()), None);
        bytes[0] = b'P';
        assert_eq!(take_row(&mut bytes.as_slice()), None);
    }
}
