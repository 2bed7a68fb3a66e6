//! The cutter: one worker per database with channels, on the primary. It makes batches when somebody waits for them, and
//! in any case about once a second when there is something new.
//!
//! Invariant: no error ends it. What went wrong with a channel is said once in the server's log, the channel is read from
//! the tables again and tried again later; other channels go on meanwhile.

use std::collections::{BTreeMap, HashSet};

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
use pgrx::prelude::*;

use super::channel::{self, Channel};
use super::cut::{self, Outcome};
use super::shared::{self, State};
use super::upkeep;
use crate::error::Refusal;
use crate::log::slots;
use crate::pg::{clock, process, snapshot, worker};
use crate::{fence, guc};

const IDLE_MS: u64 = 1000;
/// How often a server without a lease looks whether it has one.
const FENCED_MS: u64 = 50;
const RETRY_MS_MIN: u64 = 200;
const RETRY_MS_MAX: u64 = 30_000;

/// A channel and how cutting it goes.
#[derive(Default)]
struct Work {
    name: String,
    /// `None`: to be read from the tables.
    channel: Option<Box<Channel>>,
    last_cut_ns: u64,
    last_upkeep_ns: u64,
    failures: u32,
    not_before_ns: u64,
    /// What was said last about a failure.
    said: String,
}

#[derive(Default)]
struct Cutter {
    database: u32,
    work: BTreeMap<i32, Work>,
    listed_ns: u64,
    /// Prepared transactions that are over, and the heaps in which they were looked at.
    finished: HashSet<(u64, u32)>,
}

/// Main function of a cutter; its argument is the database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgquorum_cutter_main(database: pg_sys::Datum) {
    let database = database.value() as u32;
    worker::attach_signals();
    worker::connect(database);
    worker::set(c"search_path", c"pg_catalog, pg_temp");
    // Compiling a statement takes longer than any of ours runs.
    worker::set(c"jit", c"off");
    worker::set(c"statement_timeout", c"0");
    worker::set(c"lock_timeout", c"0");
    worker::set(c"idle_in_transaction_session_timeout", c"0");
    worker::set(c"default_transaction_read_only", c"off");
    worker::set(c"default_transaction_isolation", c"read committed");
    if !worker::be_the_only_one() {
        return;
    }
    let mut cutter = Cutter { database, ..Cutter::default() };
    shared::i_am_the_cutter(database, true);
    loop {
        worker::reload_if_asked();
        let wait_ms = if fence::refusing() {
            FENCED_MS
        } else {
            // A batch is shown when its commit returns, so that commit must be a durable one.
            worker::set(c"synchronous_commit", c"on");
            match cutter.round() {
                Some(wait_ms) => wait_ms,
                None => break,
            }
        };
        process::wait(i64::try_from(wait_ms).unwrap_or(0).max(1));
    }
    shared::i_am_the_cutter(database, false);
}

impl Cutter {
    /// Everything that is due now; how long to wait then. `None`: there is nothing to do in this database any more.
    fn round(&mut self) -> Option<u64> {
        let now_ns = clock::boottime_ns();
        let asked = shared::asked(self.database);
        let unknown = asked.iter().any(|(_, id, _)| !self.work.contains_key(id));
        if unknown || self.work.is_empty() || now_ns >= self.listed_ns + IDLE_MS * clock::NS_PER_MS {
            self.list(now_ns)?;
        }
        let interval_ns = u64::try_from(guc::BATCH_INTERVAL_MS.get()).unwrap_or(10) * clock::NS_PER_MS;
        let mut wait_ns = IDLE_MS * clock::NS_PER_MS;
        for id in self.work.keys().copied().collect::<Vec<_>>() {
            let demand =
                shared::of_channel(self.database, id).is_some_and(|entry| entry.is_in_demand(now_ns));
            let pace_ns = if demand { interval_ns } else { IDLE_MS * clock::NS_PER_MS };
            let requests: Vec<_> = asked.iter().filter(|(_, channel, _)| *channel == id).collect();
            let work = &self.work[&id];
            let due_ns = (work.last_cut_ns + pace_ns).max(work.not_before_ns);
            if requests.is_empty() && now_ns < due_ns {
                wait_ns = wait_ns.min(due_ns - now_ns);
                continue;
            }
            for (index, _, request) in &requests {
                let (state, tick) = self.cut(id, request.snapshot(), true);
                shared::answer(*index, request, state, tick);
            }
            if requests.is_empty() {
                self.cut(id, None, false);
            }
            wait_ns = wait_ns.min(pace_ns);
            self.upkeep(id);
        }
        for (index, id, request) in &asked {
            if !self.work.contains_key(id) {
                shared::answer(*index, request, State::Failed, 0);
            }
        }
        self.forget_finished();
        Some((wait_ns / clock::NS_PER_MS).max(1))
    }

