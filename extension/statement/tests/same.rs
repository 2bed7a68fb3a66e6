//! What does not change the hash, and what does.

use pgquorum_statement::{differ_in_numbers, hash, normalise, plain_length};
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn normalised(text: &str) -> String {
    let mut out = Vec::new();
    normalise(text.as_bytes(), &mut out);
    String::from_utf8(out).expect("what was UTF-8 stays so")
}

/// What stands between two blanks of a normalised text.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Word(String),
    Quoted(String),
    Literal,
    Operator(&'static str),
    Other(&'static str),
}

const OPERATORS: [&str; 14] = ["=", "<", ">=", "<>", "||", "->>", "@>", "~*", "*", "/", "%", "-", "+", "?|"];
const OTHERS: [&str; 7] = ["(", ")", ",", "[", "]", ".", "::"];

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        5 => "[a-z_][a-z0-9_$]{0,12}".prop_map(Part::Word),
        1 => "[a-zA-Z .é]{1,9}".prop_map(Part::Quoted),
        3 => Just(Part::Literal),
        2 => (0..OPERATORS.len()).prop_map(|n| Part::Operator(OPERATORS[n])),
        3 => (0..OTHERS.len()).prop_map(|n| Part::Other(OTHERS[n])),
    ]
}

/// Numbers, so that a sign before a literal means the same in both forms of a statement.
fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9]{1,9}",
        "[0-9]{1,3}[.][0-9]{1,3}",
        "[.][0-9]{1,3}",
        "[1-9]e-?[0-9]",
        r"\$[1-9][0-9]?",
        "0x[0-9a-f]{1,8}"
    ]
}

fn between() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just(" ".to_owned()),
        2 => "[ \t\r\n\x0c]{1,20}",
        1 => " --[a-z'\"$/* -]{0,20}\n",
        1 => r" /\*[a-z'\x22$ -]{0,20}(/\*[a-z ]{0,5}\*/)?[a-z ]{0,4}\*/",
    ]
}

/// The same parts, written in one of many ways.
fn written(parts: Vec<Part>) -> impl Strategy<Value = String> {
    let count = parts.len();
    let (gaps, literals) = (vec(between(), count + 1), vec(literal(), count));
    (gaps, literals, vec(any::<bool>(), count), "( ?;){0,3}").prop_map(
        move |(gaps, literals, capitals, end)| {
            let mut text = gaps[count].clone();
            for (n, part) in parts.iter().enumerate() {
                match part {
                    Part::Word(word) if capitals[n] => text.push_str(&word.to_uppercase()),
                    Part::Word(word) => text.push_str(word),
                    Part::Quoted(name) => text.push_str(&format!("\"{name}\"")),
                    Part::Literal => text.push_str(&literals[n]),
                    Part::Operator(part) | Part::Other(part) => text.push_str(part),
                }
                text.push_str(&gaps[n]);
            }
            text + &end
        },
    )
}

fn two_ways() -> impl Strategy<Value = (String, String)> {
    vec(part(), 0..30).prop_flat_map(|parts| (written(parts.clone()), written(parts)))
}

/// Pieces of which some lead out of one kind of token into another.
const PIECES: [&str; 30] = [
    "select ", " a", "1", "2", "10", "0", " ", "=", "(", ")", ",", ";", "'", "\"", "$", "--", "-", "/*",
    "*/", "\n", ".", "e", "x", "E'", "in (", "array[", "_", "\\", "U&\"", "<",
];

fn from_pieces(most: usize) -> impl Strategy<Value = Vec<usize>> {
    vec(0..PIECES.len(), 0..most)
}

#[test]
fn texts_that_differ_in_whole_numbers_are_known_without_a_closer_look() {
    let known = "select a from t1 where b =12 and c in (3, 4) limit 5; -- 6";
    let seen =
        |other: &str| differ_in_numbers(known.as_bytes(), plain_length(known.as_bytes()), other.as_bytes());
    assert!(seen("select a from t1 where b =1 and c in (3, 4) limit 5; -- 6"));
    assert!(seen("select a from t1 where b =7 and c in (33333333333333, 0) limit 99; -- 6"));
    for other in [
        "select a from t2 where b =12 and c in (3, 4) limit 5; -- 6",
        "select a from t1 where b =12 and c in (3, 4) limit 5; -- 7",
        "select a from t1 where b = and c in (3, 4) limit 5; -- 6",
        "select a from t1 where b =12a and c in (3, 4) limit 5; -- 6",
        "select a from t1 where b =1.2 and c in (3, 4) limit 5; -- 6",
        "select a from t1 where b =12 and c in (3) limit 5; -- 6",
        "select a from t1 where b =12 and c in (3, 4) limit 5; -- 6 ",
        "select a from t1 where b =12",
        "",
    ] {
        assert!(!seen(other), "{other}");
    }
    for (known, other) in
        [("select 0x1", "select 1x1"), ("select 0b1 ", "select 2b1 "), ("select 1", "select 1a")]
    {
        let plain = plain_length(known.as_bytes());
        assert!(!differ_in_numbers(known.as_bytes(), plain, other.as_bytes()), "{known} and {other}");
    }
}

