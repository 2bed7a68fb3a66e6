//! Tables that documents are written into: how their columns are called there, and the statements that write.

use super::events::{Change, Op};
use super::fault::{Fault, Result};
use super::keys;
use crate::replication::names::{self, Members};
use serde::Deserialize;
use serde_json::Value;

/// What every document has beside its own attributes.
const DOCUMENTS_OWN: [&str; 3] = ["_id", "_key", "_rev"];
/// The longest name that PostgreSQL keeps whole.
const NAME_MAX: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    name: String,
    type_name: String,
    /// What the remote calls it.
    attribute: String,
    key: bool,
    /// Computed here, whatever is sent.
    computed: bool,
    /// An identity that takes a value when a row is made, and not later.
    fixed: bool,
}

/// A table here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub relation: u32,
    columns: Vec<Column>,
    /// Any document goes into it, as a whole: it has the columns `_key` and `data` and no other.
    documents: bool,
    /// The remote is one of ours.
    ours: bool,
}

impl Table {
    /// From what `quorum.applier_table` says.
    ///
    /// # Errors
    /// Nothing can be written into it, and why.
    pub fn read(schema: &str, name: &str, described: &Value, ours: bool) -> Result<Table> {
        let refused = |why: &str| {
            Fault::event(1203, format!("table {schema}.{name} cannot be written by the applier: {why}"))
        };
        if let Some(problem) = described["problem"].as_str() {
            return Err(refused(problem));
        }
        let column = |column: &Value| {
            let name = column["name"].as_str()?.to_owned();
            let attribute = if ours { names::attribute(&name).into_owned() } else { name.clone() };
            let flag = |name: &str| column[name].as_bool();
            let type_name = column["type"].as_str()?.to_owned();
            let (key, computed, fixed) = (flag("key")?, flag("computed")?, flag("always")?);
            Some(Column { name, type_name, attribute, key, computed, fixed })
        };
        let columns =
            described["columns"].as_array().into_iter().flatten().map(column).collect::<Option<Vec<_>>>();
        let relation = described["relation"].as_u64().and_then(|oid| u32::try_from(oid).ok());
        let (Some(columns), Some(relation)) = (columns, relation) else {
            return Err(Fault::stopped(
                500,
                "the extension describes a table as this program does not expect it. Are both of the same version?",
            ));
        };
        if let Some(long) = columns.iter().find(|column| column.attribute.len() > NAME_MAX) {
            return Err(refused(&format!(
                "the name of its column {} is too long to be told from others",
                long.name
            )));
        }
        let is_json = |type_name: &str| matches!(type_name, "json" | "jsonb");
        let documents = !ours
            && columns.len() == 2
            && columns.iter().any(|column| column.name == "_key" && column.key)
            && columns
                .iter()
                .any(|column| column.name == "data" && !column.key && is_json(&column.type_name));
        Ok(Table { schema: schema.to_owned(), name: name.to_owned(), relation, columns, documents, ours })
    }

