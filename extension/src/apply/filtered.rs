//! Tables of which some rows only are wanted here: a filter looks at each new row.
//!
//! As with PostgreSQL's row filters, an update by which a row comes to fulfil the filter inserts it here, and one by which it
//! ceases to deletes it; that a row is not here is no conflict, as it may never have been wanted. Whether the old row was,
//! is told by its presence. What the row's unchanged large values are, is known where the row is here only.
//!
//! A partitioned table here may have partitions for wanted rows only, so the filter is asked before a partition is looked for.

use pgquorum_change::{Change, Image, Op, Value};

use super::careful::{self, Conflict, Problem};
use super::state::Session;
use crate::pg::apply_filter::Wanted;
use crate::pg::apply_find::Found;
use crate::pg::apply_target::{Fault, Target};
use crate::pg::apply_write;

/// What a filter says of a change, before anything is looked up here.
struct Said {
    /// Of the new row; of a deletion there is none, so it is not wanted.
    wanted: Wanted,
    /// The old row may be here.
    was: bool,
}

fn ask(session: &mut Session, version: usize, change: &Change) -> Said {
    let root = &mut session.versions[version].targets[0];
    let wanted = change.new.map_or(Wanted::No, |new| root.wants(new));
    let was = change.op != Op::Insert && (!root.is_partitioned() || root.may_be_here(change));
    Said { wanted, was }
}

/// The quick way of writing a change. False: look closer.
pub fn quick(session: &mut Session, version: usize, change: &Change) -> Result<bool, Fault> {
    let said = ask(session, version, change);
    if said.wanted == Wanted::Unknown {
        return Ok(false);
    }
    let old = if said.was { place_of_old(session, version, change)? } else { None };
    let Some(image) = change.new.filter(|_| said.wanted == Wanted::Yes) else {
        if let Some(place) = old {
            let target = &mut session.versions[version].targets[place];
            target.delete(change);
            target.tidy();
        }
        return Ok(true);
    };
    let new = place_of_new(session, version, image)?;
    if let Some(place) = old {
        if place != new {
            return Ok(false);
        }
        let target = &mut session.versions[version].targets[place];
        let found = target.update(change, image);
        target.tidy();
        if found == Found::Row {
            return Ok(true);
        }
    }
    if !is_whole(image) {
        return Ok(false);
    }
    let target = &mut session.versions[version].targets[new];
    target.insert(image);
    target.tidy();
    Ok(true)
}

/// The careful way: what is in the way is a conflict.
pub fn write(session: &mut Session, version: usize, change: &Change) -> Result<(), Problem> {
    let said = ask(session, version, change);
    let old = if said.was { place_of_old(session, version, change)? } else { None };
    let found =
        old.filter(|place| session.versions[version].targets[*place].find_locked(change) == Found::Row);
    let Some(place) = found else {
        return match (change.new, said.wanted) {
            (Some(image), Wanted::Yes) => {
                let new = place_of_new(session, version, image)?;
                careful::insert(&mut session.versions[version].targets[new], image)
            }
            (Some(_), Wanted::Unknown) => {
                Err(Problem::Conflict(not_told(&session.versions[version].targets[0])))
            }
            _ => Ok(()),
        };
    };
    let Some(image) = change.new.filter(|_| said.wanted != Wanted::No) else {
        session.versions[version].targets[place].delete_located();
        return Ok(());
    };
    let new = place_of_new(session, version, image)?;
    let target = &mut session.versions[version].targets[place];
    if place != new {
        // The row moves to another partition.
        target.delete_located();
        apply_write::next_command();
        return careful::insert(&mut session.versions[version].targets[new], image);
    }
    target.prepare(image, true);
    // With the values that did not change.
    if target.wants_prepared() {
        careful::update_prepared(target)
    } else {
        target.delete_located();
        Ok(())
    }
}

/// Where the old row is, if it is here, as a place in a version's targets. `None`: its key is not known.
fn place_of_old(session: &mut Session, version: usize, change: &Change) -> Result<Option<usize>, Fault> {
    let root = &mut session.versions[version].targets[0];
    if !root.is_partitioned() {
        return Ok(Some(0));
    }
    root.route_old(change).map(|oid| session.leaf(version, oid)).transpose()
}

fn place_of_new(session: &mut Session, version: usize, image: Image) -> Result<usize, Fault> {
    let root = &mut session.versions[version].targets[0];
    if !root.is_partitioned() {
        return Ok(0);
    }
    let oid = root.route_new(image);
    session.leaf(version, oid)
}

fn is_whole(image: Image) -> bool {
    image.values().all(|value| value != Value::Unchanged)
}

#[cold]
fn not_told(target: &Target) -> Conflict {
    let message = format!(
        "the row is not in {}, and its filter looks at large values that did not change and were not sent, so that it cannot be \
         told whether it is wanted here",
        target.name()
    );
    Conflict { kind: "update_missing", code: "P0002".into(), message }
}
