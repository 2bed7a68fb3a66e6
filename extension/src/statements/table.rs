//! The table of learned statements in shared memory: of fixed size, least used out.
//!
//! A session that knows a statement's place adds to its counters and sees at a glance that its verdict is known, under no
//! lock or under the shared one. The exclusive lock is for new statements and for news about known ones.

use std::ops::ControlFlow;
use std::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

use super::buckets;
use super::entry::{Entry, Known, Texts, flag};
use super::ring;
use super::settings;
use super::shared::{self, Control};
use crate::pg::shared::SharedSlice;

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static ENTRIES: SharedSlice<Entry> = SharedSlice::new(c"pgquorum statements", settings::most);
static TEXTS: SharedSlice<Texts> = SharedSlice::new(c"pgquorum statement texts", settings::most);
/// A statement that was used so often that more does not count keeps its place for so many rounds of the hand.
const USAGE_MAX: u32 = 8;
const COLLISION: &[u8] = b"two different statements have this hash";

/// Asks for the shared memory; only while the server starts.
pub fn init() {
    ENTRIES.register();
    TEXTS.register();
}

/// Is anything learned on this server?
#[inline]
pub fn is_there() -> bool {
    !ENTRIES.get().is_empty()
}

/// Had statements to give up their places, so that a new one takes another one's?
pub fn is_full() -> bool {
    shared::globals().full.load(Relaxed) != 0
}

/// What names a statement: the database, the hash, and where its names are looked up; and by what texts with the same
/// hash are told apart.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    pub database: u32,
    pub hash: u64,
    pub check: u64,
    pub length: u64,
    /// Hash and text of the search path.
    pub path: u64,
    pub path_text: &'a [u8],
    /// The beginning of the normalised text.
    pub kept: &'a [u8],
}

/// Where a statement is, as long as it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    index: u32,
    tag: u64,
}

impl Place {
    /// That of no statement.
    pub const NONE: Self = Self { index: u32::MAX, tag: 0 };
    /// That of one that was not looked at.
    pub const UNSEEN: Self = Self { index: u32::MAX - 1, tag: 0 };

    /// `None`: it had to give up its place.
    #[inline]
    pub fn entry(self) -> Option<&'static Entry> {
        ENTRIES.get().get(self.index as usize).filter(|entry| entry.tag.load(Acquire) == self.tag)
    }

    pub fn texts(self) -> Option<&'static Texts> {
        TEXTS.get().get(self.index as usize)
    }
}

pub enum Found {
    Entry(Place),
    Absent,
    /// Another statement has this hash: neither can be served.
    Collides,
}

/// Looks a statement up, under no lock: what is found is there, but one that is being put there may be missed.
pub fn find(key: &Key) -> Found {
    look(key)
}

/// As [`find`], of what is there at this moment.
pub fn find_now(key: &Key) -> Found {
    let _kept = shared::share();
    look(key)
}

/// Another statement than the one that is known has this hash: that one is not served any more.
pub fn collided(database: u32, hash: u64) {
    let _alone = shared::exclusive();
    collide(database, hash);
}

/// What is known of a statement when it gets its place.
pub struct New<'a> {
    /// The filter of its names.
    pub words: u64,
    pub now_us: u64,
    /// Its planning, and why it is not proven.
    pub judged: Option<(Judged<'a>, &'a str)>,
}

