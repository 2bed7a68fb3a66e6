//! Capture: what a transaction does to tracked tables goes into the log with it.
//!
//! The row trigger encodes each change into a buffer of its transaction ([`buffer`]). Just before the commit, or when
//! the transaction is prepared, the buffer is cut into chunks and put into the channel's log table ([`commit`]). So
//! the log is atomic with the data, costs nothing but its own rows, and needs no other session. Where versions of rows are
//! kept, what becomes of them is in a buffer of its own, and goes into their table just before ([`crate::versions`]).
//!
//! Invariant: nothing of this process's state is borrowed while PostgreSQL may call back into it: look-ups run before
//! the buffer is touched, and notices of changed tables are only noted.

mod buffer;
mod commit;
mod sql;
mod truncate;

use std::cell::{Cell, RefCell};

use pgquorum_change::key_hash;
use pgrx::PgSqlErrorCode::{
    ERRCODE_INVALID_TRANSACTION_STATE, ERRCODE_PROGRAM_LIMIT_EXCEEDED, ERRCODE_WARNING,
};

use crate::error::Refusal;
use crate::guc;
use crate::pg::relcache::{self, Changes};
use crate::pg::single::Single;
use crate::pg::spill::SpillFile;
use crate::pg::tables::Table;
use crate::pg::trigger::{OpenTable, RowEvent};
use crate::pg::{statement, version_rows};
use crate::versions;
use crate::versions::entry::{Entry, What};

pub use buffer::Spill;
pub use commit::{after_abort, after_end, after_prepare, before_commit};
pub use truncate::{truncate, truncation_ended};

use truncate::Emptied;

/// The buffer that holds no changes of a channel, which all have numbers above, but what becomes of rows' versions.
const VERSIONS: i32 = 0;

/// The changes of this process's transaction.
type Buffers = buffer::Buffers<SpillFile>;

static CAPTURE: Single<RefCell<Capture>> = Single::new(Capture::new());
/// Something was captured in this transaction.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static DIRTY: Single<Cell<bool>> = Single::cell(false);
/// Nesting level of savepoints; the transaction itself is 1.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static LEVEL: Single<Cell<i32>> = Single::cell(1);
/// This transaction's changes are in the log: what would be captured now would not get there.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static CLOSED: Single<Cell<bool>> = Single::cell(false);

struct Capture {
    buffers: Buffers,
    tables: Vec<Known>,
    emptied: Emptied,
}

/// What is known of a table with our trigger.
struct Known {
    relid: u32,
    /// `None`: it is not tracked; its trigger came out of a dump.
    table: Option<Box<Table>>,
}

impl Known {
    fn depends_on(&self, changed: &[u32]) -> bool {
        changed.contains(&self.relid)
            || self.table.as_ref().is_some_and(|table| changed.contains(&table.root))
    }
}

impl Capture {
    const fn new() -> Self {
        Self { buffers: Buffers::new(), tables: Vec::new(), emptied: Emptied::new() }
    }

    /// Forgets what notices say has changed. Before anything that is known is used.
    #[inline]
    fn refresh(&mut self) {
        if let Some(changes) = relcache::changes() {
            self.forget(&changes);
        }
    }

    #[cold]
    fn forget(&mut self, changes: &Changes) {
        match changes {
            Changes::All => self.tables.clear(),
            Changes::Some(changed) => self.tables.retain(|known| !known.depends_on(changed)),
        }
        commit::forget_segments(changes);
        versions::forget();
    }
}

#[cold]
fn look_up(table: OpenTable) {
    let relid = table.relid();
    // Watched before it is looked up: a change in between is noticed the next time.
    relcache::watch(relid);
    let found = Table::look_up(table).map(Box::new);
    match &found {
        Some(found) if relcache::watch(found.root) => return look_up(table),
        Some(_) => {}
        None => warn_untracked(),
    }
    CAPTURE.with(|capture| {
        capture.tables.retain(|known| known.relid != relid);
        capture.tables.push(Known { relid, table: found });
    });
}

fn warn_untracked() {
    Refusal::new(ERRCODE_WARNING, "a table has a trigger of pgquorum but is not tracked, so nothing is captured")
        .hint("This is how tables come out of a dump. Use quorum.track, or drop its triggers pgquorum_row and pgquorum_truncate.")
        .warn();
}

/// Was anything captured in the present transaction?
#[inline]
pub fn is_dirty() -> bool {
    DIRTY.get()
}

/// Has the present transaction captured anything that was not rolled back to a savepoint?
pub fn holds_changes() -> bool {
    DIRTY.get() && CAPTURE.with(|capture| capture.buffers.filled().next().is_some())
}

