//! The careful way: each change in a savepoint of its own, conflicts found before they are errors, and resolved.

use pgquorum_change::{Change, Image, Op, Position, Transaction};

use super::attempts::is_of_the_server;
use super::error::ApplyError;
use super::quick::partitions;
use super::state::{Halt, Met, Session};
use super::tables::Policy;
use super::{filtered, judged, newest, rejected};
use crate::pg::apply_find::Found;
use crate::pg::apply_target::{Fault, Target};
use crate::pg::apply_write;
use crate::pg::savepoint::attempt;
use crate::versions::Version;

/// What a change meets, by PostgreSQL's names for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub kind: &'static str,
    /// SQLSTATE of what would have been raised.
    pub code: String,
    pub message: String,
}

impl Conflict {
    fn missing(kind: &'static str, target: &Target) -> Self {
        let what = if kind == "update_missing" { "updated" } else { "deleted" };
        let message = format!("the row to be {what} is not in {}", target.name());
        Self { kind, code: "P0002".into(), message }
    }

    fn of_others(op: Op, target: &Target, known: Option<&Version>) -> Self {
        let who = known.and_then(|known| known.origin.as_deref());
        let message =
            format!("the row of {} was written by {} last", target.name(), who.unwrap_or("this database"));
        Self { kind: judged::origin_differs(op), code: "40001".into(), message }
    }

    fn unique(kind: &'static str, target: &Target, indexes: &[String]) -> Self {
        let kind = if indexes.len() > 1 { "multiple_unique_conflicts" } else { kind };
        let message =
            format!("another row of {} has the same values in {}", target.name(), indexes.join(", "));
        Self { kind, code: "23505".into(), message }
    }
}

/// Why a change was not written.
#[derive(Debug)]
pub enum Problem {
    Conflict(Conflict),
    Fault(Fault),
}

impl From<Conflict> for Problem {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(conflict)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Where a change stands in its transaction, and how it was encoded.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    pub position: Position,
    pub transaction: &'a Transaction,
    pub bytes: &'a [u8],
}

/// Applies a change, and resolves what it meets.
pub fn change(
    session: &mut Session,
    version: usize,
    table: usize,
    position: Position,
    transaction: &Transaction,
    change: &Change,
    bytes: &[u8],
) -> Result<(), Halt> {
    let origin = Origin { position, transaction, bytes };
    if session.policy(table) == Policy::LastWriteWins {
        return newest::change(session, version, table, change, origin);
    }
    match looked_at(session, version, table, change)? {
        Ok(differs) => {
            session.counts.changes += 1;
            if differs {
                session.counts.conflicts += 1;
                count(session, table, judged::origin_differs(change.op), "applied_remote");
            }
            Ok(())
        }
        Err(Problem::Fault(fault)) => {
            let after = session.seen;
            session.stop(table, after, fault.code, &fault.message);
            Ok(())
        }
        Err(Problem::Conflict(conflict)) => resolve(session, version, table, change, origin, conflict),
    }
}

/// Tries to write a change; what it meets is given back, and nothing of it has happened then.
pub fn tried(session: &mut Session, version: usize, change: &Change) -> Result<Result<(), Problem>, Halt> {
    ended(session, |session| write(session, version, change))
}

/// The same, unless somebody else has written the row and the policy lets that stand. True: somebody else has.
fn looked_at(
    session: &mut Session,
    version: usize,
    table: usize,
    change: &Change,
) -> Result<Result<bool, Problem>, Halt> {
    ended(session, |session| {
        write(session, version, change)?;
        if change.op == Op::Insert || session.versions[version].judge.is_none() {
            return Ok(false);
        }
        let numbers = session.versions[version].targets[0].numbers(change);
        let Some(number) = numbers.gone.or(numbers.put) else { return Ok(false) };
        let known = session.known(version, &number);
        let differs = judged::is_overwritten(session, known.as_ref());
        if differs && matches!(session.policy(table), Policy::Skip | Policy::KeepLocal) {
            let target = &session.versions[version].targets[0];
            return Err(Problem::Conflict(Conflict::of_others(change.op, target, known.as_ref())));
        }
        Ok(differs)
    })
}

