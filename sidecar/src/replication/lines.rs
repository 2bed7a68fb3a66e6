//! Lines of the log and of dumps: one object each, compact, with the attributes in one fixed order. Some clients look for
//! bytes instead of reading JSON.

use super::collections::{Collection, Index, parameters, unique_id};
use super::names::{self, Members};
use super::tick::Tick;
use pgquorum_change::{Change, Encoder, Image, Old, OldImage, Op, Schema, Value, change, json};
use std::io::Write;

pub const UPSERT: u16 = 2300;
pub const EDGE: u16 = 2301;
pub const REMOVAL: u16 = 2302;
pub const BEGIN: u16 = 2200;
pub const COMMIT: u16 = 2201;
pub const CREATED: u16 = 2000;
pub const DROPPED: u16 = 2001;
pub const RENAMED: u16 = 2002;
pub const CHANGED: u16 = 2003;
pub const TRUNCATED: u16 = 2004;
pub const INDEX_CREATED: u16 = 2100;
pub const INDEX_DROPPED: u16 = 2101;
pub const LOGGER_STOPPED: u16 = 1000;
pub const LOGGER_STARTED: u16 = 1001;

/// Whose words the lines are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `logger-follow`: `database` and `cid`.
    Logger,
    /// `wal/tail`: `db` and `cuid`.
    Wal,
}

/// Writes lines of one log.
pub struct Lines {
    dialect: Dialect,
    server: u64,
    /// `,"database":"1"`, ready to be written.
    database: Vec<u8>,
}

impl Lines {
    /// `name` and `oid` are the database's.
    pub fn new(dialect: Dialect, server: u64, name: &str, oid: u64) -> Lines {
        let mut database = Vec::new();
        match dialect {
            Dialect::Logger => {
                let _ = write!(database, ",\"database\":\"{oid}\"");
            }
            Dialect::Wal => {
                database.extend_from_slice(b",\"db\":");
                json::string(&mut database, name.as_bytes());
            }
        }
        Lines { dialect, server, database }
    }

    fn head(&self, out: &mut Vec<u8>, tick: Tick, kind: u16, tid: u64) {
        let _ = write!(out, "{{\"tick\":\"{tick}\",\"type\":{kind},\"tid\":\"{tid}\"");
        out.extend_from_slice(&self.database);
    }

    fn collection(&self, out: &mut Vec<u8>, cid: u64) {
        let _ = match self.dialect {
            Dialect::Logger => write!(out, ",\"cid\":\"{cid}\""),
            Dialect::Wal => write!(out, ",\"cuid\":\"{}\"", unique_id(self.server, cid)),
        };
    }

