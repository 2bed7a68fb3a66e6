//! Statements, as the database gets them.

use super::*;
use crate::replication::applier::events;
use serde_json::json;

fn column(name: &str, type_name: &str, key: bool) -> Value {
    json!({"name": name, "type": type_name, "key": key, "computed": name == "total", "always": false})
}

fn table(columns: &[Value], ours: bool) -> Table {
    Table::read("public", "t", &json!({"relation": 7, "columns": columns, "problem": null}), ours).unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn rows_of_ours_are_written_by_their_columns() {
    let table = table(
        &[
            column("id", "integer", true),
            column("_key", "text", false),
            column("total", "integer", false),
            column("here", "text", false),
        ],
        true,
    );
    let sql = table.upsert(&names(&["%5Fkey", "_id", "_key", "_rev", "id", "total"]), false).unwrap();
    assert_eq!(
        sql,
        "INSERT INTO \"public\".\"t\" AS t (\"_key\", \"id\") OVERRIDING SYSTEM VALUE SELECT r.\"%5Fkey\", r.\"id\" \
         FROM unnest($1) AS l(line), LATERAL json_to_record(l.line::json -> 'data') AS r(\"%5Fkey\" text, \"id\" integer) \
         ON CONFLICT (\"id\") DO UPDATE SET \"_key\" = excluded.\"_key\""
    );
    let differing = table.upsert(&names(&["%5Fkey", "id"]), true).unwrap();
    assert!(differing.ends_with("WHERE (t.\"_key\"::text) IS DISTINCT FROM (excluded.\"_key\"::text)"));
    let unknown = table.upsert(&names(&["id", "more"]), false).unwrap_err();
    assert!(unknown.message.contains("public.t has no column for attribute more"), "{unknown}");
    assert!(table.upsert(&names(&["%5Fkey"]), false).unwrap_err().message.contains("primary key"));
    assert!(table.upsert(&names(&["id"]), false).unwrap().ends_with("ON CONFLICT (\"id\") DO NOTHING"));
    assert_eq!(
        table.removal(),
        "DELETE FROM \"public\".\"t\" AS t USING unnest($1) AS l(line) WHERE t.\"id\" = (l.line::json ->> 0)::integer"
    );
}

#[test]
fn documents_of_others_have_no_fixed_columns() {
    let by_columns = table(&[column("name", "text", false), column("id", "uuid", true)], false);
    let sql = by_columns.upsert(&names(&["_id", "_key", "_rev"]), false).unwrap();
    assert_eq!(
        sql,
        "INSERT INTO \"public\".\"t\" AS t (\"id\") OVERRIDING SYSTEM VALUE SELECT coalesce(l.line::json ->> 'key', \
         l.line::json -> 'data' ->> '_key')::uuid FROM unnest($1) AS l(line) ON CONFLICT (\"id\") DO UPDATE SET \
         \"name\" = DEFAULT"
    );
    let whole = table(&[column("_key", "text", true), column("data", "jsonb", false)], false);
    let any = whole.upsert(&names(&["anything", "_key"]), true).unwrap();
    assert!(any.contains("- '{_id,_key,_rev}'::text[])::jsonb") && any.contains("IS DISTINCT FROM"), "{any}");
    // Of ours, the same table is one with these two columns.
    let ours = table(&[column("_key", "text", true), column("data", "jsonb", false)], true);
    assert!(ours.upsert(&names(&["anything"]), false).is_err());
}

#[test]
fn keys_must_be_those_of_the_remote() {
    let table = table(&[column("a", "text", true), column("b", "integer", true)], true);
    let line = |key: &str| {
        format!(
            r#"{{"tick":"1","type":2300,"tid":"0","cname":"t","key":"{key}","data":{{"_key":"{key}","a":"x y","b":2}}}}"#
        )
    };
    let change = |key: &str| match events::event(&line(key)) {
        Ok((_, events::Event::Change(_, change))) => change,
        other => panic!("{other:?}"),
    };
    assert_eq!(table.key(&change("x%20y,2")).unwrap(), r#"["x y","2"]"#);
    assert!(table.check_keys(&[change("x%20y,2")]).is_ok());
    assert!(table.check_keys(&[change("2,x%20y")]).unwrap_err().message.contains("order"));
    assert!(table.key(&change("2")).unwrap_err().message.contains("2 column(s)"));
    // The primary key there is another column, although some row may have the same value in both.
    let by_number = self::table(&[column("a", "text", false), column("b", "integer", true)], true);
    assert!(by_number.check_keys(&[change("2"), change("2")]).is_ok());
    let other = by_number.check_keys(&[change("2"), change("x%20y")]).unwrap_err();
    assert!(other.message.contains("the same primary key as there"), "{other}");
    let by_id = self::table(&[column("a", "text", true)], false);
    let document = |key: &str| Change { op: Op::Upsert(names(&["_key", "a"])), ..change(key) };
    assert!(by_id.check_keys(&[document("x y")]).is_ok());
    assert!(by_id.check_keys(&[document("x y"), document("z")]).unwrap_err().message.contains("_key"));
    let missing = Table::read("s", "t", &json!({"problem": "it has no primary key"}), true).unwrap_err();
    assert!(missing.message.contains("s.t") && missing.message.contains("no primary key"), "{missing}");
}

#[test]
fn values_of_a_key_are_known_however_they_are_written() {
    for (written, value, same) in [
        ("7", "7", true),
        ("7", "8", false),
        ("12345678901234567890", "12345678901234567891", false),
        ("1e+20", "1e+20", true),
        ("1.50", "1.5", true),
        ("1.5", "2", false),
        (r#""a\u0062""#, "ab", true),
        (r#""a""#, r#""a""#, true),
        (r#""a""#, "b", false),
        ("true", "t", true),
        ("false", "t", false),
        ("[1]", "x", true),
    ] {
        assert_eq!(is_value(written, value), same, "{written} {value}");
    }
}
