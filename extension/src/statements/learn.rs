//! What is learned while statements are planned and run. Called by the hooks, for what the client itself has sent.
//!
//! Nothing here raises an error of its own. In the usual case it finds the statement by its text, sees that its verdict is
//! known, and counts.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use super::entry::{Known, PATH_BYTES, flag};
use super::identity::{self, Identity, Whole};
use super::local::{Handle, Local, Statement};
use super::proof::{Examined, Verdict};
use super::ring::{self, Seen};
use super::table::{self, Found, Judged, Key, Place};
use super::{databases, shared, watch, withdraw};
use crate::error::Refusal;
use crate::pg::{clock, plans, process, search_path, worker};

/// Counts go to the table when there are so many, or sooner for statements that this session has run less often.
const CALLS_MAX: u64 = 64;
const FLUSH_US: u64 = 1_000_000;
/// A session has its plans made anew at most so often.
const REPLAN_NS: u64 = 10_000 * clock::NS_PER_MS;

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::default());
    /// What the client's statement is.
    static CURRENT: Cell<Handle> = const { Cell::new(Handle::NONE) };
}

/// What this session had seen of changes when its transaction began. One process: no ordering is needed.
static SEEN_GENERATION: AtomicU64 = AtomicU64::new(0);
static SEEN_LSN: AtomicU64 = AtomicU64::new(0);
/// Plans of this session are older than what is known of their statements.
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

fn seen() -> Seen {
    if process::in_recovery() {
        Seen::Replayed(SEEN_LSN.load(Relaxed))
    } else {
        Seen::Generation(SEEN_GENERATION.load(Relaxed))
    }
}