/// Looks a statement up, or gives it a place, where it is taken to have been called once. `None`: another one has its hash.
/// Then that one is not served any more.
pub fn insert(key: &Key, new: &New) -> Option<Inserted> {
    let mut control = shared::exclusive();
    match look(key) {
        Found::Entry(place) => return Some(Inserted { place, is_new: false }),
        Found::Collides => {
            collide(key.database, key.hash);
            return None;
        }
        Found::Absent => {}
    }
    let index = take_place(&mut control)?;
    let (entry, texts) = (ENTRIES.get().get(index)?, TEXTS.get().get(index)?);
    control.tags += 1;
    for (field, value) in [
        (&entry.hash, key.hash),
        (&entry.check, key.check),
        (&entry.length, key.length),
        (&entry.path, key.path),
        (&entry.query_id, 0),
        (&entry.words, new.words),
        (&entry.lsn, 0),
        (&entry.calls, 1),
        (&entry.clean, 0),
        (&entry.used_us, new.now_us),
        (&entry.saved_us, 0),
    ] {
        field.store(value, Relaxed);
    }
    for (field, value) in [
        (&entry.database, key.database),
        (&entry.verdict, Known::Nothing as u32),
        (&entry.flags, 0),
        (&entry.usage, 1),
        (&entry.version, 0),
        (&entry.era, 0),
        (&entry.depend_count, 0),
    ] {
        field.store(value, Relaxed);
    }
    texts.text.set(key.kept);
    texts.path.set(key.path_text);
    texts.reason.set(b"");
    buckets::add(key.database, key.hash, index)?;
    entry.tag.store(control.tags, Release);
    let place = Place { index: index as u32, tag: control.tags };
    if let Some((judged, reason)) = &new.judged {
        join(entry, texts, judged, reason);
    }
    Some(Inserted { place, is_new: true })
}

/// Where a statement is now, and whether it was not there before.
pub struct Inserted {
    pub place: Place,
    pub is_new: bool,
}

/// Looks at the statements with a hash, until something is found.
#[inline]
fn at_same_hash<F>(
    database: u32,
    hash: u64,
    mut look: impl FnMut(usize, &'static Entry) -> ControlFlow<F>,
) -> ControlFlow<F> {
    buckets::at_candidates(database, hash, |index| match ENTRIES.get().get(index) {
        Some(entry) if entry.hash.load(Relaxed) == hash && entry.database.load(Relaxed) == database => {
            look(index, entry)
        }
        _ => ControlFlow::Continue(()),
    })
}

fn look(key: &Key) -> Found {
    let found = at_same_hash(key.database, key.hash, |index, entry| {
        let Some(texts) = TEXTS.get().get(index) else { return ControlFlow::Continue(()) };
        let tag = entry.tag.load(Acquire);
        let same = entry.check.load(Relaxed) == key.check
            && entry.length.load(Relaxed) == key.length
            && texts.text.is(key.kept);
        let same_path = entry.path.load(Relaxed) == key.path && texts.path.is(key.path_text);
        let is_hashs = entry.hash.load(Relaxed) == key.hash;
        fence(Acquire);
        // What was read belongs together only if nothing else was put there meanwhile.
        if tag == 0 || !is_hashs || entry.tag.load(Relaxed) != tag {
            return ControlFlow::Continue(());
        }
        if !same {
            return ControlFlow::Break(Found::Collides);
        }
        if same_path {
            return ControlFlow::Break(Found::Entry(Place { index: index as u32, tag }));
        }
        ControlFlow::Continue(())
    });
    found.break_value().unwrap_or(Found::Absent)
}

fn collide(database: u32, hash: u64) {
    let _ = at_same_hash(database, hash, |index, entry| {
        if !entry.has(flag::BARRED) {
            if let Some(texts) = TEXTS.get().get(index) {
                texts.reason.set(COLLISION);
            }
            // For good: no change makes their hashes differ.
            entry.flags.fetch_or(flag::BARRED, Relaxed);
            entry.is_unsaved_now();
            shared::note_negative(hash);
        }
        ControlFlow::<()>::Continue(())
    });
}

fn take_place(control: &mut Control) -> Option<usize> {
    let all = ENTRIES.get();
    if let Some(index) = (control.free as usize).checked_sub(1) {
        control.free = buckets::free_behind(index)?;
        return Some(index);
    }
    if (control.used as usize) < all.len() {
        control.used += 1;
        return Some(control.used as usize - 1);
    }
    shared::globals().full.store(1, Relaxed);
    // Round after round all fall, so that one is found.
    let rounds = USAGE_MAX as usize + 2;
    for step in 0..rounds * all.len() {
        control.hand = (control.hand + 1) % (all.len() as u32);
        let (index, entry) = (control.hand as usize, all.get(control.hand as usize)?);
        let usage = entry.usage.load(Relaxed);
        if usage > 0 {
            entry.usage.store(usage - 1, Relaxed);
            continue;
        }
        // What is known against a statement is saved first, if there is anything else that can go.
        let precious = entry.has(flag::UNSAVED) && entry.is_negative();
        if !precious || step >= all.len() {
            remove(index, entry);
            return Some(index);
        }
    }
    None
}

/// Takes a statement out of the table; its place is the caller's.
fn remove(index: usize, entry: &Entry) {
    let (database, hash) = (entry.database.load(Relaxed), entry.hash.load(Relaxed));
    if entry.is_negative() {
        // What was known against it here goes with it.
        shared::note_negative(hash);
    }
    entry.tag.store(0, Release);
    buckets::remove(database, hash, index);
}

/// The statements of a database, in a lock of either mode.
pub fn of_database(database: u32) -> impl Iterator<Item = (Place, &'static Entry, &'static Texts)> {
    ENTRIES.get().iter().zip(TEXTS.get()).enumerate().filter_map(move |(index, (entry, texts))| {
        let tag = entry.tag.load(Relaxed);
        let here = tag != 0 && entry.database.load(Relaxed) == database;
        here.then_some((Place { index: index as u32, tag }, entry, texts))
    })
}

/// Forgets statements of a database: those with a hash, or all.
pub fn forget(database: u32, hash: Option<u64>) {
    let mut control = shared::exclusive();
    for (index, entry) in ENTRIES.get().iter().enumerate() {
        let meant = entry.database.load(Relaxed) == database
            && hash.is_none_or(|hash| entry.hash.load(Relaxed) == hash);
        if entry.tag.load(Relaxed) != 0 && meant {
            remove(index, entry);
            buckets::set_free_behind(index, control.free);
            control.free = index as u32 + 1;
            shared::globals().full.store(0, Relaxed);
        }
    }
    shared::globals().negatives.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
}

/// What one session has counted of a statement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub calls: u32,
    /// Those that wrote nothing, in `era`.
    pub clean: u32,
    pub era: u32,
}

