//! Takes a statement apart and puts its normalised text together.

use crate::chars::{Class, blanks_length, class, load, lower, word_length};
use crate::out::{Out, Sink};
use crate::tokens::{self, Quotes, byte};

/// The normalised text of `text`, to `sink`.
pub fn run<S: Sink>(text: &[u8], sink: &mut S) {
    let mut scan = Scan {
        text,
        out: Out::new(sink),
        previous: Previous::Prefix,
        word: (0, 0),
        held: Held::Nothing,
        semicolons: 0,
        signs_end: 0,
    };
    scan.all();
    // A list that is not closed may end with a comma. Semicolons at the end are dropped.
    if scan.held == Held::Comma {
        scan.let_go();
    }
    scan.out.finish();
}

/// Words after which a sign before a number belongs to the number: no name can be one of them without quotes, but for
/// `between`, of which nobody subtracts.
const BEFORE_SIGN: [&[u8]; 9] =
    [b"and", b"between", b"case", b"else", b"or", b"select", b"then", b"when", b"where"];

/// The last token that was not dropped, as far as it matters for the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Previous {
    /// An operator, something that opens or separates, or the beginning: what comes is no second operand.
    Prefix,
    /// A word without quotes.
    Word,
    /// A word behind a point: a name, whatever it means elsewhere.
    Name,
    Point,
    /// A quoted identifier with Unicode escapes.
    Unicode,
    /// A word right behind that one.
    AfterUnicode,
    Other,
}

/// What has been seen and may never be put out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    /// Nothing yet: `in (` or `array [` was the last.
    List,
    /// Nothing yet: a literal was the last in such a list.
    Literal,
    /// A comma behind that literal.
    Comma,
    /// One or more semicolons.
    Semicolons,
}

struct Scan<'t, 's, S> {
    text: &'t [u8],
    out: Out<'s, S>,
    previous: Previous,
    /// Where the last word without quotes began and ended.
    word: (usize, usize),
    held: Held,
    semicolons: usize,
    /// Up to here each sign is an operator of its own.
    signs_end: usize,
}

/// What takes a token is given its place, and gives back the place behind it.
impl<S: Sink> Scan<'_, '_, S> {
    #[inline(always)]
    fn all(&mut self) {
        let mut at = 0;
        while at < self.text.len() {
            at = match class(self.text, at) {
                Class::Blank => at + blanks_length(load(self.text, at)),
                Class::Word => {
                    at = self.word(at);
                    continue;
                }
                Class::Digit => self.number(at),
                Class::Quote => self.string(at, 1, Quotes::Doubled),
                Class::DoubleQuote => {
                    self.begin();
                    self.previous = Previous::Other;
                    self.quoted(at)
                }
                Class::Dollar => self.dollar(at),
                Class::Operator => self.operator(at),
                Class::Point => self.point(at),
                Class::Colon => self.colon(at),
                Class::Semicolon => self.semicolon(at),
                Class::Comma => self.comma(at),
                Class::Parenthesis => self.opening(at, b"in"),
                Class::Bracket => self.opening(at, b"array"),
                Class::Single => {
                    self.begin();
                    self.single(at, Previous::Other)
                }
            };
            // Mostly there is one blank behind a token. This takes it without a branch.
            at += usize::from(byte(self.text, at) == b' ');
        }
    }

    /// Before any token but a literal: what was held back belongs to the text after all.
    #[inline(always)]
    fn begin(&mut self) {
        if self.held != Held::Nothing {
            self.let_go();
        }
    }

    #[inline(never)]
    fn let_go(&mut self) {
        match self.held {
            Held::Comma => self.out.put_short(b","),
            Held::Semicolons => (0..self.semicolons).for_each(|_| self.out.put_short(b";")),
            Held::Nothing | Held::List | Held::Literal => {}
        }
        self.semicolons = 0;
        self.held = Held::Nothing;
    }