    /// The beginning of a transaction, with what it does to which collection if that is known.
    pub fn begin(&self, out: &mut Vec<u8>, tick: Tick, tid: u64, operations: Option<&[(u64, String, u64)]>) {
        self.head(out, tick, BEGIN, tid);
        if let (Dialect::Logger, Some(operations)) = (self.dialect, operations) {
            out.extend_from_slice(b",\"collections\":[");
            for (at, (cid, name, count)) in operations.iter().enumerate() {
                let comma = if at > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{{\"cid\":\"{cid}\",\"name\":");
                json::string(out, name.as_bytes());
                let _ = write!(out, ",\"operations\":{count}}}");
            }
            out.push(b']');
        }
        out.extend_from_slice(b"}\n");
    }

    pub fn commit(&self, out: &mut Vec<u8>, tick: Tick, tid: u64) {
        self.head(out, tick, COMMIT, tid);
        out.extend_from_slice(b"}\n");
    }

    /// A row as it is after a change.
    pub fn upsert(&self, out: &mut Vec<u8>, tick: Tick, tid: u64, of: &Collection, key: &str, row: &[u8]) {
        self.operation(out, tick, upserted(of), tid, of, key);
        document(out, of, key, tick, row);
        out.extend_from_slice(b"}\n");
    }

    /// A row that is gone.
    pub fn removal(&self, out: &mut Vec<u8>, tick: Tick, tid: u64, of: &Collection, key: &str) {
        self.operation(out, tick, REMOVAL, tid, of, key);
        let _ = write!(out, "{{\"_key\":\"{key}\",\"_rev\":\"{tick}\"}}}}");
        out.push(b'\n');
    }

    fn operation(&self, out: &mut Vec<u8>, tick: Tick, kind: u16, tid: u64, of: &Collection, key: &str) {
        self.head(out, tick, kind, tid);
        self.collection(out, of.cid);
        let _ = write!(out, ",\"key\":\"{key}\",\"rev\":\"{tick}\",\"cname\":\"{}\",\"data\":", of.name);
    }

    /// The logger was stopped when the log ended at `last`; without that, it was started.
    pub fn logger(&self, out: &mut Vec<u8>, tick: Tick, last: Option<Tick>) {
        self.head(out, tick, if last.is_some() { LOGGER_STOPPED } else { LOGGER_STARTED }, 0);
        if let Some(last) = last {
            let _ = write!(out, ",\"lastTick\":\"{last}\"");
        }
        out.extend_from_slice(b"}\n");
    }

    /// Something that became of a collection as a whole.
    pub fn about(&self, out: &mut Vec<u8>, tick: Tick, kind: u16, of: &Collection) {
        self.head(out, tick, kind, 0);
        self.collection(out, of.cid);
        let described = match kind {
            CREATED | CHANGED => Some(parameters(of)),
            RENAMED => Some([("name".to_owned(), of.name.clone().into())].into_iter().collect()),
            _ => None,
        };
        let _ = write!(out, ",\"cname\":\"{}\"", of.name);
        if let Some(described) = described {
            let label = if self.dialect == Dialect::Wal { "data" } else { "collection" };
            let _ = write!(out, ",\"{label}\":{}", serde_json::Value::Object(described));
        }
        out.extend_from_slice(b"}\n");
    }

    /// A collection has got an index, or lost one.
    pub fn index(&self, out: &mut Vec<u8>, tick: Tick, of: &Collection, index: &Index, got: bool) {
        self.head(out, tick, if got { INDEX_CREATED } else { INDEX_DROPPED }, 0);
        self.collection(out, of.cid);
        let Index { id, kind, unique, fields } = index;
        let _ = write!(out, ",\"cname\":\"{}\"", of.name);
        let wal = self.dialect == Dialect::Wal;
        if got {
            let label = if wal { "data" } else { "index" };
            let _ = write!(out, ",\"{label}\":{{\"id\":\"{id}\",\"type\":\"{kind}\"");
            let _ = write!(out, ",\"unique\":{unique},\"sparse\":{unique},\"fields\":[");
            for (at, field) in fields.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                json::string(out, field.as_bytes());
            }
            out.extend_from_slice(b"]}}\n");
        } else if wal {
            let _ = writeln!(out, ",\"data\":{{\"id\":\"{id}\"}}}}");
        } else {
            let _ = writeln!(out, ",\"id\":\"{id}\"}}");
        }
    }
}

fn upserted(of: &Collection) -> u16 {
    if of.edge { EDGE } else { UPSERT }
}

/// A line of a dump. `rev`: the tick of the snapshot.
pub fn dumped(out: &mut Vec<u8>, tick: Option<u64>, of: &Collection, key: &str, rev: Tick, row: &[u8]) {
    out.push(b'{');
    if let Some(tick) = tick {
        let _ = write!(out, "\"tick\":\"{tick}\",");
    }
    let kind = upserted(of);
    let _ = write!(out, "\"type\":{kind},\"key\":\"{key}\",\"rev\":\"{rev}\",\"data\":");
    document(out, of, key, rev, row);
    out.extend_from_slice(b"}\n");
}

