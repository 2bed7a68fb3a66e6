//! What is learned while statements are planned and run. Called by the hooks, for what the client itself has sent.
//!
//! Nothing here raises an error of its own. In the usual case it finds the statement by its text, sees that its verdict is
//! known, and counts.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use super::entry::{Known, flag};
use super::identity;
use super::local::Handle;
use super::proof::Examined;
use super::recognise::{self, Admitted, judged, reason, recognise};
use super::ring::{self, Seen};
use super::table::{self, Place};
use super::{databases, shared, watch};
use crate::error::Refusal;
use crate::pg::single::Single;
use crate::pg::{clock, plans, process, worker};

/// Counts go to the table when there are so many, or sooner for statements that this session has run less often.
const CALLS_MAX: u64 = 64;
const FLUSH_US: u64 = 1_000_000;
/// A session has its plans made anew at most so often.
const REPLAN_NS: u64 = 10_000 * clock::NS_PER_MS;

/// What the client's statement is.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static CURRENT: Single<Cell<Handle>> = Single::cell(Handle::NONE);

/// What this session had seen of changes when its transaction began. One process: no ordering is needed.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static SEEN_GENERATION: AtomicU64 = AtomicU64::new(0);
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static SEEN_LSN: AtomicU64 = AtomicU64::new(0);
/// Plans of this session are older than what is known of their statements.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static REPLAN: AtomicBool = AtomicBool::new(false);
static REPLANNED_NS: AtomicU64 = AtomicU64::new(0);

/// The session takes in the changes that it is told of, and nothing is analysed meanwhile: at the end of a transaction, or
/// while the next one begins.
#[inline]
pub fn take_in() {
    SEEN_GENERATION.store(ring::generation(), Relaxed);
    if process::in_recovery() {
        SEEN_LSN.store(process::replayed_lsn(), Relaxed);
    }
}

/// What this session had seen of changes before it analysed what runs now.
pub fn seen() -> Seen {
    if process::in_recovery() {
        Seen::Replayed(SEEN_LSN.load(Relaxed))
    } else {
        Seen::Generation(SEEN_GENERATION.load(Relaxed))
    }
}

/// A query of the client is about to be planned: is it worth to look at its tree? Not if it comes for the first time while
/// the table has no room: of many that come once, none is to take a place.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn is_worth_looking(text: &[u8]) -> Option<Admitted> {
    match recognise::admits(text) {
        Admitted::No => None,
        admitted => Some(admitted),
    }
}

/// It is not looked at, and planned all the same. [`watch::ended`] is to be called.
pub fn unseen_planning_begins() {
    watch::begin(Place::UNSEEN);
}

/// It was looked at. `query_id`: 0: it is not known, and may be asked for. True: it is watched,
/// and [`watch::ended`] is to be called.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn planning_begins(
    text: &[u8],
    admitted: Admitted,
    examined: &Examined,
    query_id: u64,
    find_query_id: impl FnOnce() -> u64,
) -> bool {
    let Some((_, place)) = recognise::planned(text, admitted, examined) else { return false };
    join(place, examined);
    if let Some(entry) = place.entry()
        && entry.query_id.load(Relaxed) == 0
    {
        if query_id != 0 {
            entry.query_id.store(query_id, Relaxed);
        } else if entry.usage.load(Relaxed) > 1 {
            // Not for the many that come once.
            entry.query_id.store(find_query_id(), Relaxed);
        }
    }
    watch::begin(place);
    true
}

/// Joins what a planning came to.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
fn join(place: Place, examined: &Examined) {
    let (Some(entry), Some(judged)) = (place.entry(), judged(examined)) else { return };
    if table::knows(entry, &judged) {
        return;
    }
    if !table::judge(place, &judged, &reason(examined)) {
        // The next planning will have seen the change.
        REPLAN.store(true, Relaxed);
    }
    let withdraws = judged.known.is_negative() && shared::may_be_given(entry.hash.load(Relaxed));
    let database = worker::own_database();
    if withdraws { databases::hurry(database) } else { databases::want(database) }
}

