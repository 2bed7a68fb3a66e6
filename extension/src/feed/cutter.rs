//! The cutter: one worker per database with channels, on the primary. It makes batches when somebody waits for them, and
//! in any case about once a second when there is something new.
//!
//! Invariant: no error ends it, and it waits for nobody's lock longer than [`LOCK_TIMEOUT`]. What goes wrong with one
//! channel does not hold up the others.

use std::collections::{BTreeMap, HashSet};

use pgrx::prelude::*;

use super::audit::Audit;
use super::channel;
use super::shared::{self, Request, State};
use super::work::{Attempt, Work, log};
use super::{databases, view};
use crate::log::slots;
use crate::pg::table::View;
use crate::pg::worker::{Failure, Job};
use crate::pg::{clock, process, worker};
use crate::versions::upkeep::OldVersions;
use crate::{commit_wait, fence, guc};

const IDLE_NS: u64 = 1000 * clock::NS_PER_MS;
/// How often a server without a lease looks whether it has one.
const FENCED_MS: u64 = 50;
/// Longer than statements on a channel's tables keep their locks, other than those that change them.
const LOCK_TIMEOUT: &std::ffi::CStr = c"200ms";

#[derive(Default)]
struct Cutter {
    database: u32,
    work: BTreeMap<i32, Work>,
    listed_ns: u64,
    /// The channels could be read the last time.
    listed: bool,
    /// What was said when the channels could not be read.
    said: String,
    /// The launcher knows that there are channels.
    reported: bool,
    /// Versions of rows that are too old.
    old_versions: OldVersions,
    /// Whether what is tracked is captured.
    audit: Audit,
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
    worker::set_for_writing(LOCK_TIMEOUT);
    if !worker::be_the_only_one(Job::Cutter) {
        return;
    }
    commit_wait::hold_on();
    let mut cutter = Cutter { database, ..Cutter::default() };
    loop {
        worker::reload_if_asked();
        let Some(wait_ms) = cutter.round() else { break };
        process::wait(i64::try_from(wait_ms).unwrap_or(0).max(1));
    }
    slots::forget_database(database);
    databases::i_was_the_cutter(database);
}

fn old_versions_stay(database: u32, failure: &Failure) {
    log(
        format!(
            "pgquorum feed: old versions of rows in database {database} cannot be removed: {}",
            failure.message
        ),
        "Nothing else is held up, but quorum.row_version grows. It is tried again every 30 s.",
    );
}

fn not_audited(database: u32, failure: &Failure) {
    log(
        format!(
            "pgquorum feed: whether tables of database {database} are captured cannot be found out: {}",
            failure.message
        ),
        "Nothing else is held up. It is tried again about every minute.",
    );
}

impl Cutter {
    /// Everything that is due now; how long to wait then. `None`: there is nothing to do in this database.
    fn round(&mut self) -> Option<u64> {
        let now_ns = clock::boottime_ns();
        let asked = shared::asked(self.database);
        let unknown = asked.iter().any(|(_, id, _)| !self.work.contains_key(id));
        if unknown || self.listed_ns == 0 || now_ns >= self.listed_ns + IDLE_NS {
            self.list(now_ns)?;
        }
        if fence::refusing() {
            return Some(FENCED_MS);
        }
        // A batch is shown when its commit returns, so that commit must be a durable one.
        worker::set(c"synchronous_commit", c"on");
        let interval_ns = u64::try_from(guc::BATCH_INTERVAL_MS.get()).unwrap_or(10) * clock::NS_PER_MS;
        let mut wait_ns = IDLE_NS;
        for id in self.work.keys().copied().collect::<Vec<_>>() {
            let demand =
                shared::of_channel(self.database, id).is_some_and(|entry| entry.is_in_demand(now_ns));
            let pace_ns = if demand { interval_ns } else { IDLE_NS };
            let requests: Vec<_> = asked.iter().filter(|(_, channel, _)| *channel == id).collect();
            let work = &self.work[&id];
            let due_ns = if requests.is_empty() { work.due_ns(pace_ns) } else { 0 };
            let due_ns = due_ns.max(work.locked_until_ns());
            if now_ns < due_ns {
                wait_ns = wait_ns.min(due_ns - now_ns);
                continue;
            }
            wait_ns = wait_ns.min(pace_ns);
            self.serve(id, &requests);
        }
        for (index, id, request) in &asked {
            if self.listed && !self.work.contains_key(id) {
                shared::answer(*index, request, State::Failed, 0);
            }
        }
        self.forget_finished();
        wait_ns =
            wait_ns.min(self.old_versions.round(now_ns, |failure| old_versions_stay(self.database, failure)));
        wait_ns = wait_ns.min(self.audit.round(now_ns, |failure| not_audited(self.database, failure)));
        Some((wait_ns / clock::NS_PER_MS).max(1))
    }