    /// Which channels there are. `None`: none.
    fn list(&mut self, now_ns: u64) -> Option<()> {
        self.listed_ns = now_ns;
        let channels = match worker::transaction(channel::all) {
            Ok(channels) => channels,
            Err(message) => {
                log(format!("pgquorum feed: the channels cannot be read: {message}"), "It is tried again.");
                return Some(());
            }
        };
        self.work.retain(|id, _| channels.contains_key(id));
        for (id, name) in &channels {
            self.work.entry(*id).or_default().name.clone_from(name);
        }
        let ids: Vec<i32> = channels.keys().copied().collect();
        shared::forget_channels(self.database, &ids);
        if ids.is_empty() {
            slots::forget_database(self.database);
            return None;
        }
        Some(())
    }

    /// Cuts one batch of a channel and shows it. The state and the channel's last tick.
    fn cut(&mut self, id: i32, given: Option<&str>, wanted: bool) -> (State, u64) {
        let Some(work) = self.work.get_mut(&id) else { return (State::Failed, 0) };
        work.last_cut_ns = clock::boottime_ns();
        if work.channel.is_none() {
            match load(id, &work.name) {
                Ok(Some(channel)) => {
                    let unconfirmed = channel.confirmed < channel.last_tick;
                    work.channel = Some(channel);
                    if unconfirmed && !work.confirm_found(self.database) {
                        return (State::Failed, 0);
                    }
                }
                Ok(None) => {
                    self.work.remove(&id);
                    return (State::Failed, 0);
                }
                Err(message) => return work.failed(self.database, message),
            }
        }
        let Some(channel) = work.channel.as_deref() else { return (State::Failed, 0) };
        let nothing_new = !channel.fresh && snapshot::insert_lsn() == channel.looked_at_lsn;
        if nothing_new && !wanted {
            return (State::Done, channel.last_tick);
        }
        match worker::transaction(|| cut::cut(channel, given)) {
            Ok(Outcome::Cut { channel: next, changes, finished }) => {
                let tick = next.last_tick;
                work.succeeded();
                work.channel = Some(next);
                self.finished.extend(finished);
                if let Some(entry) = shared::of_channel(self.database, id) {
                    entry.publish(tick);
                }
                if changes > 0 {
                    work.confirm(self.database);
                }
                (State::Done, tick)
            }
            Ok(Outcome::TooOld) => (State::TooOld, 0),
            Ok(Outcome::Gone) => {
                work.channel = None;
                self.listed_ns = 0;
                (State::Failed, 0)
            }
            // A name that an asking session gave and took back says nothing about the channel.
            Err(_) if given.is_some() => {
                work.channel = None;
                (State::Failed, 0)
            }
            Ok(Outcome::Broken(message)) | Err(message) => work.failed(self.database, message),
        }
    }

    fn upkeep(&mut self, id: i32) {
        let Some(work) = self.work.get_mut(&id) else { return };
        let Some(channel) = work.channel.as_deref_mut() else { return };
        let now_ns = clock::boottime_ns();
        if let Err(message) = upkeep::run(self.database, channel, now_ns, &mut work.last_upkeep_ns) {
            work.failed(self.database, message);
        }
    }

