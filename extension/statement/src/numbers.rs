//! Texts that differ in nothing but whole numbers, found without taking them apart. Clients that put values into their
//! statements send such texts one after the other.

use crate::chars::load;
use crate::tokens::byte;
use memchr::memchr3_iter;

/// How much of the text, from its beginning, stands outside of quotes, dollar quotes and comments for certain.
#[must_use]
pub fn plain_length(text: &[u8]) -> usize {
    let quoted = memchr3_iter(b'"', b'\'', b'$', text).next().unwrap_or(text.len());
    let comment = |pair: &[u8]| matches!(pair, b"--" | b"/*");
    text[..quoted].windows(2).position(comment).unwrap_or(quoted)
}

/// Is `text` the same as `known` but for the digits of whole numbers in the first `plain` bytes of it ([`plain_length`] of
/// `known`)? Then both have the same normalised text. `false` may also mean that it takes a closer look to know.
///
/// Digits are looked at where something stands before them that ends any other token, and behind them something that is no
/// part of a number: so they are one token in both texts, a literal. All else is the same, byte by byte.
#[must_use]
pub fn differ_in_numbers(known: &[u8], plain: usize, text: &[u8]) -> bool {
    let (mut at, mut other) = (0, 0);
    loop {
        let same = same_length(&known[at..], &text[other..]);
        let before = at;
        (at, other) = (at + same, other + same);
        if at == known.len() && other == text.len() {
            return true;
        }
        // The number may begin before the first byte that differs.
        let shared = known[before..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        (at, other) = (at - shared, other - shared);
        let begins = at > 0 && matches!(known[at - 1], b' ' | b'=' | b'(' | b',' | b'<' | b'>');
        let (end, other_end) = (digits_end(known, at), digits_end(text, other));
        if !begins || end == at || other_end == other || end > plain || !ends_number(known, end) {
            return false;
        }
        // What stands behind the other one's digits has to be the same.
        (at, other) = (end, other_end);
    }
}

/// How many bytes at the beginning are the same.
#[inline]
fn same_length(one: &[u8], other: &[u8]) -> usize {
    let shorter = one.len().min(other.len());
    let mut at = 0;
    while at < shorter {
        let different = load(one, at) ^ load(other, at);
        if different != 0 {
            return (at + different.trailing_zeros() as usize / 8).min(shorter);
        }
        at += 8;
    }
    shorter
}

fn digits_end(text: &[u8], at: usize) -> usize {
    at + text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Can what stands here not belong to the digits before it?
fn ends_number(text: &[u8], at: usize) -> bool {
    at == text.len() || matches!(byte(text, at), b' ' | b',' | b')' | b';' | b'\n')
}
