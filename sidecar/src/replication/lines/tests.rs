//! Lines against the documented forms, byte for byte.

use super::*;
use crate::feed::Position;
use crate::replication::tick::Step;

fn collection() -> Collection {
    let columns = serde_json::json!([
        {"name": "region", "type": "text", "type_oid": 25, "key": true},
        {"name": "id", "type": "integer", "type_oid": 23, "key": true},
        {"name": "_key", "type": "text", "type_oid": 25, "key": false},
        {"name": "paid", "type": "boolean", "type_oid": 16, "key": false}]);
    Collection::parse(
        &serde_json::json!({"id": 3, "relid": "5", "schema_name": "shop", "table_name": "orders",
        "columns": columns}),
    )
    .unwrap()
}

/// A change with these values as its old and new row; `None` is unchanged.
fn row(op: Op, old: Option<(Old, &[&str])>, new: Option<[Option<&str>; 4]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let kind = old.map_or(Old::None, |(kind, _)| kind);
    let mut encoder = Encoder::begin(&mut bytes, op, 3, kind, new.is_some());
    if let Some((_, values)) = old {
        encoder.image(values.len());
        values.iter().for_each(|value| encoder.text(value.as_bytes()));
    }
    if let Some(values) = new {
        encoder.image(4);
        for value in values {
            match value {
                Some(text) => encoder.text(text.as_bytes()),
                None => encoder.unchanged(),
            }
        }
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Row, Incomplete> {
    let (mut row, mut rest) = (Row::default(), bytes);
    row.read(&change(&mut rest).unwrap(), &collection().schema).map(|()| row)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn rows_have_their_keys_and_all_their_values() {
    let inserted =
        read(&row(Op::Insert, None, Some([Some("a,b"), Some("7"), Some("x"), Some("t")]))).unwrap();
    assert_eq!((inserted.old_key.as_deref(), inserted.new_key.as_deref()), (None, Some("a%2Cb,7")));
    assert_eq!(text(&inserted.object), r#"{"region":"a,b","id":7,"%5Fkey":"x","paid":true}"#);
    let deleted = read(&row(Op::Delete, Some((Old::Key, &["eu", "7"])), None)).unwrap();
    assert_eq!((deleted.old_key.as_deref(), deleted.new_key.as_deref()), (Some("eu,7"), None));
    // What was left alone comes from the old row.
    let old: &[&str] = &["eu", "7", "large", "f"];
    let new = Some([Some("us"), Some("7"), None, Some("t")]);
    let updated = read(&row(Op::Update, Some((Old::Full, old)), new)).unwrap();
    assert_eq!((updated.old_key.as_deref(), updated.new_key.as_deref()), (Some("eu,7"), Some("us,7")));
    assert_eq!(text(&updated.object), r#"{"region":"us","id":7,"%5Fkey":"large","paid":true}"#);
    assert_eq!(read(&row(Op::Update, None, new)).err(), Some(Incomplete), "it is nowhere");
}

#[test]
fn lines_of_the_logger_have_the_documented_form() {
    let lines = Lines::new(Dialect::Logger, 0xAB, "shop", 1);
    let of = Collection { name: "users".to_owned(), ..collection() };
    let mut out = Vec::new();
    lines.upsert(&mut out, Tick(11), 0, &of, "1", br#"{"name":"a"}"#);
    lines.removal(&mut out, Tick(12), 0, &of, "1");
    lines.begin(&mut out, Tick(13), 77, Some(&[(5, "users".to_owned(), 1)]));
    lines.begin(&mut out, Tick(14), 78, None);
    lines.commit(&mut out, Tick(16), 77);
    lines.about(&mut out, Tick(17), CREATED, &of);
    lines.about(&mut out, Tick(18), RENAMED, &of);
    lines.about(&mut out, Tick(19), DROPPED, &of);
    lines.about(&mut out, Tick(20), TRUNCATED, &of);
    let found: Vec<&str> = text(&out).lines().collect();
    let documented = [
        r#"{"tick":"11","type":2300,"tid":"0","database":"1","cid":"5","key":"1","rev":"11","cname":"users","data":{"_id":"users/1","_key":"1","_rev":"11","name":"a"}}"#,
        r#"{"tick":"12","type":2302,"tid":"0","database":"1","cid":"5","key":"1","rev":"12","cname":"users","data":{"_key":"1","_rev":"12"}}"#,
        r#"{"tick":"13","type":2200,"tid":"77","database":"1","collections":[{"cid":"5","name":"users","operations":1}]}"#,
        r#"{"tick":"14","type":2200,"tid":"78","database":"1"}"#,
        r#"{"tick":"16","type":2201,"tid":"77","database":"1"}"#,
    ];
    assert_eq!(found[..5], documented);
    let json = |at: usize| serde_json::from_str::<serde_json::Value>(found[at]).unwrap();
    assert_eq!((&json(5)["type"], &json(5)["cid"]), (&2000.into(), &"5".into()));
    assert_eq!(json(5)["collection"]["name"], "users");
    assert_eq!(json(6)["collection"], serde_json::json!({"name": "users"}));
    assert!(found[7].starts_with(r#"{"tick":"19","type":2001,"#) && found[7].contains(r#""cid":"5""#));
    assert_eq!((&json(8)["type"], &json(8)["cname"]), (&2004.into(), &"users".into()));
}

#[test]
fn lines_of_the_wal_name_database_and_collection_otherwise() {
    let lines = Lines::new(Dialect::Wal, 0xAB, "my \"db\"", 1);
    let mut out = Vec::new();
    lines.begin(&mut out, Tick(13), 77, Some(&[]));
    lines.removal(&mut out, Tick(14), 77, &collection(), "1");
    let found: Vec<&str> = text(&out).lines().collect();
    assert_eq!(found[0], r#"{"tick":"13","type":2200,"tid":"77","db":"my \"db\""}"#);
    let begin = r#"{"tick":"14","type":2302,"tid":"77","db":"my \"db\"","cuid":"hAB/5","key":"1","#;
    assert!(found[1].starts_with(begin), "{}", found[1]);
}

#[test]
fn lines_about_indexes_have_the_documented_form() {
    let of = Collection { name: "users".to_owned(), ..collection() };
    let described = |unique: bool| {
        let fields = ["name", "a \"b\""];
        Index::parse(
            &serde_json::json!({"id": 1000, "method": "btree", "unique": unique, "fields": fields}),
            false,
        )
        .unwrap()
    };
    let mut out = Vec::new();
    for lines in [Lines::new(Dialect::Logger, 0xAB, "shop", 1), Lines::new(Dialect::Wal, 0xAB, "shop", 1)] {
        lines.index(&mut out, Tick(11), &of, &described(true), true);
        lines.index(&mut out, Tick(12), &of, &described(false), true);
        lines.index(&mut out, Tick(13), &of, &described(false), false);
    }
    let documented = [
        r#"{"tick":"11","type":2100,"tid":"0","database":"1","cid":"5","cname":"users","index":{"id":"1000","type":"persistent","unique":true,"sparse":true,"fields":["name","a \"b\""]}}"#,
        r#"{"tick":"12","type":2100,"tid":"0","database":"1","cid":"5","cname":"users","index":{"id":"1000","type":"persistent","unique":false,"sparse":false,"fields":["name","a \"b\""]}}"#,
        r#"{"tick":"13","type":2101,"tid":"0","database":"1","cid":"5","cname":"users","id":"1000"}"#,
        r#"{"tick":"11","type":2100,"tid":"0","db":"shop","cuid":"hAB/5","cname":"users","data":{"id":"1000","type":"persistent","unique":true,"sparse":true,"fields":["name","a \"b\""]}}"#,
        r#"{"tick":"12","type":2100,"tid":"0","db":"shop","cuid":"hAB/5","cname":"users","data":{"id":"1000","type":"persistent","unique":false,"sparse":false,"fields":["name","a \"b\""]}}"#,
        r#"{"tick":"13","type":2101,"tid":"0","db":"shop","cuid":"hAB/5","cname":"users","data":{"id":"1000"}}"#,
    ];
    assert_eq!(text(&out).lines().collect::<Vec<_>>(), documented);
}

#[test]
fn lines_of_a_dump_have_the_documented_form() {
    let mut out = Vec::new();
    let of = Collection { name: "users".to_owned(), ..collection() };
    dumped(&mut out, Some(90), &of, "1", Tick(90), b"{}");
    dumped(&mut out, None, &of, "1", Tick(90), br#"{"id":1}"#);
    let expected = "{\"tick\":\"90\",\"type\":2300,\"key\":\"1\",\"rev\":\"90\",\"data\":{\"_id\":\"users/1\",\"_key\":\"1\",\"_rev\":\"90\"}}\n\
                    {\"type\":2300,\"key\":\"1\",\"rev\":\"90\",\"data\":{\"_id\":\"users/1\",\"_key\":\"1\",\"_rev\":\"90\",\"id\":1}}\n";
    assert_eq!(text(&out), expected);
}

#[test]
fn edges_and_whole_documents_are_written_as_they_were() {
    let of = Collection { name: "likes".to_owned(), edge: true, documents: true, ..collection() };
    let mut out = Vec::new();
    let row = br#"{"%5Fkey":"a","_from":"u/1","_to":"u/2","data":{"since": 2020, "_key": "no", "tags": ["x", {"_id": 1}]}}"#;
    dumped(&mut out, None, &of, "a", Tick(9), row);
    dumped(
        &mut out,
        None,
        &Collection { edge: false, ..of.clone() },
        "b",
        Tick(9),
        br#"{"%5Fkey":"b","data":null}"#,
    );
    dumped(&mut out, None, &of, "c", Tick(9), br#"{"%5Fkey":"c","_from":null,"_to":null,"data":[1]}"#);
    let expected = [
        r#"{"type":2301,"key":"a","rev":"9","data":{"_id":"likes/a","_key":"a","_rev":"9","_from":"u/1","_to":"u/2","since":2020,"tags":["x", {"_id": 1}]}}"#,
        r#"{"type":2300,"key":"b","rev":"9","data":{"_id":"likes/b","_key":"b","_rev":"9"}}"#,
        r#"{"type":2301,"key":"c","rev":"9","data":{"_id":"likes/c","_key":"c","_rev":"9","_from":null,"_to":null,"data":[1]}}"#,
    ];
    assert_eq!(text(&out).lines().collect::<Vec<_>>(), expected);
    let lines = Lines::new(Dialect::Logger, 0xAB, "shop", 1);
    out.clear();
    lines.upsert(&mut out, Tick(11), 0, &of, "a", row);
    lines.about(&mut out, Tick(12), CREATED, &of);
    let found: Vec<serde_json::Value> =
        text(&out).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&found[0]["type"], &found[0]["data"]["_to"]), (&2301.into(), &"u/2".into()));
    assert_eq!(found[1]["collection"]["type"], 3);
}

#[test]
fn values_in_whole_documents_stay_as_they_are() {
    let deep = format!("{}7{}", "[".repeat(300), "]".repeat(300));
    let data = format!(r#"{{"a":449.49106478873813,"b":12345678901234567890.125,"c":1e400,"d":{deep}}}"#);
    let of = Collection { name: "users".to_owned(), documents: true, ..collection() };
    let mut out = Vec::new();
    dumped(&mut out, None, &of, "1", Tick(9), format!(r#"{{"%5Fkey":"1","data":{data}}}"#).as_bytes());
    let head = r#"{"type":2300,"key":"1","rev":"9","data":{"_id":"users/1","_key":"1","_rev":"9","#;
    assert_eq!(text(&out), format!("{head}{}}}\n", &data[1..]));
}

#[test]
fn the_steps_of_one_change_are_in_order() {
    let at = Position { epoch: 5, tick: 17 };
    let tick = |step| Tick::new(at, step).unwrap();
    assert!(tick(Step::Begin) < tick(Step::OldKey) && tick(Step::OldKey) < tick(Step::Change));
}
