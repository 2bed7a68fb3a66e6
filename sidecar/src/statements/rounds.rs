//! Rounds over all databases with the extension: a standby's knowledge is carried to the leader, statements are counted.
//!
//! Few sessions, one at a time, and on a primary none that stays: it would hold up `DROP DATABASE`. A database without the
//! extension is looked into again now and then, because only a session in it can tell.

use super::Statements;
use super::carry::{Carried, Leader};
use super::source::{Counts, Source};
use crate::feed::{Kind, Result};
use pgquorum_agent::view::View;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

const ROUND: Duration = Duration::from_secs(2);
/// How often the server is asked which databases there are.
const LIST: Duration = Duration::from_secs(4);
/// How often statements are counted.
const COUNT: Duration = Duration::from_secs(30);
/// So many databases are visited in every round, as sessions for them are kept. Where more have the extension, those in
/// which nothing was learned lately, and in any case those that answer with an error, are visited less and less often.
const WARM_MAX: usize = 7;
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A database without the extension is looked into so often, where there may be something to carry or only to count; with
/// many of them, two a second.
const BARE_TELLING: Duration = Duration::from_secs(10);
const BARE_COUNTING: Duration = Duration::from_secs(30);
const BARE_EACH: Duration = Duration::from_millis(500);
/// Databases whose counts are shown.
const COUNTED_MAX: usize = 128;

/// What the rounds have counted, for metrics.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<String, Counts>>,
    carried: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    /// Statements of the databases that were visited lately.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        self.lock().clone()
    }

    /// Statements of which the leader was told since this process started.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Attempts to tell it that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Counts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, database: &str, counts: Counts) {
        let mut all = self.lock();
        if all.len() < COUNTED_MAX || all.contains_key(database) {
            all.insert(database.to_owned(), counts);
        }
    }
}

/// What this node's server is, as far as statements go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Not to be asked: it does not run, or the node has no part in the cluster.
    None,
    /// The primary, or a standby that hears of no leader: there is nobody to tell.
    Keeps {
        primary: bool,
    },
    Tells(Leader),
}

impl Part {
    fn of(view: &View) -> Part {
        if !view.member || view.removed || !view.postgres.is_running() {
            return Part::None;
        }
        let primary = !view.postgres.in_recovery;
        match &view.leader {
            Some(leader) if !primary && leader.id != view.id => {
                Part::Tells(Leader { id: leader.id, epoch: view.epoch, server: leader.db })
            }
            _ => Part::Keeps { primary },
        }
    }
}

#[derive(Default)]
struct Visited {
    due: Option<Instant>,
    pause: Duration,
    /// The extension was there at the last visit.
    learns: bool,
    carried: Carried,
    counted: Option<Instant>,
    /// What the last visit failed with: said once, not every two seconds.
    failure: Option<String>,
}

/// Goes round until the driver ends.
pub async fn rounds(statements: Arc<Statements>, mut view: watch::Receiver<Arc<View>>) {
    let mut rounds = Rounds { statements, listed: None, databases: BTreeMap::new() };
    let mut clock = tokio::time::interval(ROUND);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        // The sender is gone: the driver has ended.
        if view.has_changed().is_err() {
            return;
        }
        let part = Part::of(&view.borrow_and_update());
        rounds.go(part, Instant::now()).await;
    }
}

struct Rounds {
    statements: Arc<Statements>,
    listed: Option<Instant>,
    databases: BTreeMap<String, Visited>,
}

impl Rounds {
    /// One round, at this moment.
    async fn go(&mut self, part: Part, now: Instant) {
        if part == Part::None {
            // What it had learned and not saved goes with it.
            self.listed = None;
            self.databases.clear();
            self.statements.tally.lock().clear();
            return;
        }
        if self.listed.is_none_or(|at| now - at >= LIST)
            && let Err(error) = self.list(now).await
        {
            tracing::debug!(%error, "which databases there are cannot be asked now");
            return;
        }
        let due = self.databases.iter().filter(|(_, visited)| visited.due.is_none_or(|due| due <= now));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.visit(&name, part, now).await;
        }
    }

    async fn list(&mut self, now: Instant) -> Result<()> {
        let names = self.statements.source.databases().await?;
        self.databases.retain(|name, _| names.contains(name));
        self.statements.tally.lock().retain(|name, _| names.contains(name));
        for name in names {
            self.databases.entry(name).or_default();
        }
        self.listed = Some(now);
        Ok(())
    }

    async fn visit(&mut self, name: &str, part: Part, now: Instant) {
        let learning = self.databases.values().filter(|visited| visited.learns).count();
        let bare = if matches!(part, Part::Tells(_)) { BARE_TELLING } else { BARE_COUNTING };
        let bare =
            bare.max(BARE_EACH.saturating_mul(u32::try_from(self.databases.len()).unwrap_or(u32::MAX)));
        let Some(visited) = self.databases.get_mut(name) else { return };
        let tally = &self.statements.tally;
        let found = visited.look(&*self.statements.source, name, part, tally, now).await;
        visited.pause = match &found {
            Ok(carried) if *carried > 0 || learning <= WARM_MAX => ROUND,
            Err(error) if error.kind == Kind::NoExtension => bare,
            _ => visited.pause.max(ROUND).saturating_mul(2).min(PAUSE_MAX),
        };
        visited.due = Some(now + visited.pause);
        match found {
            Ok(_) => (visited.learns, visited.failure) = (true, None),
            Err(error) if matches!(error.kind, Kind::NoExtension | Kind::UnknownDatabase) => {
                visited.learns = false;
                tally.lock().remove(name);
            }
            Err(error) => {
                tally.failures.fetch_add(1, Ordering::Relaxed);
                if visited.failure.as_ref() != Some(&error.message) {
                    tracing::warn!(
                        database = name, %error,
                        "what is learned of statements stays where it is; it is tried again"
                    );
                }
                visited.failure = Some(error.message);
            }
        }
    }
}

impl Visited {
    /// Carries and counts what is due; returns how many statements were told to the leader.
    async fn look(
        &mut self,
        source: &dyn Source,
        name: &str,
        part: Part,
        tally: &Tally,
        now: Instant,
    ) -> Result<u64> {
        let mut carried = 0;
        if let Part::Tells(leader) = part {
            carried = self.carried.carry(source, name, leader).await?;
            tally.carried.fetch_add(carried, Ordering::Relaxed);
        }
        if self.counted.is_none_or(|at| now - at >= COUNT) {
            let stays = part != Part::Keeps { primary: true };
            tally.note(name, source.counts(name, stays).await?);
            self.counted = Some(now);
        }
        Ok(carried)
    }
}

#[cfg(test)]
mod tests;
