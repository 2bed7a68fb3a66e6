//! What is known while a transaction applies changes.

use std::rc::Rc;

use pgquorum_change::{Position, Progress, Schema};

use super::Row;
use super::error::ApplyError;
use super::judged::{self, Present, Tombstone};
use super::tables::{self, Policy, State, Subscription, Table};
use crate::pg::apply_filter::Condition;
use crate::pg::apply_gather::Trying;
use crate::pg::apply_target::{self, Fault, Target};
use crate::pg::apply_write;
use crate::versions::Reader;

/// Why the quick or the careful way ends early.
#[derive(Debug)]
pub enum Halt {
    /// The quick way cannot say what is to be done.
    Careful,
    /// Others write versions now, and this is to be done with nobody else at it.
    Crowded,
    Error(ApplyError),
}

impl From<ApplyError> for Halt {
    fn from(error: ApplyError) -> Self {
        Self::Error(error)
    }
}

/// Which way changes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Quick,
    Careful,
}

/// A schema version, and the table here that its changes go to.
pub struct Version {
    pub id: u64,
    pub schema: Rc<Schema>,
    /// Position in the list of tables; `None`: not followed.
    pub table: Option<usize>,
    /// The table, and behind it the partitions that were used.
    pub targets: Vec<Target>,
    /// Who wrote its rows last, where that is kept here; known while it is open.
    pub judge: Option<Reader>,
    /// Which rows are wanted; known while it is open. `None`: all.
    pub condition: Option<Condition>,
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub transactions: i64,
    pub changes: i64,
    pub conflicts: i64,
    pub rejected: i64,
}

/// Conflicts that were met, to be counted at the end of the call.
pub struct Met {
    pub table: usize,
    pub conflict: &'static str,
    pub resolution: &'static str,
    pub count: i64,
}

pub struct Session {
    pub subscription: Subscription,
    pub only: Option<String>,
    pub progress: Option<Progress>,
    pub tables: Vec<Table>,
    pub versions: Vec<Version>,
    /// The one that was used last.
    pub last_version: usize,
    pub present: Present,
    /// Of the last change that was seen, whatever became of it.
    pub seen: Position,
    /// The change that is being written; `None`: one of several.
    pub trying: Trying,
    /// Versions of tables with new rows that are to be inserted together.
    pub gathering: Vec<usize>,
    /// Rows are inserted one by one, so that it is known which one fails.
    pub singly: bool,
    /// Changes at which the quick way of this call has failed.
    pub suspects: Vec<u64>,
    /// Of the last complete transaction, and when it was committed.
    pub complete: Option<(Position, i64)>,
    /// Something was written since the last command.
    pub wrote: bool,
    /// Versions of tables to be emptied, that follow each other in the log, and the positions before them.
    pub emptied: Vec<(usize, Position)>,
    pub counts: Counts,
    pub met: Vec<Met>,
    /// Tracked tables that this transaction has emptied: what was known of their rows counts no more.
    pub swept: Vec<u32>,
    pub tombstones: Vec<Tombstone>,
    /// Nobody else who weighs changes applies any meanwhile.
    pub alone: bool,
}

impl Session {
    /// Locks the subscription's position and reads what is to be known.
    pub fn begin(subscription: i32, only: Option<&str>) -> Result<Self, ApplyError> {
        let found = tables::find(subscription, only)?;
        if !found.enabled {
            return Err(ApplyError::Disabled(found.name));
        }
        let mut session = Self::of(found);
        session.only = only.map(str::to_owned);
        Ok(session)
    }

    /// The same for any subscription, whatever its state.
    pub fn of(subscription: Subscription) -> Self {
        Self {
            tables: tables::tables(subscription.id),
            progress: subscription.position.map(Progress::new),
            seen: subscription.position.unwrap_or_default(),
            subscription,
            only: None,
            versions: Vec::new(),
            last_version: 0,
            present: Present::default(),
            trying: Some(0),
            gathering: Vec::new(),
            singly: false,
            suspects: Vec::new(),
            complete: None,
            wrote: true,
            emptied: Vec::new(),
            counts: Counts::default(),
            met: Vec::new(),
            swept: Vec::new(),
            tombstones: Vec::new(),
            alone: false,
        }
    }

    pub fn is_for(&self, subscription: i32, only: Option<&str>) -> bool {
        self.subscription.id == subscription && self.only.as_deref() == only
    }

    /// Is a transaction of the source begun and not complete?
    pub fn is_incomplete(&self) -> bool {
        self.progress.as_ref().is_some_and(Progress::in_transaction)
    }

    /// The result of a call.
    pub fn row(&self) -> Row {
        let at = self.complete.map(|(at, _)| at).or(self.subscription.position);
        let one_by_one = self.subscription.captured || crate::capture::holds_changes();
        (
            at.map(|at| at.epoch.cast_signed()),
            at.map(|at| at.tick.cast_signed()),
            self.is_incomplete(),
            one_by_one,
            self.counts.transactions,
            self.counts.changes,
            self.counts.conflicts,
            self.counts.rejected,
        )
    }

