//! The launcher: starts a cutter in each database that has channels, and starts it again should it end.
//!
//! Which databases have channels can only be seen inside them. So when the server starts, each is visited once, one after
//! the other, by a cutter that ends at once if there is nothing to do; from then on sessions that make or read a channel say so.

use std::collections::BTreeMap;

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;

use super::{cutter, shared};
use crate::pg::worker::Running;
use crate::pg::{clock, process, worker};

const WAIT_MS: i64 = 5000;
/// While a database is being visited.
const VISIT_MS: i64 = 20;
const AGAIN_MS: u64 = 1000;

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

#[derive(Default)]
struct Launcher {
    running: BTreeMap<u32, Running>,
    /// Databases that want a cutter, and from when on (`CLOCK_BOOTTIME`).
    waiting: BTreeMap<u32, u64>,
    /// Databases that nobody has looked into yet.
    to_visit: Vec<u32>,
    full: bool,
}

/// Main function of the launcher.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgquorum_launcher_main(_arg: pg_sys::Datum) {
    worker::attach_signals();
    worker::connect(0);
    shared::i_am_the_launcher();
    let mut launcher = Launcher::default();
    match worker::transaction(worker::databases) {
        Ok(databases) => launcher.to_visit = databases,
        Err(message) => cutter::log(format!("pgquorum feed: the databases cannot be listed: {message}"), ""),
    }
    loop {
        worker::reload_if_asked();
        let visiting = launcher.round(clock::boottime_ns());
        process::wait(if visiting { VISIT_MS } else { WAIT_MS });
    }
}

impl Launcher {
    /// True: there is more to visit soon.
    fn round(&mut self, now_ns: u64) -> bool {
        let ended: Vec<u32> = self
            .running
            .iter()
            .filter(|(_, worker)| worker.has_ended())
            .map(|(database, _)| *database)
            .collect();
        for database in ended {
            self.running.remove(&database);
            // One that ended for want of channels has said so.
            if shared::of_database(database).is_some_and(|entry| entry.is_serving()) {
                self.waiting.entry(database).or_insert(now_ns + AGAIN_MS * clock::NS_PER_MS);
            }
        }
        for database in shared::take_wanted() {
            self.waiting.entry(database).or_insert(now_ns);
        }
        let due: Vec<u32> = self
            .waiting
            .iter()
            .filter(|(_, from_ns)| **from_ns <= now_ns)
            .map(|(database, _)| *database)
            .collect();
        for database in due {
            if self.running.contains_key(&database) {
                // It sees new channels itself; should it be about to end, its end is seen here and this is due then.
                continue;
            }
            self.waiting.remove(&database);
            self.start(database, now_ns);
        }
        let visitors =
            self.running.keys().filter(|d| !shared::of_database(**d).is_some_and(|e| e.is_serving())).count();
        if visitors == 0
            && let Some(database) = self.to_visit.pop()
            && !self.running.contains_key(&database)
        {
            self.start(database, now_ns);
        }
        !self.to_visit.is_empty() || !self.waiting.is_empty()
    }

    fn start(&mut self, database: u32, now_ns: u64) {
        match Running::start("pgquorum feed", "pgquorum_cutter_main", database) {
            Some(worker) => {
                self.running.insert(database, worker);
                self.full = false;
            }
            None => {
                self.waiting.insert(database, now_ns + 5 * AGAIN_MS * clock::NS_PER_MS);
                if !std::mem::replace(&mut self.full, true) {
                    cutter::log(
                        format!("pgquorum feed: no free place for the worker of database {database}"),
                        "Changes are captured, and wait in the log until it runs. Raise max_worker_processes (one for each database with channels, beside what else needs them) and restart the server.",
                    );
                }
            }
        }
    }
}
