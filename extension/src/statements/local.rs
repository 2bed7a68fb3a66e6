//! What a session remembers of the statements that it runs, so that it seldom looks into shared memory.
//!
//! Two levels: a text that was seen before leads to its statement without being normalised, as does one that differs from the
//! last one in nothing but whole numbers; and a normalised text to its place without the table's lock. Both are small and
//! forget the older one of two that meet.

use pgquorum_statement::{differ_in_numbers, plain_length};

use super::identity::Identity;
use super::table::{Counts, Place};

/// Statements that are remembered.
const STATEMENTS: usize = 512;
/// Texts that are remembered.
const TEXTS: usize = 256;
/// Longer texts are normalised each time.
const TEXT_BYTES_MAX: usize = 4096;
/// When so many texts in a row were new, their literals stand in them: then only one of so many is looked for and remembered.
/// Looking costs much for what it is, since nothing of it is in the processor's cache.
const STRANGERS: u32 = 64;
const LOOK_FOR_ONE_OF: u32 = 16;

/// A session for whose statements there is no room looks at one of so many. That begins when of those it looked at, for some
/// while, two of three or more were not known.
const LOOK_AT_ONE_OF: u32 = 8;
const STRANGE_FROM: u32 = 48;
const STRANGE_MAX: u32 = 64;

/// Why a statement is left alone until it is planned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// It is not.
    No,
    /// Its plan uses temporary objects, so that here the text means something of this session only.
    Temporary,
    /// Nothing is known of its plan.
    Unknown,
}

/// A statement in this session's hands.
#[derive(Clone, Copy, Debug)]
pub struct Statement {
    /// Another one for each that is remembered; 0: none.
    serial: u32,
    pub hash: u64,
    pub check: u64,
    pub length: u64,
    /// Of the search path.
    pub path: u64,
    pub place: Place,
    /// Not yet in the table.
    pub counts: Counts,
    /// Executions by this session.
    pub calls: u64,
    /// When the counts were given to the table.
    pub flushed_us: u64,
    pub alone: Alone,
    /// Its first call was counted when it got its place.
    pub first_is_counted: bool,
    /// The era for which this session has had its plans made anew; `None`: none.
    pub replanned: Option<u32>,
}

impl Statement {
    pub fn new(hash: u64, check: u64, length: u64, path: u64, place: Place) -> Self {
        Self {
            serial: 0,
            hash,
            check,
            length,
            path,
            place,
            counts: Counts::default(),
            calls: 0,
            flushed_us: 0,
            alone: Alone::No,
            first_is_counted: false,
            replanned: None,
        }
    }

    fn is(&self, hash: u64, check: u64, length: u64, path: u64) -> bool {
        self.serial != 0 && (self.hash, self.check, self.length, self.path) == (hash, check, length, path)
    }
}

/// Names a remembered statement, as long as it is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handle {
    index: u32,
    serial: u32,
}

impl Handle {
    /// That of no statement.
    pub const NONE: Self = Self { index: u32::MAX, serial: 0 };
}

struct Text {
    /// Of the text that was seen here last. It is kept when it comes again.
    hash: u64,
    path: u64,
    bytes: Vec<u8>,
    statement: Handle,
}

impl Text {
    const NONE: Self = Self { hash: 0, path: 0, bytes: Vec::new(), statement: Handle::NONE };
}

pub struct Local {
    statements: Vec<Statement>,
    /// Some bits of each one's hash, so that few are looked at for one that is not there. 0: none.
    marks: Vec<u16>,
    texts: Vec<Text>,
    /// What came last: most often it is planned and then executed.
    last: Text,
    /// How much of it, from its beginning, is neither quoted nor a comment.
    last_plain: usize,
    /// How many texts in a row were not remembered.
    strangers: u32,
    /// The text that came last was looked for, and is remembered beyond the next one.
    looks: bool,
    serials: u32,
    /// Room for a normalised text.
    pub buffer: Vec<u8>,
    /// That of the last text, if it is needed again.
    identity: Option<Identity>,
    /// The last text was planned and is about to run; it is not known, or was not looked at.
    is_stranger: bool,
    /// Grows with statements that are looked at and not known, and falls with others.
    strangeness: u32,
    /// Counts those that may be passed by.
    turn: u32,
}

impl Local {
    pub const fn new() -> Self {
        Self {
            statements: Vec::new(),
            marks: Vec::new(),
            texts: Vec::new(),
            last: Text::NONE,
            last_plain: 0,
            strangers: 0,
            looks: true,
            serials: 0,
            buffer: Vec::new(),
            identity: None,
            is_stranger: false,
            strangeness: 0,
            turn: 0,
        }
    }

