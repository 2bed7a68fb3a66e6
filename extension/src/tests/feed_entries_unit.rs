//! Encoding of a batch row's entries.

use super::*;

fn place(segment: u32, block: u32, offset: u16) -> Place {
    Place { segment, block, offset }
}

fn row(segment: u32, block: u32, offset: u16, changes: u32) -> RowRef {
    RowRef { place: place(segment, block, offset), changes }
}

fn samples() -> Vec<Transaction> {
    let small = |xid, offset| Transaction { xid, continued: None, rows: vec![row(1, 0, offset, 1)] };
    let long = (0..50_000).map(|n| row(1, 7 + n, 1, if n == 20_000 { 99 } else { 100 })).collect();
    let mixed = vec![row(1, 9, 3, 4), row(2, 0, 1, 0), row(2, 1, 1, 0), row(2, 2, 1, 9), row(1, 8, 1, 1)];
    let continued = Continued { changes_before: 1 << 40, first: place(1, 4, 7), previous: place(2, 8, 1) };
    vec![
        small(5_000_000_123, 1),
        small(5_000_000_124, 2),
        // Its id is lower: it began earlier and wrote later.
        small(5_000_000_100, 3),
        Transaction { xid: 5_000_000_200, continued: None, rows: long },
        Transaction { xid: u64::MAX, continued: Some(continued), rows: mixed },
        Transaction { xid: 3, continued: None, rows: vec![row(0, u32::MAX, u16::MAX, u32::MAX)] },
    ]
}

#[test]
fn what_is_encoded_comes_back() {
    let samples = samples();
    assert_eq!(decode(&encode(&samples)).as_deref(), Ok(samples.as_slice()));
    assert_eq!(decode(&encode(&[])).as_deref(), Ok([].as_slice()));
}

#[test]
fn entries_are_small() {
    let small = |n: u32| Transaction {
        xid: 900_000 + u64::from(n),
        continued: None,
        rows: vec![row(4, n / 60, 1 + (n % 60) as u16, 4)],
    };
    let bytes = encode(&(0..1000).map(small).collect::<Vec<_>>()).len();
    assert!(bytes < 7 * 1000, "{bytes} bytes for 1000 transactions");
    let bytes = encode(&samples()[3..4]).len();
    assert!(bytes < 40, "{bytes} bytes for one of 50000 rows in three runs");
}

#[test]
fn damaged_bytes_are_refused_or_decoded_but_never_panic() {
    let good = encode(&samples());
    for end in 0..good.len() {
        assert_eq!(decode(&good[..end]), Err(Bad), "cut at {end}");
    }
    assert_eq!(decode(&[&good[..], &[0]].concat()), Err(Bad));
    for index in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[index] ^= 1 << bit;
            let _ = decode(&bad);
        }
    }
    // A run that claims more rows than any writer makes.
    assert_eq!(decode(&[1, 1, 2, 2, 0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f]), Err(Bad));
}
