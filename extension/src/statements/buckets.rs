//! By which a statement's place is found: its hash leads to a bucket, and from there to places.
//!
//! A bucket is one line of the processor's cache. Of a table that one statement in many uses, no line is in there: so a
//! statement that is not in the table costs the fetching of one line, which also says whether it came lately.
//!
//! Changed in the table's exclusive lock, and read under none: what is being put there may be missed.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{settings, shared};
use crate::pg::shared::{Shared, SharedSlice, fetch_ahead};

static BUCKETS: SharedSlice<Bucket> = SharedSlice::new(c"pgquorum statement buckets", || {
    if settings::most() == 0 { 0 } else { settings::most().div_ceil(PLACES_OF_BUCKET).next_power_of_two() }
});
/// Of each place, the link to the next one in its chain or in the list of free ones.
static LINKS: SharedSlice<AtomicU32> = SharedSlice::new(c"pgquorum statement links", settings::most);

/// So many places there are for each bucket, at most; mostly less.
const PLACES_OF_BUCKET: usize = 8;
/// More than most buckets have statements: chains come only with an unlucky one, or one hash under many search paths.
const HEADS: usize = 13;

#[repr(C, align(64))]
struct Bucket {
    /// Links to the first one of each chain.
    heads: [AtomicU32; HEADS],
    /// How many there are behind those.
    chained: AtomicU32,
    /// Bits of those that came lately and are not in the table.
    door: AtomicU64,
}

// SAFETY: atomics only, for which zero is valid.
unsafe impl Shared for Bucket {}

/// Bits of a link that say which place is next, plus one; 0: none. The others are of that statement's hash, so that another
/// one's entry need not be looked at.
const LINK_BITS: u32 = 20;
const LINK_MASK: u32 = (1 << LINK_BITS) - 1;
const _: () = assert!(settings::MOST < LINK_MASK as i32);

/// Lately is while statements that are not in the table came so many times: this part of its places. What comes less often is
/// not worth the place of another one, which comes as often.
const LATELY_PART: u64 = 8;

/// Asks for the shared memory; only while the server starts.
pub fn init() {
    BUCKETS.register();
    LINKS.register();
}

/// A hash together with its database.
#[inline]
fn mixed(database: u32, hash: u64) -> u64 {
    hash ^ u64::from(database).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[inline]
fn bucket(database: u32, hash: u64) -> Option<&'static Bucket> {
    let all = BUCKETS.get();
    all.get(mixed(database, hash) as usize & all.len().checked_sub(1)?)
}

/// By what the links to statements with a hash are marked.
#[inline]
fn mark(database: u32, hash: u64) -> u32 {
    (mixed(database, hash) >> 32) as u32 & !LINK_MASK
}

/// The place that a link leads to.
#[inline]
fn place(link: u32) -> Option<usize> {
    ((link & LINK_MASK) as usize).checked_sub(1)
}

/// A statement with this hash is about to be looked for.
#[inline]
pub fn fetch(database: u32, hash: u64) {
    if let Some(bucket) = bucket(database, hash) {
        fetch_ahead(bucket);
    }
}

/// Looks at the places where a statement with this hash may be: all where one is, and few others; until something is found.
#[inline]
pub fn at_candidates<F>(
    database: u32,
    hash: u64,
    mut look: impl FnMut(usize) -> ControlFlow<F>,
) -> ControlFlow<F> {
    let Some(bucket) = bucket(database, hash) else { return ControlFlow::Continue(()) };
    let mark = mark(database, hash);
    if bucket.chained.load(Relaxed) != 0 {
        return bucket
            .links(LINKS.get())
            .filter(|link| link & !LINK_MASK == mark)
            .filter_map(place)
            .try_for_each(look);
    }
    let mut found = bucket.heads_with(mark);
    while found != 0 {
        if let Some(index) =
            bucket.heads.get(found.trailing_zeros() as usize).and_then(|head| place(head.load(Relaxed)))
        {
            look(index)?;
        }
        found &= found - 1;
    }
    ControlFlow::Continue(())
}

/// Notes where a statement is. In the exclusive lock.
pub fn add(database: u32, hash: u64, index: usize) -> Option<()> {
    bucket(database, hash)?.add(LINKS.get(), index, mark(database, hash))
}

/// It is there no more. In the exclusive lock.
pub fn remove(database: u32, hash: u64, index: usize) {
    if let Some(bucket) = bucket(database, hash) {
        bucket.remove(LINKS.get(), index);
    }
}

/// What comes behind a free place in the list of those, plus one. In the exclusive lock.
pub fn free_behind(index: usize) -> Option<u32> {
    Some(LINKS.get().get(index)?.load(Relaxed))
}

