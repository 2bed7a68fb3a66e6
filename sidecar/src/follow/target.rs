//! What is asked of the database that follows. One implementation asks the server beside this node ([`super::local`]),
//! another one stands in for it in tests.

pub use super::source::Answer;
use super::subscription::TableName;
use super::versions::Versions;
use crate::feed::Position;
use bytes::Bytes;
use serde_json::Value;

/// How far a subscription is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None`: nothing was copied yet.
    pub position: Option<Position>,
    /// Tables whose rows are to be copied.
    pub to_copy: Vec<TableName>,
    /// Tables that are behind, and their own positions.
    pub to_catch_up: Vec<(TableName, Position)>,
    pub tables: usize,
    pub stopped: usize,
    /// Of those that have stopped: tables that the source does not track, or did not at some time.
    pub untracked: Vec<TableName>,
    /// The description of the source's tables is to be fetched anew.
    pub refetch: bool,
}

impl Standing {
    /// Nothing is to be done but to follow.
    pub fn follows(&self) -> bool {
        self.position.is_some() && self.to_copy.is_empty() && self.to_catch_up.is_empty() && !self.refetch
    }
}

/// What the extension says of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Up to where whole transactions are applied; `None`: the subscription has no position.
    pub position: Option<Position>,
    /// The local transaction cannot end yet.
    pub in_transaction: bool,
    /// Each transaction of the source needs one of its own here.
    pub one_by_one: bool,
}

/// How a subscription is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub state: &'static str,
    pub code: Option<String>,
    pub detail: Option<String>,
    pub end: Option<Position>,
}

/// What the source is like, as it says when work begins.
#[derive(Clone, Copy, Debug)]
pub struct SourceFound<'a> {
    pub origin: &'a str,
    /// What it tracks.
    pub tables: &'a [TableName],
    /// Bytes of log that a change takes there on average.
    pub change_bytes: Option<u64>,
}

/// The database that follows, for one subscription.
pub trait Target: Versions + Send + Sync + 'static {
    /// The name of this database for others.
    fn origin(&self) -> Answer<'_, String>;
    fn standing(&self) -> Answer<'_, Standing>;
    /// Notes what was found at the source, that work begins, and, `start`, where to begin if nothing is copied. Returns how far
    /// the subscription is when all that is durable, and with it everything that was applied before.
    fn begin<'a>(
        &'a self,
        found: SourceFound<'a>,
        start: Option<Position>,
        report: Report,
    ) -> Answer<'a, Standing>;
    fn add_schemas(&self, schemas: Value) -> Answer<'_, ()>;
    /// Returns when it is durable, and with it everything that was applied before.
    fn report(&self, report: Report) -> Answer<'_, ()>;
    fn report_rows<'a>(&'a self, table: &'a TableName, rows: u64, bytes: u64) -> Answer<'a, ()>;
    fn report_stopped<'a>(&'a self, table: &'a TableName, code: &'a str, message: &'a str) -> Answer<'a, ()>;
    /// All tables that are followed are to be copied anew.
    fn reload(&self) -> Answer<'_, ()>;
    fn applier(&self) -> Answer<'_, Box<dyn Applier>>;
    /// Who holds what the newest applier waits for, in words; `None`: it does not wait for others.
    fn blocked(&self) -> Answer<'_, Option<String>>;
    fn copier(&self) -> Answer<'_, Box<dyn Copier>>;
    /// A time as this database reads it, in microseconds of Unix time.
    fn time<'a>(&'a self, text: &'a str) -> Answer<'a, i64>;
}

/// A session that applies changes.
pub trait Applier: Send {
    /// Applies whole frames. `ends`: at the end no transaction of the source is open, so this one can end. An empty batch
    /// tells the position. After an error other than an unknown version or `OneByOne` the session is of no use.
    fn apply<'a>(&'a mut self, batch: Vec<u8>, ends: bool, only: Option<&'a str>) -> Answer<'a, Applied>;
}

/// A session that copies one table.
pub trait Copier: Send {
    /// Prepares for the table; returns the columns that are wanted of it.
    fn begin<'a>(
        &'a mut self,
        table: &'a TableName,
        columns: &'a [String],
        origin: &'a str,
    ) -> Answer<'a, Vec<String>>;
    fn write(&mut self, lines: Bytes) -> Answer<'_, ()>;
    /// Everything is here: the rows and the table's position become visible together.
    fn finish<'a>(&'a mut self, table: &'a TableName, at: Position, rows: u64, bytes: u64) -> Answer<'a, ()>;
}
