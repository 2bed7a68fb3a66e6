//! The names in a normalised text. Who makes a new object with such a name may change what the statement means.

use crate::chars::{CLASS, Class};

/// The words of a normalised text without quotes, the insides of quoted identifiers as they stand there (a quote inside is
/// doubled, Unicode escapes are not resolved), and the operators.
pub fn words(normalised: &[u8]) -> impl Iterator<Item = &[u8]> {
    Tokens(normalised).filter_map(|token| match token {
        Token::Word(name) | Token::Quoted(name) | Token::Unicode(name) | Token::Operator(name) => Some(name),
        Token::Other => None,
    })
}

/// A Bloom filter of 64 bits: a statement whose `names(…) & name_bits(name) != name_bits(name)` does not look up an object
/// with that name. It takes into account what is not in so many words in the text: quotes and escapes, names that the
/// server cuts off or folds in its own encoding, and operators that a word of SQL stands for. What it cannot know: the
/// operators of a type's operator classes (`ORDER BY`, `GROUP BY`, `UNION` …), implicit casts, and what functions and
/// views look up.
#[must_use]
pub fn names(normalised: &[u8]) -> u64 {
    let mut all = 0;
    for token in Tokens(normalised) {
        all |= match token {
            Token::Word(name) if name.len() > CUT_OFF => u64::MAX,
            Token::Word(name) => {
                let implied = IMPLIED.iter().filter(|(word, _)| *word == name);
                implied
                    .flat_map(|(_, operators)| *operators)
                    .fold(name_bits(name), |bits, operator| bits | name_bits(operator))
            }
            Token::Quoted(name) if name.len() > CUT_OFF => u64::MAX,
            Token::Quoted(name) => quoted_bits(name),
            Token::Unicode(_) => u64::MAX,
            Token::Operator(b"!=") => name_bits(b"<>"),
            Token::Operator(name) => name_bits(name),
            Token::Other => 0,
        };
    }
    all
}

/// The bits of a name as it is in the catalogues.
#[must_use]
pub fn name_bits(name: &[u8]) -> u64 {
    bits(name.iter().copied())
}

/// Longer names are cut off by the server, at a place that depends on the encoding.
const CUT_OFF: usize = 63;

/// Operators that are looked up by name where there is a word.
const IMPLIED: [(&[u8], &[&[u8]]); 9] = [
    (b"between", &[b"<=", b">=", b"<", b">"]),
    (b"case", &[b"="]),
    (b"distinct", &[b"="]),
    (b"ilike", &[b"~~*", b"!~~*"]),
    (b"in", &[b"=", b"<>"]),
    (b"like", &[b"~~", b"!~~"]),
    (b"natural", &[b"="]),
    (b"nullif", &[b"="]),
    (b"similar", &[b"~", b"!~"]),
];

fn quoted_bits(name: &[u8]) -> u64 {
    let mut after_quote = false;
    bits(name.iter().copied().filter(|byte| {
        after_quote = *byte == b'"' && !after_quote;
        *byte != b'"' || after_quote
    }))
}

/// Two bits by FNV-1a. In encodings of one byte a character the server folds the case of more letters than those of ASCII,
/// so all others are taken for the same.
fn bits(name: impl Iterator<Item = u8>) -> u64 {
    let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.min(0x80))).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (1 << (hash >> 58)) | (1 << ((hash >> 52) & 63))
}

enum Token<'a> {
    Word(&'a [u8]),
    Quoted(&'a [u8]),
    Unicode(&'a [u8]),
    Operator(&'a [u8]),
    Other,
}

struct Tokens<'a>(&'a [u8]);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        while let [b' ', rest @ ..] = self.0 {
            self.0 = rest;
        }
        let first = *self.0.first()?;
        if let Some(rest) = self.0.strip_prefix(b"\"") {
            return Some(Token::Quoted(self.quoted(rest)));
        }
        if let Some(rest) = self.0.strip_prefix(b"u&\"") {
            return Some(Token::Unicode(self.quoted(rest)));
        }
        let end = memchr::memchr(b' ', self.0).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(match CLASS[usize::from(first)] {
            Class::Word => Token::Word(token),
            Class::Operator => Token::Operator(token),
            _ => Token::Other,
        })
    }
}

impl<'a> Tokens<'a> {
    /// Takes a quoted identifier, of which `rest` is what stands behind its first quote.
    fn quoted(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let mut end = 0;
        loop {
            match memchr::memchr(b'"', &rest[end..]) {
                None => {
                    self.0 = &[];
                    return rest;
                }
                Some(found) if rest.get(end + found + 1) == Some(&b'"') => end += found + 2,
                Some(found) => {
                    self.0 = &rest[end + found + 1..];
                    return &rest[..end + found];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        crate::normalise(text.as_bytes(), &mut out);
        out
    }

    fn mentions(text: &str, name: &str) -> bool {
        let bits = name_bits(name.as_bytes());
        names(&normalised(text)) & bits == bits
    }

    #[test]
    fn words_identifiers_and_operators() {
        let text = normalised(
            r#"SELECT "A b"."c""d", x::Int, U&"\0061" UESCAPE '!' FROM t WHERE a @> 'no' AND ('x')[1] <= $1; "#,
        );
        let found: Vec<_> = words(&text).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        assert_eq!(
            found,
            [
                "select", "A b", "c\"\"d", "x", "int", "\\0061", "uescape", "from", "t", "where", "a", "@>",
                "and", "<="
            ]
        );
        assert_eq!(words(b"").count(), 0);
        assert_eq!(words(b"\"abc").collect::<Vec<_>>(), [b"abc"]);
        assert_eq!(words(b"u&\"abc d\"\"").collect::<Vec<_>>(), [b"abc d\"\""]);
    }

    #[test]
    fn a_name_that_is_there_is_never_missed() {
        assert!(mentions("select F(1)", "f"));
        assert!(mentions("select \"a\"\"b\" from t", "a\"b"));
        assert!(mentions(r#"select U&"\0066oo" from t"#, "foo"));
        assert!(mentions("select 1 where a between 1 and 2", ">="));
        assert!(mentions("select 1 where a not in (1, 2)", "<>"));
        assert!(mentions("select 1 where a != 2", "<>"));
        assert!(mentions("select 1 where a not like 'x'", "!~~"));
        let long = "x".repeat(100);
        assert!(mentions(&format!("select {long} from t"), &long[..63]));
        assert!(mentions(&format!("select \"{long}\" from t"), &long[..63]));
        // É and é in a database in LATIN1.
        let mut text = Vec::new();
        crate::normalise(b"select \xc9t\xe9", &mut text);
        let bits = name_bits(b"\xe9t\xe9");
        assert_eq!(names(&text) & bits, bits);
    }

    #[test]
    fn most_other_names_are_not_taken_for_one() {
        let text = normalised("select name, price from products where id = $1");
        let taken = (0..1000).filter(|n| {
            let bits = name_bits(format!("table_{n}").as_bytes());
            names(&text) & bits == bits
        });
        let taken = taken.count();
        assert!(taken < 150, "{taken} of 1000");
    }
}
