//! Changes that were left out: kept as they came, and tried again when somebody asks for it.

use pgquorum_change::{Change, json};
use pgrx::prelude::*;

use super::careful::{Conflict, Origin, Problem, tried};
use super::error::ApplyError;
use super::judged::Present;
use super::left_out::{self, Rejected};
use super::newest;
use super::state::{Halt, Session};
use super::tables::{self, Policy};
use crate::pg::apply_session::{self, Applying};
use crate::pg::process;

/// Keeps a change, with why it was left out.
pub fn keep(
    session: &Session,
    version: usize,
    table: usize,
    change: &Change,
    origin: Origin,
    conflict: &Conflict,
) {
    let schema = &session.versions[version].schema;
    let image = |write: fn(&mut Vec<u8>, &Change, &pgquorum_change::Schema) -> bool| {
        let mut out = Vec::new();
        write(&mut out, change, schema).then(|| String::from_utf8_lossy(&out).into_owned())
    };
    let transaction = origin.transaction;
    let rejected = Rejected {
        position: origin.position,
        xid: transaction.xid,
        op: change.op.name(),
        conflict: conflict.kind,
        code: &conflict.code,
        message: &conflict.message,
        images: [image(json::key), image(json::old), image(json::new)],
        origin: transaction.origin.as_deref().or(session.subscription.remote_origin.as_deref()),
        commit_us: transaction.origin_commit_us.unwrap_or(transaction.commit_us),
        bytes: origin.bytes,
    };
    left_out::reject(session.subscription.id, &session.tables[table], &rejected);
}

/// Tries a rejected change again, as it came, and says what happened. If it can be applied now, it is no longer kept;
/// else it stays, and nothing is changed.
///
/// Errors: 42704 there is none of this number, 25006 on a standby, 25001 inside a savepoint or above READ COMMITTED, PQ012
/// the transaction has changed a tracked table already.
#[pg_extern]
fn retry_rejected(id: i64) -> String {
    match retried(id) {
        Ok(what) => what,
        Err(error) => error.raise(),
    }
}

fn retried(id: i64) -> Result<String, ApplyError> {
    if process::in_recovery() {
        return Err(ApplyError::Standby);
    }
    apply_session::check()?;
    let kept = left_out::kept(id).ok_or(ApplyError::NoRejected(id))?;
    let mut session = Session::of(tables::find(kept.subscription, None)?);
    let result = again(&mut session, &kept);
    session.close();
    Ok(match result? {
        Ok(()) => {
            left_out::forget_kept(id);
            "applied".to_owned()
        }
        Err(why) => why,
    })
}

fn again(session: &mut Session, kept: &left_out::Kept) -> Result<Result<(), String>, ApplyError> {
    let mut bytes = kept.change.as_slice();
    let damaged = |error| ApplyError::Misfit(pgquorum_change::Misfit::Record(error), session.seen);
    let change = pgquorum_change::change(&mut bytes).map_err(damaged)?;
    if session.subscription.captures {
        if crate::capture::holds_changes() {
            return Err(ApplyError::OneByOne);
        }
        if let (Some(origin), Some(time)) = (&kept.origin, kept.committed_at) {
            let commit_us = process::us_of_time(time);
            apply_session::set_origin(origin, commit_us);
            session.present = Present { dropped: false, origin: origin.as_str().into(), commit_us };
        }
    }
    let version = session.version(change.schema_version)?;
    let _applying = Applying::begin();
    let table = session.versions[version].table;
    if table.map_or(session.subscription.policy, |table| session.policy(table)) == Policy::LastWriteWins {
        return again_if_newest(session, version, &change, &kept.change);
    }
    match tried(session, version, &change) {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(Problem::Fault(fault))) => Ok(Err(format!("not applied: {}", fault.message))),
        Ok(Err(Problem::Conflict(conflict))) => {
            Ok(Err(format!("not applied: {}: {}", conflict.kind, conflict.message)))
        }
        Err(Halt::Error(error)) => Err(error),
        Err(Halt::Careful | Halt::Crowded) => unreachable!("the careful way asks for no other one"),
    }
}

/// The same where the last write wins: what was written since stays.
fn again_if_newest(
    session: &mut Session,
    version: usize,
    change: &Change,
    bytes: &[u8],
) -> Result<Result<(), String>, ApplyError> {
    if let Err(fault) = session.open(version) {
        return Ok(Err(format!("not applied: {}", fault.message)));
    }
    // One change needs no second attempt.
    session.alone = true;
    let tried = newest::tried(session, version, change, bytes).and_then(|tried| {
        newest::bury(session)?;
        Ok(tried)
    });
    match tried {
        Ok(Ok(outcome)) if outcome.lost => {
            let conflict = outcome.conflict.unwrap_or("last_write_wins");
            Ok(Err(format!("not applied: {conflict}: the row was written later than that")))
        }
        Ok(Ok(_)) => Ok(Ok(())),
        Ok(Err(Problem::Fault(fault))) => Ok(Err(format!("not applied: {}", fault.message))),
        Ok(Err(Problem::Conflict(conflict))) => {
            Ok(Err(format!("not applied: {}: {}", conflict.kind, conflict.message)))
        }
        Err(Halt::Error(error)) => Err(error),
        Err(Halt::Careful | Halt::Crowded) => unreachable!("the careful way asks for no other one"),
    }
}
