//! Capture: what a transaction does to tracked tables goes into the log with it.
//!
//! The row trigger encodes each change into a buffer of its transaction ([`buffer`]). Just before the commit, or when
//! the transaction is prepared, the buffer is cut into chunks and put into the channel's log table ([`commit`]). So
//! the log is atomic with the data, costs nothing but its own rows, and needs no other session.
//!
//! Invariant: nothing of this process's state is borrowed while PostgreSQL may call back into it: look-ups run before
//! the buffer is touched, and notices of changed tables are only noted.

mod buffer;
mod commit;
mod sql;

use std::cell::{Cell, RefCell};

use pgrx::PgSqlErrorCode::{ERRCODE_PROGRAM_LIMIT_EXCEEDED, ERRCODE_WARNING};
use pgrx::pg_sys;

use self::buffer::Buffers;
use crate::error::Refusal;
use crate::guc;
use crate::pg::relcache::{self, Changes};
use crate::pg::tables::Table;
use crate::pg::trigger::{self, RowEvent};
use crate::pg::{process, statement};

pub use commit::{after_abort, after_end, after_prepare, before_commit};

thread_local! {
    static CAPTURE: RefCell<Capture> = RefCell::new(Capture::default());
    /// Something was captured in this transaction.
    static DIRTY: Cell<bool> = const { Cell::new(false) };
    /// Nesting level of savepoints; the transaction itself is 1.
    static LEVEL: Cell<i32> = const { Cell::new(1) };
}

#[derive(Default)]
struct Capture {
    buffers: Buffers,
    tables: Vec<Known>,
    /// Partitioned tables that were truncated whole, and by which command.
    truncated: Vec<(u32, u32)>,
}

/// What is known of a table with our trigger.
enum Known {
    Tracked(Box<Table>),
    /// It is not tracked: its trigger came out of a dump.
    Untracked(u32),
}

impl Known {
    #[inline]
    fn relid(&self) -> u32 {
        match self {
            Known::Tracked(table) => table.relid,
            Known::Untracked(relid) => *relid,
        }
    }

    fn depends_on(&self, changed: &[u32]) -> bool {
        let root = match self {
            Known::Tracked(table) => table.root,
            Known::Untracked(relid) => *relid,
        };
        changed.contains(&self.relid()) || changed.contains(&root)
    }
}

impl Capture {
    #[inline]
    fn find(&mut self, relid: u32) -> Option<&mut Known> {
        if let Some(changes) = relcache::changes() {
            self.forget(&changes);
        }
        self.tables.iter_mut().find(|known| known.relid() == relid)
    }

    #[cold]
    fn forget(&mut self, changes: &Changes) {
        match changes {
            Changes::All => self.tables.clear(),
            Changes::Some(changed) => self.tables.retain(|known| !known.depends_on(changed)),
        }
        commit::forget_segments(changes);
    }
}

/// Sees to it that a table is known before anything is borrowed.
#[inline]
fn know(relation: pg_sys::Relation, relid: u32) {
    if !CAPTURE.with_borrow_mut(|capture| capture.find(relid).is_some()) {
        look_up(relation, relid);
    }
}

#[cold]
fn look_up(relation: pg_sys::Relation, relid: u32) {
    // Watched before it is looked up: a change in between is noticed the next time.
    relcache::watch(relid);
    // SAFETY: the relation is the trigger's own, which is open.
    let known = match unsafe { Table::look_up(relation) } {
        Some(table) => {
            relcache::watch(table.root);
            Known::Tracked(Box::new(table))
        }
        None => {
            warn_untracked();
            Known::Untracked(relid)
        }
    };
    CAPTURE.with_borrow_mut(|capture| capture.tables.push(known));
}

fn warn_untracked() {
    Refusal::new(ERRCODE_WARNING, "a table has a trigger of pgquorum but is not tracked, so nothing is captured")
        .hint("This is how tables come out of a dump. Use quorum.track, or drop its triggers pgquorum_row and pgquorum_truncate.")
        .warn();
}

/// The row trigger.
#[inline]
pub fn row(event: &RowEvent) {
    know(event.relation, event.relid());
    append(event.relid(), |table, buffers, place| {
        let Some(op) = table.operation(event) else { return Ok(()) };
        buffers.append(table.channel, place.level, place.limit, |out| table.write(op, event, out))
    });
}

struct Place {
    level: i32,
    limit: usize,
}

#[inline]
fn append(relid: u32, write: impl FnOnce(&mut Table, &mut Buffers, Place) -> Result<(), buffer::TooLong>) {
    let limit = usize::try_from(guc::CAPTURE_MEMORY_KB.get()).unwrap_or(0) * 1024;
    let place = Place { level: LEVEL.get(), limit };
    let result = CAPTURE.with_borrow_mut(|capture| {
        let found = capture.tables.iter_mut().find(|known| known.relid() == relid);
        let Some(Known::Tracked(table)) = found else { return Ok(()) };
        DIRTY.set(true);
        write(table, &mut capture.buffers, place)
    });
    if result.is_err() {
        too_long();
    }
}

#[cold]
fn too_long() -> ! {
    Refusal::new(ERRCODE_PROGRAM_LIMIT_EXCEEDED, "a change of a tracked row is longer than 4 GB as text")
        .hint("Leave large columns out: quorum.track(..., columns => ...).")
        .raise()
}

/// The TRUNCATE trigger. What empties a tracked table is one entry. What empties one partition deletes its rows.
pub fn truncate(relation: pg_sys::Relation) {
    // SAFETY: the relation is open while its trigger runs.
    let relid = unsafe { (*relation).rd_id.to_u32() };
    know(relation, relid);
    let command = process::command();
    let root = CAPTURE.with_borrow(|capture| match capture.tables.iter().find(|k| k.relid() == relid) {
        Some(Known::Tracked(table)) => Some((table.root, capture.truncated.contains(&(table.root, command)))),
        _ => None,
    });
    match root {
        Some((root, _)) if root == relid => {
            append(relid, |table, buffers, place| {
                buffers.append(table.channel, place.level, place.limit, |out| table.write_truncate(out))
            });
            CAPTURE.with_borrow_mut(|capture| capture.truncated.push((root, command)));
        }
        Some((_, false)) => trigger::for_each_row(relation, row),
        _ => {}
    }
}

/// An entry about a tracked table itself.
fn ddl(channel: i32, schema_version: u64, tag: &str, sql: &str) {
    let level = LEVEL.get();
    let result = CAPTURE.with_borrow_mut(|capture| {
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
    }
    if DIRTY.get() && what != Savepoint::Started {
        CAPTURE.with(|capture| {
            // Borrowed only if an error broke out of the trigger, which the unwinding has ended by now.
            if let Ok(mut capture) = capture.try_borrow_mut() {
                match what {
                    Savepoint::Released => capture.buffers.released(level),
                    _ => capture.buffers.rolled_back(level),
                }
            }
        });
    }
}

/// A schema version that a trigger recorded is gone with what was rolled back.
fn forget_made_versions() {
    CAPTURE.with(|capture| {
        if let Ok(mut capture) = capture.try_borrow_mut() {
            capture.tables.retain(|known| !matches!(known, Known::Tracked(table) if table.made_version));
        }
    });
}