/// A query of the client is about to run. True: it is watched, and [`watch::ended`] and then [`count_run`] are to be
/// called.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn run_begins(text: &[u8]) -> bool {
    let Some((handle, place)) = recognise(text, None) else { return false };
    CURRENT.set(handle);
    if let Some(entry) = place.entry() {
        let era = entry.era.load(Relaxed);
        let unknown = is_unknown(entry);
        recognise::with(|local| {
            let Some(statement) = local.get_mut(handle) else { return };
            if statement.counts.era != era {
                statement.counts.clean = 0;
                statement.counts.era = era;
            }
            // It runs by a plan that was made before something was changed, or that could not be judged then.
            if unknown && statement.replanned != Some(era) {
                statement.replanned = Some(era);
                REPLAN.store(true, Relaxed);
            }
        });
    }
    watch::begin(place);
    true
}

fn is_unknown(entry: &super::entry::Entry) -> bool {
    !entry.has(flag::BARRED)
        && (entry.known() == Known::Nothing
            || entry.has(flag::IN_RECOVERY) && entry.known_on(process::in_recovery()) == Known::Nothing)
}

/// It has run without an error. `clean`: it could have written, and has not.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn count_run(clean: bool) {
    count(CURRENT.get(), clean);
}

/// A utility statement of the client is about to run that may be served. True: [`utility_ended`] is to be called.
pub fn utility_begins(text: &[u8], examined: &Examined) -> bool {
    let Some((handle, place)) = recognise(text, Some(examined)) else { return false };
    CURRENT.set(handle);
    join(place, examined);
    // Planning calls functions that are declared IMMUTABLE, and those can lie.
    watch::begin_planning_only(place);
    true
}

/// It has run without an error. No plan of it was run, so it counts for nothing but its use.
pub fn utility_ended() {
    watch::ended();
    count(CURRENT.get(), false);
}

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
fn count(handle: Handle, clean: bool) {
    let now_us = process::statement_us();
    recognise::with(|local| {
        let Some(statement) = local.get_mut(handle) else { return };
        statement.calls += 1;
        statement.counts.calls += u32::from(!std::mem::take(&mut statement.first_is_counted));
        statement.counts.clean += u32::from(clean);
        // Counts come late, and those of one that had to give up its place are lost.
        if statement.calls > 1 {
            table::touch(statement.place);
        }
        let most = (statement.calls / 16).clamp(1, CALLS_MAX);
        if u64::from(statement.counts.calls) >= most || now_us >= statement.flushed_us + FLUSH_US {
            recognise::flush(statement, now_us);
            databases::want(worker::own_database());
        }
    });
}

/// A statement was seen writing: it is withdrawn at once.
#[cold]
pub fn wrote(place: Place, why: &str) {
    let Some(place) = recognise::seen_writing(place) else { return };
    let Some(written) = table::writes(place, why) else { return };
    let database = worker::own_database();
    if !written.was_served {
        return databases::want(database);
    }
    databases::hurry(database);
    let hash = identity::shown(written.hash);
    let text = String::from_utf8_lossy(&written.text);
    let message = format!(
        "pgquorum: statement {hash} was seen writing, so it is not served to run on standbys any more"
    );
    let detail = format!("What was seen: {why}. Its text without literals: {text}");
    let hint = if written.was_proven {
        format!(
            "A function in it is declared STABLE or IMMUTABLE, or is called by one that is, and writes all the same. Declare it VOLATILE. If it does not write any more: SELECT quorum.forget_statements('{hash}')."
        )
    } else {
        String::new()
    };
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message).detail(detail).hint(hint).log();
}

/// The plans that this session keeps are to be made anew, when that is possible.
pub fn plan_anew() {
    REPLAN.store(true, Relaxed);
}

/// A transaction is over, good or bad. Must not raise anything.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn after_transaction() {
    watch::after_transaction();
    take_in();
    if REPLAN.load(Relaxed) {
        let now_ns = clock::boottime_ns();
        if now_ns >= REPLANNED_NS.load(Relaxed) + REPLAN_NS {
            REPLAN.store(false, Relaxed);
            REPLANNED_NS.store(now_ns, Relaxed);
            plans::make_anew();
        }
    }
}
