//! Who wrote the rows last that a change is about, in tables of which that is kept here (`versions`).
//!
//! Invariant: what is known of a row is looked at while nobody else can write it: it was locked, or the change was written
//! already, in a savepoint that can be rolled back. The one row that cannot be held is one that is not here and is to stay so:
//! see [`super::newest::bury`].

use std::rc::Rc;

use pgquorum_change::{Change, Op, Schema, Stamp, Verdict};

use super::careful::count;
use super::error::ApplyError;
use super::state::{Halt, Session};
use super::tables::{self, Policy};
use crate::pg::apply_number::Number;
use crate::pg::apply_target::{Fault, Target};
use crate::versions::{self, Reader, Version};

/// The present transaction of the source.
#[derive(Clone, Default)]
pub struct Present {
    /// None of its changes is wanted here.
    pub dropped: bool,
    /// Where it was made.
    pub origin: Rc<str>,
    /// When it was committed there, in microseconds since 1970.
    pub commit_us: i64,
}

impl Present {
    pub fn stamp(&self) -> Stamp<'_> {
        Stamp { commit_us: self.commit_us, origin: &self.origin }
    }
}

/// A deletion of a row that is not here, to be kept as its version at the end of the transaction.
#[derive(Clone)]
pub struct Tombstone {
    pub schema_version: u64,
    /// The number of the row's key.
    pub number: Number,
    /// The change, as it is encoded.
    pub change: Vec<u8>,
}

/// Who wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The change is later.
    Remote,
    /// The row here was written later, by somebody else.
    Local,
    /// The change came another way before, or a later one of the same origin: there is nothing to do, and no conflict.
    Known,
}

/// What is known of a row, and what that means for the present transaction of the source.
pub struct Weighed {
    pub known: Option<Version>,
    pub side: Side,
}

/// The versions of a table's rows, and how their keys are numbered. `None`: they are not kept, or not by the source's key.
/// Where the last write wins they must be.
pub fn open(target: &mut Target, schema: &Schema, policy: Policy) -> Result<Option<Reader>, Fault> {
    let needed = policy == Policy::LastWriteWins;
    let Some(reader) = Reader::of(target.open_table()) else {
        return if needed { Err(no_versions(schema)) } else { Ok(None) };
    };
    let names = tables::key_names(reader.root(), reader.keeping());
    if !target.number_by(schema, &names) {
        return if needed { Err(other_key(schema, &names)) } else { Ok(None) };
    }
    if needed {
        versions::be_among_others();
    }
    Ok(Some(reader))
}

#[cold]
pub fn no_versions(schema: &Schema) -> Fault {
    let message = format!(
        "no versions are kept of the rows of table {}.{}, so it is not known who wrote a row last. Track it here (quorum.track), \
         then let it go on (quorum.resume_table): that begins to keep them. Or choose another policy than last_write_wins",
        schema.schema, schema.table
    );
    Fault { code: "PQ020", message }
}

#[cold]
fn other_key(schema: &Schema, names: &[String]) -> Fault {
    let of_source: Vec<&str> = schema.key.iter().map(|at| schema.columns[*at].name.as_str()).collect();
    let message = format!(
        "table {}.{} has another key here ({}) than at the source ({}), so it is not known who wrote a row last. Give both the \
         same key, or choose another policy than last_write_wins",
        schema.schema,
        schema.table,
        names.join(", "),
        of_source.join(", ")
    );
    Fault { code: "PQ020", message }
}

impl Session {
    /// What is known of a row of an open table.
    pub fn known(&self, version: usize, number: &Number) -> Option<Version> {
        let judge = self.versions[version].judge.as_ref()?;
        if self.swept.contains(&judge.root()) { None } else { judge.find(number) }
    }

    /// Does the present transaction win over what is known of a row?
    pub fn weigh(&self, version: usize, known: Option<Version>) -> Result<Weighed, ApplyError> {
        let stamp = self.present.stamp();
        let side = match versions::judge(known.as_ref(), &self.subscription.origin, stamp) {
            Verdict::Remote => Side::Remote,
            Verdict::Local if self.is_of_others(known.as_ref()) => Side::Local,
            Verdict::Local | Verdict::Same => Side::Known,
            Verdict::FromTheFuture { ahead_us } => {
                let schema = &self.versions[version].schema;
                let table = format!("{}.{}", schema.schema, schema.table);
                return Err(ApplyError::Ahead { table, origin: stamp.origin.to_owned(), ahead_us });
            }
        };
        Ok(Weighed { known, side })
    }

    /// Was it written by somebody else than who made the present transaction?
    pub fn is_of_others(&self, known: Option<&Version>) -> bool {
        known.is_some_and(|known| {
            known.origin.as_deref().unwrap_or(&self.subscription.origin) != &*self.present.origin
        })
    }
}

/// The name of the conflict that a row was written by others before.
pub fn origin_differs(op: Op) -> &'static str {
    if op == Op::Delete { "delete_origin_differs" } else { "update_origin_differs" }
}

/// After the quick way has written a change: is that right by who wrote its rows before? False: look closer.
#[inline]
pub fn suits(session: &mut Session, version: usize, table: usize, change: &Change) -> Result<bool, Halt> {
    if session.versions[version].judge.is_none() {
        return Ok(true);
    }
    suits_versions(session, version, table, change)
}

fn suits_versions(
    session: &mut Session,
    version: usize,
    table: usize,
    change: &Change,
) -> Result<bool, Halt> {
    let policy = session.policy(table);
    let newest = policy == Policy::LastWriteWins;
    if !newest && change.op == Op::Insert {
        return Ok(true);
    }
    let numbers = session.versions[version].targets[0].numbers(change);
    // The row that was there.
    let before = numbers.gone.or(numbers.put);
    let mut differs = false;
    for number in [numbers.gone, numbers.put].into_iter().flatten() {
        if !newest && Some(number) != before {
            continue;
        }
        let mut known = session.known(version, &number);
        if newest {
            let weighed = session.weigh(version, known)?;
            if weighed.side != Side::Remote {
                return Ok(false);
            }
            known = weighed.known;
        }
        differs |= Some(number) == before && is_overwritten(session, known.as_ref());
    }
    if newest {
        session.tombstones.retain(|tombstone| Some(tombstone.number) != numbers.put);
    }
    if differs && change.op != Op::Insert {
        if matches!(policy, Policy::Skip | Policy::KeepLocal) {
            return Ok(false);
        }
        session.counts.conflicts += 1;
        count(session, table, origin_differs(change.op), "applied_remote");
    }
    Ok(true)
}

/// Was a row there that somebody else wrote?
pub fn is_overwritten(session: &Session, known: Option<&Version>) -> bool {
    known.is_some_and(|known| !known.deleted) && session.is_of_others(known)
}

/// Where the last write wins: is it known that a table was emptied by this transaction, or by a later one? Rows that were
/// written since stay then.
pub fn was_emptied(session: &Session, version: usize, table: usize) -> Result<bool, ApplyError> {
    if session.policy(table) != Policy::LastWriteWins {
        return Ok(false);
    }
    let emptied = session.versions[version].judge.as_ref().and_then(Reader::emptied);
    Ok(session.weigh(version, emptied)?.side != Side::Remote)
}
