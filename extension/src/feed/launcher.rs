//! The launcher: starts a cutter in each database that has channels, and starts it again should it end.
//!
//! Which databases have channels can only be seen inside them. So when the server starts, each is visited once, one after
//! the other, by a cutter that ends at once if there is nothing to do; from then on sessions that make or read a channel
//! say so. A cutter that ends without having said that there are no channels is started again.

use std::collections::{BTreeMap, BTreeSet};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;

use super::databases::{self, Found, News};
use super::{shared, work};
use crate::pg::worker::Running;
use crate::pg::{clock, process, snapshot, worker};
use crate::statements::ring;
use crate::statements::savers::Savers;

const WAIT_MS: u64 = 5000;
/// While databases are being visited.
const VISIT_MS: u64 = 20;
/// So long the other visits wait for one that gets on slowly or hangs, for example by a lock.
const VISIT_NS_MAX: u64 = 2_000 * clock::NS_PER_MS;
/// All databases are visited again at most so often.
const VISIT_ALL_NS: u64 = 10_000 * clock::NS_PER_MS;
const AGAIN_MS: u64 = 1000;
const AGAIN_MS_MAX: u64 = 30_000;
/// One that has lived so long had not failed at once.
const LIVED_NS: u64 = 60_000 * clock::NS_PER_MS;

/// Registers the worker. It runs on a primary only: recovery must have finished.
pub fn init() {
    BackgroundWorkerBuilder::new("pgquorum feed launcher")
        .set_type("pgquorum feed launcher")
        .set_library("pgquorum")
        .set_function("pgquorum_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(std::time::Duration::from_secs(1)))
        .enable_spi_access()
        .load();
}

/// A cutter that was started.
struct Started {
    worker: Running,
    since_ns: u64,
    /// What it has said.
    found: Option<Found>,
    /// Somebody has said since that there are channels.
    wanted: bool,
}

#[derive(Default)]
struct Launcher {
    running: BTreeMap<u32, Started>,
    /// Databases that want a cutter, and from when on (`CLOCK_BOOTTIME`).
    waiting: BTreeMap<u32, u64>,
    /// Databases that are to be looked into.
    to_visit: Vec<u32>,
    /// From when on all databases are to be visited.
    visit_all_from_ns: Option<u64>,
    /// When that was last begun.
    visited_all_ns: u64,
    /// How often cutters ended without having said why, in a row.
    failures: BTreeMap<u32, u32>,
    full: bool,
    /// The failure to list the databases has been logged.
    said: bool,
    /// The workers that save learned statements, which it starts, too.
    savers: Savers,
}

/// Main function of the launcher.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgquorum_launcher_main(_arg: pg_sys::Datum) {
    worker::attach_signals();
    worker::connect(0);
    databases::forget_reports();
    shared::i_am_the_launcher();
    // What standbys learn from now on counts.
    ring::cover_from(snapshot::insert_lsn());
    let mut launcher = Launcher { visit_all_from_ns: Some(0), ..Launcher::default() };
    loop {
        worker::reload_if_asked();
        let now_ns = clock::boottime_ns();
        let savers_ns = launcher.savers.round(now_ns);
        let until_savers_ms =
            savers_ns.map_or(u64::MAX, |at_ns| at_ns.saturating_sub(now_ns) / clock::NS_PER_MS);
        let wait_ms = launcher.round(now_ns).min(until_savers_ms.max(VISIT_MS));
        process::wait(i64::try_from(wait_ms).unwrap_or(1));
    }
}