    /// What was written is seen by what follows.
    #[inline]
    pub fn settle(&mut self) {
        self.insert_gathered();
        if std::mem::take(&mut self.wrote) {
            apply_write::next_command();
        }
    }

    /// The place of a schema version in the list of versions.
    #[inline]
    pub fn version(&mut self, id: u64) -> Result<usize, ApplyError> {
        if self.versions.get(self.last_version).is_some_and(|known| known.id == id) {
            return Ok(self.last_version);
        }
        self.last_version = match self.versions.iter().position(|known| known.id == id) {
            Some(known) => known,
            None => self.add_version(id)?,
        };
        Ok(self.last_version)
    }

    fn add_version(&mut self, id: u64) -> Result<usize, ApplyError> {
        let schema = tables::schema(self.subscription.id, id).ok_or(ApplyError::Schema(id))?;
        let known = |t: &Table| t.schema == schema.schema && t.name == schema.table;
        let mut table = self.tables.iter().position(known);
        let qualified = format!("{}.{}", schema.schema, schema.table);
        let wanted = match (&self.only, &self.subscription.tables) {
            (Some(only), _) => *only == qualified,
            (None, Some(tables)) => tables.contains(&qualified),
            (None, None) => true,
        };
        if !wanted {
            table = None;
        } else if table.is_none() && self.only.is_none() {
            // It has appeared at the source since the tables were asked for.
            self.tables.push(tables::add_table(&self.subscription, &schema));
            table = Some(self.tables.len() - 1);
        }
        let targets = Vec::new();
        self.versions.push(Version { id, schema, table, targets, judge: None, condition: None });
        Ok(self.versions.len() - 1)
    }

    /// Is a change of this table at this tick to be applied now?
    #[inline]
    pub fn counts_here(&self, table: usize, tick: u64) -> bool {
        let table = &self.tables[table];
        let state = if self.only.is_some() { State::CatchUp } else { State::Following };
        table.state == state && tick > table.after
    }

    /// Opens the table here for a schema version, if that was not done.
    #[inline]
    pub fn open(&mut self, version: usize) -> Result<(), Fault> {
        if self.versions[version].targets.is_empty() { self.open_first(version) } else { Ok(()) }
    }

    #[cold]
    fn open_first(&mut self, at: usize) -> Result<(), Fault> {
        let policy = self.versions[at].table.map_or(self.subscription.policy, |table| self.policy(table));
        let version = &mut self.versions[at];
        let name = || format!("{}.{}", version.schema.schema, version.schema.table);
        let oid = apply_target::find(&version.schema).ok_or_else(|| apply_target::missing(&name()))?;
        let mut target = Target::open(oid, &version.schema)?;
        if self.subscription.captures {
            match judged::open(&mut target, &version.schema, policy) {
                Ok(judge) => version.judge = judge,
                Err(fault) => {
                    target.close(true);
                    return Err(fault);
                }
            }
        } else if policy == Policy::LastWriteWins {
            target.close(true);
            return Err(judged::no_versions(&version.schema));
        }
        if let Some(filter) = version.table.and_then(|table| self.tables[table].filter.as_deref()) {
            match target.condition(filter, &version.schema) {
                Ok(condition) => {
                    target.filter_by(&condition);
                    version.condition = Some(condition);
                }
                Err(fault) => {
                    target.close(true);
                    return Err(fault);
                }
            }
        }
        version.targets.push(target);
        Ok(())
    }

    /// What is to be done about conflicts in a table.
    pub fn policy(&self, table: usize) -> Policy {
        self.tables[table].policy.unwrap_or(self.subscription.policy)
    }

    /// The partition with this number, among the targets of a version.
    pub fn leaf(&mut self, version: usize, oid: u32) -> Result<usize, Fault> {
        let version = &mut self.versions[version];
        if let Some(known) = version.targets.iter().position(|target| target.oid() == oid) {
            return Ok(known);
        }
        let mut target = Target::open(oid, &version.schema)?;
        if let Some(judge) = &version.judge {
            target.number_by(&version.schema, &tables::key_names(judge.root(), judge.keeping()));
        }
        if let Some(condition) = &version.condition {
            target.filter_by(condition);
        }
        version.targets.push(target);
        Ok(version.targets.len() - 1)
    }

    /// Lets go of what the last change needed.
    pub fn tidy(&mut self) {
        for target in self.versions.iter_mut().flat_map(|version| &mut version.targets) {
            target.tidy();
        }
    }

    /// Stops a table with what comes after a position.
    #[cold]
    pub fn stop(&mut self, table: usize, after: Position, code: &str, message: &str) {
        tables::stop(self.subscription.id, &self.tables[table], after, code, message);
        self.tables[table].state = State::Stopped;
        self.wrote = true;
    }

    /// Closes the tables here; they are opened again when they are needed. Rows that were gathered and not inserted are those of
    /// an attempt that has failed.
    pub fn close_targets(&mut self, clean: bool) {
        self.gathering.clear();
        for version in &mut self.versions {
            // Partitions first: their table has opened them, too.
            for target in version.targets.drain(..).rev() {
                target.close(clean);
            }
            version.judge = None;
            version.condition = None;
        }
    }

    pub fn close(mut self) {
        self.close_targets(true);
    }
}