    /// A token of one byte.
    #[inline(always)]
    fn single(&mut self, at: usize, previous: Previous) -> usize {
        self.out.put_short(&[byte(self.text, at)]);
        self.previous = previous;
        at + 1
    }

    /// A token of two bytes.
    fn double(&mut self, at: usize, previous: Previous) -> usize {
        self.out.put_short(&[byte(self.text, at), byte(self.text, at + 1)]);
        self.previous = previous;
        at + 2
    }

    /// A word, and the blank behind it: the byte is at hand already, and what comes next waits for nothing but this.
    #[inline(always)]
    fn word(&mut self, mut at: usize) -> usize {
        let start = at;
        let mut bytes = load(self.text, at);
        let mut length = word_length(bytes);
        if length == 1
            && matches!(byte(self.text, at + 1), b'\'' | b'&')
            && let Some(end) = self.prefixed(at)
        {
            return end;
        }
        self.begin();
        while length == 8 {
            self.out.put(lower(bytes), 8);
            at += 8;
            bytes = load(self.text, at);
            length = word_length(bytes);
        }
        self.out.put_end(lower(bytes), length);
        at += length;
        self.word = (start, at);
        self.previous = match self.previous {
            Previous::Point => Previous::Name,
            Previous::Unicode => Previous::AfterUnicode,
            _ => Previous::Word,
        };
        let [next, ..] = (bytes >> (8 * length)).to_le_bytes();
        at + usize::from(next == b' ')
    }

    /// A single letter before a quote: the beginning of a literal or of an identifier? Then that is taken.
    #[inline(never)]
    fn prefixed(&mut self, at: usize) -> Option<usize> {
        let [first, second, third] = [0, 1, 2].map(|by| byte(self.text, at + by));
        match (first | 0x20, second, third) {
            (b'e', b'\'', _) => Some(self.string(at, 2, Quotes::Escaped)),
            (b'b' | b'x', b'\'', _) => Some(self.string(at, 2, Quotes::None)),
            (b'n', b'\'', _) => Some(self.string(at, 2, Quotes::Doubled)),
            (b'u', b'&', b'\'') => Some(self.string(at, 3, Quotes::Doubled)),
            (b'u', b'&', b'"') => {
                self.begin();
                self.previous = Previous::Unicode;
                self.out.put(u64::from_le_bytes(*b"u&      "), 2);
                Some(self.quoted(at + 2))
            }
            _ => None,
        }
    }

    /// A quoted identifier, from its opening quote on.
    fn quoted(&mut self, at: usize) -> usize {
        let mut end = at + 1;
        loop {
            end = tokens::find(self.text, end, b'"') + 1;
            if byte(self.text, end) != b'"' {
                break;
            }
            end += 1;
        }
        let end = end.min(self.text.len());
        self.out.put_long(&self.text[at..end]);
        end
    }

    /// A string, whose opening quote is the last of `opening` bytes.
    fn string(&mut self, at: usize, opening: usize, quotes: Quotes) -> usize {
        let end = tokens::string(self.text, at + opening, quotes);
        // Which character escapes is part of an identifier. Whatever else stands here is none.
        let token = &self.text[at..end];
        if self.previous == Previous::AfterUnicode
            && self.word_is(b"uescape")
            && matches!(token, [b'\'', _, b'\''])
        {
            self.begin();
            self.out.put_long(token);
            self.previous = Previous::Other;
        } else {
            self.literal();
        }
        end
    }

    #[inline(always)]
    fn number(&mut self, at: usize) -> usize {
        self.literal();
        tokens::number(self.text, at)
    }

    fn dollar(&mut self, at: usize) -> usize {
        if byte(self.text, at + 1).is_ascii_digit() {
            self.literal();
            let digits = self.text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            at + 1 + digits
        } else if let Some(end) = tokens::dollar_string(self.text, at) {
            self.literal();
            end
        } else {
            self.begin();
            self.single(at, Previous::Other)
        }
    }

