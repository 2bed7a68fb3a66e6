//! `quorum.changes`: a channel as rows, for people and SQL.

use std::collections::{HashMap, HashSet, VecDeque};

use pgquorum_change::{Change, Decoder, Header, Op, Schema, json};
use pgrx::PgSqlErrorCode::{ERRCODE_INVALID_PARAMETER_VALUE, ERRCODE_UNDEFINED_TABLE};
use pgrx::prelude::*;

use super::error::FeedError;
use super::read::{LogEntry, Reading, signed};
use crate::error::Refusal;
use crate::pg::datum::{FullXid, JsonText};
use crate::pg::table::{Order, Table, View};

/// Microseconds from 1970 to 2000, where PostgreSQL's times begin.
const PG_EPOCH_US: i64 = 946_684_800_000_000;

/// What the header of a transaction says.
#[derive(Clone, Default)]
struct Transaction {
    commit_us: i64,
    origin: Option<String>,
}

/// A row of `quorum.changes`.
struct Row {
    position: String,
    tick: u64,
    xid: u64,
    transaction: Transaction,
    op: Op,
    table: String,
    key: Option<JsonText>,
    old: Option<JsonText>,
    new: Option<JsonText>,
    unchanged: Option<Vec<String>>,
    sql: Option<String>,
}

/// Goes through the changes of a channel.
struct ChangeReading {
    reading: Reading,
    decoder: Decoder,
    after: u64,
    transaction: Transaction,
    schemas: Schemas,
    /// Changes of the last log row that were not given yet.
    rows: VecDeque<Row>,
}

impl ChangeReading {
    fn new(channel: &str, after: &str, tables: Option<Vec<String>>) -> Result<Self, FeedError> {
        let reading = Reading::new(channel, after)?;
        let schemas = Schemas::new(reading.channel().id, tables)?;
        let after = reading.after();
        let decoder = Decoder::new();
        Ok(Self {
            reading,
            decoder,
            after,
            transaction: Transaction::default(),
            schemas,
            rows: VecDeque::new(),
        })
    }

    fn next(&mut self) -> Result<Option<Row>, FeedError> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                return Ok(Some(row));
            }
            let Some(entry) = self.reading.next()? else { return Ok(None) };
            self.decode(&entry)?;
        }
    }

    fn decode(&mut self, entry: &LogEntry) -> Result<(), FeedError> {
        let damaged = |error: pgquorum_change::Error| self.reading.damaged(entry, &error.to_string());
        let mut changes = self.decoder.feed(&entry.data).map_err(damaged)?;
        if let Some(header) = changes.header {
            self.transaction = about(&header);
        }
        let mut tick = entry.row.first_tick + u64::from(changes.first_is_lost);
        while let Some(change) = changes.next().map_err(damaged)? {
            if tick > self.after {
                let row = self.schemas.row(&change)?;
                if let Some(mut row) = row {
                    row.position = format!("{}:{tick}", entry.row.epoch);
                    (row.tick, row.xid) = (tick, entry.row.xid);
                    row.transaction = self.transaction.clone();
                    self.rows.push_back(row);
                }
            }
            tick += 1;
        }
        if tick == entry.row.last_tick + 1 {
            Ok(())
        } else {
            Err(self.reading.damaged(entry, "it holds another number of changes than its column says"))
        }
    }
}

fn about(header: &Header<'_>) -> Transaction {
    Transaction { commit_us: header.commit_us, origin: header.origin.map(str::to_owned) }
}

/// What the tables looked like, as far as it was needed, and which of them are wanted.
struct Schemas {
    channel: i32,
    known: HashMap<u64, Schema>,
    tables: Option<HashSet<String>>,
}

impl Schemas {
    fn new(channel: i32, tables: Option<Vec<String>>) -> Result<Self, FeedError> {
        let mut schemas = Self { channel, known: HashMap::new(), tables: None };
        if let Some(tables) = tables {
            schemas.load(&|_| true);
            let all: Vec<&Schema> = schemas.known.values().collect();
            if let Some(unknown) = tables.iter().find(|name| !all.iter().any(|schema| is(schema, name))) {
                return Err(FeedError::NoTable(unknown.clone()));
            }
            schemas.tables = Some(tables.into_iter().collect());
        }
        Ok(schemas)
    }

    fn load(&mut self, wanted: &dyn Fn(u64) -> bool) {
        let Some(table) = Table::of_quorum(c"schema_version") else { return };
        let column = |name| table.column(name);
        let (id, channel, columns) = (column(c"id"), column(c"channel"), column(c"columns"));
        let (schema, name) = (column(c"schema_name"), column(c"table_name"));
        // The newest committed ones, whatever this transaction sees: a change never names one that is newer than itself.
        table.rows(View::Now, Order::Any, |row| {
            let version = row.number(id);
            if row.integer(channel) == Some(self.channel) && wanted(version) {
                let text = |column| row.text(column).unwrap_or_default();
                let parsed =
                    Schema::new(version, &text(schema), &text(name), &row.json(columns).unwrap_or_default());
                self.known.extend(parsed.ok().map(|parsed| (version, parsed)));
            }
            true
        });
    }

