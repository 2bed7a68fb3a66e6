//! Applying the changes of another database: what `quorum.apply` does with the frames of the binary stream.
//!
//! A *subscription* is at a position of its source. `quorum.apply` takes what comes next and writes it, with the new
//! position, in the caller's transaction, which may hold many transactions of the source, or a piece of one that comes in
//! several calls: nothing is lost, repeated or halved, whatever dies when.
//!
//! First the quick way: the whole call in one savepoint, nothing is looked at before it is written. If anything fails, the
//! savepoint is rolled back and the call is gone through again, with the change at which it failed in a savepoint of its own
//! (`careful`), so that what does not fit is found, named, and resolved as the subscription's policy says; if that happens too
//! often, each change of the call goes that way.
//!
//! * `error` – how it refuses; `tables` – what is known of a subscription; `state` – what is known during a transaction;
//! * `attempts` – a batch, in one way or another;
//! * `run` – from frames to changes of tables; `quick` – writing them, new rows many at a time; `careful` – conflicts;
//! * `rejected`, `left_out` – changes that were left out;
//! * `filtered` – tables of which some rows only are wanted;
//! * `sequences` – for `sql/sequences.sql`; `owner` – for copies of tables, and for `sql/restore.sql`;
//! * `judged` – who wrote the rows last, where that is kept; `newest` – conflicts where the last write wins.
//!
//! Invariant: a transaction of the caller commits whole transactions of the source only; see [`before_commit`].
//! Invariant: the position is saved by the transaction that has applied what it stands for.

mod attempts;
mod careful;
mod error;
mod filtered;
mod judged;
mod left_out;
mod newest;
pub mod owner;
mod quick;
mod rejected;
mod run;
pub mod sequences;
mod state;
mod tables;

use std::cell::RefCell;

use pgrx::prelude::*;

use error::ApplyError;
use state::Session;

use crate::pg::single::Single;
use crate::pg::{apply_session, process};

/// What the present transaction applies.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static SESSION: Single<RefCell<Option<Session>>> = Single::new(None);

/// Applies whole frames `P` and `R` of the binary stream of the source. An empty batch tells where the subscription is.
///
/// To be called outside savepoints, at READ COMMITTED, any number of times in a transaction, for one subscription. Others
/// that apply the same one wait until the transaction ends. `only`: a table, as `schema.table`, that is behind the others
/// and is brought to where they are; its own position moves then.
///
/// Gives the position up to which all transactions are complete (NULL: there is none yet); whether the transaction may
/// not be committed yet, because one of the source is not complete; whether each transaction of the source needs one of its own
/// here; and what this call did: complete transactions, changes applied, conflicts met, changes rejected.
///
/// Errors: see `error`; besides, those of PostgreSQL that have nothing to do with what is applied.
#[pg_extern]
#[allow(clippy::type_complexity)] // pgrx reads the names and types of the columns here
fn apply(
    subscription: i32,
    batch: &[u8],
    only: default!(Option<&str>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(epoch, Option<i64>),
        name!(tick, Option<i64>),
        name!(in_transaction, bool),
        name!(one_by_one, bool),
        name!(transactions, i64),
        name!(changes, i64),
        name!(conflicts, i64),
        name!(rejected, i64),
    ),
> {
    match applied(subscription, batch, only) {
        Ok(row) => TableIterator::once(row),
        Err(error) => error.raise(),
    }
}

type Row = (Option<i64>, Option<i64>, bool, bool, i64, i64, i64, i64);

fn applied(subscription: i32, batch: &[u8], only: Option<&str>) -> Result<Row, ApplyError> {
    if process::in_recovery() {
        return Err(ApplyError::Standby);
    }
    apply_session::check()?;
    // Taken out, so that nothing is borrowed while changes are written; after an error it is gone with the transaction.
    let known = SESSION.take();
    let mut session = match known {
        Some(session) if session.is_for(subscription, only) => session,
        Some(_) => return Err(ApplyError::Another),
        None => Session::begin(subscription, only)?,
    };
    let outcome = session.apply(batch);
    // Also where it failed: what is open is to be known until the transaction's end.
    let row = session.row();
    SESSION.replace(Some(session));
    outcome.map(|()| row)
}

/// At pre-commit and pre-prepare: refuses to commit a part of a transaction of the source, and closes what is open.
#[inline]
pub fn before_commit() {
    if is_applying() {
        end();
    }
}

/// Is anything open that [`before_commit`] or [`after_end`] has to see to?
#[inline]
pub fn is_applying() -> bool {
    SESSION.look(Option::is_some)
}

#[cold]
fn end() {
    let Some(session) = SESSION.take() else { return };
    let incomplete = session.is_incomplete();
    session.close();
    if incomplete {
        ApplyError::Incomplete.raise();
    }
}

/// After a commit or abort. What was open, PostgreSQL has closed. Must not raise anything.
pub fn after_end() {
    let _ = SESSION.try_with(Option::take);
}
