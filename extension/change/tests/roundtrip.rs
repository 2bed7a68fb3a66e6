//! Random transactions through encoder, chunker and decoder; damaged and random bytes through the decoder.

use pgquorum_change::{
    CHUNK_MAX, Chunker, Decoder, Encoder, Error, Header, Image, Old, OldImage, Op, Value, change, header,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// A change that owns what it holds.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    op: Op,
    schema: u64,
    old: Old,
    old_values: Vec<Cell>,
    new: Option<Vec<Cell>>,
    ddl: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Padded(Vec<u8>, usize),
}

fn put(encoder: &mut Encoder, cells: &[Cell]) {
    encoder.image(cells.len());
    for cell in cells {
        match cell {
            Cell::Null => encoder.null(),
            Cell::Unchanged => encoder.unchanged(),
            Cell::Text(text) => encoder.text(text),
            Cell::Padded(text, blanks) => {
                let mut all = text.clone();
                all.resize(text.len() + blanks, b' ');
                encoder.padded(&all);
            }
        }
    }
}

impl Owned {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some((tag, sql)) = &self.ddl {
            Encoder::ddl(&mut out, self.schema, tag, sql);
            return out;
        }
        let mut encoder = Encoder::begin(&mut out, self.op, self.schema, self.old, self.new.is_some());
        if self.old != Old::None {
            put(&mut encoder, &self.old_values);
        }
        if let Some(new) = &self.new {
            put(&mut encoder, new);
        }
        out
    }

    fn assert_is(&self, change: &pgquorum_change::Change) {
        assert_eq!((change.op, change.schema_version), (self.op, self.schema));
        match (change.old, self.old) {
            (None, Old::None) => {}
            (Some(OldImage::Key(image)), Old::Key) | (Some(OldImage::Full(image)), Old::Full) => {
                assert_cells(image, &self.old_values);
            }
            other => panic!("{other:?}"),
        }
        match (change.new, &self.new) {
            (None, None) => {}
            (Some(image), Some(cells)) => assert_cells(image, cells),
            other => panic!("{other:?}"),
        }
        let ddl = change.ddl.map(|ddl| (text(ddl.tag), text(ddl.sql)));
        assert_eq!(ddl, self.ddl);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn assert_cells(image: Image, cells: &[Cell]) {
    assert_eq!(image.len(), cells.len());
    assert_eq!(image.values().count(), cells.len());
    for (value, cell) in image.values().zip(cells) {
        let expected = match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(text) => Value::Text(text.into()),
            Cell::Padded(text, blanks) => {
                let mut all = text.clone();
                all.resize(text.len() + blanks, b' ');
                Value::Text(all.into())
            }
        };
        assert_eq!(value, expected);
    }
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Null),
        Just(Cell::Unchanged),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        (0..3 * CHUNK_MAX).prop_map(|length| Cell::Text(vec![b'x'; length])),
        (vec(any::<u8>(), 0..9), 0..200usize).prop_map(|(text, blanks)| Cell::Padded(text, blanks)),
    ]
}

fn row_change() -> impl Strategy<Value = Owned> {
    let ops = prop_oneof![
        Just((Op::Insert, Old::None, true)),
        Just((Op::Update, Old::None, true)),
        Just((Op::Update, Old::Key, true)),
        Just((Op::Update, Old::Full, true)),
        Just((Op::Delete, Old::Key, false)),
        Just((Op::Delete, Old::Full, false)),
        Just((Op::Truncate, Old::None, false)),
    ];
    (ops, 0..1u64 << 40, vec(cell(), 1..6), vec(cell(), 1..6)).prop_map(|((op, old, new), schema, a, b)| {
        let old_values = if old == Old::None { Vec::new() } else { a };
        Owned { op, schema, old, old_values, new: new.then_some(b), ddl: None }
    })
}

fn any_change() -> impl Strategy<Value = Owned> {
    let ddl = (any::<u64>(), "[A-Z ]{0,20}", ".{0,300}").prop_map(|(schema, tag, sql)| Owned {
        op: Op::Ddl,
        schema,
        old: Old::None,
        old_values: Vec::new(),
        new: None,
        ddl: Some((tag, sql)),
    });
    prop_oneof![9 => row_change(), 1 => ddl]
}

