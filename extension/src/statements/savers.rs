//! Starting savers, for the launcher of the feed: a server has one launcher, and databases share few workers.

use std::collections::BTreeMap;

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use super::databases;
use crate::error::Refusal;
use crate::pg::clock;
use crate::pg::worker::Running;

/// So many databases are saved at the same time.
const SAVERS_MAX: usize = 4;
const AGAIN_NS: u64 = 1000 * clock::NS_PER_MS;
const AGAIN_NS_MAX: u64 = 300_000 * clock::NS_PER_MS;
/// A saver that has lived so long had not failed at once: it has been idle at least.
const LIVED_NS: u64 = super::save::IDLE_NS - 1_000 * clock::NS_PER_MS;
/// So long it is remembered who was served when.
const TURNS_NS: u64 = 600_000 * clock::NS_PER_MS;
/// After so many failures in a row a database is taken to be gone until a session learns something in it.
const FAILURES_MAX: u32 = 8;

struct Started {
    worker: Running,
    since_ns: u64,
}

#[derive(Default)]
pub struct Savers {
    running: BTreeMap<u32, Started>,
    /// How often savers ended at once, in a row, and from when on the next is started (`CLOCK_BOOTTIME`).
    failed: BTreeMap<u32, (u32, u64)>,
    /// When the last one was started in a database.
    turns: BTreeMap<u32, u64>,
    full: bool,
}

impl Savers {
    /// Starts what is wanted. When to look again, if nobody says so before; `None`: nothing waits.
    pub fn round(&mut self, now_ns: u64) -> Option<u64> {
        let ended: Vec<u32> = self
            .running
            .iter()
            .filter(|(_, saver)| saver.worker.has_ended())
            .map(|(database, _)| *database)
            .collect();
        for database in ended {
            self.ended(database, now_ns);
        }
        let mut next_ns: Option<u64> = None;
        let mut later = |at_ns: u64| next_ns = Some(next_ns.map_or(at_ns, |next_ns| next_ns.min(at_ns)));
        let mut waiting = databases::without_saver();
        self.turns.retain(|_, started_ns| now_ns < *started_ns + TURNS_NS);
        // Who has waited longest is next.
        waiting.sort_by_key(|database| self.turns.get(database).copied());
        for database in waiting {
            if self.running.contains_key(&database) {
                continue;
            }
            let again_ns = self.failed.get(&database).map_or(0, |(_, at_ns)| *at_ns);
            let not_before_ns = again_ns.max(databases::away_until_ns(database));
            if now_ns < not_before_ns {
                later(not_before_ns);
            } else if self.running.len() >= SAVERS_MAX || !self.start(database, now_ns) {
                later(now_ns + AGAIN_NS);
            }
        }
        next_ns
    }

    fn ended(&mut self, database: u32, now_ns: u64) {
        let Some(started) = self.running.remove(&database) else { return };
        let was_sent_away = now_ns < databases::away_until_ns(database);
        if databases::take_bare(database) || was_sent_away || now_ns >= started.since_ns + LIVED_NS {
            self.failed.remove(&database);
            return;
        }
        let (failures, not_before_ns) = self.failed.entry(database).or_default();
        *not_before_ns = now_ns + (AGAIN_NS << (*failures).min(10)).min(AGAIN_NS_MAX);
        *failures += 1;
        if *failures >= FAILURES_MAX {
            databases::forget(database);
        }
    }

    /// False: there is no place for it now.
    fn start(&mut self, database: u32, now_ns: u64) -> bool {
        match Running::start("pgquorum statements", "pgquorum_statements_main", database) {
            Some(worker) => {
                self.turns.insert(database, now_ns);
                self.running.insert(database, Started { worker, since_ns: now_ns });
                self.full = false;
                true
            }
            None => {
                if !std::mem::replace(&mut self.full, true) {
                    Refusal::new(
                        ERRCODE_SUCCESSFUL_COMPLETION,
                        format!("pgquorum statements: no free place for the worker that saves what is learned in database {database}"),
                    )
                    .detail("Until there is one, nothing new is served, and a statement that was seen writing is withdrawn on this server only. Raise max_worker_processes and restart the server.")
                    .log();
                }
                false
            }
        }
    }
}
