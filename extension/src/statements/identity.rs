//! What a statement's text comes to: its hash, and what is kept of it.

use std::borrow::Cow;

use pgquorum_statement::{Normalised, digest, names, normalise, words};

use super::entry::TEXT_BYTES;
use super::local;
use crate::pg::encoding;

/// A text, normalised.
pub struct Identity {
    pub hash: u64,
    /// 0 where all of it is kept.
    pub check: u64,
    /// Of the whole normalised text.
    pub length: u64,
    buffer: Vec<u8>,
    kept: usize,
}

impl Identity {
    /// Of a text in the database's encoding; hashes are those of the text in UTF-8. In a transaction. `buffer` is room that
    /// is given back by [`Identity::into_buffer`].
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub fn of(text: &[u8], mut buffer: Vec<u8>) -> Self {
        buffer.resize(TEXT_BYTES, 0);
        let text = in_utf8(text);
        let Normalised { hash, check, length, kept } = digest(&text, &mut buffer);
        let complete = length == kept as u64;
        // A word that was cut is none.
        let end = if complete { Some(kept) } else { buffer[..kept].iter().rposition(|byte| *byte == b' ') };
        Self { hash: overridden(hash), check, length, buffer, kept: end.unwrap_or(0) }
    }

    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Is all of it kept?
    pub fn is_complete(&self) -> bool {
        self.kept as u64 == self.length
    }

    /// For the session's own memory, which keeps no text: tells two with the same hash apart.
    pub fn local_check(&self) -> u64 {
        self.check ^ local::quick_hash(self.kept())
    }

    /// The beginning of the normalised text, or all of it.
    pub fn kept(&self) -> &[u8] {
        &self.buffer[..self.kept]
    }
}

/// Converts a text where the database has another encoding. One of `SQL_ASCII` is taken as it is.
fn in_utf8(text: &[u8]) -> Cow<'_, [u8]> {
    if encoding::differs() && !text.is_ascii() {
        Cow::Borrowed(encoding::converted(text))
    } else {
        Cow::Borrowed(text)
    }
}

/// What is looked at once, when a statement is put into the table.
pub struct Whole {
    /// The filter of its names.
    pub words: u64,
    /// Its text can be that of a query: whatever is changed by rules behind it, no statement that begins otherwise is
    /// learned by the plan of one.
    pub is_query: bool,
}

impl Whole {
    /// `text` is what `identity` was made of.
    pub fn of(text: &[u8], identity: &Identity) -> Self {
        if identity.is_complete() {
            return Self::of_normalised(identity.kept());
        }
        let mut all = Vec::new();
        normalise(&in_utf8(text), &mut all);
        Self::of_normalised(&all)
    }

    fn of_normalised(text: &[u8]) -> Self {
        Self { words: names(text), is_query: is_query(text) }
    }
}

fn is_query(text: &[u8]) -> bool {
    match text.split(|byte| *byte == b' ').next().unwrap_or(b"") {
        b"select" | b"values" | b"table" | b"(" | b"show" | b"explain" | b"declare" => true,
        b"with" => !words(text).any(|word| matches!(word, b"insert" | b"update" | b"delete" | b"merge")),
        _ => false,
    }
}

/// The hash of a statement's text, as `quorum.statement_hash` gives it.
pub fn hash(text: &[u8]) -> u64 {
    pgquorum_statement::hash(&in_utf8(text))
}

/// As people and JSON see a hash.
pub fn shown(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(not(any(test, feature = "pg_test")))]
#[inline]
fn overridden(hash: u64) -> u64 {
    hash
}

/// Tests can give two texts the same hash.
#[cfg(any(test, feature = "pg_test"))]
pub fn overridden(hash: u64) -> u64 {
    FORCED.get().unwrap_or(hash)
}

#[cfg(any(test, feature = "pg_test"))]
thread_local! {
    pub static FORCED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}
