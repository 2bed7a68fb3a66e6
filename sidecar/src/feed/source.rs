//! What the feed needs of a database. One implementation asks the server beside this node ([`super::server`]), another
//! one stands in for it in tests.

use super::error::{FeedError, Result};
use super::position::Position;
use bytes::Bytes;
pub use pgquorum_change::LogRow;
use pgquorum_change::{Schema, take_row};
use serde_json::Value;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

/// A channel of a database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId {
    pub database: String,
    pub channel: String,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of database {}", self.channel, self.database)
    }
}

/// Set in `flags`: the chunk is the last of its transaction in this channel.
pub const LAST: u32 = 2;

/// Log rows in the order of their ticks, in one buffer, as [`pgquorum_change::put_row`] writes them.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    bytes: Vec<u8>,
    last_change: Option<Position>,
    /// Why there are no more: the next row cannot be read.
    pub broken: Option<FeedError>,
}

impl Rows {
    #[cfg(test)]
    pub fn push(&mut self, row: &LogRow, chunk: &[u8]) {
        let mut pack = Vec::new();
        pgquorum_change::put_row(&mut pack, row, chunk);
        assert!(self.push_pack(&pack));
    }

    /// Appends whole rows; false: these bytes are something else, and none of them was taken.
    #[must_use]
    pub fn push_pack(&mut self, pack: &[u8]) -> bool {
        let (mut rest, mut last_change) = (pack, self.last_change);
        while !rest.is_empty() {
            let Some((row, _)) = take_row(&mut rest) else { return false };
            if row.ends_a_change() {
                last_change = Some(Position { epoch: row.epoch, tick: row.last_tick });
            }
        }
        self.last_change = last_change;
        self.bytes.extend_from_slice(pack);
        true
    }

    /// The rows with their chunks.
    pub fn iter(&self) -> impl Iterator<Item = (LogRow, &[u8])> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || take_row(&mut rest))
    }

    /// The rows as they go to a reader of the binary stream, in parts of about `part_bytes`, each of whole rows.
    pub fn parts(&self, part_bytes: usize) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let part = rest;
            while part.len() - rest.len() < part_bytes && take_row(&mut rest).is_some() {}
            let length = part.len() - rest.len();
            (length > 0).then(|| &part[..length])
        })
    }

    /// The last change that ends in these rows.
    pub fn last_change(&self) -> Option<Position> {
        self.last_change
    }

    /// How much memory the rows take.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A change of channels, tables, followers or subscriptions: a function of the extension and those of its arguments that are given.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name in schema `quorum`.
    pub function: &'static str,
    pub arguments: Vec<Argument>,
    /// It gives rows; they come as one JSON array.
    pub rows: bool,
}

/// A named argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    pub name: &'static str,
    /// The type that its text is cast to, by its name in `pg_catalog`: what another path finds there may be anybody's.
    pub type_name: &'static str,
    pub value: Given,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    Text(String),
    Texts(Vec<String>),
    Number(i64),
    /// NULL.
    Nothing,
}

impl Call {
    pub fn new(function: &'static str) -> Call {
        Call { function, arguments: Vec::new(), rows: false }
    }

    pub fn rows(function: &'static str) -> Call {
        Call { rows: true, ..Call::new(function) }
    }

    pub fn with(mut self, name: &'static str, type_name: &'static str, value: Given) -> Call {
        self.arguments.push(Argument { name, type_name, value });
        self
    }

    pub fn text(self, name: &'static str, type_name: &'static str, value: &str) -> Call {
        self.with(name, type_name, Given::Text(value.to_owned()))
    }
}

/// A table as a dump begins it.
#[derive(Clone, Debug)]
pub struct DumpTable {
    /// How its rows are written.
    pub schema: Schema,
    /// What follows `FROM`: the table, and the filter that its rows pass.
    pub from: String,
}

impl DumpTable {
    /// The names of its columns, in their order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.schema.columns.iter().map(|column| column.name.as_str())
    }

    /// The statement that copies these columns of its rows.
    pub fn copy<'a>(&self, columns: impl Iterator<Item = &'a str>) -> String {
        let columns: Vec<String> = columns.map(quoted).collect();
        format!("COPY (SELECT {} FROM {}) TO STDOUT", columns.join(", "), self.from)
    }

    /// The same of rows that fulfil a condition, which looks at nothing but what is copied here anyway, and at no row that the
    /// channel leaves out.
    pub fn copy_where<'a>(&self, columns: impl Iterator<Item = &'a str>, condition: &str) -> String {
        let columns: Vec<String> = columns.map(quoted).collect();
        let all: Vec<String> = self.columns().map(quoted).collect();
        format!(
            "COPY (SELECT {} FROM (SELECT {} FROM {} OFFSET 0) AS t WHERE ({condition})) TO STDOUT",
            columns.join(", "),
            all.join(", "),
            self.from
        )
    }

    /// The statement that copies its rows in the order of the key, which is the same each time.
    pub fn copy_in_order(&self) -> String {
        let columns: Vec<String> = self.columns().map(quoted).collect();
        let key = self.schema.columns.iter().filter(|column| column.key).map(|column| quoted(&column.name));
        let key: Vec<String> = key.collect();
        let order = if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) };
        format!("COPY (SELECT {} FROM {}{order}) TO STDOUT", columns.join(", "), self.from)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table of a snapshot that is read by many, with how large it is thought to be.
