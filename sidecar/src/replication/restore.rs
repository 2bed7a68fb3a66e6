//! What an inventory says of a collection, and a dump of its rows, as the functions of `sql/restore.sql` take it.

use super::collections::{DESCRIPTION, EDGES};
use super::error::{BAD_PARAMETER, Failure, ILLEGAL_NAME, INVALID_JSON, Result, UNEXPECTED_MARKER};
use super::lines::{EDGE, REMOVAL, UPSERT};
use super::names::{self, Members};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Kinds of indexes that can be made here.
const INDEXES: [&str; 3] = ["hash", "skiplist", "persistent"];
/// Kinds that a collection has by itself.
const OWN_INDEXES: [&str; 2] = ["primary", "edge"];

/// A collection as an inventory describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub schema: String,
    pub table: String,
    pub edge: bool,
    /// Its columns and its key, if it comes from a program like this one.
    pub description: Option<Value>,
}

impl Wanted {
    /// Reads one object of an inventory. `None`: it was deleted there, so nothing is wanted of it.
    ///
    /// # Errors
    /// It is no such object.
    pub fn read(entry: &Map<String, Value>) -> Result<Option<Wanted>> {
        let parameters = entry.get("parameters").and_then(Value::as_object);
        let parameters =
            parameters.ok_or_else(|| Failure::bad("collection parameters declaration is invalid"))?;
        if parameters.get("deleted") == Some(&Value::Bool(true)) {
            return Ok(None);
        }
        let name = parameters.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let (schema, table) = table(name.ok_or_else(|| Failure::bad("collection name is missing"))?)?;
        let edge = parameters.get("type").and_then(Value::as_u64) == Some(u64::from(EDGES));
        let description = match parameters.get(DESCRIPTION) {
            None | Some(Value::Null) => None,
            Some(given) => Some(described(given).ok_or_else(|| {
                Failure::bad(format!(
                    "{DESCRIPTION} must have columns, each with name and type, and key, names of columns"
                ))
            })?),
        };
        Ok(Some(Wanted { schema, table, edge, description }))
    }
}

/// The table that a collection's name means.
///
/// # Errors
/// It is no such name.
pub fn table(name: &str) -> Result<(String, String)> {
    names::table(name).ok_or_else(|| {
        let message = format!(
            "{name:?} cannot be the name of a collection here: it is a table of schema public, or schema.table, what is not a \
             letter, digit, _ or - being %XX"
        );
        Failure::new(400, ILLEGAL_NAME, message)
    })
}

/// A description of a table, with what is needed and nothing else.
fn described(given: &Value) -> Option<Value> {
    let column = |column: &Value| {
        let text = |name: &str| column.get(name)?.as_str();
        Some(json!({"name": text("name")?, "type": text("type")?}))
    };
    let columns: Vec<Value> = given.get("columns")?.as_array()?.iter().map(column).collect::<Option<_>>()?;
    let key: Vec<&str> = given.get("key")?.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
    Some(json!({"columns": columns, "key": key}))
}

/// The indexes of an object of an inventory, as `quorum.restore_indexes` takes them.
///
/// # Errors
/// They are no list of indexes, or one is of a kind that cannot be made here, and `force` is not set: then it is left out.
pub fn indexes(entry: &Map<String, Value>, force: bool) -> Result<Vec<Value>> {
    let all = match entry.get("indexes") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(all) => {
            all.as_array().ok_or_else(|| Failure::bad("collection indexes declaration is invalid"))?
        }
    };
    let mut read = Vec::new();
    for index in all {
        let kind = index.get("type").and_then(Value::as_str).unwrap_or_default();
        if OWN_INDEXES.contains(&kind) {
            continue;
        }
        let field = |field: &Value| field.as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        let fields = index.get("fields").and_then(Value::as_array);
        let fields: Option<Vec<String>> = fields.and_then(|fields| fields.iter().map(field).collect());
        let fields = fields.filter(|fields| !fields.is_empty());
        let fields = fields.ok_or_else(|| Failure::bad(format!("the index {index} has no fields")))?;
        if !INDEXES.contains(&kind) || fields.iter().any(|name| name.contains("[*]")) {
            if force {
                continue;
            }
            return Err(Failure::not_implemented(format!(
                "an index of type {kind:?} over {} cannot be made here, only those of type {} over whole attributes. With \
                 force=true it is left out",
                fields.join(", "),
                INDEXES.join(", ")
            )));
        }
        let unique = index.get("unique").and_then(Value::as_bool).unwrap_or(false);
        let columns: Vec<_> = fields.iter().map(|name| names::column(name)).collect();
        read.push(json!({"type": kind, "unique": unique, "fields": columns}));
    }
    Ok(read)
}

