//! Changing `quorum.readonly_statement` without SQL: within any transaction that changes objects, at whatever isolation
//! level, with whatever settings and rights its session has.

use pgrx::pg_sys;

use super::process;
use super::table::{Order, Row, Table, View};
use super::worker::{self, Failure, Job, lock};
use crate::statements::changed::{Changed, Mentions};
use crate::statements::rows::column;

/// So long a commit waits for those who keep the table; the saver does for milliseconds.
const LOCK_MS: i32 = 5000;

/// Takes back the verdicts that rest on what this transaction has changed. Others see it when it commits. Nothing is left
/// behind when it fails.
///
/// # Errors
/// It could not be done.
pub fn withdraw(changed: &Changed) -> Result<(), Failure> {
    let _patience = worker::wait_at_most(LOCK_MS);
    worker::in_savepoint(|| {
        let Some(table) = open(lock::ROW_EXCLUSIVE) else { return };
        // Most changes concern no statement.
        if !table.any(|row| is_known(row) && changed.concerns(&Stored(row))) {
            return;
        }
        // Of two transactions that withdraw, one waits for the other to end: then it sees what that one has withdrawn. The
        // saver is kept out by the table's lock.
        worker::be_next(Job::Withdrawer);
        let withdrawn = table.change(
            |row| is_known(row) && changed.concerns(&Stored(row)),
            "something that it uses was changed",
        );
        if withdrawn {
            count_change();
        }
    })
}

/// Takes back all verdicts. In a transaction; keeps out all others that save or withdraw until its end.
pub fn sweep() {
    let Some(table) = open(lock::SHARE_ROW_EXCLUSIVE) else { return };
    if table.change(is_known, "something was changed, and it is not known what uses it") {
        count_change();
    }
}

/// Locks the table for saving, until the end of the transaction. False: the extension is not in this database.
pub fn lock_for_saving() -> bool {
    open(lock::SHARE_ROW_EXCLUSIVE).is_some()
}

fn open(level: i32) -> Option<Rows> {
    Table::of_quorum_with(c"readonly_statement", level).map(Rows)
}

/// Is there anything to take back?
fn is_known(row: &Row) -> bool {
    row.smallint(column::VERDICT) != Some(0) || row.bigint(column::CLEAN_CALLS) != Some(0)
}

struct Rows(Table);

impl Rows {
    fn any(&self, meant: impl Fn(&Row) -> bool) -> bool {
        let mut found = false;
        self.0.rows(View::Now, Order::Any, |row| {
            found = meant(row);
            !found
        });
        found
    }

    /// Sets rows back. True: there were any.
    fn change(&self, meant: impl Fn(&Row) -> bool, why: &str) -> bool {
        let mut any = false;
        self.0.replace(|row| {
            if !meant(row) {
                return false;
            }
            any = true;
            let proven = row.smallint(column::VERDICT) == Some(1);
            let served = proven || row.bigint(column::CLEAN_CALLS).is_some_and(|calls| calls > 0);
            if served && row.boolean(column::BARRED) == Some(false) {
                row.set(column::WITHDRAWN, process::now());
                row.set(column::REASON, Some(why));
            }
            row.set(column::VERDICT, Some(0_i16));
            row.set(column::CLEAN_CALLS, Some(0_i64));
            row.set(column::DEPENDS, Some(Vec::<pg_sys::Oid>::new()));
            row.set(column::DEPENDS_ON_ALL, Some(false));
            true
        });
        any
    }
}

fn count_change() {
    if let Some(table) = Table::of_quorum_with(c"statements_counter", lock::ROW_EXCLUSIVE) {
        table.replace(|row| {
            let next = row.bigint(1).map(|count| count + 1);
            row.set(1, next);
            true
        });
    }
}

/// A row, as one that mentions things.
struct Stored<'a>(&'a Row);

impl Mentions for Stored<'_> {
    fn depends(&self, looked_for: &dyn Fn(u32) -> bool) -> bool {
        self.0.oids(column::DEPENDS).into_iter().any(looked_for)
    }

    fn depends_on_all(&self) -> bool {
        self.0.boolean(column::DEPENDS_ON_ALL) == Some(true)
    }

    fn words(&self) -> u64 {
        self.0.bigint(column::WORDS).unwrap_or(-1).cast_unsigned()
    }

    fn text(&self) -> Option<Vec<u8>> {
        let text = self.0.text_in_utf8(column::STATEMENT)?.into_bytes();
        (text.len() as u64 == self.0.number(column::LENGTH)).then_some(text)
    }
}
