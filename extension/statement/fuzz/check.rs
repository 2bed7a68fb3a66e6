//! What must hold of the normalised text whatever the statement is. The fuzzer calls it with new inputs, the tests with
//! those kept in `corpus/` and with inputs of their own.

use crate::reference;
use pgquorum_statement::{differ_in_numbers, digest, hash, names, normalise as append, plain_length, words};
use twox_hash::XxHash64;

pub fn normalise(text: &[u8]) {
    let normalised = of(text);
    let slow = reference::normalised(text);
    assert_eq!(shown(&normalised), shown(&slow), "as the rules say, of {:?}", shown(text));
    assert_eq!(shown(&of(&normalised)), shown(&normalised), "nothing is left to do for {:?}", shown(text));

    let expected = XxHash64::oneshot(0, &normalised);
    assert_eq!(hash(text), expected);
    let mut kept = vec![0xee; normalised.len() + 1];
    for room in [0, 1, normalised.len() / 2, normalised.len(), normalised.len() + 1] {
        let digest = digest(text, &mut kept[..room]);
        assert_eq!((digest.hash, digest.length), (expected, normalised.len() as u64));
        assert_eq!(digest.kept, room.min(normalised.len()));
        assert_eq!(kept[..digest.kept], normalised[..digest.kept]);
        let complete = room >= normalised.len();
        assert!((digest.check == 0) == complete && digest.check != digest.hash, "two hashes, not one twice");
    }

    let total: usize = words(&normalised).map(<[u8]>::len).sum();
    assert!(total <= normalised.len());
    let _ = names(&normalised);
    other_numbers(text, &normalised);
}

/// Whatever is taken for the same text with other numbers has the same normalised text.
fn other_numbers(text: &[u8], normalised: &[u8]) {
    let plain = plain_length(text);
    assert!(differ_in_numbers(text, plain, text), "a text is the same as itself");
    let mut begin = 0;
    while let Some(first) = text[begin..].iter().position(u8::is_ascii_digit) {
        let first = begin + first;
        let end = first + text[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        for digits in [b"7".as_slice(), b"0", b"123456789", b"", b"1x", b"1.5", b"0 1"] {
            let other = [&text[..first], digits, &text[end..]].concat();
            if differ_in_numbers(text, plain, &other) {
                assert_eq!(
                    shown(&of(&other)),
                    shown(normalised),
                    "{:?} and {:?}",
                    shown(text),
                    shown(&other)
                );
            }
        }
        begin = end;
    }
}

fn of(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append(text, &mut out);
    out
}

/// For people: no byte is lost.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
