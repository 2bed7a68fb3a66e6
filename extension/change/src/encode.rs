//! Changes into bytes. Called for every row that a transaction writes: appends to one buffer and allocates nothing.

use crate::Op;
use crate::wire::put_varint;

pub const OP_MASK: u8 = 0x07;
pub const OLD_KEY: u8 = 0x08;
pub const OLD_FULL: u8 = 0x10;
pub const NEW: u8 = 0x20;

pub const NULL: u64 = 0;
pub const UNCHANGED: u64 = 1;
pub const PADDED: u64 = 2;
/// A text of `n` bytes begins with `n + TEXT`.
pub const TEXT: u64 = 3;

/// Which image of the old row a change carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old {
    None,
    /// The columns of the key.
    Key,
    /// All columns.
    Full,
}

/// Appends one change to a buffer. After `begin` the images follow, old before new, each by `image` and as many values
/// as that says. Nothing checks the order; the decoder does.
pub struct Encoder<'b> {
    out: &'b mut Vec<u8>,
}

impl<'b> Encoder<'b> {
    /// Begins a change of a row, or writes a whole TRUNCATE.
    #[inline]
    pub fn begin(out: &'b mut Vec<u8>, op: Op, schema_version: u64, old: Old, new: bool) -> Self {
        let old = match old {
            Old::None => 0,
            Old::Key => OLD_KEY,
            Old::Full => OLD_FULL,
        };
        out.push(op.code() | old | if new { NEW } else { 0 });
        put_varint(out, schema_version);
        Self { out }
    }

    /// Writes a whole DDL entry: the command's tag and its text.
    pub fn ddl(out: &'b mut Vec<u8>, schema_version: u64, tag: &str, sql: &str) {
        let encoder = Self::begin(out, Op::Ddl, schema_version, Old::None, false);
        for text in [tag, sql] {
            put_varint(encoder.out, text.len() as u64);
            encoder.out.extend_from_slice(text.as_bytes());
        }
    }

    /// Begins an image of so many values.
    #[inline]
    pub fn image(&mut self, values: usize) {
        put_varint(self.out, values as u64);
    }

    #[inline]
    pub fn null(&mut self) {
        self.out.push(NULL as u8);
    }

    /// The value is large, stored outside the row, and the same as before.
    #[inline]
    pub fn unchanged(&mut self) {
        self.out.push(UNCHANGED as u8);
    }

    #[inline]
    pub fn text(&mut self, text: &[u8]) {
        put_varint(self.out, text.len() as u64 + TEXT);
        self.out.extend_from_slice(text);
    }

    /// A text whose trailing blanks are counted instead of written, where that is shorter.
    #[inline]
    pub fn padded(&mut self, text: &[u8]) {
        let used = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let blanks = text.len() - used;
        if blanks < 4 {
            return self.text(text);
        }
        self.out.push(PADDED as u8);
        put_varint(self.out, used as u64);
        put_varint(self.out, blanks as u64);
        self.out.extend_from_slice(&text[..used]);
    }

    /// A number, as its type prints it.
    #[inline]
    pub fn integer(&mut self, value: i64) {
        let mut digits = itoa::Buffer::new();
        self.text(digits.format(value).as_bytes());
    }
}
