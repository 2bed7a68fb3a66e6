//! Two statements with the same hash, one of which writes: the hash is served for neither.

use pgquorum_tests::{LearningServer, await_served, hash_of, is_served, known, run};
use std::collections::BTreeSet;

/// Bytes of `select "` before the name begins; its first eight are then a lane of the hash's first 32 bytes, and those from
/// the 33rd on the same lane of the next 32.
const BEFORE: &str = "select \"";
const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// One step of a lane of XXH64.
fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

/// The number by which multiplying takes back a multiplication by an odd one (Newton's method).
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |x, _| x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x))))
}

fn name(first: u64, second: u64) -> String {
    let bytes = [
        &first.to_le_bytes()[..],
        b"in_the_middle_of_the_nam",
        &second.to_le_bytes()[..],
        b"_and_what_follows_it",
    ]
    .concat();
    String::from_utf8(bytes).expect("only plain letters were taken")
}

/// Two names of functions. `SELECT "name"()` has the same hash for both.
fn names() -> [String; 2] {
    assert_eq!(BEFORE.len(), 8, "the name begins with the second lane");
    // The second lane begins with this prime when the seed is 0.
    let start = PRIME_2;
    let letters = |n: u64| n.to_le_bytes().iter().all(|b| b.is_ascii_graphic() && *b != b'"');
    let (first, second) = (u64::from_le_bytes(*b"collide0"), u64::from_le_bytes(*b"_the_end"));
    let after = round(start, first).wrapping_add(second.wrapping_mul(PRIME_2));
    let candidates = (0..1_000_000_u64).map(|n| {
        let mut bytes = *b"aaaaaaaa";
        for (at, byte) in bytes.iter_mut().enumerate().take(6) {
            *byte = b'a' + (n / 26_u64.pow(at as u32) % 26) as u8;
        }
        u64::from_le_bytes(bytes)
    });
    let mut found = candidates.filter_map(|other| {
        // What the second eight bytes must be so that the lane is what it is with the first name.
        let rest = after.wrapping_sub(round(start, other)).wrapping_mul(inverse(PRIME_2));
        letters(rest).then(|| name(other, rest))
    });
    [name(first, second), found.next().expect("one of 3000 is made of such letters")]
}

#[test]
fn a_hash_of_two_statements_is_served_for_neither() {
    let [reader, writer] = names();
    assert_ne!(reader, writer);
    let statement = |name: &str| format!("SELECT \"{name}\"()");
    let (reads, writes) = (statement(&reader), statement(&writer));
    assert_eq!(hash_of(&reads), hash_of(&writes), "{reads} and {writes}");
    for reader_first in [true, false] {
        let servers = LearningServer::start("");
        let c = &mut servers.connect();
        run(
            c,
            &format!(
                "CREATE SEQUENCE s; CREATE FUNCTION \"{reader}\"() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
                 CREATE FUNCTION \"{writer}\"() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''s'')'"
            ),
        );
        if reader_first {
            run(c, &reads);
            await_served(c, &reads);
            run(c, &writes);
            assert!(!is_served(c, &reads), "right after the other was seen: {:?}", known(c, &reads));
        } else {
            run(c, &writes);
        }
        for _ in 0..5 {
            run(c, &reads);
        }
        run(c, "SELECT 1 AS settled");
        await_served(c, "SELECT 1 AS settled");
        assert!(!is_served(c, &reads), "reader first: {reader_first}: {:?}", known(c, &reads));
        let rows = known(c, &reads);
        // Who looks sees two different texts, or one that is out.
        let texts: BTreeSet<&str> = rows.iter().map(|row| row.statement.as_str()).collect();
        assert!(!texts.is_empty() && rows.iter().all(|row| !row.served), "{rows:?}");
    }
}
