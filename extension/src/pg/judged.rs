//! What has been found fine at one planning need not be looked up at the next: a small table of functions, operators
//! and types, and one of the relations that have inheritors, both good until the catalogue changes.
//!
//! An entry carries the generation in which its look began, and a notice of a change begins a new one. So nothing has
//! to be emptied, and what changed during a look is not kept.

use std::cell::Cell;
use std::ffi::c_int;

use pg_sys::SysCacheIdentifier as Cache;
use pgrx::prelude::*;

use super::relcache;
use super::single::Single;
use crate::statements::proof::Examined;

const PLACES: usize = 512;
const TREES: usize = 16;

#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static GENERATION: Single<Cell<u32>> = Single::cell(0);
static FINE: Single<[Cell<u64>; PLACES]> = Single::of([const { Cell::new(0) }; PLACES]);
static INHERITORS: Single<[Cell<Option<Tree>>; TREES]> = Single::of([const { Cell::new(None) }; TREES]);

/// Asks to be told of changes; once, from `_PG_init`.
pub fn init() {
    let caches = [
        Cache::PROCOID,
        Cache::TYPEOID,
        Cache::LANGOID,
        Cache::AGGFNOID,
        Cache::OPEROID,
        Cache::AMOPOPID,
        Cache::AMPROCNUM,
        Cache::CASTSOURCETARGET,
        Cache::CLAOID,
    ];
    for cache in caches {
        // SAFETY: the callback is registered once for each cache, before any session exists.
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as c_int, Some(at_change), pg_sys::Datum::from(0));
        }
    }
}

/// Called at any moment at which a lock may be waited for. Calls nothing.
unsafe extern "C-unwind" fn at_change(_argument: pg_sys::Datum, _cache: c_int, _hash: u32) {
    GENERATION.set(GENERATION.get().wrapping_add(1));
}

/// What an entry is about.
#[derive(Clone, Copy)]
pub enum Kind {
    Function = 1,
    /// A function that is called by its name, so that others of that name matter.
    Call = 2,
    Operator = 3,
    Type = 4,
}

/// An entry that may be made later.
#[derive(Clone, Copy)]
pub struct Stamp(u64);

impl Stamp {
    /// Of an object, before it is looked at.
    #[inline]
    pub fn new(kind: Kind, oid: u32) -> Self {
        Self(u64::from(GENERATION.get()) << 35 | (kind as u64) << 32 | u64::from(oid))
    }

    fn place(self) -> usize {
        (self.0 as usize ^ (self.0 >> 32) as usize & 7) % PLACES
    }

    /// The object was found to be fine, and nothing that matters to it has changed since.
    #[inline]
    pub fn is_fine(self) -> bool {
        FINE.inner()[self.place()].get() == self.0
    }

    /// Only for what is fine in every statement and rests on no other object that can change.
    pub fn keep(self) {
        FINE.inner()[self.place()].set(self.0);
    }
}

/// What was found of all inheritors of a relation.
#[derive(Clone, Copy)]
struct Tree {
    root: u32,
    generation: u64,
    found: Examined,
}

/// What was found of the inheritors of a relation, if no relation has changed since.
pub fn inheritors(root: u32) -> Option<Examined> {
    let tree = INHERITORS.inner()[root as usize % TREES].get()?;
    (tree.root == root && tree.generation == relcache::generation()).then_some(tree.found)
}

/// `generation` is that of [`relcache::generation`] before the look.
pub fn keep_inheritors(root: u32, generation: u64, found: &Examined) {
    let tree = Tree { root, generation, found: *found };
    INHERITORS.inner()[root as usize % TREES].set(Some(tree));
}