/// Part, number of changes, last, data.
type Stored = (u32, u32, bool, Vec<u8>);

fn chunks(header: &Header, changes: &[Owned]) -> Vec<Stored> {
    let mut stored: Vec<Stored> = Vec::new();
    let mut store = |chunk: pgquorum_change::Chunk| {
        assert!(chunk.data.len() <= CHUNK_MAX);
        stored.push((chunk.part, chunk.changes, chunk.last, chunk.data.to_vec()));
        Ok::<(), ()>(())
    };
    let mut chunker = Chunker::new(header);
    for change in changes {
        chunker.push(&change.encode(), &mut store).expect("stored");
    }
    chunker.finish(&mut store).expect("stored");
    stored
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn transactions_come_back(
        changes in vec(any_change(), 1..30),
        origin in proptest::option::of("[a-zäöü]{1,300}"),
        times in any::<(i64, Option<i64>)>(),
    ) {
        let said = Header { origin: origin.as_deref(), origin_commit_us: times.1, commit_us: times.0 };
        let stored = chunks(&said, &changes);
        let mut decoder = Decoder::new();
        let mut seen = 0;
        for (at, (part, count, last, data)) in stored.iter().enumerate() {
            prop_assert_eq!(*part as usize, at);
            prop_assert_eq!(*last, at + 1 == stored.len());
            let mut found = decoder.feed(data).expect("a good chunk");
            prop_assert_eq!(found.header.is_some(), at == 0);
            if let Some(found) = found.header {
                prop_assert_eq!((found.commit_us, found.origin_commit_us), (times.0, times.1));
                prop_assert_eq!(found.origin.is_some(), origin.is_some());
                prop_assert!(origin.as_deref().unwrap_or("").starts_with(found.origin.unwrap_or("")));
            }
            prop_assert_eq!(header(data).expect("a good chunk").is_some(), at == 0);
            prop_assert!(!found.first_is_lost);
            let before = seen;
            while let Some(change) = found.next().expect("a good change") {
                changes[seen].assert_is(&change);
                seen += 1;
            }
            prop_assert_eq!((seen - before) as u32, *count, "changes that end in part {}", part);
        }
        prop_assert_eq!(seen, changes.len());
        // The next transaction follows.
        prop_assert!(decoder.feed(&stored[0].3).is_ok());
    }

    /// A reader may begin at any part, with or without the first before it, and misses only what ended before.
    #[test]
    fn reading_starts_in_the_middle(changes in vec(any_change(), 1..20), start: prop::sample::Index, first: bool) {
        let stored = chunks(&Header::default(), &changes);
        let start = start.index(stored.len());
        let mut decoder = Decoder::new();
        if first && start > 0 {
            decoder.feed(&stored[0].3).expect("the first chunk");
        }
        let mut seen: usize = stored[..start].iter().map(|chunk| chunk.1 as usize).sum();
        // With the first chunk read, the second follows it without a gap.
        for (_, count, _, data) in &stored[start..] {
            let mut found = decoder.feed(data).expect("a good chunk");
            let until = seen + *count as usize;
            seen += usize::from(found.first_is_lost);
            while let Some(change) = found.next().expect("a good change") {
                changes[seen].assert_is(&change);
                seen += 1;
            }
            prop_assert_eq!(seen, until);
        }
        prop_assert_eq!(seen, changes.len());
    }

    #[test]
    fn a_flipped_bit_is_noticed(changes in vec(any_change(), 1..5), at: prop::sample::Index, bit in 0..8u8) {
        let mut data = chunks(&Header::default(), &changes).swap_remove(0).3;
        let at = at.index(data.len());
        data[at] ^= 1 << bit;
        let error = Decoder::new().feed(&data).expect_err("damage");
        prop_assert!(matches!(error, Error::Checksum | Error::Version(_)), "{:?}", error);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Decoder::new().feed(&bytes);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && let Ok(found) = change(&mut rest) {
            for image in [found.new].into_iter().flatten() {
                prop_assert_eq!(image.values().count(), image.len());
            }
        }
    }

    /// The same with a right checksum, so that the lengths behind it are tried.
    #[test]
    fn forged_chunks_do_no_harm(flags in 0..64u8, bytes in vec(any::<u8>(), 0..300)) {
        let mut data = vec![1, 0, 0, 0, 0, flags];
        data.extend_from_slice(&bytes);
        let checksum = crc32fast::hash(&data[5..]);
        data[1..5].copy_from_slice(&checksum.to_le_bytes());
        let mut decoder = Decoder::with_limit(1000);
        if let Ok(mut found) = decoder.feed(&data) {
            while let Ok(Some(_)) = found.next() {}
        }
        let _ = decoder.feed(&data);
    }
}

