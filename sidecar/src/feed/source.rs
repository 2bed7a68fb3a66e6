//! What the feed needs of a database. One implementation asks the server beside this node ([`super::server`]), another
//! one stands in for it in tests.

use super::error::{FeedError, Result};
use super::position::Position;
use bytes::Bytes;
use pgquorum_change::Schema;
use serde_json::Value;
use std::fmt;
use std::ops::Range;
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

/// One row of the log: a chunk of a transaction's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    pub epoch: u64,
    /// The first change that ends in this chunk; where none does, the one that is under way.
    pub first_tick: u64,
    /// The last change that ends in this chunk; where none does, `first_tick - 1`.
    pub last_tick: u64,
    /// The transaction.
    pub xid: u64,
    pub flags: u32,
    data: Range<usize>,
}

/// Set in `flags`: the chunk is the last of its transaction in this channel.
pub const LAST: u32 = 2;

/// Log rows in the order of their ticks, all their bytes in one buffer.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    rows: Vec<LogRow>,
    bytes: Vec<u8>,
    /// Why there are no more: the next row cannot be read.
    pub broken: Option<FeedError>,
}

impl Rows {
    pub fn push(&mut self, epoch: u64, ticks: (u64, u64), xid: u64, flags: u32, data: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(data);
        let data = begin..self.bytes.len();
        self.rows.push(LogRow { epoch, first_tick: ticks.0, last_tick: ticks.1, xid, flags, data });
    }

    /// The rows with their chunks.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&LogRow, &[u8])> {
        self.rows.iter().map(|row| (row, &self.bytes[row.data.clone()]))
    }

    /// How much memory the chunks take.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// A change of channels, tables or followers: a function of the extension and those of its arguments that are given.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name in schema `quorum`.
    pub function: &'static str,
    pub arguments: Vec<Argument>,
}

/// A named argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    pub name: &'static str,
    /// The type that its text is cast to.
    pub type_name: &'static str,
    pub value: Given,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    Text(String),
    Texts(Vec<String>),
    Number(i64),
}

impl Call {
    pub fn new(function: &'static str) -> Call {
        Call { function, arguments: Vec::new() }
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
    /// What `COPY (…) TO STDOUT` is given.
    pub query: String,
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
    /// The channel's end, as soon as it is not `after` any more, at the latest after `timeout`.
    fn wait<'a>(&'a self, id: &'a ChannelId, after: &'a str, timeout: Duration) -> Answer<'a, Position>;
    /// The position that a tick alone means.
    fn find<'a>(&'a self, id: &'a ChannelId, tick: u64) -> Answer<'a, Position>;
    /// Log rows from the change after `after` on, and what is needed to read them, up to about `max_bytes`.
    fn read<'a>(&'a self, id: &'a ChannelId, after: &'a str, max_bytes: usize) -> Answer<'a, Rows>;
    /// Carries out a change, on the leader only; the function's result as text.
    fn call<'a>(&'a self, database: &'a str, call: Call) -> Answer<'a, String>;
    /// One snapshot for these tables, or for all of the channel if none is named; on the leader only.
    fn dump<'a>(&'a self, id: &'a ChannelId, tables: &'a [String]) -> Answer<'a, Box<dyn Snapshot>>;
}