/// The rows of a dump, each as `quorum.restore_rows` takes it: of several lines about one document the last one. Values are
/// left as they are written, as the database can hold more than a number of ours.
///
/// # Errors
/// A line is none of a dump; it is named by its number.
pub fn rows(lines: &[u8]) -> Result<Vec<String>> {
    let (mut rows, mut places): (Vec<String>, HashMap<String, usize>) = (Vec::new(), HashMap::new());
    for (number, line) in (1..).zip(lines.split(|byte| *byte == b'\n')) {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let (key, row) = row(line).map_err(|failure| Failure {
            message: format!("line {number}: {}", failure.message),
            ..failure
        })?;
        match places.get(&key) {
            Some(place) => rows[*place] = row,
            None => {
                places.insert(key, rows.len());
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// What becomes of a row.
#[derive(Serialize)]
struct Row<'a> {
    key: Vec<String>,
    joined: String,
    /// `None`: it goes.
    data: Option<Members<'a>>,
}

/// One line: the key, and what becomes of it.
fn row(line: &[u8]) -> Result<(String, String)> {
    let line: Members<'_> = serde_json::from_slice(line)
        .map_err(|error| Failure::new(400, INVALID_JSON, format!("it is no JSON object: {error}")))?;
    let (removed, mut data): (bool, Members<'_>) = match line.get("type") {
        // Newer dumps have the documents alone.
        None if line.contains_key("_key") => (false, line.clone()),
        None => return Err(bad("it has no type")),
        Some(kind) => {
            let removed = match kind.get().parse::<u16>() {
                Ok(UPSERT | EDGE) => false,
                Ok(REMOVAL) => true,
                _ => {
                    let message =
                        format!("unexpected marker: type is {kind}, expected {UPSERT}, {EDGE} or {REMOVAL}");
                    return Err(Failure::new(400, UNEXPECTED_MARKER, message));
                }
            };
            let data = match line.get("data") {
                None if removed => Some(Members::new()),
                None => None,
                Some(data) => serde_json::from_str(data.get()).ok(),
            };
            (removed, data.ok_or_else(|| bad("data is not an object"))?)
        }
    };
    let text = |value: Option<&&RawValue>| serde_json::from_str::<String>(value?.get()).ok();
    let key = text(line.get("key")).or_else(|| text(data.get("_key"))).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| bad("it has no key"))?;
    let values = names::key(&key).ok_or_else(|| bad(&format!("{key:?} is no key of UTF-8")))?;
    data.retain(|name, _| !matches!(name.as_str(), "_id" | "_key" | "_rev"));
    let row = Row { joined: values.join(","), key: values, data: (!removed).then_some(data) };
    let row = serde_json::to_string(&row).map_err(|error| Failure::internal(error.to_string()))?;
    Ok((key, row))
}

fn bad(message: &str) -> Failure {
    Failure::new(400, BAD_PARAMETER, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn collections_of_inventories_are_tables() {
        let read = |parameters: Value| Wanted::read(&object(json!({"parameters": parameters})));
        let description = json!({"columns": [{"name": "id", "type": "integer"}], "key": ["id"]});
        assert_eq!(
            read(
                json!({"name": "shop.Or%2Eders", "type": 2, DESCRIPTION: {"columns": [{"name": "id", "type": "integer", "x": 1}], "key": ["id"]}})
            ),
            Ok(Some(Wanted {
                schema: "shop".into(),
                table: "Or.ders".into(),
                edge: false,
                description: Some(description)
            }))
        );
        let edges = read(json!({"name": "likes", "type": 3})).unwrap().unwrap();
        assert_eq!((edges.schema.as_str(), edges.edge, edges.description), ("public", true, None));
        assert_eq!(read(json!({"name": "old", "deleted": true})), Ok(None));
        for (wrong, number) in [
            (json!({}), 400),
            (json!([]), 400),
            (json!({"name": ""}), 400),
            (json!({"name": "a..b."}), 400),
            (json!({"name": "t", DESCRIPTION: {"columns": [{"name": "id"}], "key": []}}), 400),
        ] {
            let failure = read(wrong.clone()).unwrap_err();
            assert_eq!(failure.code, number, "{wrong}");
        }
        assert_eq!(read(json!({"name": "%00"})).unwrap_err().number, ILLEGAL_NAME);
    }

    #[test]
    fn indexes_are_made_where_there_is_one_like_it() {
        let entry = object(json!({"indexes": [{"id": "0", "type": "primary", "fields": ["_key"]},
            {"id": "9", "type": "hash", "unique": true, "fields": ["email", "%5Fkey"]},
            {"id": "10", "type": "fulltext", "fields": ["text"]}]}));
        let made = json!({"type": "hash", "unique": true, "fields": ["email", "_key"]});
        assert_eq!(indexes(&entry, true), Ok(vec![made]));
        assert_eq!(indexes(&entry, false).unwrap_err().code, 501);
        assert_eq!(indexes(&Map::new(), false), Ok(Vec::new()));
        assert_eq!(
            indexes(&object(json!({"indexes": [{"type": "hash", "fields": []}]})), true).unwrap_err().code,
            400
        );
    }

    #[test]
    fn the_last_line_about_a_document_counts() {
        let lines = br#"{"tick":"1","type":2300,"key":"a%2Cb,7","rev":"1","data":{"_key":"x","_id":"t/x","_rev":"1","n":1}}
{"type":2301,"key":"e","data":{"_from":"u/1","_to":"u/2"}}

{"type":2302,"key":"e"}
{"_key":"new","n":2}
"#;
        assert_eq!(
            rows(lines).unwrap(),
            [
                r#"{"key":["a,b","7"],"joined":"a,b,7","data":{"n":1}}"#,
                r#"{"key":["e"],"joined":"e","data":null}"#,
                r#"{"key":["new"],"joined":"new","data":{"n":2}}"#,
            ]
        );
        for (line, number) in [
            ("[1]", INVALID_JSON),
            ("{\"type\":", INVALID_JSON),
            ("{\"type\":2000,\"key\":\"1\"}", UNEXPECTED_MARKER),
            ("{\"type\":\"2300\",\"key\":\"1\"}", UNEXPECTED_MARKER),
            ("{}", BAD_PARAMETER),
            ("{\"type\":2300,\"key\":\"1\"}", BAD_PARAMETER),
            ("{\"type\":2300,\"data\":{}}", BAD_PARAMETER),
            ("{\"type\":2302,\"key\":\"%FF\"}", BAD_PARAMETER),
        ] {
            let failure = rows(format!("\n{line}").as_bytes()).unwrap_err();
            assert!(
                failure.number == number && failure.message.starts_with("line 2: "),
                "{line}: {failure:?}"
            );
        }
    }

    #[test]
    fn values_stay_as_they_are_written() {
        let deep = format!("{}7{}", "[".repeat(300), "]".repeat(300));
        let document =
            format!(r#"{{"a":449.49106478873813,"b":12345678901234567890.125,"c":1e400,"d":{deep}}}"#);
        let row = format!(r#"{{"key":["1"],"joined":"1","data":{document}}}"#);
        let line = format!(r#"{{"type":2300,"key":"1","data":{document}}}"#);
        assert_eq!(rows(line.as_bytes()), Ok(vec![row.clone()]));
        let bare = format!(r#"{{"_key":"1",{}"#, &document[1..]);
        assert_eq!(rows(bare.as_bytes()), Ok(vec![row]));
    }
}