fn insert(length: usize) -> Owned {
    let new = Some(vec![Cell::Text(vec![b'y'; length])]);
    Owned { op: Op::Insert, schema: 1, old: Old::None, old_values: Vec::new(), new, ddl: None }
}

/// Every length around a page's end: a change that just fits, just does not, and fills whole chunks.
#[test]
fn all_lengths_around_a_page() {
    for length in (CHUNK_MAX - 60..CHUNK_MAX + 20).chain(2 * CHUNK_MAX - 80..2 * CHUNK_MAX + 20) {
        let changes = [insert(3), insert(length), insert(5)];
        let mut decoder = Decoder::new();
        let mut seen = 0;
        for (_, _, _, data) in chunks(&Header::default(), &changes) {
            let mut found = decoder.feed(&data).expect("a good chunk");
            while let Some(change) = found.next().expect("a good change") {
                changes[seen].assert_is(&change);
                seen += 1;
            }
        }
        assert_eq!(seen, 3, "with {length} bytes");
    }
}

#[test]
fn a_missing_part_is_an_error() {
    let stored = chunks(&Header::default(), &[insert(5 * CHUNK_MAX)]);
    let mut decoder = Decoder::new();
    for at in [0, 1] {
        decoder.feed(&stored[at].3).expect("in order");
    }
    let error = decoder.feed(&stored[3].3).expect_err("part 2 is missing");
    assert_eq!(error, Error::Gap { expected: 2, found: 3 });
    let mut decoder = Decoder::new();
    decoder.feed(&stored[0].3).expect("the first");
    let error = decoder.feed(&stored[0].3).expect_err("the transaction is not over");
    assert_eq!(error, Error::Gap { expected: 1, found: 0 });
}

#[test]
fn a_reader_bounds_its_memory() {
    let stored = chunks(&Header::default(), &[insert(5 * CHUNK_MAX)]);
    let mut decoder = Decoder::with_limit(2 * CHUNK_MAX);
    let results: Vec<_> = stored.iter().map_while(|chunk| decoder.feed(&chunk.3).err()).collect();
    assert!(results.is_empty(), "the first parts fit");
    let mut decoder = Decoder::with_limit(2 * CHUNK_MAX);
    let error = stored.iter().find_map(|chunk| decoder.feed(&chunk.3).err()).expect("too long");
    assert_eq!(error, Error::TooLong { limit: 2 * CHUNK_MAX });
}

#[test]
fn small_values_are_small() {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Update, 3, Old::Key, true);
    encoder.image(1);
    encoder.integer(-42);
    encoder.image(3);
    encoder.integer(i64::MIN);
    encoder.null();
    encoder.padded(b"ab                                  ");
    assert_eq!(out.len(), 2 + 1 + 4 + 1 + 21 + 1 + 5);
}

/// Values stored elsewhere: each may be a gigabyte, and a row has room for several.
#[test]
fn blanks_of_several_large_values() {
    let decode = |values: usize, blanks: &[u8]| {
        let mut bytes = Vec::new();
        Encoder::begin(&mut bytes, Op::Insert, 1, Old::None, true).image(values);
        for _ in 0..values {
            bytes.extend([2, 0]);
            bytes.extend(blanks);
        }
        change(&mut bytes.as_slice()).map(|change| change.new.map(|image| image.len()))
    };
    let gigabyte = [0x80, 0x80, 0x80, 0x80, 4];
    assert_eq!(decode(1, &gigabyte), Ok(Some(1)));
    assert_eq!(decode(4, &gigabyte), Ok(Some(4)));
    assert_eq!(decode(5, &gigabyte), Err(Error::BadLength));
    assert_eq!(decode(1, &[0x81, 0x80, 0x80, 0x80, 4]), Err(Error::BadLength));
}
