//! What the SQL side of capture needs of this one. None of it is for users.

use pgrx::prelude::*;

use crate::pg::{encoding, filter, relcache, statement};

/// Parses and checks a row filter, given in the encoding of the database; what is to be stored, and the columns it looks
/// at.
#[pg_extern]
fn parse_filter(
    relation: pg_sys::Oid,
    condition: &[u8],
) -> TableIterator<'static, (name!(tree, String), name!(columns, Vec<i16>))> {
    let parsed = filter::parse(relation, condition);
    TableIterator::once((parsed.tree, parsed.columns))
}

/// Do the columns that a stored filter looks at still have the types that it was parsed with?
#[pg_extern]
fn filter_holds(relation: pg_sys::Oid, tree: &str) -> bool {
    filter::holds(relation, tree)
}

/// Puts an entry about a tracked table into the log, with the text of the statement that runs.
#[pg_extern]
fn record_entry(channel: i32, schema_version: i64, tag: &str) {
    // That tracking begins or ends, a channel rests or goes on, or caches are flushed, has no statement of its own.
    let own = matches!(tag, "TRACK" | "UNTRACK" | "STOP" | "START" | "FLUSH CACHES");
    let sql = if own { String::new() } else { statement::text() };
    super::ddl(channel, u64::try_from(schema_version).unwrap_or(0), tag, &sql);
}

/// Puts an entry about an index of a tracked table into the log. What is said of it is in the encoding of the database.
#[pg_extern]
fn record_index(channel: i32, schema_version: i64, tag: &str, described: &[u8]) {
    let described = encoding::to_utf8(described);
    super::ddl(channel, u64::try_from(schema_version).unwrap_or(0), tag, &described);
}

/// The next utility statement is ours: the event triggers let it pass.
#[pg_extern]
fn next_is_own() {
    statement::next_is_own();
}

/// Is the utility statement that runs now one of ours?
#[pg_extern]
fn statement_is_own() -> bool {
    statement::is_own()
}

/// Tells all sessions to look up anew what they keep about a table.
#[pg_extern]
fn forget_cached(relation: pg_sys::Oid) {
    relcache::forget_everywhere(relation);
}
