//! The normalised text, as plainly as the rules are written down: first all tokens by the rules of PostgreSQL's scanner,
//! the longest match of all rules at each place; then what is changed about them, one rule after the other. Slow, and
//! nothing here is shared with what it is compared with.

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Blank,
    Word,
    Quoted,
    Unicode,
    String,
    Number,
    Parameter,
    Operator,
    Other,
}

use Kind::{Blank, Number, Operator, Other, Parameter, Quoted, String, Unicode, Word};

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    text: Vec<u8>,
}

impl Token {
    fn is(&self, kind: Kind, text: &str) -> bool {
        self.kind == kind && self.text == text.as_bytes()
    }

    fn is_literal(&self) -> bool {
        matches!(self.kind, String | Number | Parameter)
    }
}

pub fn normalised(text: &[u8]) -> Vec<u8> {
    let mut tokens = tokens(text);
    keep_escape_characters(&mut tokens);
    let tokens = without_semicolons_at_the_end(with_short_lists(without_signs(tokens)));
    let texts: Vec<&[u8]> =
        tokens.iter().map(|token| if token.is_literal() { b"$" } else { token.text.as_slice() }).collect();
    texts.join(&b' ')
}

fn tokens(text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (kind, length) = longest(rest);
        let mut text = rest[..length].to_vec();
        match kind {
            Word => text.make_ascii_lowercase(),
            Unicode => text[0] = b'u',
            _ => {}
        }
        if kind != Blank {
            tokens.push(Token { kind, text });
        }
        rest = &rest[length..];
    }
    tokens
}

/// The longest match of all rules; among equals that of the first.
fn longest(text: &[u8]) -> (Kind, usize) {
    let first = text[0];
    let second = text.get(1).copied();
    let third = text.get(2).copied();
    let letter = first.to_ascii_lowercase();
    // What goes on in a state of its own.
    if first == b'/' && second == Some(b'*') {
        return (Blank, comment(text));
    }
    match (letter, second, third) {
        (b'\'', ..) => return (String, string(text, 1, true, false)),
        (b'e', Some(b'\''), _) => return (String, string(text, 2, true, true)),
        (b'n', Some(b'\''), _) => return (String, string(text, 2, true, false)),
        (b'b' | b'x', Some(b'\''), _) => return (String, string(text, 2, false, false)),
        (b'u', Some(b'&'), Some(b'\'')) => return (String, string(text, 3, true, false)),
        (b'u', Some(b'&'), Some(b'"')) => return (Unicode, identifier(text, 3)),
        (b'"', ..) => return (Quoted, identifier(text, 1)),
        _ => {}
    }
    if let Some(mark) = dollar_mark(text) {
        let inside = &text[mark.len()..];
        let end = inside.windows(mark.len()).position(|window| window == mark);
        return (String, end.map_or(text.len(), |end| mark.len() + end + mark.len()));
    }
    let mut best = (Other, 1);
    for (kind, length) in [
        (Blank, count(text, is_blank)),
        (Blank, line_comment(text)),
        (Other, [&b"::"[..], b"..", b":="].iter().any(|two| text.starts_with(two)).into()),
        (Operator, operator(text)),
        (Parameter, parameter(text)),
        (Number, number(text)),
        (Word, word(text)),
    ] {
        // The two-character tokens.
        let length = if kind == Other && length == 1 { 2 } else { length };
        if length > best.1 || (length == best.1 && best.0 == Other && kind != Other) {
            best = (kind, length);
        }
    }
    best
}

fn count(text: &[u8], is: impl Fn(u8) -> bool) -> usize {
    text.iter().take_while(|byte| is(**byte)).count()
}

fn is_blank(byte: u8) -> bool {
    [b' ', b'\t', b'\n', b'\r', 11, 12].contains(&byte)
}

fn is_new_line(byte: u8) -> bool {
    byte == b'\n' || byte == b'\r'
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn word(text: &[u8]) -> usize {
    if !begins_word(text[0]) {
        return 0;
    }
    count(text, |byte| begins_word(byte) || byte.is_ascii_digit() || byte == b'$')
}

fn line_comment(text: &[u8]) -> usize {
    if text.starts_with(b"--") { count(text, |byte| !is_new_line(byte)) } else { 0 }
}

fn comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn identifier(text: &[u8], mut at: usize) -> usize {
    while at < text.len() {
        if text[at..].starts_with(b"\"\"") {
            at += 2;
        } else if text[at] == b'"' {
            return at + 1;
        } else {
            at += 1;
        }
    }
    at
}

fn string(text: &[u8], mut at: usize, doubled: bool, backslashes: bool) -> usize {
    while at < text.len() {
        if backslashes && text[at] == b'\\' {
            at = (at + 2).min(text.len());
        } else if doubled && text[at..].starts_with(b"''") {
            at += 2;
        } else if text[at] == b'\'' {
            match next_part(&text[at + 1..]) {
                Some(length) => at += 1 + length,
                None => return at + 1,
            }
        } else {
            at += 1;
        }
    }
    at
}

/// `{horiz_whitespace}*{newline}{special_whitespace}*{quote}`
fn next_part(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let blanks = count(&text[at..], |byte| is_blank(byte) && !is_new_line(byte));
        let comment = line_comment(&text[at + blanks..]);
        at += blanks + comment;
        if comment == 0 {
            break;
        }
    }
    if !is_new_line(*text.get(at)?) {
        return None;
    }
    loop {
        let blanks = count(&text[at..], is_blank);
        at += blanks;
        let comment = line_comment(&text[at..]);
        if comment == 0 {
            break;
        }
        at += comment;
    }
    (text.get(at) == Some(&b'\'')).then_some(at + 1)
}

