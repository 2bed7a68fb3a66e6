//! What bytes are, one by one from a table and eight at a time by arithmetic within a word.

/// What a token may be that begins with a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A token of its own, whatever it is.
    Single,
    Blank,
    Word,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Operator,
    Point,
    Colon,
    Semicolon,
    Comma,
    Parenthesis,
    Bracket,
}

/// By the byte.
pub static CLASS: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Single; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let class = match byte as u8 {
            // Vertical tab is one since PostgreSQL 16; before, it is an error.
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Blank,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Class::Word,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' => Class::Operator,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => Class::Operator,
            b'.' => Class::Point,
            b':' => Class::Colon,
            b';' => Class::Semicolon,
            b',' => Class::Comma,
            b'(' => Class::Parenthesis,
            b'[' => Class::Bracket,
            _ => Class::Single,
        };
        classes[byte] = class;
        byte += 1;
    }
    classes
}

/// The class of the byte at `at`. There is one behind the end, too, which is nobody's.
#[inline(always)]
pub fn class(text: &[u8], at: usize) -> Class {
    text.get(at).map_or(Class::Single, |byte| CLASS[usize::from(*byte)])
}

/// Where an operator may end with a sign: it has one of these, which standard SQL's operators have not.
pub fn is_beyond_standard(byte: u8) -> bool {
    matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%')
}

const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
const HIGH: u64 = 0x8080_8080_8080_8080;

const fn each(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// Sets the high bit of each byte that is at least `byte`; all bytes of `sevens` are below 0x80.
#[inline(always)]
const fn at_least(sevens: u64, byte: u8) -> u64 {
    sevens.wrapping_add(each(0x80 - byte))
}

/// Sets the high bit of each byte that is not `byte`; all bytes of `sevens` are below 0x80.
#[inline(always)]
const fn differs(sevens: u64, byte: u8) -> u64 {
    (sevens ^ each(byte)).wrapping_add(LOW)
}

/// How many bytes come before the first one whose high bit is not set; up to 8.
#[inline(always)]
const fn run(marks: u64) -> usize {
    ((!marks & HIGH).trailing_zeros() / 8) as usize
}

/// The eight bytes at `at`, the first in the lowest place; zeros behind the end of the text.
#[inline(always)]
pub fn load(text: &[u8], at: usize) -> u64 {
    match text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => load_end(text, at),
    }
}

#[inline(never)]
fn load_end(text: &[u8], at: usize) -> u64 {
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().take(8).rev().fold(0, |all, byte| (all << 8) | u64::from(*byte))
}

/// How many of the eight bytes, from the first on, a word is made of: letters, digits, `_`, `$`, and all that is not ASCII.
#[inline(always)]
pub const fn word_length(bytes: u64) -> usize {
    let sevens = bytes & LOW;
    let lower = sevens | each(0x20);
    let letters = at_least(lower, b'a') & !at_least(lower, b'z' + 1);
    let digits = at_least(sevens, b'0') & !at_least(sevens, b'9' + 1);
    let others = !(differs(sevens, b'_') & differs(sevens, b'$'));
    run(letters | digits | others | bytes)
}

/// How many of the eight bytes, from the first on, are digits.
#[inline(always)]
pub const fn digits_length(bytes: u64) -> usize {
    let sevens = bytes & LOW;
    run(at_least(sevens, b'0') & !at_least(sevens, b'9' + 1) & !bytes)
}

/// How many of the eight bytes, from the first on, are blanks.
#[inline(always)]
pub const fn blanks_length(bytes: u64) -> usize {
    let sevens = bytes & LOW;
    let controls = at_least(sevens, b'\t') & !at_least(sevens, b'\r' + 1);
    run((controls | !differs(sevens, b' ')) & !bytes)
}

/// The place of the first `byte` among the eight; 8 if it is not there.
#[inline(always)]
pub const fn place(bytes: u64, byte: u8) -> usize {
    let zero = bytes ^ each(byte);
    // Bytes behind the first zero may be marked wrongly; the first one is right.
    let marks = zero.wrapping_sub(each(1)) & !zero & HIGH;
    (marks.trailing_zeros() / 8) as usize
}

/// Capital letters of ASCII become small ones.
#[inline(always)]
pub const fn lower(bytes: u64) -> u64 {
    let sevens = bytes & LOW;
    let capitals = at_least(sevens, b'A') & !at_least(sevens, b'Z' + 1) & !bytes & HIGH;
    bytes | (capitals >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte in each place, among others: as the table says.
    #[test]
    fn eight_at_a_time_is_as_one_by_one() {
        for byte in 0..=u8::MAX {
            let inside = matches!(CLASS[usize::from(byte)], Class::Word | Class::Digit | Class::Dollar);
            for at in 0..8 {
                let mixed = |fill: u8| {
                    let mut bytes = [fill; 8];
                    bytes[at] = byte;
                    u64::from_le_bytes(bytes)
                };
                let length = |is: bool| if is { 8 } else { at };
                for fill in [b'a', b'Z', b'_', b'$', b'0', 0x80, 0xff] {
                    assert_eq!(word_length(mixed(fill)), length(inside), "{byte} at {at} among {fill}");
                }
                for fill in [b'0', b'9'] {
                    assert_eq!(digits_length(mixed(fill)), length(byte.is_ascii_digit()), "{byte} at {at}");
                }
                for fill in [b' ', b'\t', b'\r'] {
                    let blank = CLASS[usize::from(byte)] == Class::Blank;
                    assert_eq!(blanks_length(mixed(fill)), length(blank), "{byte} at {at}");
                }
                for fill in [0, 1, 0x26, 0x28, 0x7f, 0x80, 0xa7, 0xff] {
                    assert_eq!(
                        place(mixed(fill), b'\''),
                        if byte == b'\'' { at } else { 8 },
                        "{byte} at {at}"
                    );
                }
                let mut lowered = mixed(0xc3).to_le_bytes();
                lowered.make_ascii_lowercase();
                assert_eq!(lower(mixed(0xc3)).to_le_bytes(), lowered);
            }
        }
    }

    #[test]
    fn behind_the_end_are_zeros() {
        assert_eq!(load(b"abc", 1).to_le_bytes(), *b"bc\0\0\0\0\0\0");
        assert_eq!((load(b"abc", 3), load(b"abc", 9)), (0, 0));
        assert_eq!(load(b"x12345678y", 1).to_le_bytes(), *b"12345678");
    }
}