/// The object of a row, with what every document has in front of it. Neither names nor keys need escapes in JSON.
fn document(out: &mut Vec<u8>, of: &Collection, key: &str, rev: Tick, row: &[u8]) {
    let _ = write!(out, "{{\"_id\":\"{}/{key}\",\"_key\":\"{key}\",\"_rev\":\"{rev}\"", of.name);
    let whole;
    let mut columns = row.strip_prefix(b"{").unwrap_or(row);
    if of.documents
        && let Some(members) = members(row)
    {
        whole = members;
        columns = &whole;
    }
    if columns != b"}" {
        out.push(b',');
    }
    out.extend_from_slice(columns);
}

/// The attributes of a whole document and the bracket behind them: what is in its column `data`, and the two ends of an edge.
fn members(row: &[u8]) -> Option<Vec<u8>> {
    let mut row: Members<'_> = serde_json::from_slice(row).ok()?;
    let mut document = Members::new();
    for name in ["_from", "_to"] {
        document.extend(row.remove(name).map(|value| (name.to_owned(), value)));
    }
    let data = row.remove("data").filter(|data| data.get() != "null");
    match data.map(|data| serde_json::from_str::<Members<'_>>(data.get()).map_err(|_| data)) {
        Some(Ok(data)) => {
            let own = |name: &str| matches!(name, "_id" | "_key" | "_rev") || document.contains_key(name);
            let data: Vec<_> = data.into_iter().filter(|(name, _)| !own(name)).collect();
            document.extend(data);
        }
        None => {}
        // It is no object.
        Some(Err(other)) => drop(document.insert("data".to_owned(), other)),
    }
    Some(serde_json::to_vec(&document).ok()?.split_off(1))
}

/// What a change of a row says: under which keys the row was and is, and how it looks now.
#[derive(Debug, Default)]
pub struct Row {
    pub old_key: Option<String>,
    pub new_key: Option<String>,
    /// The object of all columns.
    pub object: Vec<u8>,
    record: Vec<u8>,
}

/// Large values that an update left alone were not recorded, and the old row is not there to take them from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete;

impl Row {
    /// Reads a change of a row.
    ///
    /// # Errors
    /// The row is not whole.
    pub fn read(&mut self, found: &Change, schema: &Schema) -> Result<(), Incomplete> {
        self.old_key = match found.old {
            Some(OldImage::Key(image)) => Some(joined(image.values())),
            Some(OldImage::Full(image)) => Some(of_row(image, schema)),
            None => None,
        };
        self.new_key = found.new.map(|image| of_row(image, schema));
        self.object.clear();
        let Some(new) = found.new else { return Ok(()) };
        if new.values().all(|value| value != Value::Unchanged) {
            json::new(&mut self.object, found, schema);
            return Ok(());
        }
        let Some(OldImage::Full(old)) = found.old else { return Err(Incomplete) };
        self.record.clear();
        let mut encoder = Encoder::begin(&mut self.record, Op::Insert, schema.id, Old::None, true);
        encoder.image(new.len());
        for (new, old) in new.values().zip(old.values()) {
            match if new == Value::Unchanged { old } else { new } {
                Value::Text(text) => encoder.text(&text),
                Value::Null => encoder.null(),
                Value::Unchanged => return Err(Incomplete),
            }
        }
        let merged = change(&mut self.record.as_slice()).map_err(|_| Incomplete)?;
        json::new(&mut self.object, &merged, schema);
        Ok(())
    }
}

fn of_row(image: Image, schema: &Schema) -> String {
    joined(image.values().zip(&schema.columns).filter(|(_, column)| column.key).map(|(value, _)| value))
}

fn joined<'v>(values: impl Iterator<Item = Value<'v>>) -> String {
    let mut key = String::new();
    for value in values {
        let text = if let Value::Text(text) = &value { text.as_ref() } else { b"" };
        names::key_value(&mut key, text);
    }
    key
}

#[cfg(test)]
mod tests;
