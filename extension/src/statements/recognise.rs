//! From a statement's text to its place: what this session remembers, else what the server does.

use std::cell::RefCell;

use super::entry::{Known, PATH_BYTES};
use super::identity::{Identity, Whole};
use super::learn;
use super::local::{Alone, Handle, Local, Statement};
use super::proof::{Examined, Verdict};
use super::table::{self, Found, Inserted, Judged, Key, New, Place};
use super::{buckets, databases, shared, withdraw};
use crate::pg::single::Single;
use crate::pg::{encoding, process, search_path, worker};

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static LOCAL: Single<RefCell<Local>> = Single::new(Local::new());

/// What this session remembers.
#[inline]
pub fn with<R>(use_it: impl FnOnce(&mut Local) -> R) -> R {
    LOCAL.with(use_it)
}

/// Gives to the table what this session has counted; when it ends.
pub fn flush_all() {
    let now_us = process::statement_us();
    // Borrowed only if an error broke out while it was, which cannot be in use any more.
    LOCAL.try_with(|local| local.all_mut().for_each(|statement| flush(statement, now_us)));
}

/// Gives to the table what was counted of a statement.
pub fn flush(statement: &mut Statement, now_us: u64) {
    if statement.counts.calls > 0 || statement.counts.clean > 0 {
        table::count(statement.place, statement.counts, now_us);
        statement.counts.calls = 0;
        statement.counts.clean = 0;
        statement.flushed_us = now_us;
    }
}

/// What a planning says. `None`: nothing, since it is by what this transaction has changed, and that nobody else sees yet, or
/// ever.
pub fn judged(examined: &Examined) -> Option<Judged<'_>> {
    if withdraw::has_changed_something() {
        return None;
    }
    Some(Judged {
        known: match examined.verdict {
            Verdict::ReadOnly => Known::Proven,
            Verdict::Unproven(_) => Known::Unproven,
            Verdict::Refused(_) => Known::Refused,
        },
        depends: examined.depends.oids(),
        on_all: examined.depends.is_everything(),
        seen: learn::seen(),
    })
}

pub fn reason(examined: &Examined) -> String {
    examined.verdict.reason().map(|reason| reason.text()).unwrap_or_default()
}

/// Of a statement that is about to be planned.
#[derive(Clone, Copy)]
pub enum Admitted {
    /// As [`Admitted::Unseen`], and too long to be found again by what it does.
    No,
    /// It has come once only, as far as is known, and the table is full; or it was not looked at, since most that this session
    /// says are like that. What it does is watched.
    Unseen,
    /// It is remembered.
    Known(Handle),
    /// There is room for it, or it has come before.
    New,
}

/// Is a statement that is about to be planned known, or is there room for it, or has it come before?
#[inline]
pub fn admits(text: &[u8]) -> Admitted {
    let path = search_path::hash();
    LOCAL.with(|local| match local.by_text(text, path) {
        Some(handle) if is_remembered(local, handle) => Admitted::Known(handle),
        _ => admits_unknown(local, text, path),
    })
}

/// As [`recognise`], of a statement that was admitted just before.
#[inline]
pub fn planned(text: &[u8], admitted: Admitted, examined: &Examined) -> Option<(Handle, Place)> {
    if let Admitted::Known(handle) = admitted
        && let Some(found) = LOCAL.with(|local| remembered(local, handle, Some(examined)))
    {
        return found;
    }
    recognise(text, Some(examined))
}

fn is_remembered(local: &Local, handle: Handle) -> bool {
    local
        .get(handle)
        .is_some_and(|statement| statement.alone != Alone::No || statement.place.entry().is_some())
}

/// Texts with literals in them come here each time.
#[inline(never)]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
fn admits_unknown(local: &mut Local, text: &[u8], path: u64) -> Admitted {
    let comes_again = local.comes_again(text, path);
    // A text in another encoding could not be looked into where its transaction has failed.
    if !comes_again
        && local.passes_by()
        && table::is_full()
        && !encoding::differs()
        && local.remember_stranger(text, path)
    {
        return Admitted::Unseen;
    }
    let identity = Identity::of(text, std::mem::take(&mut local.buffer));
    buckets::fetch(worker::own_database(), identity.hash);
    let (hash, check, length) = (identity.hash, identity.local_check(), identity.length);
    if let Some(handle) = local.by_key(hash, check, length, path)
        && is_remembered(local, handle)
    {
        local.was_looked_at(false);
        local.remember_text(text, path, handle);
        local.buffer = identity.into_buffer();
        return Admitted::Known(handle);
    }
    let found = with_key(&identity, path, table::find);
    let statement = match found {
        Some(Found::Entry(place)) => Statement::new(hash, check, length, path, place),
        Some(Found::Absent)
            if table::is_full() && !buckets::came_before(worker::own_database(), hash) && !comes_again =>
        {
            local.was_looked_at(true);
            local.buffer = identity.into_buffer();
            // For this once: most of these never come again.
            if local.remember_stranger(text, path) {
                return Admitted::Unseen;
            }
            let mut statement = Statement::new(hash, check, length, path, Place::NONE);
            statement.alone = Alone::Unknown;
            remember(local, text, path, statement);
            return Admitted::No;
        }
        // It is put there when its tree was looked at.
        _ => {
            local.was_looked_at(false);
            local.remember_identity(text, path, identity);
            return Admitted::New;
        }
    };
    local.was_looked_at(false);
    local.buffer = identity.into_buffer();
    Admitted::Known(remember(local, text, path, statement))
}

