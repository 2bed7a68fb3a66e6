//! A learned statement as it lies in shared memory.
//!
//! What every execution looks at is apart from the texts, so that walking over all entries touches little memory. Fields
//! are atomics, and counters are added to without a lock's exclusive mode; what identifies a statement is written under
//! the table's lock only, and so are texts.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::pg::shared::Shared;

pub const TEXT_BYTES: usize = 1024;
pub const PATH_BYTES: usize = 256;
pub const REASON_BYTES: usize = 192;
/// So many objects that a verdict rests on are kept.
pub const DEPENDS: usize = 16;

/// What the plannings of a statement came to, joined: it only gets worse until something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Known {
    /// Not planned since something changed.
    Nothing,
    Proven,
    Unproven,
    Refused,
}

impl Known {
    pub fn of(number: u32) -> Self {
        match number {
            1 => Self::Proven,
            2 => Self::Unproven,
            3 => Self::Refused,
            _ => Self::Nothing,
        }
    }

    pub fn is_negative(self) -> bool {
        self >= Self::Unproven
    }
}

/// Bits of [`Entry::flags`].
pub mod flag {
    /// It is not to be served until it is forgotten: it was seen writing, or another statement has its hash.
    pub const BARRED: u32 = 1;
    /// It was proven when it was seen writing.
    pub const LIED: u32 = 1 << 1;
    /// It depends on more than is kept.
    pub const ON_ALL: u32 = 1 << 2;
    /// Something is known that the table does not have yet, or that was not handed over yet.
    pub const UNSAVED: u32 = 1 << 3;
    /// On a standby: the verdict was handed over to the primary, which joins it with others.
    pub const HANDED_OVER: u32 = 1 << 4;
    /// The verdict was made in recovery, where nobody says what changes: it holds only with its WAL position.
    pub const IN_RECOVERY: u32 = 1 << 5;
}

/// What is looked at often.
#[repr(C, align(64))]
pub struct Entry {
    /// Another one for every statement that was ever put here; 0: free.
    pub tag: AtomicU64,
    pub hash: AtomicU64,
    pub check: AtomicU64,
    pub length: AtomicU64,
    /// Hash of the search path's text.
    pub path: AtomicU64,
    /// 0: not known.
    pub query_id: AtomicU64,
    pub words: AtomicU64,
    /// In recovery: what had been replayed when the verdict was made.
    pub lsn: AtomicU64,
    /// Executions, and those that wrote nothing, which the table does not have yet.
    pub calls: AtomicU64,
    pub clean: AtomicU64,
    /// Microseconds since 1970.
    pub used_us: AtomicU64,
    /// When its counters were saved.
    pub saved_us: AtomicU64,
    pub database: AtomicU32,
    pub verdict: AtomicU32,
    pub flags: AtomicU32,
    /// Grows with use, and falls when places are looked for.
    pub usage: AtomicU32,
    /// Counts changes of verdict and flags, so that whoever has saved it knows whether that is still all.
    pub version: AtomicU32,
    /// Counts how often it was set back, so that older counts are left out.
    pub era: AtomicU32,
    pub depend_count: AtomicU32,
    pub depends: [AtomicU32; DEPENDS],
}

/// Its texts.
#[repr(C)]
pub struct Texts {
    /// The beginning of the normalised text.
    pub text: Bytes<{ TEXT_BYTES / 8 }>,
    pub path: Bytes<{ PATH_BYTES / 8 }>,
    /// Why it is not proven.
    pub reason: Bytes<{ REASON_BYTES / 8 }>,
}

// SAFETY: atomics only, for which zero is valid.
unsafe impl Shared for Entry {}
// SAFETY: as above.
unsafe impl Shared for Texts {}
// SAFETY: as above.
unsafe impl Shared for AtomicU32 {}

impl Entry {
    pub fn has(&self, bits: u32) -> bool {
        self.flags.load(Relaxed) & bits != 0
    }

    pub fn known(&self) -> Known {
        Known::of(self.verdict.load(Relaxed))
    }

