//! The record of the change log.
//!
//! A transaction writes, for each channel it touches, one run of *changes*. The run is cut into *chunks* that fit a
//! page of a table; a change may begin in one chunk and end in another. The extension encodes in the trigger and cuts
//! at commit, readers decode chunk by chunk, on any machine: a chunk names its version, carries a checksum and says
//! where the first change begins, so that reading may start in the middle.
//!
//! ```text
//! chunk  = version u8 · crc32 of what follows u32 · flags u8 · part varint
//!          [tail length varint] [head length varint] [header] · tail · changes · head
//! header = commit time i64 [origin: length varint, bytes] [origin's commit time i64]
//! change = operation and images u8 · schema version varint [old image] [new image] | [tag text] [statement text]
//! image  = count varint · values
//! value  = 0: NULL | 1: unchanged | 2: length varint, blanks varint, bytes | n + 3: n bytes
//! ```
//!
//! `tail` is the end of a change that began in an earlier chunk, `head` the beginning of one that ends in a later one.
//! Integers are little-endian, varints LEB128. Values are what the type's output function prints.
//!
//! Knows nothing of: PostgreSQL, files, sockets. No input makes the decoder panic or take memory without bound.

mod chunk;
mod decode;
mod encode;
mod error;
pub mod json;
mod key;
mod progress;
mod row;
mod schema;
mod version;
mod wire;

pub use chunk::{CHUNK_MAX, Chunk, Chunker, Header};
pub use decode::{Change, Changes, Ddl, Decoder, Image, OldImage, Value, Values, change, header};
pub use encode::{Encoder, Old};
pub use error::Error;
pub use key::{KEY_BYTES, by_name, key_hash};
pub use progress::{Event, Misfit, Position, Progress, Stop, Transaction};
pub use row::{LogRow, ROW, put_row, take_row};
pub use schema::{Column, Kind, Schema};
pub use version::{Stamp, Verdict, commit_time, last_write_wins};

/// Version of the record that this crate writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Finds out what the processor can do, which checksums and hashes depend on. To be called before processes are forked that
/// use this crate: else each of them asks for itself, and on a virtual machine that takes as long as many checksums.
pub fn prepare() {
    let _ = crc32fast::Hasher::new();
    let _ = key_hash([b""]);
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Insert,
    Update,
    Delete,
    /// The whole table was emptied.
    Truncate,
    /// The table itself was changed or dropped, or capture of it began or ended.
    Ddl,
}

impl Op {
    /// The name that readers see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Ddl => "ddl",
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Op::Insert => 0,
            Op::Update => 1,
            Op::Delete => 2,
            Op::Truncate => 3,
            Op::Ddl => 4,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Op> {
        [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Ddl].get(usize::from(code)).copied()
    }
}