/// An attempt whose errors are conflicts, unless they are the server's own.
pub fn ended<T, E: From<Conflict>>(
    session: &mut Session,
    body: impl FnOnce(&mut Session) -> Result<T, E>,
) -> Result<Result<T, E>, Halt> {
    session.settle();
    session.wrote = true;
    let result = attempt(|| {
        let result = body(session);
        session.tidy();
        result
    });
    match result {
        Ok(result) => Ok(result),
        Err(failure) => {
            session.close_targets(false);
            if is_of_the_server(&failure) {
                return Err(ApplyError::Failed(failure).into());
            }
            Ok(Err(Conflict { kind: "value", code: failure.sqlstate(), message: failure.message }.into()))
        }
    }
}

fn write(session: &mut Session, version: usize, change: &Change) -> Result<(), Problem> {
    session.open(version)?;
    if session.versions[version].targets[0].is_filtered() {
        return filtered::write(session, version, change);
    }
    let Some((old, new)) = partitions(session, version, change)? else {
        return Err(Problem::Conflict(Conflict::missing(
            missing_kind(change.op),
            &session.versions[version].targets[0],
        )));
    };
    let targets = &mut session.versions[version].targets;
    match (change.op, change.new, old, new) {
        (Op::Insert, Some(image), _, Some(new)) => insert(&mut targets[new], image),
        (Op::Update, Some(image), Some(old), Some(new)) if old == new => {
            update(&mut targets[old], change, image)
        }
        (Op::Update, Some(image), Some(old), Some(new)) => {
            // The row moves to another partition.
            delete(&mut targets[old], change, "update_missing")?;
            apply_write::next_command();
            insert(&mut targets[new], image)
        }
        (_, _, Some(old), _) => delete(&mut targets[old], change, "delete_missing"),
        _ => Ok(()),
    }
}

fn missing_kind(op: Op) -> &'static str {
    if op == Op::Delete { "delete_missing" } else { "update_missing" }
}

pub fn insert(target: &mut Target, image: Image) -> Result<(), Problem> {
    if !target.prepare(image, false) {
        return Err(Problem::Conflict(not_whole(target)));
    }
    let collisions = target.collisions(false);
    if !collisions.is_empty() {
        let indexes: Vec<String> = collisions.into_iter().map(|(_, index)| index).collect();
        return Err(Problem::Conflict(Conflict::unique("insert_exists", target, &indexes)));
    }
    target.insert_prepared();
    Ok(())
}

#[cold]
pub fn not_whole(target: &Target) -> Conflict {
    let message = format!(
        "the row would have to be inserted into {}, but large values that did not change were not sent with it",
        target.name()
    );
    Conflict { kind: "update_missing", code: "P0002".into(), message }
}

fn update(target: &mut Target, change: &Change, image: Image) -> Result<(), Problem> {
    if target.find_locked(change) == Found::Nothing {
        return Err(Problem::Conflict(Conflict::missing("update_missing", target)));
    }
    target.prepare(image, true);
    update_prepared(target)
}

/// The row that was found becomes the one that was made of it.
pub fn update_prepared(target: &mut Target) -> Result<(), Problem> {
    let collisions = target.collisions(true);
    if !collisions.is_empty() {
        let indexes: Vec<String> = collisions.into_iter().map(|(_, index)| index).collect();
        return Err(Problem::Conflict(Conflict::unique("update_exists", target, &indexes)));
    }
    target.update_prepared();
    Ok(())
}

fn delete(target: &mut Target, change: &Change, missing: &'static str) -> Result<(), Problem> {
    if target.find_locked(change) == Found::Nothing {
        return Err(Problem::Conflict(Conflict::missing(missing, target)));
    }
    target.delete_located();
    Ok(())
}

