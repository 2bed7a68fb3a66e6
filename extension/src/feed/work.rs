//! A channel in the cutter's hands: cutting it, telling how far it may be shown, looking after it, and what goes wrong.
//!
//! Three things can go wrong, and none of them holds up other channels or ends the cutter. Somebody keeps a lock: nothing
//! is lost of what is known, it is tried again soon. A batch cannot be cut: the channel is read from its tables again,
//! and it is tried later and later. It cannot be looked after: batches are cut meanwhile.

use std::collections::HashSet;

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use super::channel::Channel;
use super::cut::{self, Outcome};
use super::shared::{self, State};
use super::upkeep::{self, Kept, Trouble};
use crate::error::Refusal;
use crate::fence;
use crate::log::slots;
use crate::pg::worker::Failure;
use crate::pg::{clock, snapshot, worker};

const RETRY_MS_MIN: u64 = 200;
const RETRY_MS_MAX: u64 = 30_000;
/// Each try takes up to the worker's `lock_timeout`, in which other channels wait.
const LOCKED_MS_MIN: u64 = 250;
const LOCKED_MS_MAX: u64 = 2_000;
/// A lock that is kept for so long is worth a line in the server's log.
const LOCKED_NS_LONG: u64 = 30_000 * clock::NS_PER_MS;
/// What standbys were not told at once they are told about so often.
const TELL_NS: u64 = 2_000 * clock::NS_PER_MS;

// What a lock that is kept for long means, and what to do.
const NO_BATCH: &str = "Writers are not held up, and nothing is lost: their changes wait in the log. Look in pg_locks and pg_stat_activity for a transaction that is open since then (quorum.drop_channel, quorum.purge or LOCK TABLE in it) and end it.";
const TOLD_LATE: &str = "Readers on this server get their changes; those on standbys wait. Look in pg_locks and pg_stat_activity for a transaction that keeps a lock on quorum.channel_confirmed since then and end it.";
const NOT_KEPT: &str = "Batches are cut, and readers get their changes. But segments are not closed, and old log is not dropped: the disk fills. Look in pg_locks and pg_stat_activity for a transaction that keeps a lock on tables of schema quorum since then and end it.";
const NOT_DROPPED: &str = "Batches are cut, and readers get their changes, but the disk fills. Look in pg_locks and pg_stat_activity for a transaction that is open since then and end it: it reads the oldest log, or has called quorum.register_follower, quorum.move_follower or quorum.track.";

/// Failures in a row.
#[derive(Default)]
struct Failing {
    count: u32,
    not_before_ns: u64,
    /// What was said last.
    said: String,
}

impl Failing {
    /// One more; the next try comes later. True: it has not been said yet.
    fn again(&mut self, message: &str) -> bool {
        let wait_ms = (RETRY_MS_MIN << self.count.min(8)).min(RETRY_MS_MAX);
        self.count += 1;
        self.not_before_ns = clock::boottime_ns() + wait_ms * clock::NS_PER_MS;
        // Without a lease commits are refused, and that is as it should be.
        let is_new = self.said != message && !fence::refusing();
        if is_new {
            message.clone_into(&mut self.said);
        }
        is_new
    }
}

/// Somebody keeps a lock.
#[derive(Default)]
struct Locked {
    /// `None`: nobody does.
    since_ns: Option<u64>,
    tries: u32,
    not_before_ns: u64,
    said: bool,
}

impl Locked {
    /// Still; the next try comes later. True: it has been so for long, which is to be said once.
    fn again(&mut self) -> bool {
        let now_ns = clock::boottime_ns();
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        let wait_ms = (LOCKED_MS_MIN << self.tries.min(8)).min(LOCKED_MS_MAX);
        self.tries += 1;
        self.not_before_ns = now_ns + wait_ms * clock::NS_PER_MS;
        now_ns >= since_ns + LOCKED_NS_LONG && !std::mem::replace(&mut self.said, true)
    }
}

/// A channel and how cutting it goes.
#[derive(Default)]
pub struct Work {
    pub name: String,
    /// `None`: to be read from the tables.
    pub channel: Option<Box<Channel>>,
    pub last_cut_ns: u64,
    last_upkeep_ns: u64,
    last_told_ns: u64,
    cutting: Failing,
    keeping: Failing,
    locked: Locked,
    /// A lock keeps standbys from being told.
    telling_locked: Locked,
    /// A lock keeps the channel from being looked after.
    keeping_locked: Locked,
    /// A lock keeps old log from being dropped; everything else is looked after.
    dropping_locked: Locked,
}