    /// A literal. In a list of nothing but literals there is only the first one.
    #[inline(always)]
    fn literal(&mut self) {
        match self.held {
            Held::Nothing => self.out.put_short(b"$"),
            Held::List => {
                self.out.put_short(b"$");
                self.held = Held::Literal;
            }
            Held::Comma => self.held = Held::Literal,
            Held::Literal | Held::Semicolons => {
                self.let_go();
                self.out.put_short(b"$");
            }
        }
        self.previous = Previous::Other;
    }

    #[inline(always)]
    fn operator(&mut self, at: usize) -> usize {
        let (first, second) = (byte(self.text, at), byte(self.text, at + 1));
        match (first, second) {
            (b'-', b'-') => tokens::line_comment(self.text, at + 2),
            (b'/', b'*') => tokens::block_comment(self.text, at + 2),
            _ if class(self.text, at + 1) != Class::Operator || at < self.signs_end => {
                self.short_operator(at, first)
            }
            _ => {
                let (end, signs_end) = tokens::operator(self.text, at);
                self.signs_end = signs_end;
                if end == at + 1 {
                    return self.short_operator(at, first);
                }
                self.begin();
                self.out.put_long(&self.text[at..end]);
                self.previous = Previous::Prefix;
                end
            }
        }
    }

    #[inline(always)]
    fn short_operator(&mut self, at: usize, operator: u8) -> usize {
        if matches!(operator, b'+' | b'-')
            && let Some(number) = self.number_behind_sign(at)
        {
            return number;
        }
        self.begin();
        self.single(at, Previous::Prefix)
    }

    /// Where the number begins that the sign here belongs to, if it does belong to one.
    fn number_behind_sign(&self, at: usize) -> Option<usize> {
        let belongs = match self.previous {
            Previous::Prefix => true,
            Previous::Word | Previous::AfterUnicode => BEFORE_SIGN.iter().any(|word| self.word_is(word)),
            _ => false,
        };
        if !belongs {
            return None;
        }
        let next = tokens::gap(self.text, at + 1);
        let digit = match byte(self.text, next) {
            b'.' | b'$' => byte(self.text, next + 1),
            first => first,
        };
        digit.is_ascii_digit().then_some(next)
    }

    /// Whether the last word without quotes is this one, which is in lower case.
    fn word_is(&self, word: &[u8]) -> bool {
        self.text[self.word.0..self.word.1].eq_ignore_ascii_case(word)
    }

    #[inline(always)]
    fn point(&mut self, at: usize) -> usize {
        let second = byte(self.text, at + 1);
        if second.is_ascii_digit() {
            return self.number(at);
        }
        self.begin();
        if second == b'.' { self.double(at, Previous::Prefix) } else { self.single(at, Previous::Point) }
    }

    fn colon(&mut self, at: usize) -> usize {
        self.begin();
        match byte(self.text, at + 1) {
            b':' => self.double(at, Previous::Other),
            b'=' => self.double(at, Previous::Prefix),
            _ => self.single(at, Previous::Prefix),
        }
    }

    fn semicolon(&mut self, at: usize) -> usize {
        if self.held != Held::Semicolons {
            self.begin();
            self.held = Held::Semicolons;
        }
        self.semicolons += 1;
        self.previous = Previous::Other;
        at + 1
    }

    #[inline(always)]
    fn comma(&mut self, at: usize) -> usize {
        if self.held == Held::Literal {
            self.held = Held::Comma;
            self.previous = Previous::Prefix;
            return at + 1;
        }
        self.begin();
        self.single(at, Previous::Prefix)
    }

    /// What opens a list, if it stands behind this word.
    #[inline(always)]
    fn opening(&mut self, at: usize, word: &[u8]) -> usize {
        self.begin();
        if matches!(self.previous, Previous::Word | Previous::AfterUnicode) && self.word_is(word) {
            self.held = Held::List;
        }
        self.single(at, Previous::Prefix)
    }
}
