//! The saver: one worker per database in which statements are learned, on the primary. It writes what was learned into the
//! table, from which all nodes serve: at once what takes away from it, the rest about once a second.
//!
//! Invariant: no error ends it, it waits for nobody's lock longer than [`LOCK_TIMEOUT`], and it writes only while this
//! server has the cluster's lease.

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
use pgrx::prelude::*;

use super::records::{self, Record, Urgency, Wanted};
use super::shared;
use super::{databases, settings, table, withdraw};
use crate::error::Refusal;
use crate::pg::shared::prepared_max;
use crate::pg::worker::{Failure, Job};
use crate::pg::{clock, process, statement_rows, worker};
use crate::{commit_wait, fence};

const INTERVAL_MS: u64 = 1000;
const PAUSE_MS: i64 = 10;
/// How often a server without a lease looks whether it has one.
const FENCED_MS: u64 = 50;
/// A saver that has had nothing to do for so long makes room for others. DROP DATABASE waits 5 s for those who use it.
pub const IDLE_NS: u64 = 3_000 * clock::NS_PER_MS;
/// So long it may stay though other databases wait for a saver.
const TURN_NS: u64 = 2_500 * clock::NS_PER_MS;
const RETRY_MS_MIN: u64 = 250;
const RETRY_MS_MAX: u64 = 30_000;
/// A lock that is kept for so long is worth a line in the server's log.
const LOCKED_NS_LONG: u64 = 30_000 * clock::NS_PER_MS;
const LOCK_TIMEOUT: &std::ffi::CStr = c"200ms";
/// Statements in one transaction.
const RECORDS_MAX: usize = 2000;
/// Where more statements come than there is room for, what is saved is soon thrown out for others: there saving, but for what
/// takes away from the list, takes no more than one part in so many of a processor's time.
const CHURN_SHARE: u64 = 400;
const CHURN_RECORDS_MAX: usize = 128;
const CHURN_MS_MAX: u64 = 5000;

struct Saver {
    database: u32,
    /// When there was something to do last.
    since_ns: u64,
    busy_ns: u64,
    /// What can wait is not looked at before.
    later_ns: u64,
    failures: u32,
    failing_since_ns: Option<u64>,
    said: String,
}

/// What came of one round.
enum Done {
    /// How many statements were saved.
    Saved(Vec<Record>),
    /// Everything was set back instead.
    SetBack,
    /// The extension is not in this database.
    Gone,
}

/// Main function of a saver; its argument is the database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgquorum_statements_main(database: pg_sys::Datum) {
    let database = database.value() as u32;
    worker::attach_signals();
    worker::connect(database);
    worker::set_for_writing(LOCK_TIMEOUT);
    // What is served must not be taken back by a failover.
    worker::set(c"synchronous_commit", c"on");
    if !worker::be_the_only_one(Job::Saver) {
        return;
    }
    commit_wait::hold_on();
    databases::set_saver(database, worker::own_pid());
    let mut saver = Saver {
        database,
        since_ns: clock::boottime_ns(),
        busy_ns: clock::boottime_ns(),
        later_ns: 0,
        failures: 0,
        failing_since_ns: None,
        said: String::new(),
    };
    loop {
        worker::reload_if_asked();
        let Some(wait_ms) = saver.round() else { break };
        process::wait(i64::try_from(wait_ms).unwrap_or(1));
        // However often it is woken: each round is a transaction.
        process::wait(PAUSE_MS);
    }
    databases::set_saver(database, 0);
}