impl Launcher {
    /// Everything that is due; how long to wait then.
    fn round(&mut self, now_ns: u64) -> u64 {
        // Looked at first: what a cutter says, it says before it ends.
        let ended: Vec<u32> = self
            .running
            .iter()
            .filter(|(_, started)| started.worker.has_ended())
            .map(|(database, _)| *database)
            .collect();
        self.hear(databases::take_news(), now_ns);
        for database in ended {
            self.ended(database, now_ns);
        }
        let visit_all = self.visit_all_from_ns.is_some_and(|from_ns| from_ns <= now_ns);
        let due: Vec<u32> =
            self.waiting.iter().filter(|(_, from)| **from <= now_ns).map(|(database, _)| *database).collect();
        if visit_all || !due.is_empty() {
            match worker::transaction(worker::databases) {
                Ok(all) => {
                    self.said = false;
                    self.start_due(&due, &all, now_ns);
                    if visit_all {
                        self.visit_all_from_ns = None;
                        self.visited_all_ns = now_ns;
                        self.to_visit = all;
                    }
                }
                Err(failure) => {
                    self.visit_all_from_ns =
                        self.visit_all_from_ns.map(|_| now_ns + WAIT_MS * clock::NS_PER_MS);
                    if !std::mem::replace(&mut self.said, true) {
                        let message =
                            format!("pgquorum feed: the databases cannot be listed: {}", failure.message);
                        work::log(
                            message,
                            "It is tried again, about every 5 s. Until then no worker is started.",
                        );
                    }
                    return WAIT_MS;
                }
            }
        }
        let visiting =
            |started: &Started| started.found.is_none() && now_ns < started.since_ns + VISIT_NS_MAX;
        if !self.running.values().any(visiting)
            && let Some(database) = self.to_visit.pop()
            && !self.running.contains_key(&database)
        {
            self.start(database, now_ns);
        }
        if !self.to_visit.is_empty() {
            return VISIT_MS;
        }
        let next_ns = self.waiting.values().copied().chain(self.visit_all_from_ns).min();
        let wait_ms = next_ns.map_or(WAIT_MS, |next_ns| next_ns.saturating_sub(now_ns) / clock::NS_PER_MS);
        wait_ms.clamp(VISIT_MS, WAIT_MS)
    }

    fn hear(&mut self, news: News, now_ns: u64) {
        for (database, found) in news.reports {
            if let Some(started) = self.running.get_mut(&database) {
                started.found = Some(found);
            }
        }
        for database in news.wanted {
            match self.running.get_mut(&database) {
                // It sees new channels itself; but it may be about to end.
                Some(started) => started.wanted = true,
                None => {
                    self.waiting.entry(database).or_insert(now_ns);
                }
            }
        }
        if news.visit_all {
            self.visit_all_from_ns.get_or_insert(now_ns.max(self.visited_all_ns + VISIT_ALL_NS));
        }
    }

    fn ended(&mut self, database: u32, now_ns: u64) {
        let Some(started) = self.running.remove(&database) else { return };
        if started.found == Some(Found::Nothing) {
            self.failures.remove(&database);
            if started.wanted {
                self.waiting.insert(database, now_ns);
            }
            return;
        }
        let failures = self.failures.entry(database).or_default();
        if now_ns >= started.since_ns + LIVED_NS {
            *failures = 0;
        }
        let wait_ms = (AGAIN_MS << (*failures).min(8)).min(AGAIN_MS_MAX);
        *failures += 1;
        self.waiting.insert(database, now_ns + wait_ms * clock::NS_PER_MS);
    }

    /// Starts what is due in databases that are still there.
    fn start_due(&mut self, due: &[u32], all: &[u32], now_ns: u64) {
        let all: BTreeSet<u32> = all.iter().copied().collect();
        for database in due {
            self.waiting.remove(database);
            if !all.contains(database) {
                self.failures.remove(database);
                databases::forget_database(*database);
            } else if !self.running.contains_key(database) {
                self.start(*database, now_ns);
            }
        }
    }

    fn start(&mut self, database: u32, now_ns: u64) {
        match Running::start("pgquorum feed", "pgquorum_cutter_main", database) {
            Some(worker) => {
                let started = Started { worker, since_ns: now_ns, found: None, wanted: false };
                self.running.insert(database, started);
                self.full = false;
            }
            None => {
                self.waiting.insert(database, now_ns + 5 * AGAIN_MS * clock::NS_PER_MS);
                if !std::mem::replace(&mut self.full, true) {
                    work::log(
                        format!("pgquorum feed: no free place for the worker of database {database}"),
                        "Changes are captured, and wait in the log until it runs. Raise max_worker_processes (one for each database with channels, beside what else needs them) and restart the server.",
                    );
                }
            }
        }
    }
}
