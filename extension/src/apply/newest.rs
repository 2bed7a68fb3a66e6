//! Where the last write wins: each row that a change is about is weighed on its own, by the time and place of its last write.
//!
//! A change that keeps its row's key is about that row. One that changes the key is the deletion of one row and the insertion
//! of another. So whoever has heard of the same writes has the same rows, in whatever order they came, as long as the key
//! is the only thing in which rows can collide.

use pgquorum_change::{Change, OldImage, Op};

use super::careful::{self, Conflict, Origin, Problem, count, ended};
use super::error::ApplyError;
use super::judged::{Side, Tombstone, Weighed, is_overwritten, origin_differs};
use super::quick::partitions;
use super::state::{Halt, Session};
use crate::capture;
use crate::pg::apply_find::Found;
use crate::pg::apply_number::Number;
use crate::pg::apply_target::Fault;
use crate::pg::apply_write;
use crate::versions;

/// How often a change is weighed again because somebody was faster.
const TRIES: usize = 20;

/// Why a change was not written.
pub enum Stuck {
    /// Somebody else has written the row meanwhile; with what the server said to that.
    Again(Option<Conflict>),
    Problem(Problem),
    Error(ApplyError),
}

impl From<Problem> for Stuck {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<Conflict> for Stuck {
    fn from(conflict: Conflict) -> Self {
        // What stood in the way was looked for just before.
        if conflict.code == "23505" { Self::Again(Some(conflict)) } else { Self::Problem(conflict.into()) }
    }
}

impl From<Fault> for Stuck {
    fn from(fault: Fault) -> Self {
        Self::Problem(fault.into())
    }
}

impl From<ApplyError> for Stuck {
    fn from(error: ApplyError) -> Self {
        Self::Error(error)
    }
}

/// What became of a change.
#[derive(Default)]
pub struct Outcome {
    pub conflict: Option<&'static str>,
    /// A row that was written later stays as it is.
    pub lost: bool,
    pub wrote: bool,
    /// Number of a row that is not here, and was deleted by this.
    buried: Option<Number>,
    /// Number of a row that is there now.
    put: Option<Number>,
}

impl Outcome {
    /// Notes what was met at a row. True: the change wins.
    fn see(&mut self, weighed: &Weighed, conflict: Option<&'static str>) -> bool {
        if weighed.side != Side::Known {
            self.conflict = self.conflict.or(conflict);
        }
        self.lost |= weighed.side == Side::Local;
        weighed.side == Side::Remote
    }
}

/// Writes what wins of a change.
pub fn change(
    session: &mut Session,
    version: usize,
    table: usize,
    change: &Change,
    origin: Origin,
) -> Result<(), Halt> {
    match tried(session, version, change, origin.bytes)? {
        Ok(outcome) => {
            session.counts.changes += i64::from(outcome.wrote);
            if let Some(conflict) = outcome.conflict {
                session.counts.conflicts += 1;
                count(session, table, conflict, if outcome.lost { "kept_local" } else { "applied_remote" });
            }
        }
        Err(Problem::Fault(fault)) => {
            let after = session.seen;
            session.stop(table, after, fault.code, &fault.message);
        }
        Err(Problem::Conflict(conflict)) => {
            session.counts.conflicts += 1;
            careful::reject(session, version, table, change, origin, &conflict);
            count(session, table, conflict.kind, "rejected");
        }
    }
    Ok(())
}

/// The same, and says what became of it. `bytes`: the change as it is encoded.
pub fn tried(
    session: &mut Session,
    version: usize,
    change: &Change,
    bytes: &[u8],
) -> Result<Result<Outcome, Problem>, Halt> {
    let mut said = None;
    for _ in 0..TRIES {
        match ended(session, |session| written(session, version, change))? {
            Ok(outcome) => {
                if outcome.put.is_some() {
                    session.tombstones.retain(|tombstone| Some(tombstone.number) != outcome.put);
                }
                if let Some(number) = outcome.buried {
                    let schema_version = change.schema_version;
                    session.tombstones.push(Tombstone { schema_version, number, change: bytes.to_vec() });
                }
                return Ok(Ok(outcome));
            }
            Err(Stuck::Again(conflict)) => said = conflict,
            Err(Stuck::Problem(problem)) => return Ok(Err(problem)),
            Err(Stuck::Error(error)) => return Err(error.into()),
        }
    }
    // It may be a trigger that says so.
    said.map_or_else(|| Err(overtaken(session, version).into()), |conflict| Ok(Err(conflict.into())))
}

#[cold]
fn overtaken(session: &Session, version: usize) -> ApplyError {
    let schema = &session.versions[version].schema;
    ApplyError::Overtaken(format!("{}.{}", schema.schema, schema.table))
}

fn written(session: &mut Session, version: usize, change: &Change) -> Result<Outcome, Stuck> {
    session.open(version)?;
    let mut outcome = Outcome::default();
    let numbers = session.versions[version].targets[0].numbers(change);
    let Some((old, new)) = partitions(session, version, change)? else { return Ok(outcome) };
    if let (Some(gone), Some(put), Some(place)) = (numbers.gone, numbers.put, old)
        && old == new
        && renamed(session, version, place, change, (gone, put), &mut outcome)?
    {
        return Ok(outcome);
    }
    if let (Some(gone), Some(place)) = (numbers.gone, old) {
        take_away(session, version, place, change, gone, &mut outcome)?;
    }
    if let (Some(number), Some(place)) = (numbers.put, new) {
        put(session, version, place, change, number, &mut outcome)?;
    }
    Ok(outcome)
}

/// A row gets another key, which no other one has: it stays the same row. False: it is not as simple as that, and nothing was
/// written.
fn renamed(
    session: &mut Session,
    version: usize,
    place: usize,
    change: &Change,
    (gone, put): (Number, Number),
    outcome: &mut Outcome,
) -> Result<bool, Stuck> {
    let Some(image) = change.new else { return Ok(false) };
    if session.versions[version].targets[place].find_locked(change) == Found::Nothing {
        return Ok(false);
    }
    let known = session.known(version, &gone);
    let before = session.weigh(version, known)?;
    let known = session.known(version, &put);
    let target = &mut session.versions[version].targets[place];
    target.prepare(image, true);
    let free = target.collisions(true).is_empty();
    if !free || before.side != Side::Remote || session.weigh(version, known)?.side != Side::Remote {
        session.versions[version].targets[place].tidy();
        return Ok(false);
    }
    let differs = is_overwritten(session, before.known.as_ref());
    outcome.see(&before, differs.then_some("update_origin_differs"));
    session.versions[version].targets[place].update_prepared();
    still_wins(session, version, &put)?;
    outcome.wrote = true;
    outcome.put = Some(put);
    Ok(true)
}

/// A row is deleted, or has another key from here on.
fn take_away(
    session: &mut Session,
    version: usize,
    place: usize,
    change: &Change,
    number: Number,
    outcome: &mut Outcome,
) -> Result<(), Stuck> {
    let there = session.versions[version].targets[place].find_locked(change) == Found::Row;
    let known = session.known(version, &number);
    let was_deleted = known.as_ref().is_some_and(|known| known.deleted);
    let weighed = session.weigh(version, known)?;
    let conflict = match (there, change.op) {
        (true, op) => is_overwritten(session, weighed.known.as_ref()).then_some(origin_differs(op)),
        (false, Op::Delete) => Some("delete_missing"),
        (false, _) if was_deleted => Some("update_deleted"),
        (false, _) => Some("update_missing"),
    };
    if !outcome.see(&weighed, conflict) {
        return Ok(());
    }
    if there {
        let target = &mut session.versions[version].targets[place];
        target.delete_located();
        target.tidy();
        apply_write::next_command();
        outcome.wrote = true;
    } else {
        outcome.buried = Some(number);
    }
    Ok(())
}

/// A row is to be there as the source sends it.
fn put(
    session: &mut Session,
    version: usize,
    place: usize,
    change: &Change,
    number: Number,
    outcome: &mut Outcome,
) -> Result<(), Stuck> {
    let Some(image) = change.new else { return Ok(()) };
    // By the key that it is to have.
    let by_new = Change { old: None, ..*change };
    let there = session.versions[version].targets[place].find_locked(&by_new) == Found::Row;
    let known = session.known(version, &number);
    let was_deleted = known.as_ref().is_some_and(|known| known.deleted);
    let mut weighed = session.weigh(version, known)?;
    let keeps_key =
        change.op == Op::Update && change.old.is_none_or(|old| is_same_key(session, version, old, &number));
    let mut conflict = match (change.op, there) {
        (Op::Insert, true) => Some("insert_exists"),
        // There is no other name for it.
        (Op::Insert, false) => (was_deleted && weighed.side != Side::Remote).then_some("insert_deleted"),
        (_, true) if keeps_key => {
            is_overwritten(session, weighed.known.as_ref()).then_some("update_origin_differs")
        }
        (_, true) => Some("update_exists"),
        (_, false) if !keeps_key => None,
        (_, false) if was_deleted => Some("update_deleted"),
        (_, false) => Some("update_missing"),
    };
    if weighed.side != Side::Remote {
        outcome.see(&weighed, conflict);
        return Ok(());
    }
    let target = &mut session.versions[version].targets[place];
    if !target.prepare(image, there) {
        return Err(Problem::Conflict(careful::not_whole(target)).into());
    }
    let collisions = target.collisions(there);
    let collide = !collisions.is_empty();
    if collide {
        let several = collisions.len() + usize::from(there && !keeps_key) > 1;
        conflict = Some(match change.op {
            _ if several => "multiple_unique_conflicts",
            Op::Insert => "insert_exists",
            _ => "update_exists",
        });
    }
    // All rows that are in the way must have been written before.
    for (at, _) in collisions {
        let target = &mut session.versions[version].targets[place];
        if !target.find_at(at) {
            return Err(Stuck::Again(None));
        }
        let number = target.number_of_found();
        let other = session.weigh(version, session.known(version, &number))?;
        if other.side != Side::Remote {
            weighed.side = Side::Local;
        }
    }
    if !outcome.see(&weighed, conflict) {
        return Ok(());
    }
    if collide {
        session.versions[version].targets[place].tidy();
        careful::force(session, version, &by_new)?;
    } else if there {
        session.versions[version].targets[place].update_prepared();
    } else {
        session.versions[version].targets[place].insert_prepared();
    }
    still_wins(session, version, &number)?;
    outcome.wrote = true;
    outcome.put = Some(number);
    Ok(())
}

/// Is this the key that an old image has?
fn is_same_key(session: &mut Session, version: usize, old: OldImage, number: &Number) -> bool {
    pgquorum_change::key_hash(session.versions[version].targets[0].key_texts(old)) == *number
}

/// From the moment at which the row was written nobody else can write one of its key. Somebody may have done so just before:
/// inserted and deleted it again.
fn still_wins(session: &Session, version: usize, number: &Number) -> Result<(), Stuck> {
    let weighed = session.weigh(version, session.known(version, number))?;
    if weighed.side == Side::Remote { Ok(()) } else { Err(Stuck::Again(None)) }
}

/// At the end of a transaction of the source: the rows that it has deleted and that are not here get their tombstones, and
/// the log says so.
pub fn bury(session: &mut Session) -> Result<(), Halt> {
    if session.tombstones.is_empty() {
        return Ok(());
    }
    let tombstones = std::mem::take(&mut session.tombstones);
    session.settle();
    if session.alone {
        versions::be_alone();
    } else if !versions::is_alone() {
        // Whoever else is at it may wait for rows that this transaction has: it begins anew, and lets nobody else begin.
        return Err(Halt::Crowded);
    }
    for tombstone in tombstones {
        let mut bytes = tombstone.change.as_slice();
        let Ok(change) = pgquorum_change::change(&mut bytes) else { continue };
        let version = session.version(tombstone.schema_version)?;
        // It was open a moment ago.
        if session.open(version).is_err() {
            continue;
        }
        let gone = Change { op: Op::Delete, new: None, ..change };
        let Ok(Some((Some(place), _))) = partitions(session, version, &gone) else { continue };
        if session.versions[version].targets[place].is_here(&gone) {
            return Err(overtaken(session, version).into());
        }
        let weighed = session.weigh(version, session.known(version, &tombstone.number))?;
        if let (Side::Remote, Some(old)) = (weighed.side, change.old) {
            let target = &mut session.versions[version].targets[0];
            let key = target.key_texts(old);
            capture::deleted(target.open_table(), &key);
            target.tidy();
        }
    }
    session.wrote = true;
    Ok(())
}