    /// The verdict, where it must hold on a primary.
    pub fn known_on(&self, in_recovery: bool) -> Known {
        if !in_recovery && self.has(flag::IN_RECOVERY) { Known::Nothing } else { self.known() }
    }

    /// Is something known for which it is not to be served, whatever it was before?
    pub fn is_negative(&self) -> bool {
        self.has(flag::BARRED) || self.known().is_negative()
    }

    /// The objects that the verdict rests on, those that were kept.
    pub fn depends(&self) -> impl Iterator<Item = u32> + '_ {
        let count = (self.depend_count.load(Relaxed) as usize).min(DEPENDS);
        self.depends[..count].iter().map(|oid| oid.load(Relaxed))
    }

    /// Does it rest on all of these, as far as is known?
    pub fn depends_on(&self, oids: &[u32], everything: bool) -> bool {
        self.has(flag::ON_ALL)
            || (!everything && oids.iter().all(|oid| self.depends().any(|known| known == *oid)))
    }

    /// Notes objects. Under the table's lock in exclusive mode.
    pub fn add_depends(&self, oids: &[u32], everything: bool) {
        if everything {
            self.flags.fetch_or(flag::ON_ALL, Relaxed);
        }
        for oid in oids {
            if self.depends().any(|known| known == *oid) {
                continue;
            }
            let count = self.depend_count.load(Relaxed) as usize;
            match self.depends.get(count) {
                Some(place) => {
                    place.store(*oid, Relaxed);
                    self.depend_count.store(count as u32 + 1, Relaxed);
                }
                None => {
                    self.flags.fetch_or(flag::ON_ALL, Relaxed);
                }
            }
        }
    }

    /// Something about the verdict or the flags has changed that is to be saved.
    pub fn is_unsaved_now(&self) {
        self.flags.fetch_or(flag::UNSAVED, Relaxed);
        self.version.fetch_add(1, Relaxed);
    }
}

/// A text in shared memory, in words so that it is copied fast.
#[repr(C)]
pub struct Bytes<const WORDS: usize> {
    length: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> Bytes<WORDS> {
    /// What is too long is cut.
    pub fn set(&self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(WORDS * 8)];
        for (word, chunk) in self.words.iter().zip(bytes.chunks(8)) {
            word.store(packed(chunk), Relaxed);
        }
        self.length.store(bytes.len() as u64, Relaxed);
    }

    pub fn get(&self) -> Vec<u8> {
        let length = self.len();
        let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
        for word in &self.words[..length.div_ceil(8)] {
            bytes.extend_from_slice(&word.load(Relaxed).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    pub fn is(&self, bytes: &[u8]) -> bool {
        self.len() == bytes.len()
            && self.words.iter().zip(bytes.chunks(8)).all(|(word, chunk)| word.load(Relaxed) == packed(chunk))
    }

    fn len(&self) -> usize {
        (self.length.load(Relaxed) as usize).min(WORDS * 8)
    }
}

/// Up to eight bytes; those that are missing count as zero.
fn packed(chunk: &[u8]) -> u64 {
    match chunk.try_into() {
        Ok(all) => u64::from_le_bytes(all),
        Err(_) => {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(bytes)
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn bytes() -> Bytes<4> {
        Bytes { length: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    #[test]
    fn texts_come_back_as_they_went_in() {
        let kept = bytes();
        for length in 0..=32 {
            let text: Vec<u8> = (1..=length).collect();
            kept.set(&text);
            assert_eq!(kept.get(), text);
            assert!(kept.is(&text));
            assert!(!kept.is(&[text.as_slice(), b"x"].concat()));
        }
        kept.set(&[7; 40]);
        assert_eq!(kept.get(), [7; 32]);
        kept.set(b"short");
        assert!(kept.is(b"short"), "what was there before does not count");
        assert!(!kept.is(b"shore"));
    }

    #[test]
    fn verdicts_are_ordered() {
        assert!(Known::Nothing < Known::Proven && Known::Proven < Known::Unproven);
        assert!(!Known::Proven.is_negative() && Known::Refused.is_negative());
        for known in [Known::Nothing, Known::Proven, Known::Unproven, Known::Refused] {
            assert_eq!(Known::of(known as u32), known);
        }
    }
}
