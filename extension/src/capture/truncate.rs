//! Tables that are being emptied.
//!
//! The log has a TRUNCATE before it happens, when its first triggers are called. Until it has happened, triggers of users can
//! write rows into the tables that it empties, which go with all the others: they are left out, since whoever follows the log
//! would have them behind the TRUNCATE, and keep them.

use std::cell::Cell;

use super::{CAPTURE, LEVEL, VERSIONS, append, look_up, row};
use crate::pg::single::Single;
use crate::pg::trigger::{self, OpenTable, Truncation};
use crate::versions::entry::Entry;

/// Some table may be about to be emptied.
static RUNNING: Single<Cell<bool>> = Single::cell(false);

#[derive(Debug, Default)]
pub struct Emptied {
    /// Tracked tables that are being truncated whole.
    whole: Vec<Whole>,
    tables: Vec<Table>,
}

#[derive(Debug)]
struct Whole {
    root: u32,
    /// Which TRUNCATE does it. Triggers of users that run in it may run commands of their own.
    statement: Truncation,
}

/// A table with rows, and the file that has them: once it is truncated it has another one, or the same, without rows.
#[derive(Debug)]
struct Table {
    relid: u32,
    file: u32,
    /// The nesting level of savepoints: rolled back, it is not emptied.
    level: i32,
    statement: Truncation,
}

impl Emptied {
    pub const fn new() -> Self {
        Self { whole: Vec::new(), tables: Vec::new() }
    }

    /// Forgets what a savepoint of this nesting level takes with it, whenever the statement's memory goes: what is written
    /// next must not be taken for what the TRUNCATE empties. Must not raise anything.
    pub fn rolled_back(&mut self, level: i32) {
        self.tables.retain(|table| table.level < level);
    }

    /// Forgets all: the transaction is over. Must not raise anything.
    pub fn clear(&mut self) {
        self.whole.clear();
        self.tables.clear();
        RUNNING.set(false);
    }
}

/// The TRUNCATE trigger. What empties a tracked table is one entry. What empties one partition deletes its rows.
pub fn truncate(table: OpenTable) {
    let (relid, statement) = (table.relid(), Truncation::running());
    look_up(table);
    let root = CAPTURE.look(|capture| {
        let known = capture.tables.iter().find(|known| known.relid == relid)?;
        let root = known.table.as_ref()?.root;
        let whole = |all: &Whole| (all.root, all.statement) == (root, statement);
        Some((root, capture.emptied.whole.iter().any(whole)))
    });
    let root = match root {
        Some((root, _)) if root == relid => {
            append(table, |table, buffers, place| {
                buffers.append(table.channel, place.level, place.limit, |out| table.write_truncate(out))?;
                let Some(keeping) = table.keeping else { return Ok(()) };
                buffers.append(VERSIONS, place.level, place.limit, |out| Entry::truncated(keeping).put(out))
            });
            Some(root)
        }
        Some((_, false)) => {
            trigger::for_each_row(table, row);
            None
        }
        _ => return,
    };
    let (files, level) = (trigger::files_to_be_emptied(table), LEVEL.get());
    statement.at_end();
    CAPTURE.with(|capture| {
        let emptied = &mut capture.emptied;
        emptied.whole.extend(root.map(|root| Whole { root, statement }));
        emptied.tables.extend(files.into_iter().map(|(relid, file)| Table { relid, file, level, statement }));
        RUNNING.set(true);
    });
}

/// A TRUNCATE is over, or was broken off: another one may look the same. Must not raise anything.
pub fn truncation_ended(statement: Truncation) {
    let _ = CAPTURE.try_with(|capture| {
        let emptied = &mut capture.emptied;
        emptied.whole.retain(|all| all.statement != statement);
        emptied.tables.retain(|table| table.statement != statement);
        RUNNING.set(!(emptied.whole.is_empty() && emptied.tables.is_empty()));
    });
}

/// Is this table about to be emptied by a TRUNCATE that is in the log already?
#[inline]
pub fn goes_with_the_others(table: OpenTable) -> bool {
    RUNNING.get() && is_to_be_emptied(table)
}

#[cold]
fn is_to_be_emptied(table: OpenTable) -> bool {
    let now = (table.relid(), table.file());
    CAPTURE.look(|capture| {
        // Another file says that it is done. PostgreSQL empties a file where it is if this subtransaction has made it.
        let goes = |table: &Table| (table.relid, table.file) == now && !table.statement.has_emptied();
        capture.emptied.tables.iter().any(goes)
    })
}