impl Saver {
    /// Everything that is due now; how long to wait then. `None`: there is nothing to do any more.
    fn round(&mut self) -> Option<u64> {
        let now_ns = clock::boottime_ns();
        if now_ns < databases::away_until_ns(self.database) {
            // What is still to be done is done when this database is free again.
            databases::want(self.database);
            return None;
        }
        if fence::refusing() {
            return Some(FENCED_MS);
        }
        if now_ns >= self.since_ns + TURN_NS && databases::another_waits(self.database) {
            // What is still to be done here is known, so that this database has another turn.
            return None;
        }
        let urgent = databases::take_wanted(self.database);
        let prepared = shared::globals().prepared.load(std::sync::atomic::Ordering::SeqCst);
        let sets_back = match databases::prepared(self.database) {
            // What a server that was stopped had prepared is not known either.
            None => prepared_max() > 0,
            Some(seen) => seen != prepared,
        };
        let sweeps = databases::is_to_be_swept(self.database);
        let wanted = self.wanted(now_ns);
        if !sets_back
            && !sweeps
            && !urgent
            && !records::is_anything_due(self.database, process::now_us_unsigned(), wanted.least)
        {
            return (now_ns < self.busy_ns + IDLE_NS).then(|| self.pause_ms(now_ns));
        }
        self.busy_ns = now_ns;
        let mut taken = Vec::new();
        let database = self.database;
        let cpu_ns = clock::own_cpu_ns();
        let attempt = worker::transaction(|| work(database, sets_back, sweeps, wanted, &mut taken));
        worker::end_if_told();
        match attempt {
            Ok(Done::Gone) => {
                // What is known is of an extension that was dropped.
                table::forget(database, None);
                databases::set_bare(database);
                return None;
            }
            Ok(Done::SetBack) => {
                databases::set_prepared(database, prepared);
                if sweeps {
                    databases::is_swept(database);
                }
            }
            Ok(Done::Saved(records)) => records::saved(&records, false),
            Err(failure) => {
                records::give_back(&taken);
                return Some(self.failed(&failure, now_ns));
            }
        }
        if self.failures > 0 && !self.said.is_empty() {
            log("pgquorum statements: saving goes on".to_owned(), "");
        }
        self.failures = 0;
        self.failing_since_ns = None;
        self.said.clear();
        let now_ns = clock::boottime_ns();
        if wanted.least > Urgency::AtOnce && table::is_full() {
            let cost_ns = clock::own_cpu_ns().saturating_sub(cpu_ns);
            let wait_ns = cost_ns.saturating_mul(CHURN_SHARE).min(CHURN_MS_MAX * clock::NS_PER_MS);
            self.later_ns = now_ns + wait_ns;
        }
        Some(self.pause_ms(now_ns))
    }

    /// What is to be saved at this moment.
    fn wanted(&self, now_ns: u64) -> Wanted {
        let least = if now_ns < self.later_ns { Urgency::AtOnce } else { Urgency::Young };
        let most = if table::is_full() { CHURN_RECORDS_MAX } else { RECORDS_MAX };
        Wanted { least, most: most.min(settings::most()) }
    }

    /// How long to wait for the next look.
    fn pause_ms(&self, now_ns: u64) -> u64 {
        INTERVAL_MS.max(self.later_ns.saturating_sub(now_ns).div_ceil(clock::NS_PER_MS))
    }

    /// Says it once, and tries again later, longer and longer.
    fn failed(&mut self, failure: &Failure, now_ns: u64) -> u64 {
        let wait_ms = (RETRY_MS_MIN << self.failures.min(8)).min(RETRY_MS_MAX);
        self.failures += 1;
        let since_ns = *self.failing_since_ns.get_or_insert(now_ns);
        let quiet = fence::refusing()
            || failure.message == self.said
            || failure.is_locked() && now_ns < since_ns + LOCKED_NS_LONG;
        if !quiet {
            log(
                format!(
                    "pgquorum statements: what was learned in database {} cannot be saved: {}",
                    self.database, failure.message
                ),
                "What is served stays as it is; a statement that was seen writing is not served by this server, but may be by others until this works again. It is tried again, at least every 30 s. If a lock is the reason, look in pg_locks for a transaction that keeps one on quorum.readonly_statement and end it.",
            );
            self.said.clone_from(&failure.message);
        }
        wait_ms
    }
}

/// One transaction. `taken`: what is to be given back should it fail.
fn work(database: u32, sets_back: bool, sweeps: bool, wanted: Wanted, taken: &mut Vec<Record>) -> Done {
    // From here on nobody withdraws, and what was withdrawn is seen: those who change something keep a lock on the table
    // until they have committed and have set back what is in memory.
    if !statement_rows::lock_for_saving() {
        return Done::Gone;
    }
    if sets_back || sweeps {
        if sets_back {
            withdraw::everything_may_have_changed(database);
        }
        if sweeps {
            statement_rows::sweep();
        }
        return Done::SetBack;
    }
    *taken = records::take(database, process::now_us_unsigned(), wanted, false);
    if taken.is_empty() {
        return Done::Saved(Vec::new());
    }
    let json = records::to_json(taken);
    worker::run_sql(c"SELECT quorum.save_statements($1::jsonb)", &json);
    Done::Saved(std::mem::take(taken))
}

fn log(message: String, detail: &str) {
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message).detail(detail).log();
}