    /// As people write it.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    fn keys(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.key)
    }

    fn key_names(&self) -> String {
        listed(self.keys().map(|column| quoted(&column.name)))
    }

    /// The statement that writes documents with these attributes, a line each in `$1`. `differing`: rows that have these values
    /// already are left alone.
    ///
    /// # Errors
    /// The table has no column for an attribute.
    pub fn upsert(&self, attributes: &[String], differing: bool) -> Result<String> {
        if self.documents {
            return Ok(self.upsert_whole(differing));
        }
        // Documents of others say nothing of an attribute that they do not have: it has no value.
        let mut named: Vec<&Column> = Vec::new();
        for attribute in attributes {
            let found = self.columns.iter().find(|column| column.attribute == *attribute);
            let found = found.or_else(|| {
                let edge = matches!(attribute.as_str(), "_from" | "_to");
                self.columns.iter().find(|column| edge && column.name == *attribute)
            });
            match found {
                Some(column) if column.computed => {}
                Some(column) if !named.contains(&column) => named.push(column),
                Some(_) => {}
                None if DOCUMENTS_OWN.contains(&attribute.as_str()) => {}
                None => return Err(self.unknown(attribute)),
            }
        }
        let by_name = |column: &&Column| !named.contains(column);
        let missing: Vec<&Column> = self.keys().filter(by_name).collect();
        if missing.len() > 1 || (self.ours && !missing.is_empty()) {
            let names = listed(missing.iter().map(|column| column.name.clone()));
            return Err(Fault::event(
                400,
                format!(
                    "documents for table {} do not have the columns of its primary key: {names}",
                    self.label()
                ),
            ));
        }
        let record = |column: &&Column| {
            format!("{} {}", quoted(self.attribute_in(column, attributes)), column.type_name)
        };
        let value = |column: &&Column| format!("r.{}", quoted(self.attribute_in(column, attributes)));
        let mut columns: Vec<String> = named.iter().map(|column| quoted(&column.name)).collect();
        let mut values: Vec<String> = named.iter().map(value).collect();
        if let Some(key) = missing.first() {
            columns.push(quoted(&key.name));
            values.push(format!("{KEY}::{}", key.type_name));
        }
        let from = if named.is_empty() {
            String::new()
        } else {
            let record = listed(named.iter().map(record));
            format!(", LATERAL json_to_record(l.line::json -> 'data') AS r({record})")
        };
        let changed = |column: &&Column| !column.key && !column.fixed && !column.computed;
        let mut set: Vec<String> = Vec::new();
        let mut compared: Vec<String> = Vec::new();
        for column in self.columns.iter().filter(changed) {
            let name = quoted(&column.name);
            if named.contains(&column) {
                set.push(format!("{name} = excluded.{name}"));
                compared.push(name);
            } else if !self.ours {
                set.push(format!("{name} = DEFAULT"));
            }
        }
        let (columns, values) = (columns.join(", "), values.join(", "));
        let insert = format!(
            "INSERT INTO {} AS t ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM unnest($1) AS l(line){from}",
            self.quoted()
        );
        if !differing || compared.len() < set.len() {
            compared.clear();
        }
        Ok(self.on_conflict(&insert, &set, &compared))
    }

    fn upsert_whole(&self, differing: bool) -> String {
        let data = self.columns.iter().find(|column| !column.key);
        let type_name = data.map_or("jsonb", |column| column.type_name.as_str());
        let insert = format!(
            "INSERT INTO {} AS t (\"_key\", \"data\") SELECT {KEY}, ((l.line::json -> 'data')::jsonb - \
             '{{_id,_key,_rev}}'::text[])::{type_name} FROM unnest($1) AS l(line)",
            self.quoted()
        );
        let compared = if differing { vec!["\"data\"".to_owned()] } else { Vec::new() };
        self.on_conflict(&insert, &["\"data\" = excluded.\"data\"".to_owned()], &compared)
    }

    fn on_conflict(&self, insert: &str, set: &[String], compared: &[String]) -> String {
        let key = self.key_names();
        if set.is_empty() {
            return format!("{insert} ON CONFLICT ({key}) DO NOTHING");
        }
        // By their texts: not all types can be compared.
        let texts = |of: &str| listed(compared.iter().map(|name| format!("{of}.{name}::text")));
        let only = if compared.is_empty() {
            String::new()
        } else {
            format!(" WHERE ({}) IS DISTINCT FROM ({})", texts("t"), texts("excluded"))
        };
        format!("{insert} ON CONFLICT ({key}) DO UPDATE SET {}{only}", set.join(", "))
    }

    /// The attribute of these by which a column is sent.
    fn attribute_in<'a>(&self, column: &'a Column, attributes: &[String]) -> &'a str {
        if attributes.contains(&column.attribute) { &column.attribute } else { &column.name }
    }

    fn unknown(&self, attribute: &str) -> Fault {
        let message = format!(
            "table {} has no column for attribute {attribute}. Add one, of the type that you want (ALTER TABLE … ADD COLUMN), \
             then start the applier again",
            self.label()
        );
        Fault::event(400, message)
    }

    /// The statement that deletes rows by their keys, which are JSON arrays of texts in `$1`.
    pub fn removal(&self) -> String {
        let equal = |(at, column): (usize, &Column)| {
            format!("t.{} = (l.line::json ->> {at})::{}", quoted(&column.name), column.type_name)
        };
        let equal: Vec<String> = self.keys().enumerate().map(equal).collect();
        format!(
            "DELETE FROM {} AS t USING unnest($1) AS l(line) WHERE {}",
            self.quoted(),
            equal.join(" AND ")
        )
    }

    /// The statement that deletes all rows, `$1` being of no use.
    pub fn emptying(&self) -> String {
        format!("DELETE FROM {}", self.quoted())
    }

    /// The key of a change as [`Table::removal`] takes it.
    ///
    /// # Errors
    /// It is no key of this table.
    pub fn key(&self, change: &Change) -> Result<String> {
        let columns = self.keys().count();
        let values = keys::values_of(&change.key, columns, self.ours).ok_or_else(|| {
            let names = listed(self.keys().map(|column| column.name.clone()));
            let message = format!(
                "a key of the remote is none of table {}, whose primary key has {columns} column(s): {names}. It must be the key \
                 that the table has there",
                self.label()
            );
            Fault::event(400, message)
        })?;
        Ok(Value::from(values).to_string())
    }

    /// Looks whether the keys of documents with the same attributes are what the columns of the primary key hold. Rows would be
    /// taken for others otherwise.
    ///
    /// # Errors
    /// They are not.
    pub fn check_keys(&self, changes: &[Change]) -> Result<()> {
        let Some(first) = changes.first() else { return Ok(()) };
        let Op::Upsert(attributes) = &first.op else { return Ok(()) };
        let own = |column: &Column| !self.ours && column.name == "_key";
        let sent = |column: &Column| !own(column) && attributes.contains(&column.attribute);
        if self.keys().any(sent) {
            changes.iter().try_for_each(|change| self.check_key(change))
        } else {
            Ok(())
        }
    }

    fn check_key(&self, change: &Change) -> Result<()> {
        let Ok(Document { data }) = serde_json::from_str(&change.line) else { return Ok(()) };
        let values = keys::values_of(&change.key, self.keys().count(), self.ours).unwrap_or_default();
        let same = |(column, value): (&Column, &String)| {
            data.get(&column.attribute).is_none_or(|written| is_value(written.get(), value))
        };
        if self.keys().zip(&values).all(same) {
            return Ok(());
        }
        let names = listed(self.keys().map(|column| column.name.clone()));
        let message = if self.ours {
            format!(
                "the columns of the primary key of table {} ({names}) are not in the order of the remote's, or are others. Make \
                 the table with the same primary key as there, and its columns in the same order",
                self.label()
            )
        } else {
            format!(
                "a document has an attribute that is called like the primary key of table {} ({names}), with another value than \
                 its _key, and it is by its _key that it would be deleted. Make _key the primary key",
                self.label()
            )
        };
        Err(Fault::event(400, message))
    }

    /// The columns of the key with their types, for a table of the keys that were seen. The table's owner writes into it; nobody
    /// else gets at it, since it is this session's own.
    pub fn seen_table(&self) -> String {
        let columns =
            listed(self.keys().map(|column| format!("{} {}", quoted(&column.name), column.type_name)));
        format!(
            "CREATE TEMPORARY TABLE {SEEN} ({columns}) ON COMMIT DROP; GRANT SELECT, INSERT ON pg_temp.{SEEN} TO PUBLIC"
        )
    }

    /// The statement that notes keys, as [`Table::removal`] takes them.
    pub fn note_seen(&self) -> String {
        let value = |(at, column): (usize, &Column)| format!("(l.line::json ->> {at})::{}", column.type_name);
        let values = listed(self.keys().enumerate().map(value));
        format!("INSERT INTO pg_temp.{SEEN} SELECT {values} FROM unnest($1) AS l(line)")
    }

    /// The statement that deletes rows whose keys were not noted.
    pub fn delete_unseen(&self) -> String {
        let equal: Vec<String> =
            self.keys().map(|column| format!("s.{0} = t.{0}", quoted(&column.name))).collect();
        format!(
            "DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM pg_temp.{SEEN} AS s WHERE {})",
            self.quoted(),
            equal.join(" AND ")
        )
    }

    pub fn drop_seen() -> String {
        format!("DROP TABLE pg_temp.{SEEN}")
    }
}

/// What a line says of a document, as it is written.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    data: Members<'a>,
}

/// Whether what is written in a document is a value of a key.
fn is_value(written: &str, value: &str) -> bool {
    let is_integer = |text: &str| text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    let number = |text: &str| text.parse::<f64>().ok();
    match written.as_bytes().first() {
        _ if written == value => true,
        Some(b'"') => serde_json::from_str::<String>(written).is_ok_and(|text| text == value),
        Some(b't') => value == "t",
        Some(b'f') => value == "f",
        Some(b'-' | b'0'..=b'9') if is_integer(written) => false,
        // One number can be written in several ways.
        Some(b'-' | b'0'..=b'9') => number(written) == number(value),
        // What else a key may be made of has no single form.
        _ => true,
    }
}

/// The key of a document, wherever it stands.
const KEY: &str = "coalesce(l.line::json ->> 'key', l.line::json -> 'data' ->> '_key')";
const SEEN: &str = "pgquorum_applier_seen";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
