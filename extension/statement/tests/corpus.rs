//! What the fuzzer found worth keeping, and random texts, through the fuzzer's checks.

#[path = "../fuzz/check.rs"]
mod check;
#[path = "../fuzz/reference.rs"]
mod reference;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

#[test]
fn what_the_fuzzer_kept_is_normalised_as_the_rules_say() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/normalise");
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        let input = std::fs::read(entry.expect("an entry").path()).expect("an input");
        check::normalise(&input);
        seen += 1;
    }
    assert!(seen > 50, "the corpus has {seen} inputs");
}

/// Bits of statements that matter to a scanner; put together at random they make all kinds of borders.
const PIECES: [&str; 78] = [
    "select",
    "SELECT",
    "in",
    "IN",
    "array",
    "uescape",
    "and",
    "between",
    "when",
    "x",
    "a1$",
    "_",
    "tablename_long_1",
    "abcdefgh",
    "é",
    "e",
    "E",
    "b",
    "x'",
    "N",
    "u&",
    "U&\"",
    "e'",
    "U&'",
    "\"",
    "\"\"",
    "\"a b\"",
    "'",
    "''",
    "'a'",
    "'!'",
    "$",
    "$1",
    "$12",
    "$$",
    "$a$",
    "$a1$",
    "$é",
    "0",
    "7",
    "12345678",
    "0x1F",
    "0b1",
    "0o7",
    "1_0",
    "_1",
    "1e5",
    "1e",
    "e+5",
    ".",
    "..",
    ".5",
    "1.",
    "-",
    "+",
    "--",
    "/*",
    "*/",
    "*",
    "/",
    "=",
    "<",
    ">=",
    "!=",
    "@",
    "~",
    "?",
    "|",
    "%",
    ":",
    "::",
    ":=",
    ";",
    ",",
    "(",
    "[",
    ")",
    "]",
];

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
        3 => select(&[" ", "\n", "\t\r", "    ", "\x0b\x0c"][..]).prop_map(|blanks| blanks.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_bytes(text in vec(any::<u8>(), 0..600)) {
        check::normalise(&text);
    }

    #[test]
    fn random_pieces(text in pieces()) {
        check::normalise(&text);
    }

    #[test]
    fn random_characters_of_operators(text in "[-+*/<>=!@~?:.,;()$'\" \na1e]{0,40}") {
        check::normalise(text.as_bytes());
    }
}
