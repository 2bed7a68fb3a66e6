//! Where tokens end, by the rules of PostgreSQL's scanner. Each function looks at a byte a bounded number of times, and all
//! of them take texts that end in the middle of a token.

use crate::chars::{Class, class, digits_length, is_beyond_standard, load, place};
use memchr::{memchr, memchr2};

/// What quotes inside a string are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Quotes {
    /// `''` is one; as in '…', N'…', U&'…'.
    Doubled,
    /// `''` and `\'` are; as in E'…'.
    Escaped,
    /// There are none; as in B'…' and X'…'.
    None,
}

/// The byte, or 0 behind the end.
#[inline(always)]
pub fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// The place of the next `byte` from `at` on, or the text's length.
pub fn find(text: &[u8], mut at: usize, byte: u8) -> usize {
    // Most strings are short.
    for _ in 0..2 {
        match place(load(text, at), byte) {
            8 => at += 8,
            found => return at + found,
        }
    }
    memchr(byte, text.get(at..).unwrap_or_default()).map_or(text.len(), |found| at + found)
}

fn find_either(text: &[u8], at: usize, one: u8, other: u8) -> usize {
    memchr2(one, other, text.get(at..).unwrap_or_default()).map_or(text.len(), |found| at + found)
}

/// Behind the comment whose `--` ends at `at`; at the end of its line.
pub fn line_comment(text: &[u8], at: usize) -> usize {
    find_either(text, at, b'\n', b'\r')
}

/// Behind the comment whose first `/*` ends at `at`. Comments nest.
pub fn block_comment(text: &[u8], mut at: usize) -> usize {
    let mut depth = 1_usize;
    while depth > 0 {
        at = find_either(text, at, b'*', b'/');
        match (text.get(at), text.get(at + 1)) {
            (None, _) => break,
            (Some(b'*'), Some(b'/')) => {
                depth -= 1;
                at += 2;
            }
            (Some(b'/'), Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    at
}

/// Behind blanks and comments.
pub fn gap(text: &[u8], mut at: usize) -> usize {
    loop {
        match class(text, at) {
            Class::Blank => at += 1,
            Class::Operator => match (byte(text, at), byte(text, at + 1)) {
                (b'-', b'-') => at = line_comment(text, at + 2),
                (b'/', b'*') => at = block_comment(text, at + 2),
                _ => return at,
            },
            _ => return at,
        }
    }
}

/// Behind the string whose opening quote ends at `at`, with all that continues it.
pub fn string(text: &[u8], mut at: usize, quotes: Quotes) -> usize {
    loop {
        at = match quotes {
            Quotes::Escaped => escaped(text, at),
            Quotes::Doubled | Quotes::None => find(text, at, b'\''),
        };
        if at >= text.len() {
            return text.len();
        }
        at += 1;
        if quotes != Quotes::None && byte(text, at) == b'\'' {
            at += 1;
        } else if let Some(inside) = continued(text, at) {
            at = inside;
        } else {
            return at;
        }
    }
}

/// The quote that ends this part of a string with backslashes.
fn escaped(text: &[u8], mut at: usize) -> usize {
    loop {
        at = find_either(text, at, b'\'', b'\\');
        if byte(text, at) != b'\\' {
            return at;
        }
        at += 2;
    }
}

/// A string goes on in the next line: behind blanks and `--` comments with the end of a line among them comes its next
/// part. Gives the place behind that part's opening quote.
fn continued(text: &[u8], mut at: usize) -> Option<usize> {
    let mut next_line = false;
    loop {
        match text.get(at)? {
            b'\n' | b'\r' => {
                next_line = true;
                at += 1;
            }
            b' ' | b'\t' | 0x0b | 0x0c => at += 1,
            b'-' if byte(text, at + 1) == b'-' => at = line_comment(text, at + 2),
            b'\'' if next_line => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Behind the string in dollar quotes that begins with the `$` at `at`; `None` if that begins no such string.
pub fn dollar_string(text: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 1;
    if class(text, end) == Class::Word {
        while matches!(class(text, end), Class::Word | Class::Digit) {
            end += 1;
        }
    }
    if byte(text, end) != b'$' {
        return None;
    }
    let mark = &text[at..=end];
    let mut next = end + 1;
    loop {
        next = find(text, next, b'$');
        match text.get(next..) {
            None | Some([]) => return Some(text.len()),
            Some(rest) if rest.starts_with(mark) => return Some(next + mark.len()),
            Some(_) => next += 1,
        }
    }
}

/// Behind the digits at `at`, with single `_` between them.
fn digits(text: &[u8], mut at: usize, is_digit: fn(&u8) -> bool) -> usize {
    let digit = |at: usize| text.get(at).is_some_and(is_digit);
    if !digit(at) {
        return at;
    }
    loop {
        at += 1;
        if byte(text, at) == b'_' && digit(at + 1) {
            at += 1;
        } else if !digit(at) {
            return at;
        }
    }
}

/// Behind the number at `at`, which begins with a digit, or with a point and a digit.
#[inline(always)]
pub fn number(text: &[u8], at: usize) -> usize {
    let length = digits_length(load(text, at));
    match class(text, at + length) {
        Class::Word | Class::Point | Class::Digit => long_number(text, at),
        _ => at + length,
    }
}

#[inline(never)]
fn long_number(text: &[u8], at: usize) -> usize {
    if byte(text, at) == b'0' {
        let is_digit: fn(&u8) -> bool = match byte(text, at + 1) | 0x20 {
            b'x' => u8::is_ascii_hexdigit,
            b'o' => |byte| matches!(byte, b'0'..=b'7'),
            b'b' => |byte| matches!(byte, b'0' | b'1'),
            _ => |_| false,
        };
        let first = at + 2 + usize::from(byte(text, at + 2) == b'_');
        let end = digits(text, first, is_digit);
        if end > first {
            return end;
        }
    }
    let mut end = digits(text, at, u8::is_ascii_digit);
    // Two points are a token of their own, as in a loop's `1..10`.
    if byte(text, end) == b'.' && byte(text, end + 1) != b'.' {
        end = digits(text, end + 1, u8::is_ascii_digit);
    }
    if byte(text, end) | 0x20 == b'e' {
        let first = end + 1 + usize::from(matches!(byte(text, end + 1), b'+' | b'-'));
        // Without digits it is no exponent, but a word behind the number.
        end = Some(digits(text, first, u8::is_ascii_digit)).filter(|past| *past > first).unwrap_or(end);
    }
    end
}

/// The operator at `at`, which is of more than one character of operators and no comment: where it ends, and where the
/// signs end that follow it and are each an operator of its own.
pub fn operator(text: &[u8], at: usize) -> (usize, usize) {
    let mut end = at;
    let mut standard = true;
    let mut last_other = at;
    while class(text, end) == Class::Operator {
        let here = byte(text, end);
        if end > at && matches!((here, byte(text, end + 1)), (b'-', b'-') | (b'/', b'*')) {
            break;
        }
        standard &= !is_beyond_standard(here);
        if !matches!(here, b'+' | b'-') {
            last_other = end;
        }
        end += 1;
    }
    if standard { (last_other + 1, end) } else { (end, end) }
}