#[derive(Clone, Debug)]
pub struct SharedTable {
    pub table: DumpTable,
    pub relid: u32,
    /// `None`: the server has never counted.
    pub rows: Option<u64>,
    pub bytes: u64,
}

/// A snapshot of tables that several sessions read at the same time, held until this is dropped.
pub trait Shared: Send + Sync {
    fn position(&self) -> Position;
    /// The name of the database where the changes were made that say of no other one.
    fn origin(&self) -> &str;
    /// The channel's `database_version` in it, and the tick after which that began.
    fn version(&self) -> (u64, u64);
    fn tables(&self) -> &[SharedTable];
    /// False: the session that held it is gone, nobody can begin to read any more.
    fn is_held(&self) -> bool;
    /// A condition of a table, checked, and as the database writes it.
    fn condition<'a>(&'a self, table: &'a SharedTable, text: &'a str) -> Answer<'a, String>;
    /// Runs a statement of [`DumpTable::copy`] or [`DumpTable::copy_where`] in the snapshot.
    fn open<'a>(&'a self, statement: &'a str) -> Answer<'a, Box<dyn CopyOut>>;
}

/// A table that is being copied.
pub trait CopyOut: Send {
    /// More lines in COPY's text format, whole or in parts; `None` at the end.
    fn next(&mut self) -> Answer<'_, Option<Bytes>>;
}

/// A snapshot of all tables of a channel, held until this is dropped.
pub trait Snapshot: Send {
    fn position(&self) -> Position;
    fn tables(&self) -> &[DumpTable];
    /// Begins to copy a table.
    fn open(&mut self, table: usize) -> Answer<'_, ()>;
    /// More lines of the table in COPY's text format, whole or in parts; `None` at its end.
    fn next(&mut self) -> Answer<'_, Option<Bytes>>;
}

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A database with channels.
pub trait Source: Send + Sync + 'static {
    /// The database that is meant where none is named.
    fn default_database(&self) -> &str;
    /// The state of all channels, of one if it is named: rows of `quorum.channel_state`.
    fn states<'a>(&'a self, database: &'a str, channel: Option<&'a str>) -> Answer<'a, Vec<Value>>;
    /// The tables of the channel: rows of `quorum.tracked_tables`.
    fn tables<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>>;
    /// Versions of tables that the channel has records of; of all, or the one with this number.
    fn schemas<'a>(&'a self, id: &'a ChannelId, version: Option<u64>) -> Answer<'a, Vec<Value>>;
    fn followers<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>>;
    /// What the channel's log consists of: `database` (oid), `server` (system identifier), `state` (row of
    /// `quorum.channel_state`, null if there is no such channel), `epochs` and `segments` (number and first tick of each).
    fn log<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Value>;
    /// The tables of the channel: rows of `quorum.schema_version` with their `indexes`, as far as its log tells of indexes.
    fn table_details<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>>;
    /// The channel's end, as soon as it is not `after` any more, at the latest after `timeout`.
    fn wait<'a>(&'a self, id: &'a ChannelId, after: &'a str, timeout: Duration) -> Answer<'a, Position>;
    /// The position that a tick alone means.
    fn find<'a>(&'a self, id: &'a ChannelId, tick: u64) -> Answer<'a, Position>;
    /// Log rows from the change after `after` on, and what is needed to read them, up to about `max_bytes`: where that change
    /// is longer, only its beginning.
    fn read<'a>(&'a self, id: &'a ChannelId, after: &'a str, max_bytes: usize) -> Answer<'a, Rows>;
    /// Subscriptions of this database, or the one of this name: rows of `quorum.subscription_state`.
    fn subscriptions<'a>(&'a self, database: &'a str, name: Option<&'a str>) -> Answer<'a, Vec<Value>>;
    /// Their tables: rows of `quorum.subscription_tables`.
    fn subscription_tables<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Vec<Value>>;
    /// What their changes met: rows of `quorum.conflicts`.
    fn conflicts<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Vec<Value>>;
    /// Changes that were left out, by their numbers: rows of `quorum.rejected_changes`.
    fn rejected<'a>(
        &'a self,
        database: &'a str,
        name: &'a str,
        after: u64,
        limit: u64,
    ) -> Answer<'a, Vec<Value>>;
    /// One with what is secret: the row of `quorum.subscription`.
    fn subscription<'a>(&'a self, database: &'a str, name: &'a str) -> Answer<'a, Option<Value>>;
    /// Rows of `quorum.channel_sequences`; on the leader only.
    fn sequences<'a>(&'a self, id: &'a ChannelId) -> Answer<'a, Vec<Value>>;
    /// What a function says that changes nothing, as JSON; a row as an object.
    fn ask<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, Value>;
    /// Carries out a change, on the leader only; the function's result as text.
    fn call<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, String>;
    /// Makes the database, and the extension in it, where they are not there yet; on the leader only.
    fn create_database<'a>(&'a self, database: &'a str) -> Answer<'a, ()>;
    /// One snapshot for these tables, or for all of the channel if none is named; on the leader only.
    fn dump<'a>(&'a self, id: &'a ChannelId, tables: &'a [String]) -> Answer<'a, Box<dyn Snapshot>>;
    /// The same for several readers at the same time.
    fn share<'a>(&'a self, id: &'a ChannelId, tables: &'a [String]) -> Answer<'a, Box<dyn Shared>>;
}
