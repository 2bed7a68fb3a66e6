//! Versions of rows: who wrote a row last, and when, for tables of which `quorum.keep_versions` was called. That is what
//! conflicts are resolved by where the last write wins.
//!
//! The row trigger puts the number of the row's key into a buffer of the transaction, beside the change itself ([`entry`]).
//! Just before the commit, before the log is written, each key's version is put into `quorum.row_version` with the time
//! and the origin that the log will say ([`commit`]). What is kept of which table says `quorum.versioned_table` ([`kept`]);
//! names of origins have numbers ([`origins`]). Whoever applies changes asks [`Reader`]; [`upkeep`] removes what is old.
//!
//! Invariant: nobody waits for anybody here, but for one case ([`order`]). Whoever writes the version of a key has inserted, changed or deleted the row of
//! that key, or emptied its table, and has not ended: the key's unique index and the locks on row and table keep everybody
//! else away from that key until then. That is why keys are refused whose uniqueness is looked at later
//! (`DEFERRABLE`), or that are equal without printing the same. Only the worker that removes old tombstones changes rows
//! that others may want; it passes over rows that are locked, and locks its own for milliseconds.

pub mod commit;
pub mod entry;
mod kept;
pub mod order;
pub mod origins;
mod read;
pub mod sql;
pub mod upkeep;

pub use kept::{forget, of_table};
pub use order::{be_alone, be_among_others, exclude_appliers, is_alone, join_appliers};
pub use read::{Reader, Version, judge};

/// The number that stands for "here" in `quorum.row_version` and `quorum.versioned_table`.
pub const HERE: i16 = 0;