    /// The statement of a text, without looking into it more than to compare it.
    #[inline]
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub fn by_text(&mut self, text: &[u8], path: u64) -> Option<Handle> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        if self.last.path == path && self.get(self.last.statement).is_some() && self.is_like_last(text) {
            return Some(self.last.statement);
        }
        if self.texts.is_empty() {
            return None;
        }
        self.looks = self.strangers < STRANGERS || self.strangers.is_multiple_of(LOOK_FOR_ONE_OF);
        self.strangers = self.strangers.wrapping_add(1);
        if !self.looks {
            return None;
        }
        let hash = quick_hash(text);
        let found = &self.texts[hash as usize % TEXTS];
        let same = found.hash == hash && found.path == path && found.bytes == text;
        let statement = found.statement;
        if same && self.get(statement).is_some() {
            self.strangers = 0;
            return Some(statement);
        }
        None
    }

    /// Is the text the last one, but for whole numbers? Then it is the last one from now on.
    #[inline]
    fn is_like_last(&mut self, text: &[u8]) -> bool {
        if !differ_in_numbers(&self.last.bytes, self.last_plain, text) {
            return false;
        }
        if self.last.bytes != text {
            // All that differs comes before that place.
            self.last_plain = self.last_plain + text.len() - self.last.bytes.len();
            self.last.bytes.clear();
            self.last.bytes.extend_from_slice(text);
        }
        true
    }

    /// From now on the text leads to this statement, if it comes again soon or often.
    #[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
    pub fn remember_text(&mut self, text: &[u8], path: u64, statement: Handle) {
        if text.len() > TEXT_BYTES_MAX {
            return;
        }
        if self.texts.is_empty() {
            self.texts.resize_with(TEXTS, || Text::NONE);
        }
        set(&mut self.last, text, path, statement);
        self.is_stranger = false;
        self.last_plain = plain_length(text);
        if !self.looks {
            return;
        }
        let hash = quick_hash(text);
        let place = &mut self.texts[hash as usize % TEXTS];
        if place.hash == hash {
            set(place, text, path, statement);
        } else {
            *place = Text { hash, ..Text::NONE };
        }
    }

    /// The text will be planned, and then run. False: it is too long to be remembered.
    #[inline]
    pub fn remember_stranger(&mut self, text: &[u8], path: u64) -> bool {
        self.is_stranger = text.len() <= TEXT_BYTES_MAX;
        if self.is_stranger {
            set(&mut self.last, text, path, Handle::NONE);
        }
        self.is_stranger
    }

    /// Is it the stranger that was planned just before? Then it is none from now on: what runs again without being planned
    /// does not come once only.
    #[inline]
    pub fn take_stranger(&mut self, text: &[u8], path: u64) -> bool {
        std::mem::take(&mut self.is_stranger) && self.last.path == path && self.last.bytes == text
    }

    /// Was this text the last one, and a stranger?
    #[inline]
    pub fn comes_again(&self, text: &[u8], path: u64) -> bool {
        self.last.statement == Handle::NONE && self.last.path == path && self.last.bytes == text
    }

    /// The text that came last, and the hash of its search path.
    pub fn last(&self) -> (&[u8], u64) {
        (&self.last.bytes, self.last.path)
    }

    /// A statement was looked at.
    #[inline]
    pub fn was_looked_at(&mut self, is_stranger: bool) {
        self.strangeness = if is_stranger {
            (self.strangeness + 1).min(STRANGE_MAX)
        } else {
            self.strangeness.saturating_sub(2)
        };
    }

    /// Is the next one to be passed by?
    #[inline]
    pub fn passes_by(&mut self) -> bool {
        if self.strangeness < STRANGE_FROM {
            return false;
        }
        self.turn = self.turn.wrapping_add(1);
        !self.turn.is_multiple_of(LOOK_AT_ONE_OF)
    }

    /// The text is the last one; what it comes to is asked for again. One that is too long is looked into again then.
    pub fn remember_identity(&mut self, text: &[u8], path: u64, identity: Identity) {
        if text.len() > TEXT_BYTES_MAX {
            self.buffer = identity.into_buffer();
            return;
        }
        set(&mut self.last, text, path, Handle::NONE);
        self.is_stranger = false;
        self.identity = Some(identity);
    }

    /// What the text comes to, if it was the last one and that was remembered.
    pub fn take_identity(&mut self, text: &[u8], path: u64) -> Option<Identity> {
        let identity = self.identity.take()?;
        if self.last.path == path && self.last.bytes == text {
            return Some(identity);
        }
        self.buffer = identity.into_buffer();
        None
    }

    /// The statement of a normalised text.
    pub fn by_key(&self, hash: u64, check: u64, length: u64, path: u64) -> Option<Handle> {
        places(hash, path).into_iter().find_map(|index| {
            self.marks.get(index).filter(|known| **known == mark(hash))?;
            let known = self.statements.get(index)?;
            known
                .is(hash, check, length, path)
                .then_some(Handle { index: index as u32, serial: known.serial })
        })
    }

    #[inline]
    pub fn get(&self, handle: Handle) -> Option<&Statement> {
        self.statements
            .get(handle.index as usize)
            .filter(|known| known.serial == handle.serial && known.serial != 0)
    }

    #[inline]
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut Statement> {
        self.statements
            .get_mut(handle.index as usize)
            .filter(|known| known.serial == handle.serial && known.serial != 0)
    }

    /// Remembers a statement; and which one had to go for it.
    pub fn put(&mut self, statement: Statement) -> (Handle, Option<Statement>) {
        if self.statements.is_empty() {
            self.statements.resize(STATEMENTS, Statement::new(0, 0, 0, 0, Place::default()));
            self.marks.resize(STATEMENTS, 0);
        }
        let places = places(statement.hash, statement.path);
        let same = |index: &usize| {
            let known = &self.statements[*index];
            known.is(statement.hash, statement.check, statement.length, statement.path)
        };
        let index = places.into_iter().find(same).unwrap_or_else(|| {
            // Of an empty one, the less used one and the older one the first that there is.
            let rank = |index: &usize| {
                let known = &self.statements[*index];
                (known.serial != 0, known.calls, known.serial)
            };
            if rank(&places[0]) <= rank(&places[1]) { places[0] } else { places[1] }
        });
        self.serials = self.serials.wrapping_add(1).max(1);
        let before =
            std::mem::replace(&mut self.statements[index], Statement { serial: self.serials, ..statement });
        self.marks[index] = mark(statement.hash);
        // Whoever stays for long without being used goes the next time.
        let other = places[usize::from(places[0] == index)];
        self.statements[other].calls /= 2;
        (
            Handle { index: index as u32, serial: self.serials },
            Some(before).filter(|before| before.serial != 0),
        )
    }

    /// All that is remembered.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Statement> {
        self.statements.iter_mut().filter(|known| known.serial != 0)
    }
}