proptest! {
    // Quick, and what goes wrong is rare.
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn what_is_taken_for_the_same_but_for_numbers_is_the_same(
        parts in from_pieces(24), others in vec((any::<prop::sample::Index>(), 0..PIECES.len()), 0..3),
    ) {
        let text = |parts: &[usize]| parts.iter().map(|part| PIECES[*part]).collect::<String>();
        let mut changed = parts.clone();
        for (at, piece) in others {
            if !changed.is_empty() {
                let at = at.index(changed.len());
                // Mostly a number for a number.
                let is_number = PIECES[changed[at]].bytes().all(|byte| byte.is_ascii_digit());
                changed[at] = if is_number { 2 + piece % 4 } else { piece };
            }
        }
        let (one, other) = (text(&parts), text(&changed));
        if differ_in_numbers(one.as_bytes(), plain_length(one.as_bytes()), other.as_bytes()) {
            prop_assert_eq!(normalised(&one), normalised(&other), "{:?} and {:?}", one, other);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn blanks_comments_case_and_literals_change_nothing((one, other) in two_ways()) {
        prop_assert_eq!(normalised(&one), normalised(&other));
        prop_assert_eq!(hash(one.as_bytes()), hash(other.as_bytes()));
    }

    #[test]
    fn another_identifier_is_another_statement(
        parts in vec(part(), 1..20), at in any::<prop::sample::Index>(), name in "[a-z_][a-z0-9_]{0,12}", quoted in any::<bool>(),
    ) {
        let text = |parts: &[Part]| {
            let text = |part: &Part| match part {
                Part::Word(word) => word.clone(),
                Part::Quoted(name) => format!("\"{name}\""),
                Part::Literal => "'literal'".to_owned(),
                Part::Operator(part) | Part::Other(part) => (*part).to_owned(),
            };
            parts.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        let mut others = parts.clone();
        let at = at.index(parts.len());
        others[at] = if quoted { Part::Quoted(name) } else { Part::Word(name) };
        // Dropped literals of a list are not told apart, which is what the list's rule says.
        prop_assume!(!parts.windows(2).any(|two| matches!(&two[0], Part::Word(word) if word == "in" || word == "array")));
        prop_assume!(others[at] != parts[at]);
        prop_assert_ne!(hash(text(&parts).as_bytes()), hash(text(&others).as_bytes()));
    }
}

/// What a naive scanner looks at again and again.
#[test]
fn a_megabyte_of_anything_takes_no_time_to_speak_of() {
    let unit = |text: &str| text.repeat((1 << 20) / text.len() + 1);
    for text in [
        "=++++++++",
        "+",
        "-+",
        "=-",
        "- ",
        "- /**/",
        "@+",
        "/",
        "/*",
        "/**/",
        "*/",
        "--",
        "--\n",
        "'",
        "''",
        "'a' ",
        "'a'\n",
        "e'",
        "e'\\'",
        "b'",
        "x'1'\n",
        "\"",
        "\"\"",
        "\"a",
        "u&\"",
        "u&'",
        "u&",
        "$",
        "$$",
        "$a",
        "$a$",
        "$a$b",
        "$aa$ab",
        "$1",
        "1",
        "1_",
        "1.",
        "..",
        ".",
        "1e",
        "1e+",
        "0x",
        "0x_",
        "a",
        "A ",
        "é",
        "\u{0}",
        ";",
        "; a",
        ";,",
        ",",
        "1,",
        "in (1,",
        "in (",
        "in (1, x) ",
        "array [1,",
        "[",
        "(",
        "- 1",
        "and - 1 ",
        "-- '\n",
        "' --\n",
        "' --x\n--y\n",
        " ",
        "\n",
        "U&\"a\" uescape '!' ",
        "\\",
    ] {
        for text in [
            unit(text),
            format!("'a{}", unit(text)),
            format!("$tag${}", unit(text)),
            format!("={}", unit(text)),
        ] {
            let began = Instant::now();
            let hash = hash(text.as_bytes());
            let took = began.elapsed();
            // Milliseconds; minutes if it were quadratic.
            assert!(took < Duration::from_secs(5), "{took:?} for {:?}…", &text[..text.len().min(20)]);
            assert_eq!(hash, pgquorum_statement::digest(text.as_bytes(), &mut []).hash);
        }
    }
}

/// However the text falls into the pieces in which it is hashed.
#[test]
fn no_border_of_the_buffer_shows() {
    for length in 0..600 {
        let name = "n".repeat(length);
        assert_eq!(
            normalised(&format!("SELECT {}(1)", name.to_uppercase())),
            format!("select {name} ( $ )").replace("  ", " ")
        );
        assert_eq!(normalised(&format!("\"{name} X\";")), format!("\"{name} X\""));
        let many = "A , ".repeat(length);
        assert_eq!(normalised(&format!("{many}A")), format!("{}a", "a , ".repeat(length)));
    }
}

#[test]
fn what_is_kept_in_the_buffer_is_the_beginning() {
    let text = "select a_rather_long_name from t where x = 'something' ".repeat(20);
    let whole = normalised(&text);
    let mut kept = [0; 300];
    let digest = pgquorum_statement::digest(text.as_bytes(), &mut kept);
    assert_eq!((digest.kept, digest.length), (300, whole.len() as u64));
    assert_eq!(kept, whole.as_bytes()[..300]);
    let mut out = b"before ".to_vec();
    normalise(b"select 1", &mut out);
    assert_eq!(out, b"before select $");
}
