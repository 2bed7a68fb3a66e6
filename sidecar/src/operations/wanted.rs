//! Tables as requests name them.

use super::checks::Checks;
use crate::follow::TableName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::time::UNIX_EPOCH;

/// The database that is meant where none is named.
const DATABASE_DEFAULT: &str = "data";
/// The schema of a table that is named without one.
const SCHEMA_DEFAULT: &str = "public";

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

impl TableName {
    /// Reads `table`, which is in schema `public`, or `schema.table`.
    pub fn read(text: &str) -> TableName {
        let (schema, table) = text.split_once('.').unwrap_or((SCHEMA_DEFAULT, text));
        TableName { schema: schema.to_owned(), table: table.to_owned() }
    }

    /// As clients of this interface write it: without the schema if that is `public`.
    pub fn short(&self) -> String {
        if self.schema == SCHEMA_DEFAULT { self.table.clone() } else { self.to_string() }
    }
}

/// A table of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    pub database: String,
    #[serde(flatten)]
    pub table: TableName,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.table.short())
    }
}

impl Named {
    /// Reads `database` (or `schema`) and `table`, or `channel`, which was both in one.
    pub fn read(checks: &mut Checks, body: &Map<String, Value>, label: &str) -> Named {
        let prefix = format!("{label}.");
        let (database, table) = match checks.text(body, "channel", &prefix) {
            Some(channel) => match channel.split_once(':') {
                Some((database, table)) => (database.to_owned(), table.to_owned()),
                None => {
                    if !channel.is_empty() {
                        checks.fault(format!("'{prefix}channel' must be of the form schema:table"));
                    }
                    return Named::default();
                }
            },
            None => {
                let database = checks.alias(body, &["database", "schema"], &prefix);
                let table = checks.text(body, "table", &prefix);
                (
                    database.unwrap_or_else(|| DATABASE_DEFAULT.to_owned()),
                    table.unwrap_or_else(|| checks.missing(&format!("{prefix}table"))),
                )
            }
        };
        let named = Named { database, table: TableName::read(&table) };
        for (what, name) in
            [("database", &named.database), ("table", &named.table.schema), ("table", &named.table.table)]
        {
            if name.len() > NAME_BYTES_MAX {
                checks.fault(format!("'{prefix}{what}' has more than {NAME_BYTES_MAX} bytes"));
            }
        }
        if !table.is_empty() && (named.table.schema.is_empty() || named.table.table.is_empty()) {
            checks.fault(format!("'{prefix}table' must be of the form table or schema.table"));
        }
        named
    }
}

/// What is to flow, seen from the cluster that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub table: Named,
    /// The node's changes come here.
    pub subscribe: bool,
    /// The changes made here go there.
    pub publish: bool,
    /// From when on the node's changes are wanted, in microseconds of Unix time; `None`: from now on.
    pub start_us: Option<i64>,
}

impl Wanted {
    pub fn read(checks: &mut Checks, body: &Map<String, Value>, label: &str) -> Wanted {
        let table = Named::read(checks, body, label);
        let prefix = format!("{label}.");
        let subscribe = checks.need_flag(body, "subscribe", &prefix);
        let publish = checks.need_flag(body, "publish", &prefix);
        let start = checks.text(body, "start_time", &prefix).filter(|text| !text.is_empty());
        let start_us = start.and_then(|text| {
            let time = unix_us(&text);
            if time.is_none() {
                checks.fault(format!("'{prefix}start_time' must be in ISO 8601 date format"));
            }
            time
        });
        Wanted { table, subscribe, publish, start_us }
    }

    pub fn flows(&self) -> bool {
        self.subscribe || self.publish
    }
}

/// What is to flow, seen from the other cluster, with what that one needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    #[serde(flatten)]
    pub named: Named,
    pub subscribe: bool,
    pub publish: bool,
    /// As `quorum.describe_table` gives it; `None`: whoever asks does not have it either.
    pub description: Option<Value>,
    /// Where the changes begin that are to be followed.
    pub position: Option<String>,
}

impl Described {
    pub fn flows(&self) -> bool {
        self.subscribe || self.publish
    }
}

/// `2026-01-02T03:04:05.000Z` in microseconds of Unix time.
fn unix_us(text: &str) -> Option<i64> {
    let time = humantime::parse_rfc3339_weak(text).ok()?;
    i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_micros()).ok()
}
