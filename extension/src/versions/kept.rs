//! What `quorum.versioned_table` says, kept in each process until it changes.

use std::cell::RefCell;

use super::HERE;
use crate::pg::single::Single;
use crate::pg::table::{Key, Order, Row, Table, View};
use crate::pg::version_rows::Stored;
use crate::pg::worker::lock;
use crate::pg::{relcache, sequence};

/// Columns of the table, by their order.
mod column {
    pub const RELID: usize = 0;
    pub const KEEPING: usize = 1;
    pub const TRUNCATED_US: usize = 3;
    pub const TRUNCATED_ORIGIN: usize = 4;
}

/// A table whose rows' versions are kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The number under which they are kept.
    pub keeping: i32,
    /// When the table was emptied last, by whom: all rows that have no later version were deleted then.
    pub truncated: Option<Stored>,
}

static ALL: Single<RefCell<Option<Vec<Kept>>>> = Single::new(None);

/// After notices of changed tables.
pub fn forget() {
    let _ = ALL.try_with(Option::take);
}

/// When tables with these numbers were emptied last, in microseconds since 1970.
pub fn truncated_us(keeping: i32) -> Option<i64> {
    if ALL.look(Option::is_none) {
        load();
    }
    ALL.look(|all| {
        let kept = all.iter().flatten().find(|kept| kept.keeping == keeping)?;
        kept.truncated.map(|truncated| truncated.commit_us)
    })
}

#[cold]
fn load() {
    let mut found = Vec::new();
    if let Some(table) = Table::of_quorum_in_trigger(c"versioned_table") {
        // Watched before it is read: a change in between is noticed the next time.
        relcache::watch(table.oid());
        table.rows(View::Now, Order::Any, |row| {
            found.extend(of(row));
            true
        });
    }
    ALL.replace(Some(found));
}

fn of(row: &Row) -> Option<Kept> {
    let truncated = row.bigint(column::TRUNCATED_US).map(|commit_us| Stored {
        commit_us,
        origin: row.smallint(column::TRUNCATED_ORIGIN).unwrap_or(HERE),
        deleted: true,
    });
    Some(Kept { keeping: row.integer(column::KEEPING)?, truncated })
}

/// What is kept of a table at this moment; `None`: nothing.
pub fn of_table(relid: u32) -> Option<Kept> {
    let table = Table::of_quorum_in_trigger(c"versioned_table")?;
    let mut found = None;
    table.matching(View::Now, Key::Oid(relid), |row| {
        found = of(row);
        false
    });
    found
}

/// Writes down that a table was emptied. What was kept of its rows counts no more, whatever its time: the number of the
/// table's versions is another one from here on, and is returned. `None`: they are not kept any more. Nobody else writes
/// the table's entry: this transaction has locked the table itself.
pub fn truncate(keeping: i32, truncated: &Stored) -> Option<i32> {
    let table = Table::of_quorum_in_trigger_with(c"versioned_table", lock::ROW_EXCLUSIVE)?;
    let next = i32::try_from(sequence::next(c"versioned_table_keeping_seq")?).ok()?;
    let mut relid = None;
    table.replace(|row| {
        if row.integer(column::KEEPING) != Some(keeping) {
            return false;
        }
        relid = Some(row.oid(column::RELID));
        row.set(column::KEEPING, Some(next));
        row.set(column::TRUNCATED_US, Some(truncated.commit_us));
        row.set(column::TRUNCATED_ORIGIN, Some(truncated.origin));
        true
    });
    let relid = relid?;
    [relid, table.oid()].into_iter().for_each(|oid| relcache::forget_everywhere(oid.into()));
    Some(next)
}