/// What came of an attempt to cut.
pub enum Attempt {
    /// What whoever asked for it is told: the state, and the channel's last tick.
    Answer(State, u64),
    /// Somebody keeps a lock: it is tried again.
    Locked,
    /// The channel was dropped, or a part of it was.
    Gone,
}

const FAILED: Attempt = Attempt::Answer(State::Failed, 0);

impl Work {
    /// When it is to be cut next, if it is to be cut at this pace. Whoever asks for a batch gets one before that.
    pub fn due_ns(&self, pace_ns: u64) -> u64 {
        (self.last_cut_ns + pace_ns).max(self.cutting.not_before_ns)
    }

    /// Until when it is left alone, since somebody keeps a lock.
    pub fn locked_until_ns(&self) -> u64 {
        self.locked.not_before_ns
    }

    /// Cuts one batch and shows it. `given`: the name of the snapshot to cut by. `wanted`: also if there seems to be
    /// nothing new. `finished` gets the prepared transactions that are over, and the heaps in which they were looked at.
    pub fn cut(
        &mut self,
        (database, id): (u32, i32),
        given: Option<&str>,
        wanted: bool,
        finished: &mut HashSet<(u64, u32)>,
    ) -> Attempt {
        self.last_cut_ns = clock::boottime_ns();
        if self.channel.is_none() {
            match load(id, &self.name) {
                Ok(Some(channel)) => self.channel = Some(channel),
                Ok(None) => return Attempt::Gone,
                Err(failure) => return self.failed(database, failure),
            }
        }
        if let Err(failure) = self.confirm_found() {
            return self.failed(database, failure);
        }
        let Some(channel) = self.channel.as_deref() else { return FAILED };
        let nothing_new = !channel.fresh && snapshot::insert_lsn() == channel.looked_at_lsn;
        if nothing_new && !wanted {
            return Attempt::Answer(State::Done, channel.last_tick);
        }
        match worker::transaction(|| cut::cut(channel, given)) {
            Ok(Outcome::Cut { channel: next, changes, finished: over }) => {
                worker::end_if_told();
                forget_closed(database, channel, &next);
                let tick = next.last_tick;
                self.channel = Some(next);
                self.succeeded();
                finished.extend(over);
                self.show(database, id, changes > 0);
                Attempt::Answer(State::Done, tick)
            }
            Ok(Outcome::TooOld) => Attempt::Answer(State::TooOld, 0),
            Ok(Outcome::Gone) => {
                self.channel = None;
                Attempt::Gone
            }
            Err(failure) if failure.is_locked() => self.failed(database, failure),
            // A name that an asking session gave and took back says nothing about the channel.
            Err(_) if given.is_some() => {
                self.channel = None;
                FAILED
            }
            Ok(Outcome::Broken(message)) => self.failed(database, message.into()),
            Err(failure) => self.failed(database, failure),
        }
    }

    /// The last batch was made before this cutter began, so nobody knows whether its commit was waited for. A commit
    /// that is waited for settles it.
    fn confirm_found(&mut self) -> Result<(), Failure> {
        let Some(channel) =
            self.channel.as_deref_mut().filter(|channel| channel.confirmed < channel.last_tick)
        else {
            return Ok(());
        };
        worker::with_snapshot(|| cut::confirm(channel.id, channel.confirmed))?;
        worker::end_if_told();
        channel.confirmed = channel.last_tick;
        Ok(())
    }

    /// Lets the newest batch, whose commit has returned, be seen.
    fn show(&mut self, database: u32, id: i32, is_new: bool) {
        let Some(channel) = self.channel.as_deref_mut() else { return };
        channel.confirmed = channel.last_tick;
        let entry = shared::of_channel(database, id);
        if let Some(entry) = entry {
            entry.publish(channel.last_tick);
        }
        // Where there is no room to say so in memory, readers here go by the table as well.
        if is_new && (snapshot::has_standbys() || entry.is_none()) {
            self.tell(database);
        }
    }