/// Adds to a statement's counters. False: it is not there any more.
pub fn count(place: Place, counts: Counts, now_us: u64) -> bool {
    let _kept = shared::share();
    let Some(entry) = place.entry() else { return false };
    entry.calls.fetch_add(counts.calls.into(), Relaxed);
    if entry.era.load(Relaxed) == counts.era {
        entry.clean.fetch_add(counts.clean.into(), Relaxed);
    }
    entry.used_us.fetch_max(now_us, Relaxed);
    let usage = entry.usage.load(Relaxed) + 1 + counts.calls.max(1).ilog2();
    entry.usage.store(usage.min(USAGE_MAX), Relaxed);
    true
}

/// The statement was used again: it keeps its place for longer. Needs no lock, and most of the time writes nothing.
#[inline]
pub fn touch(place: Place) {
    if let Some(entry) = place.entry() {
        let usage = entry.usage.load(Relaxed);
        if usage < USAGE_MAX {
            entry.usage.store(usage + 1, Relaxed);
        }
    }
}

/// What one planning came to.
pub struct Judged<'a> {
    pub known: Known,
    pub depends: &'a [u32],
    /// It rests on more than that.
    pub on_all: bool,
    /// What this session had seen of changes before the statement was analysed.
    pub seen: ring::Seen,
}

/// Does the table know this already? Needs no lock.
#[inline]
pub fn knows(entry: &Entry, judged: &Judged) -> bool {
    let in_recovery = judged.seen.is_in_recovery();
    let known = entry.known_on(in_recovery);
    // A standby whose word was handed over gives it again, with its newer position.
    (known == judged.known || known > judged.known && !in_recovery)
        && !entry.has(flag::HANDED_OVER)
        && entry.depends_on(judged.depends, judged.on_all)
}

