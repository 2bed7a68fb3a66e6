//! Numbers for the names of origins, so that a row's version does not hold a text: `quorum.origin`.

use std::cell::RefCell;

use pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;

use super::HERE;
use crate::error::Refusal;
use crate::pg::encoding;
use crate::pg::table::{Order, Table, View, named};
use crate::pg::worker::{self, Job, lock};

/// Columns of the table, by their order.
mod column {
    pub const ID: usize = 0;
    pub const NAME: usize = 1;
}

/// Numbers that are known to be committed.
#[derive(Default)]
struct Known {
    /// The table that they were read from: the extension may have been made anew.
    table: u32,
    all: Vec<(i16, String)>,
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::new(Known::default());
}

/// What was found may have been this transaction's own, and gone with it. Must not raise anything.
pub fn forget() {
    let _ = KNOWN.try_with(|known| known.try_borrow_mut().map(|mut known| known.all.clear()));
}

/// The number of an origin, which gets one if it has none. The first transaction with a new origin lets others wait that
/// have a new one, too, until it ends.
pub fn number(name: &str) -> i16 {
    if let Some(number) = known(|(_, known)| known == name) {
        return number.0;
    }
    if read(|(_, found)| found == name) {
        return known(|(_, known)| known == name).map_or(HERE, |(number, _)| number);
    }
    make(name)
}

/// The name of an origin. `None`: here, or there is no such number.
pub fn name(number: i16) -> Option<String> {
    if number == HERE {
        return None;
    }
    let is_meant = |origin: &(i16, String)| origin.0 == number;
    if known(is_meant).is_none() {
        read(is_meant);
    }
    known(is_meant).map(|(_, name)| name)
}

fn known(is_meant: impl Fn(&(i16, String)) -> bool) -> Option<(i16, String)> {
    let table = named(c"origin")?;
    KNOWN.with_borrow(|known| {
        known.all.iter().find(|origin| known.table == table && is_meant(origin)).cloned()
    })
}

/// Reads all numbers anew. Is it among them?
fn read(is_meant: impl Fn(&(i16, String)) -> bool) -> bool {
    let all = all();
    let found = all.iter().any(is_meant);
    KNOWN.set(Known { table: named(c"origin").unwrap_or(0), all });
    found
}

fn all() -> Vec<(i16, String)> {
    let mut found = Vec::new();
    if let Some(table) = Table::of_quorum_in_trigger(c"origin") {
        table.rows(View::Now, Order::Any, |row| {
            found.extend(row.smallint(column::ID).zip(row.text_in_utf8(column::NAME)));
            true
        });
    }
    found
}

#[cold]
fn make(name: &str) -> i16 {
    worker::be_next(Job::NamingOrigins);
    // Somebody else may have made it meanwhile.
    let all = all();
    if let Some((number, _)) = all.iter().find(|(_, known)| known == name) {
        return *number;
    }
    let highest = all.iter().map(|(number, _)| *number).max().unwrap_or(HERE);
    let Some(next) = highest.checked_add(1) else { too_many() };
    if let Some(table) = Table::of_quorum_in_trigger_with(c"origin", lock::ROW_EXCLUSIVE) {
        table.insert(|row| {
            row.set(column::ID, Some(next));
            // Laid out as a text is.
            row.set(column::NAME, Some(encoding::in_server(name)));
        });
    }
    next
}

#[cold]
fn too_many() -> ! {
    Refusal::new(
        ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        "there are 32767 origins in quorum.origin, and there is no number for another one",
    )
    .hint(
        "Does something set pgquorum.origin to a new name for each transaction? It is the name of a cluster.",
    )
    .raise()
}