/// Puts a free place before those that are free already. In the exclusive lock.
pub fn set_free_behind(index: usize, next: u32) {
    if let Some(link) = LINKS.get().get(index) {
        link.store(next, Relaxed);
    }
}

/// Has a statement that is not in the table come before, lately? It has now.
pub fn came_before(database: u32, hash: u64) -> bool {
    let Some(bucket) = bucket(database, hash) else { return true };
    // Two of few that are set by the time when all are forgotten.
    let bits = 1 << (hash >> 26 & 63) | 1 << (hash >> 20 & 63);
    if bucket.door.fetch_or(bits, Relaxed) & bits == bits {
        return true;
    }
    // What comes just now may be forgotten with the rest.
    let came = &shared::globals().came;
    if came.fetch_add(1, Relaxed) >= settings::most() as u64 / LATELY_PART {
        came.store(0, Relaxed);
        BUCKETS.get().iter().for_each(|bucket| bucket.door.store(0, Relaxed));
    }
    false
}

impl Bucket {
    /// A bit for each head with this mark; mostly none.
    #[inline]
    fn heads_with(&self, mark: u32) -> u32 {
        self.heads.iter().enumerate().fold(0, |found, (at, head)| {
            let link = head.load(Relaxed);
            found | u32::from(link & LINK_MASK != 0 && link & !LINK_MASK == mark) << at
        })
    }

    /// All links that there are in it.
    #[cold]
    fn links(&self, links: &'static [AtomicU32]) -> impl Iterator<Item = u32> {
        let behind = if self.chained.load(Relaxed) == 0 { 0 } else { links.len() };
        self.heads.iter().map(|head| head.load(Relaxed)).filter(|link| *link != 0).flat_map(move |first| {
            let next = |link: &u32| links.get(place(*link)?).map(|next| next.load(Relaxed));
            // Never more steps than there are places, whatever the memory says.
            std::iter::successors(Some(first), move |link| next(link).filter(|next| *next != 0))
                .take(behind + 1)
        })
    }

    fn add(&self, links: &[AtomicU32], index: usize, mark: u32) -> Option<()> {
        let own = links.get(index)?;
        let free = self.heads.iter().find(|head| head.load(Relaxed) == 0);
        let head = free.or_else(|| self.heads.get((mark >> LINK_BITS) as usize % HEADS))?;
        let behind = head.load(Relaxed);
        own.store(behind, Relaxed);
        if behind != 0 {
            self.chained.fetch_add(1, Relaxed);
        }
        head.store((index as u32 + 1) | mark, Relaxed);
        Some(())
    }

    fn remove(&self, links: &[AtomicU32], index: usize) {
        for head in &self.heads {
            let mut link = head;
            for _ in 0..=links.len() {
                let Some(next) = place(link.load(Relaxed)) else { break };
                let Some(behind) = links.get(next) else { break };
                if next == index {
                    let is_alone = std::ptr::eq(link, head) && behind.load(Relaxed) == 0;
                    self.chained.fetch_sub(u32::from(!is_alone), Relaxed);
                    link.store(behind.load(Relaxed), Relaxed);
                    return;
                }
                link = behind;
            }
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;
    use std::collections::BTreeSet;

    fn bucket() -> Bucket {
        Bucket { heads: Default::default(), chained: AtomicU32::new(0), door: AtomicU64::new(0) }
    }

    #[test]
    fn a_bucket_is_one_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    #[test]
    fn what_was_added_and_not_removed_is_found() {
        let links: &'static [AtomicU32] = Vec::leak((0..64).map(|_| AtomicU32::new(0)).collect());
        let bucket = bucket();
        let (mut here, mut number) = (BTreeSet::new(), 7_u64);
        for step in 0..20_000 {
            // Knuth's numbers: MMIX.
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (index, mark) = ((number >> 58) as usize, (number >> 32) as u32 & !LINK_MASK);
            // Now it has few, now many more than there are heads.
            if here.iter().any(|(known, _)| *known == index) {
                bucket.remove(links, index);
                here.retain(|(known, _)| *known != index);
            } else if here.len() < [5, 13, 64][step / 500 % 3] {
                bucket.add(links, index, mark).expect("a place");
                here.insert((index, mark));
            }
            let found: Vec<(usize, u32)> =
                bucket.links(links).filter_map(|link| Some((place(link)?, link & !LINK_MASK))).collect();
            assert_eq!(found.len(), here.len());
            if bucket.chained.load(Relaxed) == 0 {
                let heads = found.iter().map(|(_, mark)| bucket.heads_with(*mark));
                assert!(heads.fold(0, |all, heads| all | heads).count_ones() as usize == here.len());
            }
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), here);
        }
        for (index, _) in here {
            bucket.remove(links, index);
        }
        assert_eq!((bucket.links(links).count(), bucket.chained.load(Relaxed)), (0, 0));
    }
}
