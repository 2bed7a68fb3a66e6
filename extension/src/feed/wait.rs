//! Waiting for news of a channel, having a batch cut, and the beginning of a copy.

use std::cell::Cell;

use pgrx::PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
use pgrx::datum::Interval;
use pgrx::prelude::*;

use super::databases;
use super::error::FeedError;
use super::shared::{self, Asking, State};
use super::view::{ChannelView, channel_id};
use crate::error::Refusal;
use crate::pg::condition::Condition;
use crate::pg::single::Single;
use crate::pg::table::View;
use crate::pg::{clock, process, snapshot, worker};

/// How often a session looks that nobody wakes.
const POLL_MS: u64 = 10;
/// A waiting session says so again, so that the cutter does not work for one that has gone.
const DEMAND_MS: u64 = 1000;
const WAIT_MS_MAX: f64 = 3_600_000.0;
/// Long enough for a cut whose commit waits for standbys.
const CUT_MS_MAX: u64 = 60_000;

/// This transaction has made a channel: its database needs a cutter when it has committed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static MADE_CHANNEL: Single<Cell<bool>> = Single::cell(false);

/// Internal. Lets a cutter be started for this database when the transaction commits.
#[pg_extern]
fn start_cutter() {
    MADE_CHANNEL.set(true);
}

/// Has [`after_transaction`] anything to do?
#[inline]
pub fn has_made_channel() -> bool {
    MADE_CHANNEL.get()
}

/// At the end of a transaction. Must not raise anything.
#[inline]
pub fn after_transaction(committed: bool) {
    if MADE_CHANNEL.take() && committed {
        databases::want_cutter(worker::own_database());
    }
}

/// Waits until a channel has changes after a position, at most `timeout`, and returns the position of its end then.
/// The end is as other sessions see it, also in a transaction that keeps its snapshot.
///
/// Errors: as `quorum.read_log`; 22023 for a timeout that is negative or above an hour.
#[pg_extern]
fn wait(channel: &str, after: &str, timeout: default!(Interval, "'10 s'")) -> String {
    let timeout_ms = match milliseconds(&timeout) {
        Some(timeout_ms) => timeout_ms,
        None => Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, "a timeout is 0 to 1 hour").raise(),
    };
    match wait_for(channel, after, timeout_ms) {
        Ok(end) => end,
        Err(error) => error.raise(),
    }
}

/// `None`: not in 0 to an hour.
fn milliseconds(interval: &Interval) -> Option<u64> {
    let days = f64::from(interval.months()) * 30.0 + f64::from(interval.days());
    let ms = days * 86_400_000.0 + interval.micros() as f64 / 1000.0;
    (0.0..=WAIT_MS_MAX).contains(&ms).then_some(ms as u64)
}

fn wait_for(channel: &str, after: &str, timeout_ms: u64) -> Result<String, FeedError> {
    let view = ChannelView::load(channel, View::Now)?;
    let tick = view.find(after)?;
    let until_ns = clock::boottime_ns() + timeout_ms * clock::NS_PER_MS;
    if view.history.last_tick > tick {
        return Ok(view.history.end().to_string());
    }
    let id = view.id;
    drop(view);
    let database = worker::own_database();
    let entry = if process::in_recovery() { None } else { shared::of_channel(database, id) };
    if let Some(entry) = entry {
        entry.news().enter();
    }
    loop {
        let now_ns = clock::boottime_ns();
        let left_ms = until_ns.saturating_sub(now_ns) / clock::NS_PER_MS;
        // The tables are looked at only when there may be news.
        let perhaps = entry.is_none_or(|entry| entry.last_tick() > tick || entry.last_tick() == 0);
        if perhaps || left_ms == 0 {
            let view = ChannelView::load(channel, View::Now)?;
            if view.history.last_tick > tick || left_ms == 0 {
                Condition::leave();
                return Ok(view.history.end().to_string());
            }
        }
        match entry {
            Some(entry) => {
                entry.demand(database, DEMAND_MS);
                let wait_ms = left_ms.min(if perhaps { POLL_MS } else { DEMAND_MS / 2 });
                entry.news().sleep(i64::try_from(wait_ms).unwrap_or(1));
            }
            None => process::wait(i64::try_from(left_ms.clamp(1, POLL_MS)).unwrap_or(1)),
        }
    }
}

/// Has a batch cut now, and returns the position of the channel's end. All transactions that committed before the call
/// are in it.
///
/// Errors: 42704 no such channel, 25006 on a standby, 55000 the batch could not be cut.
#[pg_extern]
fn cut(channel: &str) -> String {
    match cut_now(channel, "") {
        Ok(end) => end,
        Err(error) => error.raise(),
    }
}

/// The position of a copy: exactly what the caller's transaction sees. It keeps one snapshot, so that all tables that are
/// copied in it are of one moment; whoever follows the channel from there misses nothing and gets nothing twice.
///
/// Errors: 25000 not REPEATABLE READ, 25001 the transaction has written, 25006 on a standby, PQ004 the snapshot is older than the last batch (roll back and
/// try again), else as `quorum.cut`.
#[pg_extern]
fn dump_start(channel: &str) -> String {
    match dump_now(channel) {
        Ok(position) => position,
        Err(error) => error.raise(),
    }
}

fn dump_now(channel: &str) -> Result<String, FeedError> {
    if process::in_recovery() {
        return Err(FeedError::Standby("a copy that goes with a position"));
    }
    if !snapshot::keeps_one() {
        return Err(FeedError::NotRepeatable);
    }
    // The copy sees what this transaction has written, and the channel gets it once more after the position.
    if process::has_transaction_id() {
        return Err(FeedError::HasWritten);
    }
    cut_now(channel, &snapshot::export())
}

fn cut_now(channel: &str, exported: &str) -> Result<String, FeedError> {
    if process::in_recovery() {
        return Err(FeedError::Standby("cutting a batch"));
    }
    let name = channel.to_owned();
    let id = channel_id(channel, View::Now).ok_or_else(|| FeedError::NoChannel(name.clone()))?;
    let asking = Asking::new(worker::own_database(), id, exported).ok_or(FeedError::Busy)?;
    let until_ns = clock::boottime_ns() + CUT_MS_MAX * clock::NS_PER_MS;
    asking.news().enter();
    let answer = loop {
        let answer = asking.answer();
        if answer.state != State::Asked || clock::boottime_ns() >= until_ns {
            break answer;
        }
        asking.news().sleep(500);
    };
    Condition::leave();
    match answer.state {
        State::Done => Ok(ChannelView::of(id, name, View::Now).position(answer.tick).to_string()),
        State::TooOld => Err(FeedError::SnapshotTooOld { channel: name }),
        _ => Err(FeedError::NoAnswer { channel: name }),
    }
}