    /// Cuts what was asked for, or else one batch, and looks after the channel.
    fn serve(&mut self, id: i32, requests: &[&(usize, i32, Request)]) {
        let Some(work) = self.work.get_mut(&id) else { return };
        let place = (self.database, id);
        if requests.is_empty() {
            match work.cut(place, None, false, &mut self.finished) {
                Attempt::Answer(..) => {}
                Attempt::Locked => return,
                Attempt::Gone => self.listed_ns = 0,
            }
        }
        for (index, _, request) in requests {
            match work.cut(place, request.snapshot(), true, &mut self.finished) {
                Attempt::Answer(state, tick) => shared::answer(*index, request, state, tick),
                // Whoever asks waits on.
                Attempt::Locked => return,
                Attempt::Gone => {
                    self.listed_ns = 0;
                    shared::answer(*index, request, State::Failed, 0);
                }
            }
        }
        work.upkeep(self.database);
    }

    /// Which channels there are. `None`: none.
    fn list(&mut self, now_ns: u64) -> Option<()> {
        let first = self.listed_ns == 0;
        self.listed_ns = now_ns;
        let channels = match worker::transaction(channel::all) {
            Ok(channels) => channels,
            Err(failure) => {
                self.listed = false;
                self.not_listed(&failure);
                return Some(());
            }
        };
        self.listed = true;
        self.said.clear();
        let before = self.work.len();
        self.work.retain(|id, _| channels.contains_key(id));
        if first || self.work.len() < before {
            self.forget_heaps();
        }
        for (id, name) in &channels {
            self.work.entry(*id).or_default().name.clone_from(name);
        }
        let ids: Vec<i32> = channels.keys().copied().collect();
        shared::forget_channels(self.database, &ids);
        if ids.is_empty() {
            return None;
        }
        if !self.reported {
            self.reported = databases::i_am_the_cutter(self.database);
        }
        Some(())
    }

    fn not_listed(&mut self, failure: &Failure) {
        if failure.is_locked() || failure.message == self.said {
            return;
        }
        let message = &failure.message;
        log(
            format!("pgquorum feed: the channels of database {} cannot be read: {message}", self.database),
            "It is tried again about every second. Writers are not held up; readers get no news until it goes on.",
        );
        self.said.clone_from(message);
    }

    /// Frees the places of log tables that went with their channels.
    fn forget_heaps(&self) {
        let known = slots::heaps(self.database);
        if known.is_empty() {
            return;
        }
        // If that fails, it is done the next time that a channel goes.
        if let Ok(present) = worker::transaction(|| view::all_heaps(View::Now)) {
            for heap in known.iter().filter(|heap| !present.contains(heap)) {
                slots::forget_heap(self.database, *heap);
            }
        }
    }

    /// Slots of prepared transactions are given back when every log table that they name was looked at. A channel that
    /// is to be read from its tables again needs none: its next look is at everything since its last batch.
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
        let over: HashSet<u64> =
            self.finished.iter().map(|(xid, _)| *xid).filter(|xid| !waits(*xid)).collect();
        for xid in &over {
            slots::forget_prepared(*xid);
        }
        self.finished.retain(|(xid, _)| !over.contains(xid));
    }
}
