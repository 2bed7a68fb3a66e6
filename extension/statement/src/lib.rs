//! The normalised text of a statement, and its hash: how learned statements are named, inside the server and outside.
//!
//! Statements that differ only in literals, case, blanks and comments have the same normalised text. The rules are those
//! of PostgreSQL's scanner (`src/backend/parser/scan.l`) with `standard_conforming_strings = on`; `docs/statement-hash.md`
//! has them word by word, for those who write the same in another language.
//!
//! ```
//! let mut text = Vec::new();
//! pgquorum_statement::normalise(b"SELECT * FROM Orders WHERE id IN (1, -2) -- mine", &mut text);
//! assert_eq!(text, b"select * from orders where id in ( $ )");
//! assert_eq!(pgquorum_statement::hash(b"select 1;"), pgquorum_statement::hash(b"SELECT $1"));
//! ```
//!
//! A text is bytes in any encoding in which the bytes of ASCII characters mean nothing else; all encodings of servers are
//! such. No text makes this crate panic, allocate (but for the `Vec` of [`normalise`]) or take more time than its length
//! is worth. A text that PostgreSQL would not take has some hash, too.
//!
//! Knows nothing of: PostgreSQL's state, files, sockets.

mod chars;
mod names;
mod numbers;
mod out;
mod scan;
mod tokens;

pub use names::{name_bits, names, words};
pub use numbers::{differ_in_numbers, plain_length};
use out::{Both, Hash, Text};

/// The hash of the normalised text: XXH64 with seed 0. People and JSON see it as 16 hexadecimal digits in lower case.
#[must_use]
pub fn hash(text: &[u8]) -> u64 {
    let mut sink = Hash::new();
    scan::run(text, &mut sink);
    sink.finish()
}

/// Appends the normalised text to `out`.
pub fn normalise(text: &[u8], out: &mut Vec<u8>) {
    scan::run(text, &mut Text(out));
}

/// What is remembered of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normalised {
    /// As [`hash`] gives it.
    pub hash: u64,
    /// Of a text that is too long to be kept as a whole, its XXH64 with another seed: two such texts with the same `hash` have
    /// different ones. It stays inside one installation. 0 where the whole text is kept: it can be compared itself.
    pub check: u64,
    /// Length of the normalised text in bytes.
    pub length: u64,
    /// How many bytes of the normalised text are in the caller's buffer.
    pub kept: usize,
}

/// All at once, in one pass and without allocating: the hashes, and the beginning of the normalised text in `kept`, as
/// much of it as there is room for. It may end within a word, or within a character of more than one byte.
#[must_use]
pub fn digest(text: &[u8], kept: &mut [u8]) -> Normalised {
    let mut sink = Both::new(kept);
    scan::run(text, &mut sink);
    sink.finish()
}
