//! The normalised text on its way out: collected in a small buffer, which goes to whoever wants it when it is full.

use crate::Normalised;
use std::hash::Hasher;
use twox_hash::XxHash64;

/// Takes the normalised text, piece by piece.
pub trait Sink {
    fn take(&mut self, piece: &[u8]);
}

/// Bytes that a sink gets at a time; a multiple of what XXH64 takes in one step, and a power of two.
const PIECE: usize = 256;
/// What may be written at once.
const AT_ONCE: usize = 8;

/// Each token is put with a blank behind it; the last blank is left away in the end.
pub struct Out<'a, S> {
    buffer: [u8; 2 * PIECE + AT_ONCE],
    /// Never more than `PIECE` between calls, and not 0 once there was a token.
    used: usize,
    sink: &'a mut S,
}

impl<'a, S: Sink> Out<'a, S> {
    pub fn new(sink: &'a mut S) -> Self {
        Out { buffer: [0; 2 * PIECE + AT_ONCE], used: 0, sink }
    }

    /// The first `length` of these bytes, the lowest first; a part of a token, or with its blank.
    #[inline(always)]
    pub fn put(&mut self, bytes: u64, length: usize) {
        // Changes nothing. It tells the compiler that there is room.
        let used = self.used & (2 * PIECE - 1);
        self.buffer[used..used + AT_ONCE].copy_from_slice(&bytes.to_le_bytes());
        self.used = used + length;
        if self.used > PIECE {
            self.hand_over();
        }
    }

    /// The last part of a token, of less than eight bytes, and the blank.
    #[inline(always)]
    pub fn put_end(&mut self, bytes: u64, length: usize) {
        let bits = 8 * (length & 7);
        let kept = bytes & !(u64::MAX << bits);
        self.put(kept | (u64::from(b' ') << bits), length + 1);
    }

    /// A short token as it is, with its blank.
    #[inline(always)]
    pub fn put_short<const N: usize>(&mut self, token: &[u8; N]) {
        let mut bytes = [b' '; 8];
        bytes[..N].copy_from_slice(token);
        self.put(u64::from_le_bytes(bytes), N + 1);
    }

    /// A token as it is, with its blank.
    pub fn put_long(&mut self, token: &[u8]) {
        let mut parts = token.chunks_exact(8);
        for part in &mut parts {
            self.put(crate::chars::load(part, 0), 8);
        }
        let rest = parts.remainder();
        self.put_end(crate::chars::load(rest, 0), rest.len());
    }

    #[inline(never)]
    fn hand_over(&mut self) {
        self.sink.take(&self.buffer[..PIECE]);
        self.buffer.copy_within(PIECE..PIECE + AT_ONCE, 0);
        self.used -= PIECE;
    }

    /// What is left, without the last blank.
    pub fn finish(self) {
        if let Some(last) = self.used.checked_sub(1) {
            self.sink.take(&self.buffer[..last]);
        }
    }
}

/// Into a vector.
pub struct Text<'a>(pub &'a mut Vec<u8>);

impl Sink for Text<'_> {
    fn take(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }
}

/// Only the hash.
pub struct Hash(XxHash64);

impl Hash {
    pub fn new() -> Self {
        Hash(XxHash64::with_seed(0))
    }

    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

impl Sink for Hash {
    fn take(&mut self, piece: &[u8]) {
        self.0.write(piece);
    }
}

/// Seed of the second hash; any number but 0.
const CHECK_SEED: u64 = 0x7067_7175_6f72_756d;

/// Both hashes, and the beginning of the text. A text that is kept as a whole is hashed at once in the end.
pub struct Both<'a> {
    /// Of a text that is too long for that.
    hashes: Option<(XxHash64, XxHash64)>,
    kept: &'a mut [u8],
    used: usize,
}

impl<'a> Both<'a> {
    pub fn new(kept: &'a mut [u8]) -> Self {
        Both { hashes: None, kept, used: 0 }
    }

    pub fn finish(self) -> Normalised {
        match self.hashes {
            None => Normalised {
                hash: XxHash64::oneshot(0, &self.kept[..self.used]),
                check: 0,
                length: self.used as u64,
                kept: self.used,
            },
            Some((hash, check)) => Normalised {
                hash: hash.finish(),
                check: check.finish(),
                length: hash.total_len(),
                kept: self.used,
            },
        }
    }
}

/// Both hashes of a text that begins so.
#[cold]
fn begun(text: &[u8]) -> (XxHash64, XxHash64) {
    let mut both = (XxHash64::with_seed(0), XxHash64::with_seed(CHECK_SEED));
    both.0.write(text);
    both.1.write(text);
    both
}

impl Sink for Both<'_> {
    fn take(&mut self, piece: &[u8]) {
        let room = self.kept.len() - self.used;
        if piece.len() > room || self.hashes.is_some() {
            let kept = &self.kept[..self.used];
            let (hash, check) = self.hashes.get_or_insert_with(|| begun(kept));
            hash.write(piece);
            check.write(piece);
        }
        let fits = room.min(piece.len());
        self.kept[self.used..self.used + fits].copy_from_slice(&piece[..fits]);
        self.used += fits;
    }
}