fn dollar_mark(text: &[u8]) -> Option<&[u8]> {
    let inside = text.strip_prefix(b"$")?;
    let length = match inside.first() {
        Some(first) if begins_word(*first) => {
            count(inside, |byte| begins_word(byte) || byte.is_ascii_digit())
        }
        _ => 0,
    };
    (inside.get(length) == Some(&b'$')).then(|| &text[..length + 2])
}

fn parameter(text: &[u8]) -> usize {
    let digits = count(&text[1..], |byte| byte.is_ascii_digit());
    if text[0] == b'$' && digits > 0 { 1 + digits } else { 0 }
}

/// `{digit}(_?{digit})*`
fn digits(text: &[u8], is: impl Fn(&u8) -> bool) -> usize {
    let mut length = 0;
    loop {
        let underscore = usize::from(length > 0 && text.get(length) == Some(&b'_'));
        if !text.get(length + underscore).is_some_and(&is) {
            return length;
        }
        length += underscore + 1;
    }
}

fn number(text: &[u8]) -> usize {
    let decimal = |text: &[u8]| digits(text, u8::is_ascii_digit);
    let mut longest = decimal(text);
    for (letter, base) in [(b'x', 16), (b'o', 8), (b'b', 2)] {
        if text[0] == b'0' && text.get(1).map(u8::to_ascii_lowercase) == Some(letter) {
            let underscore = usize::from(text.get(2) == Some(&b'_'));
            let is = |byte: &u8| char::from(*byte).is_digit(base);
            let digits = digits(text.get(2 + underscore..).unwrap_or_default(), is);
            if digits > 0 {
                longest = longest.max(2 + underscore + digits);
            }
        }
    }
    let whole = decimal(text);
    let mut mantissa = whole;
    if text.get(whole) == Some(&b'.') {
        let fraction = decimal(&text[whole + 1..]);
        if whole + fraction > 0 && text.get(whole + 1) != Some(&b'.') {
            mantissa = whole + 1 + fraction;
        }
    }
    longest = longest.max(mantissa);
    if mantissa > 0 && text.get(mantissa).map(u8::to_ascii_lowercase) == Some(b'e') {
        let sign = usize::from(matches!(text.get(mantissa + 1), Some(b'+' | b'-')));
        let exponent = decimal(text.get(mantissa + 1 + sign..).unwrap_or_default());
        if exponent > 0 {
            longest = longest.max(mantissa + 1 + sign + exponent);
        }
    }
    longest
}

/// The rule `{operator}` with what its action gives back.
fn operator(text: &[u8]) -> usize {
    let mut length = count(text, is_operator);
    for comment in [b"/*", b"--"] {
        if let Some(at) = text[..length].windows(2).position(|window| window == comment) {
            length = at;
        }
    }
    let is_sign = |byte: &u8| *byte == b'+' || *byte == b'-';
    if length > 1
        && is_sign(&text[length - 1])
        && !text[..length - 1].iter().any(|byte| b"~!@#^&|`?%".contains(byte))
    {
        while length > 1 && is_sign(&text[length - 1]) {
            length -= 1;
        }
    }
    length
}

/// `U&"…" UESCAPE '!'` is one identifier: its last part is no literal.
fn keep_escape_characters(tokens: &mut [Token]) {
    for at in 2..tokens.len() {
        let escape = matches!(tokens[at].text[..], [b'\'', _, b'\'']) && tokens[at].kind == String;
        if escape && tokens[at - 1].is(Word, "uescape") && tokens[at - 2].kind == Unicode {
            tokens[at].kind = Other;
        }
    }
}

/// Whether the last token is this word, and not a name behind a point.
fn ends_with_word(tokens: &[Token], words: &[&str]) -> bool {
    let Some((last, before)) = tokens.split_last() else { return false };
    words.iter().any(|word| last.is(Word, word)) && !before.last().is_some_and(|token| token.is(Other, "."))
}

fn without_signs(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let sign = token.is(Operator, "+") || token.is(Operator, "-");
        let number = tokens.get(at + 1).is_some_and(|next| matches!(next.kind, Number | Parameter));
        let prefix = match out.last() {
            None => true,
            Some(last) if last.kind == Operator => true,
            Some(last) if last.kind == Other => {
                [",", "(", "[", ":", ":=", ".."].iter().any(|text| last.is(Other, text))
            }
            Some(_) => ends_with_word(
                &out,
                &["and", "between", "case", "else", "or", "select", "then", "when", "where"],
            ),
        };
        if !(sign && number && prefix) {
            out.push(token.clone());
        }
    }
    out
}

fn with_short_lists(tokens: Vec<Token>) -> Vec<Token> {
    let mut out: Vec<Token> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let list = (token.is(Other, "(") && ends_with_word(&out, &["in"]))
            || (token.is(Other, "[") && ends_with_word(&out, &["array"]));
        out.push(token);
        let Some(literal) = tokens.next_if(|next| list && next.is_literal()) else { continue };
        out.push(literal);
        while let Some(comma) = tokens.next_if(|next| next.is(Other, ",")) {
            if tokens.next_if(Token::is_literal).is_none() {
                out.push(comma);
                break;
            }
        }
    }
    out
}

fn without_semicolons_at_the_end(mut tokens: Vec<Token>) -> Vec<Token> {
    while tokens.last().is_some_and(|token| token.is(Other, ";")) {
        tokens.pop();
    }
    tokens
}
