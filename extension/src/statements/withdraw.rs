//! What a transaction changes is taken out of what is known of statements: in the table in that same transaction, so that
//! all nodes withdraw with its commit; in this server's memory when it has committed.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};

use pgrx::PgSqlErrorCode::{ERRCODE_QUERY_CANCELED, ERRCODE_SUCCESSFUL_COMPLETION};

use super::changed::{Changed, Mentions};
use super::entry::{Entry, Texts};
use super::shared;
use super::{databases, learn, ring, table};
use crate::error::Refusal;
use crate::pg::changed_objects::{self, Change};
use crate::pg::single::Single;
use crate::pg::{notices, statement_rows, wal, worker};

/// Objects of one transaction that are told apart before they are looked at.
const CHANGES_MAX: usize = 10_000;

/// This transaction has changed something. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static HAS_CHANGES: AtomicBool = AtomicBool::new(false);
/// What it has changed could not be taken out of the table with it.
static SWEEP: AtomicBool = AtomicBool::new(false);

static CHANGES: Single<RefCell<Vec<Change>>> = Single::new(Vec::new());
/// What the transaction that is being committed has changed.
static COMMITTING: Single<RefCell<Option<Changed>>> = Single::new(None);
/// This process's element of the ring that is not closed yet.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static OPEN: Single<Cell<Option<usize>>> = Single::cell(None);

/// Has this transaction changed something that statements may rest on?
#[inline]
pub fn has_changed_something() -> bool {
    HAS_CHANGES.load(Relaxed)
}

/// An object was made, changed or is about to be dropped.
pub fn note(change: Change) {
    HAS_CHANGES.store(true, Relaxed);
    CHANGES.with(|changes| {
        if changes.last() != Some(&change) && changes.len() <= CHANGES_MAX {
            changes.push(change);
        }
    });
}

/// At pre-commit and pre-prepare. An ERROR is legal here, but at commit there is none unless somebody wants the transaction
/// ended.
pub fn before_commit(prepares: bool) {
    if !has_changed_something() {
        return;
    }
    let mut changes = CHANGES.with(std::mem::take);
    if !notices::extension_is_here() {
        HAS_CHANGES.store(false, Relaxed);
        return;
    }
    let changed = if changes.len() > CHANGES_MAX {
        let mut changed = Changed::default();
        changed.add_everything();
        changed
    } else {
        changes.sort_unstable();
        changes.dedup();
        changed_objects::resolve(&changes)
    };
    if changed.is_nothing() {
        HAS_CHANGES.store(false, Relaxed);
        return;
    }
    match statement_rows::withdraw(&changed) {
        Ok(()) => {}
        // Whoever cancels the commit means the transaction. What is prepared could not be made good for later.
        Err(failure) if failure.code == ERRCODE_QUERY_CANCELED || prepares => {
            Refusal::new(failure.code, failure.message).raise();
        }
        Err(failure) => {
            SWEEP.store(true, Relaxed);
            Refusal::new(
                ERRCODE_SUCCESSFUL_COMPLETION,
                format!("pgquorum: learned statements could not be withdrawn with the transaction that changes what they use: {}", failure.message),
            )
            .detail("So this server serves none of this database until all of them have been set back, which is done at once. They are learned again as they run.")
            .log();
        }
    }
    COMMITTING.with(|committing| *committing = Some(changed));
}

/// It has committed. Must not raise anything.
pub fn after_commit() {
    if !has_changed_something() {
        return;
    }
    let Some(changed) = COMMITTING.with(Option::take) else { return clear() };
    let database = worker::own_database();
    if table::is_there() {
        let mut alone = shared::exclusive();
        let pid = worker::own_pid();
        OPEN.set(ring::open(&mut alone, database, &changed, wal::last_commit(), pid));
        table::set_back(database, &alone, |entry, texts| changed.concerns(&InMemory { entry, texts }));
    }
    if SWEEP.load(Relaxed) {
        databases::sweep(database);
    }
    clear();
}

/// It was prepared: what it has changed is changed when somebody commits it.
pub fn after_prepare() {
    if !has_changed_something() {
        return;
    }
    if COMMITTING.with(Option::take).is_some() {
        shared::globals().prepared.fetch_add(1, SeqCst);
    }
    clear();
}

/// It was rolled back. Must not raise anything.
pub fn after_abort() {
    if !has_changed_something() {
        return;
    }
    COMMITTING.with(|committing| *committing = None);
    clear();
}

fn clear() {
    SWEEP.store(false, Relaxed);
    if HAS_CHANGES.swap(false, Relaxed) {
        CHANGES.with(|changes| *changes = Vec::new());
    }
}

/// All sessions have been sent the notices of what was changed. Must not raise anything.
#[inline]
pub fn after_notices() {
    if let Some(index) = OPEN.get() {
        OPEN.set(None);
        ring::close(index, worker::own_pid());
        // This session knows what it has changed itself.
        learn::take_in();
    }
}

/// Whatever it was, it may have changed anything in this database: for prepared transactions, of which nobody knows when
/// they are committed what they have changed.
pub fn everything_may_have_changed(database: u32) {
    let mut changed = Changed::default();
    changed.add_everything();
    let mut alone = shared::exclusive();
    let pid = worker::own_pid();
    let element = ring::open(&mut alone, database, &changed, crate::pg::snapshot::insert_lsn(), pid);
    table::set_back(database, &alone, |_, _| true);
    drop(alone);
    // Whoever commits a prepared transaction sends its notices before its locks go.
    if let Some(index) = element {
        ring::close(index, pid);
    }
}

struct InMemory<'a> {
    entry: &'a Entry,
    texts: &'a Texts,
}

impl Mentions for InMemory<'_> {
    fn depends(&self, looked_for: &dyn Fn(u32) -> bool) -> bool {
        self.entry.depends().any(looked_for)
    }

    fn depends_on_all(&self) -> bool {
        self.entry.has(super::entry::flag::ON_ALL)
    }

    fn words(&self) -> u64 {
        self.entry.words.load(Relaxed)
    }

    fn text(&self) -> Option<Vec<u8>> {
        let text = self.texts.text.get();
        (text.len() as u64 == self.entry.length.load(Relaxed)).then_some(text)
    }
}
