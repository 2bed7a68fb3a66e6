//! What must hold of the decoder whatever it is given. The fuzzer calls it with new inputs, the tests with those kept in
//! `corpus/`.

use pgquorum_change::{
    Change, Decoder, Encoder, Header, Image, Old, OldImage, Schema, Value, change, header, json,
};

/// The longest change that a decoder keeps here, in bytes.
const LIMIT: usize = 1 << 16;
/// Rows with more blanks than this are not written as JSON: they are counted in the record, so that it is quick to ask for
/// many, and slow to look at them.
const JSON_MAX: usize = 1 << 20;

/// The input is a run of chunks, each with a length of two bytes before it. Where the first bit of the length is set, the
/// chunk gets the right version and checksum: the fuzzer cannot guess them, and what lies behind would never be tried.
pub fn decode(mut input: &[u8]) {
    let schema = schema();
    let mut decoder = Decoder::with_limit(LIMIT);
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = u16::from_be_bytes(*length);
        let (chunk, rest) = rest.split_at(usize::from(length & 0x7fff).min(rest.len()));
        input = rest;
        let mut chunk = chunk.to_vec();
        if length & 0x8000 != 0 && chunk.len() > 5 {
            chunk[0] = pgquorum_change::VERSION;
            let checksum = crc32fast::hash(&chunk[5..]);
            chunk[1..5].copy_from_slice(&checksum.to_le_bytes());
        }
        read(&mut decoder, &chunk, &schema);
        // Without what belongs around them, too: readers in the database take single changes.
        let mut rest = chunk.as_slice();
        while !rest.is_empty()
            && let Ok(found) = change(&mut rest)
        {
            check(&found, &schema);
        }
    }
}

fn read(decoder: &mut Decoder, chunk: &[u8], schema: &Schema) {
    let alone: Option<Header> = header(chunk).ok().flatten();
    let Ok(mut changes) = decoder.feed(chunk) else { return };
    assert_eq!(changes.header, alone, "the header is the same for everybody who reads it");
    while let Ok(Some(found)) = changes.next() {
        check(&found, schema);
    }
}

/// A change that was read is a whole one: it has a JSON form, and written again it is the same.
fn check(found: &Change, schema: &Schema) {
    let images = [found.new, found.old.map(|(OldImage::Key(image) | OldImage::Full(image))| image)];
    let length = |value: Value| if let Value::Text(text) = value { text.len() } else { 0 };
    if images.into_iter().flatten().flat_map(|image| image.values()).map(length).sum::<usize>() > JSON_MAX {
        return;
    }
    let mut text = Vec::new();
    json::object(&mut text, found, schema);
    let parsed: serde_json::Value = serde_json::from_slice(&text).expect("valid JSON");
    assert_eq!(parsed["op"], found.op.name());
    let written = encode(found);
    let mut rest = written.as_slice();
    let again = change(&mut rest).expect("what was written is read");
    assert!(rest.is_empty(), "{} bytes are left", rest.len());
    assert_same(found, &again);
}

fn encode(found: &Change) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(ddl) = found.ddl {
        let (tag, sql) = (String::from_utf8_lossy(ddl.tag), String::from_utf8_lossy(ddl.sql));
        Encoder::ddl(&mut out, found.schema_version, &tag, &sql);
        return out;
    }
    let (old, image) = match found.old {
        None => (Old::None, None),
        Some(OldImage::Key(image)) => (Old::Key, Some(image)),
        Some(OldImage::Full(image)) => (Old::Full, Some(image)),
    };
    let mut encoder = Encoder::begin(&mut out, found.op, found.schema_version, old, found.new.is_some());
    for image in [image, found.new].into_iter().flatten() {
        put(&mut encoder, image);
    }
    out
}

fn put(encoder: &mut Encoder, image: Image) {
    let values: Vec<Value> = image.values().collect();
    assert_eq!(values.len(), image.len(), "an image has as many values as it says");
    encoder.image(values.len());
    for value in values {
        match value {
            Value::Null => encoder.null(),
            Value::Unchanged => encoder.unchanged(),
            Value::Text(text) => encoder.padded(&text),
        }
    }
}

fn assert_same(one: &Change, other: &Change) {
    assert_eq!((one.op, one.schema_version), (other.op, other.schema_version));
    let old = |found: &Change| match found.old {
        None => (0, Vec::new()),
        Some(OldImage::Key(image)) => (1, owned(image)),
        Some(OldImage::Full(image)) => (2, owned(image)),
    };
    assert_eq!(old(one), old(other));
    assert_eq!(one.new.map(owned), other.new.map(owned));
    let ddl = |found: &Change| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.ddl.map(|ddl| (text(ddl.tag), text(ddl.sql)))
    };
    assert_eq!(ddl(one), ddl(other));
}

/// 0: NULL, 1: unchanged, else the text.
fn owned(image: Image) -> Vec<(u8, Vec<u8>)> {
    let value = |value: Value| match value {
        Value::Null => (0, Vec::new()),
        Value::Unchanged => (1, Vec::new()),
        Value::Text(text) => (2, text.into_owned()),
    };
    image.values().map(value).collect()
}

/// A table with a key of two columns, and columns of the kinds that JSON writes in a way of their own; but for `jsonb` and
/// floats, which go as the server printed them.
fn schema() -> Schema {
    let columns = r#"[
        {"name": "id", "type": "bigint", "type_oid": 20, "key": true},
        {"name": "flag \"x\"", "type": "boolean", "type_oid": 16},
        {"name": "count", "type": "integer", "type_oid": 23},
        {"name": "part", "type": "text", "type_oid": 25, "key": true},
        {"name": "price", "type": "numeric(10,2)", "type_oid": 1700},
        {"name": "raw", "type": "bytea", "type_oid": 17}
    ]"#;
    Schema::new(1, "shop", "order\n", columns).expect("a schema")
}
