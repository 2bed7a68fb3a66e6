//! The rows of `quorum.readonly_statement`, read without SQL: readers of the functions have no rights on the table.

use crate::pg::table::{Order, Row, Table, View};

/// Columns, in order; `sql/statements.sql` makes them.
pub mod column {
    pub const HASH: usize = 0;
    pub const SEARCH_PATH: usize = 1;
    pub const WORDS: usize = 2;
    pub const DEPENDS: usize = 3;
    pub const DEPENDS_ON_ALL: usize = 4;
    pub const VERDICT: usize = 5;
    pub const BARRED: usize = 6;
    pub const CLEAN_CALLS: usize = 7;
    pub const WITHDRAWN: usize = 8;
    pub const REASON: usize = 9;
    pub const PROVEN_LSN: usize = 10;
    pub const LENGTH: usize = 14;
    pub const STATEMENT: usize = 16;
}

/// What a row says about serving.
pub struct Standing {
    pub hash: u64,
    /// In the encoding of the database.
    pub search_path: Vec<u8>,
    pub verdict: u32,
    pub barred: bool,
    pub clean_calls: u64,
    pub proven_lsn: u64,
}

impl Standing {
    fn of(row: &Row) -> Self {
        Self {
            hash: row.bigint(column::HASH).unwrap_or(0).cast_unsigned(),
            search_path: row.bytes(column::SEARCH_PATH).unwrap_or_default(),
            verdict: row.smallint(column::VERDICT).map_or(0, |verdict| verdict.unsigned_abs().into()),
            barred: row.boolean(column::BARRED).unwrap_or(true),
            clean_calls: row.number(column::CLEAN_CALLS),
            proven_lsn: row.lsn(column::PROVEN_LSN),
        }
    }
}

/// Shows what all rows say. False: the extension is not in this database.
pub fn standings(view: View, mut look: impl FnMut(Standing)) -> bool {
    let Some(table) = Table::of_quorum(c"readonly_statement") else { return false };
    table.rows(view, Order::Any, |row| {
        look(Standing::of(row));
        true
    });
    true
}

/// `quorum.statements_counter`: how often what is served has changed, and how often everything was forgotten.
pub fn counters(view: View) -> Option<(u64, u64)> {
    let mut found = None;
    Table::of_quorum(c"statements_counter")?.rows(view, Order::Any, |row| {
        found = Some((row.number(1), row.number(2)));
        false
    });
    found
}
