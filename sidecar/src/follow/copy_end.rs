//! Telling a whole copy from one that was broken off: the last line is `\.`, which no row looks like.

use bytes::{Bytes, BytesMut};

const END: &[u8] = b"\\.\n";

/// Lines on their way, the last three bytes held back.
#[derive(Default)]
pub struct CopyEnd {
    held: BytesMut,
    /// The last byte that was passed on, and how much and how many lines that was.
    last: Option<u8>,
    pub bytes: u64,
    pub rows: u64,
}

impl CopyEnd {
    /// Takes what came; returns what is to be passed on now.
    pub fn push(&mut self, more: &[u8]) -> Bytes {
        self.held.extend_from_slice(more);
        let ready = self.held.split_to(self.held.len().saturating_sub(END.len())).freeze();
        self.last = ready.last().copied().or(self.last);
        self.bytes += ready.len() as u64;
        self.rows += ready.iter().filter(|byte| **byte == b'\n').count() as u64;
        ready
    }

    /// Whether everything came.
    pub fn is_whole(&self) -> bool {
        self.held == END && self.last.is_none_or(|byte| byte == b'\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_that_ends_it_makes_a_copy_whole() {
        for (text, rows, whole) in [
            ("1\ta\n2\tb\n\\.\n", 2, true),
            ("\\.\n", 0, true),
            ("1\ta\n2\tb\n", 1, false),
            ("1\ta\n2\tb", 1, false),
            ("", 0, false),
            // A value that ends like that: its backslash would be doubled.
            ("1\t\\\\.\n", 0, false),
            ("1\ta\\.\n", 0, false),
        ] {
            for step in [1, 2, 5, 100] {
                let (mut end, mut passed) = (CopyEnd::default(), Vec::new());
                for part in text.as_bytes().chunks(step) {
                    passed.extend_from_slice(&end.push(part));
                }
                assert_eq!(end.is_whole(), whole, "{text:?} by {step}");
                if whole {
                    assert_eq!(passed, text.as_bytes()[..text.len() - 3], "{text:?} by {step}");
                    assert_eq!((end.rows, end.bytes), (rows, passed.len() as u64));
                }
            }
        }
    }
}
