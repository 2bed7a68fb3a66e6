//! What is asked of a source: a channel of another cluster. One implementation asks over HTTP ([`super::remote`]), another
//! one stands in for it in tests.

use super::subscription::TableName;
use super::trouble::Result;
use super::versions::Version;
use crate::feed::Position;
use bytes::Bytes;
use serde_json::Value;
use std::pin::Pin;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A channel as the source describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    pub origin: String,
    pub end: Position,
    pub version: Version,
    /// Bytes of log that a change takes on average; `None`: it does not say, or has no change.
    pub change_bytes: Option<u64>,
    pub tables: Vec<TableName>,
}

/// A copy that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyBegun {
    pub id: String,
    pub position: Position,
    /// The channel's version in the snapshot.
    pub version: Version,
    pub origin: String,
    pub tables: Vec<(TableName, Vec<String>)>,
}

/// A channel of another cluster.
pub trait Source: Send + Sync + 'static {
    fn channel(&self) -> Answer<'_, Channel>;
    /// Versions of the channel's tables, as `quorum.add_schemas` takes them.
    fn schemas(&self) -> Answer<'_, Value>;
    /// The position behind all that was committed before the call, whether readers have seen it yet or not.
    fn end(&self) -> Answer<'_, Position>;
    /// The position before the first transaction that was committed at this time (Unix time in microseconds) or later.
    fn position_at(&self, time_us: i64) -> Answer<'_, Position>;
    fn begin_copy<'a>(&'a self, tables: &'a [TableName]) -> Answer<'a, CopyBegun>;
    fn renew_copy<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    fn end_copy<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// These columns of a table in COPY's text format, with its end marked; only of rows that fulfil the condition.
    fn copy<'a>(
        &'a self,
        id: &'a str,
        table: &'a TableName,
        columns: &'a [String],
        filter: Option<&'a str>,
    ) -> Answer<'a, Box<dyn Bytestream>>;
    /// The frames of the binary stream.
    fn stream(&self, after: Position) -> Answer<'_, Box<dyn Bytestream>>;
    /// Keeps the log after this position (`None`: from now on) for the follower of this name.
    fn register<'a>(&'a self, follower: &'a str, after: Option<Position>) -> Answer<'a, ()>;
    /// The follower has everything up to there. False: nobody of that name is registered.
    fn move_to<'a>(&'a self, follower: &'a str, position: Position) -> Answer<'a, bool>;
    fn forget<'a>(&'a self, follower: &'a str) -> Answer<'a, ()>;
    /// The node that was read from is not to be asked again before the others.
    fn leave(&self);
}

/// An answer that comes in parts.
pub trait Bytestream: Send {
    /// The next bytes; `None`: it has ended. It may be asked again after it was given up.
    fn next(&mut self) -> Answer<'_, Option<Bytes>>;
}