    /// A change as a row without its place in the log; `None`: it is of a table that is not wanted.
    fn row(&mut self, change: &Change<'_>) -> Result<Option<Row>, FeedError> {
        let id = change.schema_version;
        if !self.known.contains_key(&id) {
            self.load(&|version| version == id);
        }
        let Some(schema) = self.known.get(&id) else {
            return Err(FeedError::NoSchema { channel: self.channel, id });
        };
        let wanted = |tables: &HashSet<String>| tables.iter().any(|name| is(schema, name));
        if !self.tables.as_ref().is_none_or(wanted) {
            return Ok(None);
        }
        let mut unchanged: Vec<String> = Vec::new();
        if let Some(new) = change.new {
            unchanged.extend(json::unchanged_columns(new, schema).map(str::to_owned));
        }
        Ok(Some(Row {
            position: String::new(),
            tick: 0,
            xid: 0,
            transaction: Transaction::default(),
            op: change.op,
            table: format!("{}.{}", schema.schema, schema.table),
            key: object(|out| json::key(out, change, schema)),
            old: object(|out| json::old(out, change, schema)),
            new: object(|out| json::new(out, change, schema)),
            unchanged: (!unchanged.is_empty()).then_some(unchanged),
            sql: change.ddl.map(|ddl| {
                let [tag, text] = [ddl.tag, ddl.sql].map(String::from_utf8_lossy);
                match ddl.tag {
                    _ if text.is_empty() => tag.into_owned(),
                    // Its text is no statement, and does not say which of the two it is.
                    b"INDEX" | b"UNINDEX" => format!("{tag} {text}"),
                    _ => text.into_owned(),
                }
            }),
        }))
    }
}

fn object(write: impl FnOnce(&mut Vec<u8>) -> bool) -> Option<JsonText> {
    let mut out = Vec::new();
    write(&mut out).then_some(JsonText(out))
}

/// Is the table meant by `name`, `schema.table` or just the table?
fn is(schema: &Schema, name: &str) -> bool {
    name == schema.table
        || name.strip_prefix(schema.schema.as_str()).and_then(|rest| rest.strip_prefix('.'))
            == Some(&schema.table)
}

/// The changes of a channel after a position, at most `limit`, optionally only those of some tables (`orders` or
/// `shop.orders`). To go on, give the position of the last row.
///
/// `op` is insert, update, delete, truncate or ddl (then `sql` is the statement). `key` names the row: as it was before an
/// update or delete. `new` lacks the columns in `unchanged`, large values that an update left alone.
///
/// Errors: as `quorum.read_log`; 42P01 the channel has never had such a table, 22023 a limit below 1.
#[pg_extern]
#[allow(clippy::type_complexity)]
fn changes(
    channel: &str,
    after: default!(&str, "'start'"),
    limit: default!(i32, "1000"),
    tables: default!(Option<Vec<String>>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(position, String),
        name!(tick, i64),
        name!(transaction, FullXid),
        name!(committed_at, Option<TimestampWithTimeZone>),
        name!(origin, Option<String>),
        name!(op, String),
        name!(table, String),
        name!(key, Option<JsonText>),
        name!(old, Option<JsonText>),
        name!(new, Option<JsonText>),
        name!(unchanged, Option<Vec<String>>),
        name!(sql, Option<String>),
    ),
> {
    let Some(limit) = usize::try_from(limit).ok().filter(|limit| *limit > 0) else {
        Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, "limit must be at least 1").raise()
    };
    let mut reading = match ChangeReading::new(channel, after, tables) {
        Ok(reading) => reading,
        Err(error) => error.raise(),
    };
    let rows = std::iter::from_fn(move || match reading.next() {
        Ok(row) => row,
        Err(error) => error.raise(),
    });
    TableIterator::new(rows.take(limit).map(|row| {
        let committed_at = TimestampWithTimeZone::try_from(row.transaction.commit_us - PG_EPOCH_US).ok();
        (
            row.position,
            signed(row.tick),
            FullXid(row.xid),
            committed_at,
            row.transaction.origin,
            row.op.name().to_owned(),
            row.table,
            row.key,
            row.old,
            row.new,
            row.unchanged,
            row.sql,
        )
    }))
}

/// The refusal for [`FeedError::NoTable`].
pub fn no_table(name: &str) -> Refusal {
    Refusal::new(ERRCODE_UNDEFINED_TABLE, format!("the channel has never had a table \"{name}\""))
        .hint("SELECT * FROM quorum.tracked_tables lists the present ones; write schema.table, or the table's name alone.")
}