/// Finds a statement by its text; when it is `planned`, it is given a place. `None`: it is not learned, or what runs here is
/// not what others mean by the text.
#[inline]
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn recognise(text: &[u8], planned: Option<&Examined>) -> Option<(Handle, Place)> {
    let path = search_path::hash();
    LOCAL.with(|local| {
        if local.take_stranger(text, path) && planned.is_none() {
            return Some((Handle::NONE, Place::UNSEEN));
        }
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
fn remembered(
    local: &mut Local,
    handle: Handle,
    planned: Option<&Examined>,
) -> Option<Option<(Handle, Place)>> {
    let statement = local.get_mut(handle)?;
    if statement.alone == Alone::No {
        let holds = planned.is_none_or(|planned| !planned.temporary) && statement.place.entry().is_some();
        return holds.then_some(Some((handle, statement.place)));
    }
    match planned {
        Some(planned) if planned.temporary && statement.alone == Alone::Temporary => Some(None),
        Some(_) => None,
        None => {
            statement.calls += 1;
            // It does not come once only, and its plan is kept: who knows since when.
            if statement.calls == 2 && statement.alone == Alone::Unknown {
                learn::plan_anew();
            }
            Some(None)
        }
    }
}

#[cold]
fn look_up(local: &mut Local, text: &[u8], path: u64, planned: Option<&Examined>) -> Option<(Handle, Place)> {
    let identity = match local.take_identity(text, path) {
        Some(identity) => identity,
        None => Identity::of(text, std::mem::take(&mut local.buffer)),
    };
    let (hash, check, length) = (identity.hash, identity.local_check(), identity.length);
    if let Some(handle) = local.by_key(hash, check, length, path)
        && let Some(found) = remembered(local, handle, planned)
    {
        local.remember_text(text, path, handle);
        local.buffer = identity.into_buffer();
        return found;
    }
    let is_temporary = planned.is_some_and(|planned| planned.temporary);
    let found = if is_temporary { None } else { find(text, &identity, path, planned) };
    local.buffer = identity.into_buffer();
    let place = found.as_ref().map(|found| found.place);
    let mut statement = Statement::new(hash, check, length, path, place.unwrap_or(Place::NONE));
    statement.alone = match place {
        Some(_) => Alone::No,
        None if is_temporary => Alone::Temporary,
        None => Alone::Unknown,
    };
    statement.first_is_counted = found.is_some_and(|found| found.is_new);
    if statement.first_is_counted {
        statement.flushed_us = process::statement_us();
    }
    let handle = remember(local, text, path, statement);
    place.map(|place| (handle, place))
}

fn remember(local: &mut Local, text: &[u8], path: u64, statement: Statement) -> Handle {
    let (handle, before) = local.put(statement);
    if let Some(mut before) = before {
        flush(&mut before, process::statement_us());
    }
    local.remember_text(text, path, handle);
    handle
}

/// `None`: the search path is too long.
fn with_key<R>(identity: &Identity, path: u64, use_it: impl FnOnce(&Key) -> R) -> Option<R> {
    search_path::with_text(|path_text| {
        let key = Key {
            database: worker::own_database(),
            hash: identity.hash,
            check: identity.check,
            length: identity.length,
            path,
            path_text,
            kept: identity.kept(),
        };
        (path_text.len() <= PATH_BYTES).then(|| use_it(&key))
    })
}

/// The place of a statement that was seen writing; if it was not looked at before, it is the one that came last. `None`: nobody
/// was told that it could be run elsewhere. Raises nothing, and can be asked when its transaction has failed.
#[cold]
pub fn seen_writing(place: Place) -> Option<Place> {
    if place != Place::UNSEEN {
        return Some(place);
    }
    LOCAL.try_with(|local| {
        let (text, path) = local.last();
        if encoding::differs() && !text.is_ascii() {
            return None;
        }
        let identity = Identity::of(text, Vec::new());
        // The path's text is still that of the last statement, whatever path a function in it has set.
        with_key(&identity, path, |key| match table::find_now(key) {
            Found::Entry(place) => Some(place),
            // One that had to give up its place may still have its row, by which it is served.
            Found::Absent if shared::may_be_given(key.hash) => {
                let whole = Whole::of(text, &identity);
                let new = New { words: whole.words, now_us: process::statement_us(), judged: None };
                let inserted = if whole.is_query { table::insert(key, &new) } else { None };
                inserted.map(|inserted| inserted.place)
            }
            Found::Absent => None,
            Found::Collides => {
                table::collided(key.database, key.hash);
                databases::hurry(key.database);
                None
            }
        })?
    })?
}

/// Finds a statement in shared memory, or gives it a place there.
fn find(text: &[u8], identity: &Identity, path: u64, planned: Option<&Examined>) -> Option<Inserted> {
    with_key(identity, path, |key| match (table::find(key), planned) {
        (Found::Entry(place), _) => Some(Inserted { place, is_new: false }),
        // It runs by a plan of which nothing is known, and so not whether others mean the same.
        (_, None) => {
            learn::plan_anew();
            None
        }
        (_, Some(examined)) => insert(text, identity, key, examined),
    })?
}

fn insert(text: &[u8], identity: &Identity, key: &Key, examined: &Examined) -> Option<Inserted> {
    let whole = Whole::of(text, identity);
    if !whole.is_query {
        return None;
    }
    let reason = reason(examined);
    let judged = judged(examined).map(|judged| (judged, reason.as_str()));
    let now_us = process::statement_us();
    let inserted = table::insert(key, &New { words: whole.words, now_us, judged });
    if inserted.is_some() {
        databases::want(key.database);
    } else {
        databases::hurry(key.database);
    }
    inserted
}
