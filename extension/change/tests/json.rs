//! What readers see of changes.

use pgquorum_change::{Chunker, Encoder, Header, Old, Op, Schema, change, json};

const COLUMNS: &str = r#"[
    {"name": "id", "type": "integer", "type_oid": 23, "attnum": 1, "key": true, "category": "N", "base": 23},
    {"name": "big", "type": "bigint", "type_oid": 20, "key": false},
    {"name": "real", "type": "double precision", "type_oid": 701, "key": false},
    {"name": "sum", "type": "numeric", "type_oid": 1700, "key": false},
    {"name": "paid", "type": "yes_or_no", "type_oid": 99999, "base": 16, "key": false},
    {"name": "doc \"x\"", "type": "json", "type_oid": 114, "key": false},
    {"name": "note", "type": "text", "type_oid": 25, "key": false}]"#;

fn schema() -> Schema {
    Schema::new(7, "public", "orders", COLUMNS).expect("columns parse")
}

fn shown(bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut out = Vec::new();
    json::object(&mut out, &change(&mut rest).expect("a change"), &schema());
    let text = String::from_utf8(out).expect("UTF-8");
    serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert!(!text.contains('\n'));
    text
}

fn row(values: [&str; 7]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Insert, 7, Old::None, true);
    encoder.image(7);
    values.iter().for_each(|value| encoder.text(value.as_bytes()));
    out
}

#[test]
fn values_by_their_type() {
    assert_eq!(
        shown(&row(["1", "9007199254740992", "1e+20", "1.50", "t", "{\"a\":\n 1}", "a\"b\\c\n\u{1}ä"])),
        r#"{"op":"insert","schema":"public","table":"orders","key":{"id":1},"new":{"id":1,"big":9007199254740992,"real":1e+20,"sum":"1.50","paid":true,"doc \"x\"":{"a":  1},"note":"a\"b\\c\n\u0001ä"}}"#
    );
    assert_eq!(
        shown(&row(["-1", "-9007199254740993", "NaN", "Infinity", "f", "null", ""])),
        r#"{"op":"insert","schema":"public","table":"orders","key":{"id":-1},"new":{"id":-1,"big":"-9007199254740993","real":"NaN","sum":"Infinity","paid":false,"doc \"x\"":null,"note":""}}"#
    );
}

#[test]
fn updates_show_the_old_key_and_what_is_unchanged() {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Update, 7, Old::Key, true);
    encoder.image(1);
    encoder.integer(1);
    encoder.image(7);
    encoder.integer(2);
    (0..4).for_each(|_| encoder.null());
    encoder.unchanged();
    encoder.unchanged();
    assert_eq!(
        shown(&out),
        r#"{"op":"update","schema":"public","table":"orders","key":{"id":1},"new":{"id":2,"big":null,"real":null,"sum":null,"paid":null},"unchanged":["doc \"x\"","note"]}"#
    );
}

#[test]
fn deletes_truncates_and_ddl() {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut out, Op::Delete, 7, Old::Full, false);
    encoder.image(7);
    encoder.integer(2);
    (0..6).for_each(|_| encoder.null());
    assert_eq!(
        shown(&out),
        r#"{"op":"delete","schema":"public","table":"orders","key":{"id":2},"old":{"id":2,"big":null,"real":null,"sum":null,"paid":null,"doc \"x\"":null,"note":null}}"#
    );
    out.clear();
    Encoder::begin(&mut out, Op::Truncate, 7, Old::None, false);
    assert_eq!(shown(&out), r#"{"op":"truncate","schema":"public","table":"orders"}"#);
    out.clear();
    Encoder::ddl(&mut out, 7, "ALTER TABLE", "ALTER TABLE orders ADD \"x\" int");
    assert_eq!(
        shown(&out),
        r#"{"op":"ddl","schema":"public","table":"orders","tag":"ALTER TABLE","sql":"ALTER TABLE orders ADD \"x\" int"}"#
    );
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let mut out = Vec::new();
    json::string(&mut out, b"a\xffb\"");
    assert_eq!(out, "\"a\u{fffd}b\\\"\"".as_bytes());
}

/// Not a benchmark, but far below it something is badly wrong.
#[test]
fn decoding_and_rendering_are_fast() {
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new(&Header::default());
    let mut store = |chunk: pgquorum_change::Chunk| {
        chunks.push(chunk.data.to_vec());
        Ok::<(), ()>(())
    };
    let change =
        row(["1234567", "12345", "1.5", "1.50", "t", "{\"a\": 1}", "a note of some length, as usual"]);
    let count = 200_000;
    for _ in 0..count {
        chunker.push(&change, &mut store).expect("stored");
    }
    chunker.finish(&mut store).expect("stored");
    let (schema, mut line, mut decoder) = (schema(), Vec::new(), pgquorum_change::Decoder::new());
    let start = std::time::Instant::now();
    let mut seen = 0;
    for chunk in &chunks {
        let mut found = decoder.feed(chunk).expect("a good chunk");
        while let Some(change) = found.next().expect("a good change") {
            seen += usize::from(change.op == Op::Insert);
        }
    }
    let decoded = start.elapsed();
    let mut decoder = pgquorum_change::Decoder::new();
    for chunk in &chunks {
        let mut found = decoder.feed(chunk).expect("a good chunk");
        while let Some(change) = found.next().expect("a good change") {
            line.clear();
            json::object(&mut line, &change, &schema);
            seen += usize::from(line.is_empty());
        }
    }
    let rendered = start.elapsed() - decoded;
    assert_eq!(seen, count);
    let rate = |time: std::time::Duration| (count as f64 / time.as_secs_f64()) as u64;
    println!("decoded {}/s, decoded and rendered {}/s", rate(decoded), rate(rendered));
    assert!(rate(decoded) > 100_000 && rate(rendered) > 20_000);
}