/// The row trigger.
#[inline]
pub fn row(event: &RowEvent) {
    if truncate::goes_with_the_others(event.table) {
        return;
    }
    append(event.table, |table, buffers, place| {
        let Some(op) = table.operation(event) else { return Ok(()) };
        buffers.append(table.channel, place.level, place.limit, |out| table.write(op, event, out))?;
        match table.keeping {
            None => Ok(()),
            Some(keeping) => buffers.append(VERSIONS, place.level, place.limit, |out| {
                table.write_versions(keeping, op, out);
            }),
        }
    });
}

/// Where a change is to be put.
#[derive(Clone, Copy)]
struct Place {
    level: i32,
    limit: usize,
}

#[inline]
fn append(
    table: OpenTable,
    mut write: impl FnMut(&mut Table, &mut Buffers, Place) -> Result<(), buffer::TooLong>,
) {
    require_open();
    let limit = usize::try_from(guc::quick(&guc::CAPTURE_MEMORY_KB)).unwrap_or(0) * 1024;
    let place = Place { level: LEVEL.get(), limit };
    loop {
        let result = CAPTURE.with(|capture| {
            capture.refresh();
            let relid = table.relid();
            let known = capture.tables.iter_mut().find(|known| known.relid == relid)?;
            let Some(table) = &mut known.table else { return Some(Ok(())) };
            DIRTY.set(true);
            Some(write(table, &mut capture.buffers, place))
        });
        match result {
            Some(Ok(())) => return,
            Some(Err(_)) => too_long(),
            // Looked up while nothing is borrowed.
            None => look_up(table),
        }
    }
}

/// Raises 25000 once the transaction's changes are in the log.
#[inline]
fn require_open() {
    if CLOSED.get() {
        too_late();
    }
}

#[cold]
fn too_late() -> ! {
    Refusal::new(
        ERRCODE_INVALID_TRANSACTION_STATE,
        "a tracked table is written after the changes of its transaction went into the change log",
    )
    .detail("Another library does that while the transaction is being committed. The change would be missing in the log, so the transaction is rolled back.")
    .hint("Put pgquorum first in shared_preload_libraries, or keep that library from writing tracked tables at commit.")
    .raise()
}

#[cold]
fn too_long() -> ! {
    Refusal::new(ERRCODE_PROGRAM_LIMIT_EXCEEDED, "a change of a tracked row is longer than 4 GB as text")
        .hint("Leave large columns out: quorum.track(..., columns => ...).")
        .raise()
}

/// A row that is not here was deleted elsewhere: whoever follows this database is to hear of it, and its version is that of
/// the deletion. `key`: the texts of its key's values in UTF-8, in the order of the columns' names. Versions of the table's
/// rows are kept, and [`versions::be_alone`] was called.
pub fn deleted(table: OpenTable, key: &[impl AsRef<[u8]>]) {
    append(table, |table, buffers, place| {
        buffers.append(table.channel, place.level, place.limit, |out| table.write_deleted(key, out))?;
        let Some(keeping) = table.keeping else { return Ok(()) };
        let place_of_version = version_rows::Place { keeping, key: key_hash(key) };
        let entry = Entry { what: What::Deleted, place: place_of_version };
        buffers.append(VERSIONS, place.level, place.limit, |out| entry.put(out))
    });
}

/// An entry about a tracked table itself.
fn ddl(channel: i32, schema_version: u64, tag: &str, sql: &str) {
    require_open();
    let level = LEVEL.get();
    let result = CAPTURE.with(|capture| {
        DIRTY.set(true);
        capture.buffers.append(channel, level, usize::MAX, |out| {
            pgquorum_change::Encoder::ddl(out, schema_version, tag, sql);
        })
    });
    if result.is_err() {
        too_long();
    }
}

/// What happens to savepoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Savepoint {
    Started,
    Released,
    RolledBack,
}

/// A savepoint of this nesting level begins or ends. Must not raise anything.
pub fn at_savepoint(what: Savepoint, level: i32) {
    LEVEL.set(if what == Savepoint::Started { level } else { level - 1 });
    if what == Savepoint::RolledBack {
        statement::forget();
        forget_made_versions();
        let _ = CAPTURE.try_with(|capture| capture.emptied.rolled_back(level));
    }
    if DIRTY.get() && what != Savepoint::Started {
        // Borrowed only if an error broke out of the trigger, which the unwinding has ended by now.
        let _ = CAPTURE.try_with(|capture| match what {
            Savepoint::Released => capture.buffers.released(level),
            _ => capture.buffers.rolled_back(level),
        });
    }
}

/// A schema version that a trigger recorded is gone with what was rolled back.
fn forget_made_versions() {
    let _ = CAPTURE.try_with(|capture| {
        capture.tables.retain(|known| !known.table.as_ref().is_some_and(|table| table.made_version));
    });
}