    /// Writes down how far standbys may show the channel. If that fails they are told later.
    fn tell(&mut self, database: u32) {
        let Some(channel) = self.channel.as_deref_mut() else { return };
        let now_ns = clock::boottime_ns();
        if channel.told >= channel.confirmed
            || fence::refusing()
            || now_ns < self.telling_locked.not_before_ns
        {
            return;
        }
        self.last_told_ns = now_ns;
        // It promises nothing that is not durable already, so it waits for no standby; but it must leave this server.
        worker::set(c"pgquorum.bypass_fence", c"on");
        worker::set(c"synchronous_commit", c"local");
        let result = worker::with_snapshot(|| cut::confirm(channel.id, channel.confirmed));
        worker::set(c"synchronous_commit", c"on");
        worker::set(c"pgquorum.bypass_fence", c"off");
        match result {
            Ok(()) => {
                channel.told = channel.confirmed;
                self.telling_locked = Locked::default();
            }
            Err(failure) if failure.is_locked() => {
                if self.telling_locked.again() {
                    self.say_locked(
                        database,
                        "standbys have not been told how far they may show channel",
                        TOLD_LATE,
                    );
                }
            }
            Err(failure) => self.not_kept(database, failure),
        }
    }

    /// Looks after the channel, when that is due.
    pub fn upkeep(&mut self, database: u32) {
        let now_ns = clock::boottime_ns();
        if now_ns < self.keeping.not_before_ns.max(self.keeping_locked.not_before_ns) {
            return;
        }
        if now_ns >= self.last_told_ns + TELL_NS {
            self.tell(database);
        }
        let Some(channel) = self.channel.as_deref_mut() else { return };
        match upkeep::run(database, channel, now_ns, &mut self.last_upkeep_ns) {
            Ok(Kept::NotDue) => {}
            Ok(kept) => {
                self.keeping = Failing::default();
                self.keeping_locked = Locked::default();
                if kept == Kept::All {
                    self.dropping_locked = Locked::default();
                } else if self.dropping_locked.again() {
                    self.say_locked(database, "no old log could be dropped of channel", NOT_DROPPED);
                }
            }
            Err(Trouble::Failed(failure)) => self.not_kept(database, failure),
            Err(Trouble::Stale(failure)) => {
                self.channel = None;
                self.not_kept(database, failure);
            }
        }
    }

    fn not_kept(&mut self, database: u32, failure: Failure) {
        if failure.is_locked() {
            if self.keeping_locked.again() {
                self.say_locked(database, "nothing could be done to look after channel", NOT_KEPT);
            }
            return;
        }
        if !self.keeping.again(&failure.message) {
            return;
        }
        log(
            format!(
                "pgquorum feed: channel \"{}\" in database {database} cannot be looked after: {}",
                self.name, failure.message
            ),
            "Batches are cut, and readers get their changes. But segments are not closed, old log is not dropped, or standbys show changes later. It is tried again, at least every 30 s.",
        );
    }

    fn succeeded(&mut self) {
        if self.cutting.count > 0 || self.locked.said {
            log(format!("pgquorum feed: channel \"{}\" goes on", self.name), "");
        }
        self.cutting = Failing::default();
        self.locked = Locked::default();
    }

    /// Says it once, and tries again later, longer and longer.
    fn failed(&mut self, database: u32, failure: Failure) -> Attempt {
        if failure.is_locked() {
            if self.locked.again() {
                self.say_locked(database, "no batch could be cut of channel", NO_BATCH);
            }
            return Attempt::Locked;
        }
        self.channel = None;
        if self.cutting.again(&failure.message) {
            log(
                format!(
                    "pgquorum feed: no batch of channel \"{}\" in database {database} could be cut: {}",
                    self.name, failure.message
                ),
                "Writers are not held up, and nothing is lost: their changes wait in the log. Readers get them when it goes on; it is tried again, at least every 30 s.",
            );
        }
        FAILED
    }

    /// A lock has been kept for long; what it has kept from being done, and what that means.
    fn say_locked(&self, database: u32, what: &str, detail: &str) {
        log(
            format!(
                "pgquorum feed: {what} \"{}\" in database {database} for 30 s, since a session keeps a lock on its tables",
                self.name
            ),
            detail,
        );
    }
}

fn load(id: i32, name: &str) -> Result<Option<Box<Channel>>, Failure> {
    let name = name.to_owned();
    let loaded = worker::transaction(move || Channel::load(id, name))??;
    Ok(loaded.map(Box::new))
}

/// Nobody writes to segments any more that the last cut has left behind.
fn forget_closed(database: u32, before: &Channel, after: &Channel) {
    for heap in before.heaps.values().filter(|heap| !after.heaps.values().any(|open| open == *heap)) {
        slots::forget_heap(database, *heap);
    }
}

pub fn log(message: String, detail: &str) {
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message).detail(detail).log();
}