/// Does what the policy says about a conflict.
fn resolve(
    session: &mut Session,
    version: usize,
    table: usize,
    change: &Change,
    origin: Origin,
    mut conflict: Conflict,
) -> Result<(), Halt> {
    session.counts.conflicts += 1;
    if conflict.kind == "update_missing" && was_deleted(session, version, change) {
        conflict.kind = "update_deleted";
    }
    let policy = session.policy(table);
    let kind = conflict.kind;
    match policy {
        Policy::Error => {
            count(session, table, kind, "stopped");
            let message = format!("{kind} at {}: {}", origin.position, conflict.message);
            let after = session.seen;
            session.stop(table, after, &conflict.code, &message);
        }
        Policy::KeepLocal if kind != "value" => count(session, table, kind, "kept_local"),
        Policy::ApplyRemote if kind == "delete_missing" => count(session, table, kind, "applied_remote"),
        Policy::ApplyRemote if kind != "value" => {
            match ended(session, |session| force(session, version, change))? {
                Ok(()) => {
                    session.counts.changes += 1;
                    count(session, table, kind, "applied_remote");
                }
                Err(Problem::Fault(fault)) => {
                    let after = session.seen;
                    session.stop(table, after, fault.code, &fault.message);
                }
                Err(Problem::Conflict(why)) => {
                    reject(session, version, table, change, origin, &why);
                    count(session, table, kind, "rejected");
                }
            }
        }
        Policy::Skip | Policy::KeepLocal | Policy::ApplyRemote | Policy::LastWriteWins => {
            reject(session, version, table, change, origin, &conflict);
            count(session, table, kind, "rejected");
        }
    }
    Ok(())
}

/// Is it known that the row that is to be updated was deleted?
fn was_deleted(session: &mut Session, version: usize, change: &Change) -> bool {
    if session.versions[version].judge.is_none() {
        return false;
    }
    let numbers = session.versions[version].targets[0].numbers(change);
    let number = numbers.gone.or(numbers.put);
    number.and_then(|number| session.known(version, &number)).is_some_and(|known| known.deleted)
}

pub fn reject(
    session: &mut Session,
    version: usize,
    table: usize,
    change: &Change,
    origin: Origin,
    conflict: &Conflict,
) {
    session.counts.rejected += 1;
    session.wrote = true;
    rejected::keep(session, version, table, change, origin, conflict);
}

pub fn count(session: &mut Session, table: usize, conflict: &'static str, resolution: &'static str) {
    let same = |met: &&mut Met| (met.table, met.conflict, met.resolution) == (table, conflict, resolution);
    match session.met.iter_mut().find(same) {
        Some(met) => met.count += 1,
        None => session.met.push(Met { table, conflict, resolution, count: 1 }),
    }
}

/// Makes the row what it is at the source, whatever is in the way: rows with the same values in a unique index go.
pub fn force(session: &mut Session, version: usize, change: &Change) -> Result<(), Problem> {
    session.open(version)?;
    let Some(image) = change.new else { return Ok(()) };
    let mut place = 0;
    if session.versions[version].targets[0].is_partitioned() {
        let oid = session.versions[version].targets[0].route_new(image);
        place = session.leaf(version, oid)?;
    }
    let target = &mut session.versions[version].targets[place];
    // The row is looked for as the change names it, then as it is to be.
    let renamed = Change { old: None, ..*change };
    let by_old = change.op == Op::Update && target.find_locked(change) == Found::Row;
    let name = if by_old { change } else { &renamed };
    let there = by_old || target.find_locked(&renamed) == Found::Row;
    if !target.prepare(image, there) {
        return Err(Problem::Conflict(not_whole(target)));
    }
    let collisions = target.collisions(there);
    if !collisions.is_empty() {
        for (at, _) in collisions {
            // The same row may stand in the way by several indexes.
            if target.find_at(at) {
                target.delete_located();
                apply_write::next_command();
            }
        }
        target.tidy();
        if there && target.find_locked(name) == Found::Nothing {
            return Err(Problem::Conflict(Conflict::missing("update_missing", target)));
        }
        target.prepare(image, there);
    }
    if there {
        target.update_prepared();
    } else {
        target.insert_prepared();
    }
    Ok(())
}