/// Where a statement may be remembered.
fn places(hash: u64, path: u64) -> [usize; 2] {
    let first = (hash ^ path) as usize % STATEMENTS;
    [first, first ^ 1]
}

fn mark(hash: u64) -> u16 {
    (hash >> 40) as u16 | 1
}

fn set(place: &mut Text, text: &[u8], path: u64, statement: Handle) {
    place.path = path;
    place.bytes.clear();
    place.bytes.extend_from_slice(text);
    place.statement = statement;
}

/// Only to find a text with which it is then compared, or within a session.
pub fn quick_hash(text: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut hash = (text.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, rest) = text.as_chunks::<8>();
    for word in words {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 29;
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(MULTIPLIER);
    }
    hash ^ hash >> 32
}

#[cfg(test)]
mod unit {
    use super::*;

    fn statement(hash: u64) -> Statement {
        Statement::new(hash, hash + 1, 10, 5, Place::default())
    }

    #[test]
    fn texts_lead_to_statements() {
        let mut local = Local::new();
        assert_eq!(local.by_text(b"select 1", 5), None);
        let (handle, before) = local.put(statement(7));
        assert!(before.is_none());
        local.remember_text(b"select 1", 5, handle);
        assert_eq!(local.by_text(b"select 1", 5), Some(handle));
        assert_eq!(local.by_text(b"select 1", 6), None, "another search path");
        assert_eq!(local.by_text(b"select a", 5), None);
        let (other, _) = local.put(statement(8));
        local.remember_text(b"select a", 5, other);
        assert_eq!(local.by_text(b"select 1", 5), None, "it has come once, and is not the last any more");
        local.remember_text(b"select 1", 5, handle);
        local.remember_text(b"select b", 5, other);
        assert_eq!(local.by_text(b"select 1", 5), Some(handle), "it has come twice");
        assert_eq!(local.by_key(7, 8, 10, 5), Some(handle));
        assert_eq!(local.by_key(7, 9, 10, 5), None, "another text with the same hash");
    }

