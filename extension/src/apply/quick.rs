//! The quick way of writing changes: nothing is looked at before they are written, and new rows of a table that nobody watches
//! are gathered and inserted together.

use pgquorum_change::{Change, Op, Position};

use super::filtered;
use super::state::{Halt, Session};
use crate::pg::apply_find::Found;
use crate::pg::apply_target::{Fault, Target};

impl Session {
    /// May a new row wait here, to be inserted together with others?
    #[inline]
    pub fn gathers(&self, version: usize) -> bool {
        let version = &self.versions[version];
        !self.singly
            && version.judge.is_none()
            && version.condition.is_none()
            && version.targets.first().is_some_and(Target::gathers)
    }

    /// Inserts the rows that wait. To be called before anything else is done than inserting: others may see these rows, or their
    /// place.
    #[inline]
    pub fn insert_gathered(&mut self) {
        for version in self.gathering.drain(..) {
            if let Some(target) = self.versions[version].targets.first_mut() {
                target.insert_gathered(&mut self.trying);
            }
        }
    }
}

/// Takes in a new row of a table whose rows are inserted together. No other change looks at it before that.
#[inline]
pub fn gather(
    session: &mut Session,
    version: usize,
    position: Position,
    change: &Change,
    bytes: usize,
) -> Result<(), Halt> {
    let Some(image) = change.new else { return Err(Halt::Careful) };
    session.wrote = true;
    if !session.gathering.contains(&version) {
        session.gathering.push(version);
    }
    let target = &mut session.versions[version].targets[0];
    if !target.gather(image, position.tick, bytes, &mut session.trying) {
        return Err(Halt::Careful);
    }
    session.counts.changes += 1;
    Ok(())
}

/// Writes a change of a row, whatever else is there; false: there is no such row.
#[inline]
pub fn write(session: &mut Session, version: usize, change: &Change) -> Result<bool, Fault> {
    if change.op != Op::Insert {
        session.settle();
    }
    session.wrote = true;
    if session.versions[version].targets[0].is_filtered() {
        return filtered::quick(session, version, change);
    }
    if session.versions[version].targets[0].is_partitioned() {
        return quick_in_partitions(session, version, change);
    }
    Ok(write_in(session, version, 0, change))
}

#[inline]
fn write_in(session: &mut Session, version: usize, target: usize, change: &Change) -> bool {
    let target = &mut session.versions[version].targets[target];
    let found = match (change.op, change.new) {
        (Op::Insert, Some(new)) => {
            target.insert(new);
            Found::Row
        }
        (Op::Update, Some(new)) => target.update(change, new),
        _ => target.delete(change),
    };
    target.tidy();
    found == Found::Row
}

fn quick_in_partitions(session: &mut Session, version: usize, change: &Change) -> Result<bool, Fault> {
    let Some((old, new)) = partitions(session, version, change)? else { return Ok(false) };
    match (old, new) {
        (Some(old), Some(new)) if old != new => Ok(false),
        (Some(place), _) | (None, Some(place)) => Ok(write_in(session, version, place, change)),
        (None, None) => Ok(false),
    }
}

/// Where the old and the new row belong, as places in a version's targets; `None`: there is no such row.
pub type Places = (Option<usize>, Option<usize>);

/// The partitions of the old and the new row, opened. `None`: the old row's is not known.
pub fn partitions(session: &mut Session, version: usize, change: &Change) -> Result<Option<Places>, Fault> {
    let root = &mut session.versions[version].targets[0];
    if !root.is_partitioned() {
        return Ok(Some((Some(0), Some(0))));
    }
    let old = if change.op == Op::Insert {
        None
    } else {
        let Some(old) = root.route_old(change) else { return Ok(None) };
        Some(old)
    };
    let new = change.new.map(|new| root.route_new(new));
    let old = old.map(|oid| session.leaf(version, oid)).transpose()?;
    let new = new.map(|oid| session.leaf(version, oid)).transpose()?;
    Ok(Some((old, new)))
}
