//! Applying a batch: the quick way, and again another way where that fails.

use pgquorum_change::{Position, Progress};

use super::error::ApplyError;
use super::judged::{Present, Tombstone};
use super::run;
use super::state::{Counts, Halt, Session, Way};
use super::tables::{self, Policy, Table};
use crate::pg::apply_session::Applying;
use crate::pg::savepoint::attempt;
use crate::pg::worker::Failure;
use crate::versions;

/// So many changes of a call are gone through carefully on their own; if there are more, all are.
const SUSPECTS_MAX: usize = 4;

/// What a savepoint does not bring back.
#[derive(Clone)]
struct Mark {
    progress: Progress,
    tables: Vec<Table>,
    present: Present,
    seen: Position,
    complete: Option<(Position, i64)>,
    swept: Vec<u32>,
    tombstones: Vec<Tombstone>,
}

impl Session {
    /// Applies a batch: the quick way. Where that fails, it is gone through again with the change at which it failed written
    /// carefully; and if that does not help, all of it carefully. If it failed while several rows were inserted together, it is
    /// gone through with each inserted by itself, to see at which it fails.
    pub fn apply(&mut self, batch: &[u8]) -> Result<(), ApplyError> {
        self.counts = Counts::default();
        self.suspects.clear();
        self.singly = false;
        if batch.is_empty() {
            return Ok(());
        }
        let Some(progress) = self.progress.clone() else {
            return Err(ApplyError::NoPosition(self.subscription.name.clone()));
        };
        let mark = Mark {
            progress,
            tables: self.tables.clone(),
            present: self.present.clone(),
            seen: self.seen,
            complete: self.complete,
            swept: self.swept.clone(),
            tombstones: self.tombstones.clone(),
        };
        let _applying = Applying::begin();
        loop {
            match attempt(|| self.batch(batch, Way::Quick)) {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(Halt::Error(error))) => return Err(error),
                Ok(Err(Halt::Careful)) => self.back_to(mark.clone(), true),
                Ok(Err(Halt::Crowded)) => {
                    self.back_to(mark.clone(), true);
                    self.alone = true;
                    continue;
                }
                Err(failure) if is_of_the_server(&failure) => return Err(failure.into()),
                Err(_) => self.back_to(mark.clone(), false),
            }
            match self.trying {
                // It was one of several that were inserted together.
                None if !self.singly => self.singly = true,
                // It failed before any row was come to.
                None => break,
                Some(tick) if self.suspects.contains(&tick) || self.suspects.len() == SUSPECTS_MAX => break,
                Some(tick) => self.suspects.push(tick),
            }
        }
        loop {
            match self.carefully(batch) {
                Ok(()) => return Ok(()),
                Err(Halt::Error(error)) => return Err(error),
                Err(Halt::Crowded) => {
                    self.back_to(mark.clone(), true);
                    self.alone = true;
                }
                Err(Halt::Careful) => unreachable!("the careful way asks for no other one"),
            }
        }
    }

    /// All of a batch carefully; in a savepoint, if it may have to be done again.
    fn carefully(&mut self, batch: &[u8]) -> Result<(), Halt> {
        if self.alone || !self.weighs() {
            return self.batch(batch, Way::Careful);
        }
        match attempt(|| self.batch(batch, Way::Careful)) {
            Ok(result) => result,
            Err(failure) => Err(ApplyError::Failed(failure).into()),
        }
    }

    /// Does the last write win in a table here?
    fn weighs(&self) -> bool {
        let newest = |policy: Policy| policy == Policy::LastWriteWins;
        self.subscription.captures
            && (newest(self.subscription.policy)
                || self.tables.iter().any(|table| table.policy.is_some_and(newest)))
    }

    /// After the savepoint of a call was rolled back.
    fn back_to(&mut self, mark: Mark, clean: bool) {
        self.close_targets(clean);
        self.versions.clear();
        self.last_version = 0;
        self.progress = Some(mark.progress);
        self.tables = mark.tables;
        self.present = mark.present;
        self.seen = mark.seen;
        self.complete = mark.complete;
        self.swept = mark.swept;
        self.tombstones = mark.tombstones;
        self.counts = Counts::default();
        self.emptied.clear();
        self.met.clear();
        self.wrote = true;
    }

    fn batch(&mut self, batch: &[u8], way: Way) -> Result<(), Halt> {
        let before = self.complete;
        if self.weighs() {
            // Before anything is looked at or locked. It is given back when this is rolled back.
            if self.alone { versions::exclude_appliers() } else { versions::join_appliers() }
        }
        run::frames(self, batch, way)?;
        if let Some((at, commit_us)) = self.complete.filter(|_| self.complete != before) {
            tables::save_position(self.subscription.id, self.only.as_deref(), at, commit_us);
        }
        for met in std::mem::take(&mut self.met) {
            let table = &self.tables[met.table];
            tables::count(self.subscription.id, table, met.conflict, met.resolution, met.count);
        }
        Ok(())
    }
}

/// Is it an error of the server or of the session, and not one that this change would meet the next time, too? Then the
/// whole is rolled back and tried again.
pub fn is_of_the_server(failure: &Failure) -> bool {
    let code = failure.sqlstate();
    matches!(&code[..2], "08" | "25" | "40" | "53" | "57" | "58" | "F0")
        || matches!(code.as_str(), "55P03" | "XX001" | "XX002")
}