/// Joins a planning to what is known. False: something was changed meanwhile, so that it says nothing.
pub fn judge(place: Place, judged: &Judged, reason: &str) -> bool {
    let _alone = shared::exclusive();
    let (Some(entry), Some(texts)) = (place.entry(), place.texts()) else { return true };
    join(entry, texts, judged, reason)
}

/// The same, in the exclusive lock.
fn join(entry: &Entry, texts: &Texts, judged: &Judged, reason: &str) -> bool {
    let in_recovery = judged.seen.is_in_recovery();
    let statement = ring::Statement {
        database: entry.database.load(Relaxed),
        depends: judged.depends,
        on_all: judged.on_all,
        words: entry.words.load(Relaxed),
    };
    if ring::has_changed(judged.seen, &statement) {
        return false;
    }
    let before = entry.known_on(in_recovery);
    // The primary has what was handed over, and joins it there.
    let anew = before == Known::Nothing || entry.has(flag::HANDED_OVER);
    let now = if anew { judged.known } else { before.max(judged.known) };
    if anew {
        entry.depend_count.store(0, Relaxed);
        entry.flags.fetch_and(!(flag::ON_ALL | flag::HANDED_OVER | flag::IN_RECOVERY), Relaxed);
    }
    let known_before = !anew && entry.depends_on(judged.depends, judged.on_all);
    entry.add_depends(judged.depends, judged.on_all);
    if anew || now != before {
        if let ring::Seen::Replayed(lsn) = judged.seen {
            entry.flags.fetch_or(flag::IN_RECOVERY, Relaxed);
            entry.lsn.store(lsn, Relaxed);
        }
        entry.verdict.store(now as u32, Relaxed);
        texts.reason.set(reason.as_bytes());
        if now.is_negative() {
            shared::note_negative(entry.hash.load(Relaxed));
        }
        entry.is_unsaved_now();
    } else if !known_before {
        entry.is_unsaved_now();
    }
    true
}

/// What is to be said of a statement that was seen writing for the first time.
pub struct Written {
    pub hash: u64,
    pub text: Vec<u8>,
    /// It was proven not to.
    pub was_proven: bool,
    /// It may have been served.
    pub was_served: bool,
}

/// A statement was seen writing. `None`: that is known already, or it is not there any more.
pub fn writes(place: Place, why: &str) -> Option<Written> {
    let _alone = shared::exclusive();
    let (entry, texts) = (place.entry()?, place.texts()?);
    if entry.has(flag::BARRED) {
        return None;
    }
    let was_proven = entry.known() == Known::Proven;
    let lied = if was_proven { flag::LIED } else { 0 };
    entry.flags.fetch_or(flag::BARRED | lied, Relaxed);
    texts.reason.set(why.as_bytes());
    entry.is_unsaved_now();
    let hash = entry.hash.load(Relaxed);
    let was_served = was_proven || shared::may_be_given(hash);
    shared::note_negative(hash);
    Some(Written { hash, text: texts.text.get(), was_proven, was_served })
}

/// Sets back what is known of statements by their plans, since something that they rest on has changed. In the exclusive
/// lock, and with nothing that could fail.
pub fn set_back(database: u32, _alone: &shared::Exclusive, meant: impl Fn(&Entry, &Texts) -> bool) {
    for (_, entry, texts) in of_database(database) {
        if entry.known() == Known::Nothing && entry.clean.load(Relaxed) == 0 || !meant(entry, texts) {
            continue;
        }
        entry.verdict.store(Known::Nothing as u32, Relaxed);
        entry.era.fetch_add(1, Relaxed);
        entry.clean.store(0, Relaxed);
        entry.depend_count.store(0, Relaxed);
        let unsaved = if entry.has(flag::BARRED) { flag::UNSAVED } else { 0 };
        entry.flags.fetch_and(flag::BARRED | flag::LIED | unsaved, Relaxed);
        entry.version.fetch_add(1, Relaxed);
    }
}
