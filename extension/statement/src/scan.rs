//! Takes a statement apart and puts its normalised text together.

use crate::chars::{Class, blanks_length, class, load, lower, word_length};
use crate::out::{Out, Sink};
use crate::tokens::{self, Quotes, byte};

/// The normalised text of `text`, to `sink`.
pub fn run<S: Sink>(text: &[u8], sink: &mut S) {
    let mut scan = Scan {
        text,
        at: 0,
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
    at: usize,
    out: Out<'s, S>,
    previous: Previous,
    /// Where the last word without quotes began and ended.
    word: (usize, usize),
    held: Held,
    semicolons: usize,
    /// Up to here each sign is an operator of its own.
    signs_end: usize,
}

impl<S: Sink> Scan<'_, '_, S> {
    #[inline(always)]
    fn all(&mut self) {
        while self.at < self.text.len() {
            match class(self.text, self.at) {
                Class::Blank => self.at += blanks_length(load(self.text, self.at)),
                Class::Word => self.word(),
                Class::Digit => self.number(),
                Class::Quote => self.string(1, Quotes::Doubled),
                Class::DoubleQuote => {
                    self.begin();
                    self.quoted(1);
                    self.previous = Previous::Other;
                }
                Class::Dollar => self.dollar(),
                Class::Operator => self.operator(),
                Class::Point => self.point(),
                Class::Colon => self.colon(),
                Class::Semicolon => self.semicolon(),
                Class::Comma => self.comma(),
                Class::Parenthesis => self.opening(b"in"),
                Class::Bracket => self.opening(b"array"),
                Class::Single => {
                    self.begin();
                    self.single(Previous::Other);
                }
            }
            // Mostly there is one blank between two tokens. This takes it without asking.
            self.at += usize::from(byte(self.text, self.at) == b' ');
        }
    }

    /// Before any token but a literal: what was held back belongs to the text after all.
    #[inline(always)]
    fn begin(&mut self) {
        if self.held != Held::Nothing {
            self.let_go();
        }
    }

    #[cold]
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

    #[inline(always)]
    fn ahead(&self, by: usize) -> u8 {
        byte(self.text, self.at + by)
    }

    /// A token of one byte.
    #[inline(always)]
    fn single(&mut self, previous: Previous) {
        self.out.put_short(&[self.ahead(0)]);
        self.at += 1;
        self.previous = previous;
    }

    /// A token of two bytes.
    fn double(&mut self, previous: Previous) {
        self.out.put_short(&[self.ahead(0), self.ahead(1)]);
        self.at += 2;
        self.previous = previous;
    }

    #[inline(always)]
    fn word(&mut self) {
        let start = self.at;
        let mut bytes = load(self.text, self.at);
        let mut length = word_length(bytes);
        if length == 1 && matches!(self.ahead(1), b'\'' | b'&') && self.prefixed() {
            return;
        }
        self.begin();
        while length == 8 {
            self.out.put(lower(bytes), 8);
            self.at += 8;
            bytes = load(self.text, self.at);
            length = word_length(bytes);
        }
        self.out.put_end(lower(bytes), length);
        self.at += length;
        self.word = (start, self.at);
        self.previous = match self.previous {
            Previous::Point => Previous::Name,
            Previous::Unicode => Previous::AfterUnicode,
            _ => Previous::Word,
        };
    }

    /// A single letter before a quote: the beginning of a literal or of an identifier? True if it was, and was taken.
    #[inline(never)]
    fn prefixed(&mut self) -> bool {
        match (self.ahead(0) | 0x20, self.ahead(1), self.ahead(2)) {
            (b'e', b'\'', _) => self.string(2, Quotes::Escaped),
            (b'b' | b'x', b'\'', _) => self.string(2, Quotes::None),
            (b'n', b'\'', _) => self.string(2, Quotes::Doubled),
            (b'u', b'&', b'\'') => self.string(3, Quotes::Doubled),
            (b'u', b'&', b'"') => {
                self.begin();
                self.out.put(u64::from_le_bytes(*b"u&      "), 2);
                self.quoted(3);
                self.previous = Previous::Unicode;
            }
            _ => return false,
        }
        true
    }

    /// A quoted identifier, whose opening quote is the last of `opening` bytes.
    fn quoted(&mut self, opening: usize) {
        let start = self.at + opening - 1;
        let mut end = self.at + opening;
        loop {
            end = tokens::find(self.text, end, b'"') + 1;
            if byte(self.text, end) != b'"' {
                break;
            }
            end += 1;
        }
        let end = end.min(self.text.len());
        self.out.put_long(&self.text[start..end]);
        self.at = end;
    }

    /// A string, whose opening quote is the last of `opening` bytes.
    fn string(&mut self, opening: usize, quotes: Quotes) {
        let end = tokens::string(self.text, self.at + opening, quotes);
        // Which character escapes is part of an identifier. Whatever else stands here is none.
        let token = &self.text[self.at..end];
        if self.previous == Previous::AfterUnicode
            && self.word_is(b"uescape")
            && matches!(token, [b'\'', _, b'\''])
        {
            self.begin();
            self.out.put_long(token);
            self.previous = Previous::Other;
            self.at = end;
        } else {
            self.literal(end);
        }
    }

    #[inline(always)]
    fn number(&mut self) {
        self.literal(tokens::number(self.text, self.at));
    }

    fn dollar(&mut self) {
        if self.ahead(1).is_ascii_digit() {
            let digits = self.text[self.at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            self.literal(self.at + 1 + digits);
        } else if let Some(end) = tokens::dollar_string(self.text, self.at) {
            self.literal(end);
        } else {
            self.begin();
            self.single(Previous::Other);
        }
    }

    /// A literal that ends at `end`. In a list of nothing but literals there is only the first one.
    #[inline(always)]
    fn literal(&mut self, end: usize) {
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
        self.at = end;
    }

    #[inline(always)]
    fn operator(&mut self) {
        let (first, second) = (self.ahead(0), self.ahead(1));
        match (first, second) {
            (b'-', b'-') => self.at = tokens::line_comment(self.text, self.at + 2),
            (b'/', b'*') => self.at = tokens::block_comment(self.text, self.at + 2),
            _ if class(self.text, self.at + 1) != Class::Operator || self.at < self.signs_end => {
                self.short_operator(first);
            }
            _ => {
                let (end, signs_end) = tokens::operator(self.text, self.at);
                self.signs_end = signs_end;
                if end == self.at + 1 {
                    self.short_operator(first);
                } else {
                    self.begin();
                    self.out.put_long(&self.text[self.at..end]);
                    self.previous = Previous::Prefix;
                    self.at = end;
                }
            }
        }
    }

    #[inline(always)]
    fn short_operator(&mut self, operator: u8) {
        if matches!(operator, b'+' | b'-')
            && let Some(number) = self.number_behind_sign()
        {
            self.at = number;
        } else {
            self.begin();
            self.single(Previous::Prefix);
        }
    }

    /// Where the number begins that the sign here belongs to, if it does belong to one.
    fn number_behind_sign(&self) -> Option<usize> {
        let belongs = match self.previous {
            Previous::Prefix => true,
            Previous::Word | Previous::AfterUnicode => BEFORE_SIGN.iter().any(|word| self.word_is(word)),
            _ => false,
        };
        if !belongs {
            return None;
        }
        let next = tokens::gap(self.text, self.at + 1);
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

    fn point(&mut self) {
        if self.ahead(1).is_ascii_digit() {
            self.number();
            return;
        }
        self.begin();
        if self.ahead(1) == b'.' { self.double(Previous::Prefix) } else { self.single(Previous::Point) }
    }

    fn colon(&mut self) {
        self.begin();
        match self.ahead(1) {
            b':' => self.double(Previous::Other),
            b'=' => self.double(Previous::Prefix),
            _ => self.single(Previous::Prefix),
        }
    }

    fn semicolon(&mut self) {
        if self.held != Held::Semicolons {
            self.begin();
            self.held = Held::Semicolons;
        }
        self.semicolons += 1;
        self.at += 1;
        self.previous = Previous::Other;
    }

    #[inline(always)]
    fn comma(&mut self) {
        if self.held == Held::Literal {
            self.held = Held::Comma;
            self.at += 1;
            self.previous = Previous::Prefix;
        } else {
            self.begin();
            self.single(Previous::Prefix);
        }
    }

    /// What opens a list, if it stands behind this word.
    #[inline(always)]
    fn opening(&mut self, word: &[u8]) {
        self.begin();
        if matches!(self.previous, Previous::Word | Previous::AfterUnicode) && self.word_is(word) {
            self.held = Held::List;
        }
        self.single(Previous::Prefix);
    }
}