    /// Slots of prepared transactions are given back when every log table that they name was looked at.
    fn forget_finished(&mut self) {
        if self.finished.is_empty() {
            return;
        }
        let open: HashSet<u32> = self
            .work
            .values()
            .filter_map(|work| work.channel.as_ref())
            .flat_map(|channel| channel.heaps.values().copied())
            .collect();
        let entries = slots::prepared(self.database);
        let waits = |xid: u64| {
            entries.iter().any(|(other, written)| {
                *other == xid && open.contains(&written.heap) && !self.finished.contains(&(xid, written.heap))
            })
        };
        let all_loaded = self.work.values().all(|work| work.channel.is_some());
        let over: HashSet<u64> =
            self.finished.iter().map(|(xid, _)| *xid).filter(|xid| all_loaded && !waits(*xid)).collect();
        for xid in &over {
            slots::forget_prepared(*xid);
        }
        self.finished.retain(|(xid, _)| !over.contains(xid));
    }
}

fn load(id: i32, name: &str) -> Result<Option<Box<Channel>>, String> {
    let name = name.to_owned();
    let loaded = worker::transaction(move || Channel::load(id, name))??;
    Ok(loaded.map(Box::new))
}

impl Work {
    /// The last batch was made before this cutter began, so nobody knows whether its commit was waited for. A commit
    /// that is waited for settles it. False: it failed.
    fn confirm_found(&mut self, database: u32) -> bool {
        let Some(channel) = self.channel.as_deref_mut() else { return false };
        let touched = Channel { last_tick: channel.confirmed, ..channel.clone() };
        match worker::with_snapshot(|| cut::confirm(&touched)) {
            Ok(()) => self.confirm(database),
            Err(message) => {
                self.failed(database, message);
            }
        }
        self.channel.is_some()
    }

    /// Lets standbys show the newest batch. If that fails they show it with the next one.
    fn confirm(&mut self, database: u32) {
        let Some(channel) = self.channel.as_deref_mut() else { return };
        channel.confirmed = channel.last_tick;
        if !snapshot::has_standbys() || fence::refusing() {
            return;
        }
        // It promises nothing that is not durable already, so it waits for no standby; but it must leave this server.
        worker::set(c"pgquorum.bypass_fence", c"on");
        worker::set(c"synchronous_commit", c"local");
        let result = worker::with_snapshot(|| cut::confirm(channel));
        worker::set(c"synchronous_commit", c"on");
        worker::set(c"pgquorum.bypass_fence", c"off");
        if let Err(message) = result {
            self.failed(database, message);
        }
    }

    fn succeeded(&mut self) {
        if self.failures > 0 {
            log(format!("pgquorum feed: channel \"{}\" goes on", self.name), "");
        }
        self.failures = 0;
        self.not_before_ns = 0;
        self.said.clear();
    }

    /// Says it once, and tries again later, longer and longer.
    fn failed(&mut self, database: u32, message: String) -> (State, u64) {
        self.channel = None;
        let wait_ms = (RETRY_MS_MIN << self.failures.min(8)).min(RETRY_MS_MAX);
        self.failures += 1;
        self.not_before_ns = clock::boottime_ns() + wait_ms * clock::NS_PER_MS;
        // Without a lease commits are refused, and that is as it should be.
        if self.said != message && !fence::refusing() {
            log(
                format!(
                    "pgquorum feed: no batch of channel \"{}\" in database {database} could be cut: {message}",
                    self.name
                ),
                "Writers are not held up, and nothing is lost: their changes wait in the log. Readers get them when it goes on; it is tried again, at least every 30 s.",
            );
            self.said = message;
        }
        (State::Failed, 0)
    }
}

pub fn log(message: String, detail: &str) {
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message).detail(detail).log();
}
