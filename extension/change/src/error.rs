//! What can be wrong with a record.

/// Why a chunk or a change cannot be read. Nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("the record is of version {0}, and this program reads version 1: use a newer one")]
    Version(u8),
    #[error("the record's checksum is wrong: it was damaged on disk or on its way")]
    Checksum,
    #[error("the record ends too early")]
    Truncated,
    #[error("the record holds a length or count that cannot be")]
    BadLength,
    #[error("the record holds an operation or flag that does not exist")]
    BadOperation,
    #[error("part {found} of a transaction follows where part {expected} must come")]
    Gap { expected: u32, found: u32 },
    #[error("a change is longer than the {limit} bytes that this reader takes")]
    TooLong { limit: usize },
}