    #[test]
    fn a_text_that_differs_from_the_last_one_in_a_number_is_the_same_statement() {
        let mut local = Local::new();
        let (handle, _) = local.put(statement(7));
        local.remember_text(b"select 1 from t -- 1", 5, handle);
        let mut leads = |text: &[u8]| local.by_text(text, 5) == Some(handle);
        for text in
            [b"select 12345 from t -- 1".as_slice(), b"select 1 from t -- 1", b"select 99 from t -- 1"]
        {
            assert!(leads(text));
        }
        for text in
            [b"select 1 from u -- 1".as_slice(), b"select 1 from t -- 2", b"select 1. from t -- 1", b""]
        {
            assert!(!leads(text), "{}", text.escape_ascii());
        }
        let long = format!("select {} from t -- 1", "1".repeat(TEXT_BYTES_MAX));
        assert!(!leads(long.as_bytes()), "what a session remembers has a bound");
        assert!(leads(b"select 4 from t -- 1"), "what is no such text has changed nothing");
        assert_eq!(local.by_text(b"select 4 from t -- 1", 6), None, "another search path");
    }

    #[test]
    fn a_stranger_is_one_for_the_run_that_follows_its_planning() {
        let mut local = Local::new();
        assert!(local.remember_stranger(b"select 1", 5));
        assert_eq!(local.by_text(b"select 1", 5), None);
        assert_eq!(local.last(), (b"select 1".as_slice(), 5));
        assert!(local.take_stranger(b"select 1", 5));
        assert!(!local.take_stranger(b"select 1", 5), "it runs again without being planned");
        assert!(local.comes_again(b"select 1", 5));
        assert!(!local.comes_again(b"select 2", 5) && !local.comes_again(b"select 1", 6));
        for (text, path) in [(b"select 2", 5), (b"select 1", 6)] {
            assert!(local.remember_stranger(b"select 1", 5));
            assert!(!local.take_stranger(text, path), "another one");
        }
        assert!(local.remember_stranger(b"select 1", 5));
        let (handle, _) = local.put(statement(7));
        local.remember_text(b"select 1", 5, handle);
        assert!(!local.take_stranger(b"select 1", 5), "it is known by now");
        assert!(!local.comes_again(b"select 1", 5));
        let long = vec![b'1'; TEXT_BYTES_MAX + 1];
        assert!(!local.remember_stranger(&long, 5), "what a session remembers has a bound");
        assert!(!local.take_stranger(&long, 5));
    }

    #[test]
    fn most_are_passed_by_where_most_are_strangers() {
        let passed_by = |known_of_ten: u32| {
            let mut local = Local::new();
            let mut passed_by = 0;
            for number in 0..10_000_u32 {
                if local.passes_by() {
                    passed_by += 1;
                } else {
                    local.was_looked_at(
                        number.wrapping_mul(2_654_435_761) >> 16 & 1023 >= known_of_ten * 1024 / 10,
                    );
                }
            }
            passed_by
        };
        assert!((8_500..=8_750).contains(&passed_by(0)), "{}", passed_by(0));
        assert!((8_000..=8_750).contains(&passed_by(1)), "{}", passed_by(1));
        assert_eq!(passed_by(5), 0);
    }

    #[test]
    fn texts_that_never_come_again_are_not_looked_for() {
        let mut local = Local::new();
        let (handle, _) = local.put(statement(7));
        let mut seen = |text: &str| {
            let found = local.by_text(text.as_bytes(), 5).is_some();
            if !found {
                local.remember_text(text.as_bytes(), 5, handle);
            }
            found
        };
        for number in 0..1000 {
            assert!(!seen(&format!("select '{number}'")));
            assert!(seen(&format!("select '{number}'")), "planned, then run");
        }
        let in_turns = ["begin", "select a", "select b", "commit"];
        let rounds = (0..200).map(|_| in_turns.iter().filter(|text| seen(text)).count());
        let found: Vec<usize> = rounds.collect();
        assert!(found[150..].iter().all(|count| *count == in_turns.len()), "{found:?}");
    }

    #[test]
    fn what_is_forgotten_is_not_found_by_an_old_handle() {
        let mut local = Local::new();
        let (handle, _) = local.put(statement(7));
        local.remember_text(b"select 1", 5, handle);
        let mut gone = 0;
        for step in 1..=4 {
            let (_, before) = local.put(statement(7 + step * 2 * STATEMENTS as u64));
            gone += usize::from(before.is_some());
        }
        assert!(gone >= 2);
        assert!(local.get(handle).is_none());
        assert_eq!(local.by_text(b"select 1", 5), None);
        assert_eq!(local.all_mut().count(), 2);
    }

    #[test]
    fn a_statement_is_remembered_once() {
        let mut local = Local::new();
        let (first, _) = local.put(statement(7));
        let (second, before) = local.put(statement(7));
        assert_eq!(before.map(|before| before.hash), Some(7));
        assert!(local.get(first).is_none() && local.get(second).is_some());
        assert_eq!(local.all_mut().count(), 1);
    }
}
