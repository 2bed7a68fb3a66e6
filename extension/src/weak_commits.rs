//! Weak commits: those that return before the cluster's standbys have them.
//!
//! `synchronous_commit` is anybody's to set in PostgreSQL, and below `on` a commit is acknowledged that a failover may
//! take back. Here that needs an administrator's word, `pgquorum.allow_weak_commits`, for a role or a database. What
//! counts is the check at commit, which no way of setting it gets around; SET is refused as well, since it is sooner.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, pg_shmem_init};

use crate::error::Refusal;
use crate::guc;
use crate::pg::{commit_level, process};

/// How an administrator allows it.
pub const ALLOW_HINT: &CStr = c"An administrator can allow it: ALTER ROLE ... SET pgquorum.allow_weak_commits = on, or ALTER DATABASE ... SET.";

/// So many pairs of database and role are counted one by one, the others together.
const COUNTERS: usize = 128;

/// Counts since the server started. A slot belongs to the first pair that takes it, for good.
#[repr(C)]
pub struct Counts {
    slots: [Slot; COUNTERS],
    others: AtomicU64,
}

#[repr(C)]
struct Slot {
    /// Database and role; 0: free.
    key: AtomicU64,
    count: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let slot = || Slot { key: AtomicU64::new(0), count: AtomicU64::new(0) };
        Self { slots: std::array::from_fn(|_| slot()), others: AtomicU64::new(0) }
    }
}

impl Counts {
    fn add(&self, key: u64) {
        for slot in &self.slots {
            let taken = match slot.key.load(Relaxed) {
                0 => slot.key.compare_exchange(0, key, Relaxed, Relaxed).unwrap_or_else(|other| other),
                other => other,
            };
            // A slot that was free is ours now, or another's that was quicker.
            if taken == key || taken == 0 {
                slot.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.others.fetch_add(1, Relaxed);
    }

    /// Pairs and their counts; the last one, without a pair, holds the others.
    fn all(&self) -> Vec<(Option<u64>, u64)> {
        let used = self.slots.iter().map(|slot| (slot.key.load(Relaxed), slot.count.load(Relaxed)));
        let mut all: Vec<_> = used.filter(|(key, _)| *key != 0).map(|(key, n)| (Some(key), n)).collect();
        let others = self.others.load(Relaxed);
        if others > 0 {
            all.push((None, others));
        }
        all
    }
}

// SAFETY: plain integers, no pointers, valid at any address of any process.
unsafe impl PGRXSharedMemory for Counts {}

// SAFETY: the name is this extension's own.
static COUNTS: PgAtomic<Counts> = unsafe { PgAtomic::new(c"pgquorum weak commits") };

/// Asks for the shared memory; only while the server starts.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(COUNTS);
}

/// May this session commit weakly?
pub fn allowed() -> bool {
    !guc::FENCE.get() || guc::ALLOW_WEAK_COMMITS.get() || guc::BYPASS_FENCE.get()
}

/// Has [`before_commit`] anything to look at?
#[inline]
pub fn must_look() -> bool {
    commit_level::is_weak()
}

/// At pre-commit of a transaction that has written, with the fence on. An ERROR is legal here.
#[inline]
pub fn before_commit() {
    if commit_level::is_weak() {
        allow_or_refuse();
    }
}

#[cold]
fn allow_or_refuse() {
    // Neither upkeep (autovacuum) nor the sidecar's own work is anything that a client was promised.
    if guc::BYPASS_FENCE.get() || !process::is_fenced_kind() {
        return;
    }
    if guc::ALLOW_WEAK_COMMITS.get() {
        COUNTS.get().add(process::database_and_role());
        return;
    }
    let level = commit_level::name();
    let mut hint = format!("Use synchronous_commit = on. {}", ALLOW_HINT.to_string_lossy());
    if process::is_background_worker() {
        hint.push_str(" A subscription: ALTER SUBSCRIPTION ... SET (synchronous_commit = 'on').");
    }
    Refusal::new(
        ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("cannot commit with synchronous_commit = {level}: this cluster keeps what it acknowledges"),
    )
    .detail(
        "A failover could take the transaction back after it was acknowledged, so it was rolled back now.",
    )
    .hint(hint)
    .raise();
}

/// Commits of this server, since it started, that were allowed to return before the cluster's standbys had them: by
/// database and role. In the last row, with NULLs, those of all pairs beyond the first 128.
#[pg_extern(parallel_safe)]
#[allow(clippy::type_complexity)]
fn weak_commits()
-> TableIterator<'static, (name!(database, Option<String>), name!(role, Option<String>), name!(commits, i64))>
{
    let rows = COUNTS.get().all().into_iter().map(|(key, count)| {
        let (database, role) = key.map_or((None, None), process::names_of);
        (database, role, i64::try_from(count).unwrap_or(i64::MAX))
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn pairs_are_counted_one_by_one_and_the_rest_together() {
        let counts = Counts::default();
        for key in 1..=COUNTERS as u64 + 2 {
            counts.add(key);
            counts.add(key);
        }
        let all = counts.all();
        assert_eq!(all.len(), COUNTERS + 1);
        assert!(all[..COUNTERS].iter().zip(1..).all(|(row, key)| *row == (Some(key), 2)));
        assert_eq!(all[COUNTERS], (None, 4));
    }
}