/// A query of the client is about to be planned. `query_id`: 0: it is not known, and may be asked for. True: it is watched,
/// and [`planning_ended`] is to be called.
pub fn planning_begins(
    text: &[u8],
    examined: &Examined,
    query_id: u64,
    find_query_id: impl FnOnce() -> u64,
) -> bool {
    let Some((_, place)) = recognise(text, Some(examined.temporary)) else { return false };
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

/// It was planned without an error.
pub fn planning_ended() {
    watch::end();
}

/// Joins what a planning came to.
fn join(place: Place, examined: &Examined) {
    // What this transaction has changed nobody else sees yet, or ever.
    if withdraw::has_changed_something() {
        return;
    }
    let Some(entry) = place.entry() else { return };
    let judged = Judged {
        known: match examined.verdict {
            Verdict::ReadOnly => Known::Proven,
            Verdict::Unproven(_) => Known::Unproven,
            Verdict::Refused(_) => Known::Refused,
        },
        depends: examined.depends.oids(),
        on_all: examined.depends.is_everything(),
        seen: seen(),
    };
    if table::knows(entry, &judged) {
        return;
    }
    let reason = examined.verdict.reason().map(|reason| reason.text()).unwrap_or_default();
    if !table::judge(place, &judged, &reason) {
        // The next planning will have seen the change.
        REPLAN.store(true, Relaxed);
    }
    let withdraws = judged.known.is_negative() && shared::may_be_given(entry.hash.load(Relaxed));
    let database = worker::own_database();
    if withdraws { databases::hurry(database) } else { databases::want(database) }
}

/// A query of the client is about to run. True: it is watched, and [`run_ended`] is to be called.
pub fn run_begins(text: &[u8]) -> bool {
    let Some((handle, place)) = recognise(text, None) else { return false };
    CURRENT.set(handle);
    if let Some(entry) = place.entry() {
        let era = entry.era.load(Relaxed);
        let unknown = is_unknown(entry);
        LOCAL.with_borrow_mut(|local| {
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

/// It has run without an error. `first`: it was not continued.
pub fn run_ended(first: bool) {
    let clean = watch::end();
    if first {
        count(CURRENT.get(), clean);
    }
}

/// A utility statement of the client is about to run that may be served. True: [`utility_ended`] is to be called.
pub fn utility_begins(text: &[u8], examined: &Examined) -> bool {
    let Some((handle, place)) = recognise(text, Some(examined.temporary)) else { return false };
    CURRENT.set(handle);
    join(place, examined);
    // Planning calls functions that are declared IMMUTABLE, and those can lie.
    watch::begin_planning_only(place);
    true
}

/// It has run without an error. No plan of it was run, so it counts for nothing but its use.
pub fn utility_ended() {
    watch::end();
    count(CURRENT.get(), false);
}

fn count(handle: Handle, clean: bool) {
    let now_us = process::statement_us();
    LOCAL.with_borrow_mut(|local| {
        let Some(statement) = local.get_mut(handle) else { return };
        statement.calls += 1;
        statement.counts.calls += 1;
        statement.counts.clean += u32::from(clean);
        // Counts come late, and those of one that had to give up its place are lost.
        if statement.calls > 1 {
            table::touch(statement.place);
        }
        let most = (statement.calls / 16).clamp(1, CALLS_MAX);
        if u64::from(statement.counts.calls) >= most || now_us >= statement.flushed_us + FLUSH_US {
            flush(statement, now_us);
            databases::want(worker::own_database());
        }
    });
}

fn flush(statement: &mut Statement, now_us: u64) {
    if statement.counts.calls > 0 {
        table::count(statement.place, statement.counts, now_us);
        statement.counts.calls = 0;
        statement.counts.clean = 0;
        statement.flushed_us = now_us;
    }
}

/// Gives to the table what this session has counted; when it ends.
pub fn flush_all() {
    let now_us = process::statement_us();
    LOCAL.with(|local| {
        // Borrowed only if an error broke out while it was, which cannot be in use any more.
        if let Ok(mut local) = local.try_borrow_mut() {
            local.all_mut().for_each(|statement| flush(statement, now_us));
        }
    });
}

/// Finds a statement by its text; when it is planned, it is given a place. `planned`: it is, with a plan that uses temporary
/// objects or not. `None`: it is not learned, or what runs here is not what others mean by the text.
#[inline]
fn recognise(text: &[u8], planned: Option<bool>) -> Option<(Handle, Place)> {
    let path = search_path::hash();
    LOCAL.with_borrow_mut(|local| {
        if let Some(handle) = local.by_text(text, path)
            && let Some(found) = remembered(local, handle, planned)
        {
            return found;
        }
        look_up(local, text, path, planned)
    })
}

/// `None`: what is remembered does not hold any more.
#[inline]
fn remembered(local: &Local, handle: Handle, planned: Option<bool>) -> Option<Option<(Handle, Place)>> {
    let statement = local.get(handle)?;
    if statement.is_left_alone != planned.unwrap_or(statement.is_left_alone) {
        return None;
    }
    if statement.is_left_alone {
        return Some(None);
    }
    statement.place.entry().is_some().then_some(Some((handle, statement.place)))
}

#[cold]
fn look_up(local: &mut Local, text: &[u8], path: u64, planned: Option<bool>) -> Option<(Handle, Place)> {
    let identity = Identity::of(text);
    if let Some(handle) = local.by_key(identity.hash, identity.check, identity.length, path)
        && let Some(found) = remembered(local, handle, planned)
    {
        local.remember_text(text, path, handle);
        return found;
    }
    let place = if planned == Some(true) { None } else { find(text, &identity, path, planned.is_some()) };
    let Identity { hash, check, length, .. } = identity;
    let mut statement = Statement::new(hash, check, length, path, place.unwrap_or(Place::NONE));
    statement.is_left_alone = place.is_none();
    let (handle, before) = local.put(statement);
    if let Some(mut before) = before {
        flush(&mut before, process::statement_us());
    }
    local.remember_text(text, path, handle);
    place.map(|place| (handle, place))
}

/// Finds a statement in shared memory, or gives it a place there.
fn find(text: &[u8], identity: &Identity, path: u64, is_planned: bool) -> Option<Place> {
    let path_text = search_path::text();
    if path_text.len() > PATH_BYTES {
        return None;
    }
    let database = worker::own_database();
    let key = Key {
        database,
        hash: identity.hash,
        check: identity.check,
        length: identity.length,
        path,
        path_text: &path_text,
        kept: identity.kept(),
    };
    match table::find(&key) {
        Found::Entry(place) => Some(place),
        // It runs by a plan of which nothing is known, and so not whether others mean the same.
        Found::Absent if !is_planned => {
            REPLAN.store(true, Relaxed);
            None
        }
        Found::Absent | Found::Collides => {
            let whole = Whole::of(text, identity);
            if !whole.is_query {
                return None;
            }
            let place = table::insert(&key, whole.words, process::statement_us());
            if place.is_none() {
                databases::hurry(database);
            }
            place
        }
    }
}

/// A statement was seen writing: it is withdrawn at once.
#[cold]
pub fn wrote(place: Place, why: &str) {
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

/// A transaction is over, good or bad. Must not raise anything.
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
