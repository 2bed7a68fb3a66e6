//! The lease: until when this server may commit, and for which epoch.
//!
//! Readers (every commit) touch atomics only. Writers (the sidecar, about ten times a second) take
//! the lock of the leader hint first, so that a renewal cannot undo a revocation that ran between
//! its check and its store. All times are `CLOCK_BOOTTIME` nanoseconds: the clock that goes on while a
//! machine is suspended, so a lease does not survive a suspended laptop or a paused virtual machine.
//!
//! Shared memory starts afresh with the server and after a crash restart: no lease, nothing revoked.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgAtomic, PgLwLock, pg_shmem_init};

use crate::pg::worker;

/// Longest leader hint kept, in bytes of UTF-8.
const HINT_BYTES_MAX: usize = 200;

/// The lease as it lies in shared memory. 0 means "none" in every field.
#[derive(Default)]
#[repr(C, align(64))] // a cache line of its own: read by every commit, written rarely
pub struct Lease {
    deadline_ns: AtomicU64,
    epoch: AtomicU64,
    revoked_epoch: AtomicU64,
    revoked_ns: AtomicU64,
    /// The latch of whoever is to know at once of a revocation.
    watcher: AtomicUsize,
}

/// What the lease says at a moment. Times are `CLOCK_BOOTTIME` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// No epoch has been open since the server started.
    None,
    Valid {
        epoch: u64,
        deadline_ns: u64,
    },
    Expired {
        epoch: u64,
        ended_ns: u64,
    },
    Revoked {
        epoch: u64,
        ended_ns: u64,
    },
}

/// Why a renewal is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewRefusal {
    /// A lease of this higher epoch is already here.
    Older(u64),
    /// Everything up to this epoch was revoked.
    Revoked(u64),
}

impl Lease {
    /// The whole cost of the fence for a commit under a valid lease: one load, one comparison.
    #[inline]
    pub fn is_valid(&self, now_ns: u64) -> bool {
        self.deadline_ns.load(SeqCst) > now_ns
    }

    /// The epoch of the last lease granted here; 0: none.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// The highest revoked epoch; 0: none.
    pub fn revoked_epoch(&self) -> u64 {
        self.revoked_epoch.load(SeqCst)
    }

    /// Lock-free, so a writer in the middle of a change may be seen. The order of the stores in `grant` and
    /// `revoke` makes such a view read as `Valid` or `None`, never as an end that lies further back than it does.
    pub fn state(&self, now_ns: u64) -> LeaseState {
        let deadline_ns = self.deadline_ns.load(SeqCst);
        let revoked_epoch = self.revoked_epoch.load(SeqCst);
        let revoked_ns = self.revoked_ns.load(SeqCst);
        let epoch = self.epoch.load(SeqCst);
        if epoch == 0 {
            LeaseState::None
        } else if epoch <= revoked_epoch {
            LeaseState::Revoked { epoch, ended_ns: revoked_ns }
        } else if deadline_ns > now_ns {
            LeaseState::Valid { epoch, deadline_ns }
        } else if deadline_ns == 0 {
            LeaseState::None
        } else {
            LeaseState::Expired { epoch, ended_ns: deadline_ns }
        }
    }

    /// May a lease of `epoch` be renewed? `Ok(true)`: it is the epoch of the present lease; `Ok(false)`: it is a
    /// newer one, which must be known to be open before [`Lease::grant`].
    pub fn check(&self, epoch: u64) -> Result<bool, RenewRefusal> {
        let (current, revoked) = (self.epoch(), self.revoked_epoch());
        if epoch <= revoked {
            return Err(RenewRefusal::Revoked(revoked));
        }
        if epoch < current {
            return Err(RenewRefusal::Older(current));
        }
        Ok(epoch == current)
    }

    /// Grants or renews. Within one epoch the deadline never moves backwards: heartbeats may be
    /// confirmed out of order. Returns the deadline that now holds. Callers hold the writers' lock.
    fn grant(&self, epoch: u64, deadline_ns: u64) -> Result<u64, RenewRefusal> {
        if self.check(epoch)? {
            return Ok(self.deadline_ns.fetch_max(deadline_ns, SeqCst).max(deadline_ns));
        }
        // The old deadline belongs to the old epoch. Without it a reader sees "no lease" for a moment.
        self.deadline_ns.store(0, SeqCst);
        self.epoch.store(epoch, SeqCst);
        self.deadline_ns.store(deadline_ns, SeqCst);
        Ok(deadline_ns)
    }

    /// Ends the lease of every epoch up to `epoch`. A repeated call moves the moment of revocation on: it shows
    /// that the sidecar is alive, which is what that moment is for. Callers hold the writers' lock.
    fn revoke(&self, epoch: u64, now_ns: u64) {
        self.revoked_ns.store(now_ns, SeqCst);
        self.revoked_epoch.fetch_max(epoch, SeqCst);
        if self.epoch() <= epoch {
            self.deadline_ns.store(0, SeqCst);
        }
    }
}

/// Where the leader is, in words, for the HINT of a refused commit. Read on the error path only.
#[derive(Clone, Copy)]
#[repr(C)]
struct LeaderHint {
    length: usize,
    bytes: [u8; HINT_BYTES_MAX],
}

impl Default for LeaderHint {
    fn default() -> Self {
        Self { length: 0, bytes: [0; HINT_BYTES_MAX] }
    }
}

impl LeaderHint {
    /// Keeps what fits, cut at a character, with control characters replaced: clients print it.
    fn new(text: &str) -> Self {
        let mut hint = Self::default();
        for character in text.trim().chars() {
            let printed = if character.is_control() { ' ' } else { character };
            if hint.length + printed.len_utf8() > HINT_BYTES_MAX {
                break;
            }
            hint.length += printed.encode_utf8(&mut hint.bytes[hint.length..]).len();
        }
        hint
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or("")
    }
}

// SAFETY: both hold plain integers and bytes, valid at any address of any process; a latch's address is the same in all.
unsafe impl PGRXSharedMemory for Lease {}
// SAFETY: as above.
unsafe impl PGRXSharedMemory for LeaderHint {}

// SAFETY: the names are this extension's own.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static LEASE: PgAtomic<Lease> = unsafe { PgAtomic::new(c"pgquorum lease") };
// SAFETY: as above.
static LEADER_HINT: PgLwLock<LeaderHint> = unsafe { PgLwLock::new(c"pgquorum leader hint") };

/// Asks for the shared memory; only while the server starts.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(LEASE);
    pg_shmem_init!(LEADER_HINT);
}

/// The lease, for reading.
#[inline]
pub fn lease() -> &'static Lease {
    LEASE.get()
}

/// Grants or renews the lease of `epoch` until `deadline_ns` and returns the deadline that now holds.
/// The first lease of an epoch clears the leader hint: this server is the leader then.
pub fn grant(epoch: u64, deadline_ns: u64) -> Result<u64, RenewRefusal> {
    let mut hint = LEADER_HINT.exclusive();
    if lease().epoch() != epoch {
        *hint = LeaderHint::default();
    }
    lease().grant(epoch, deadline_ns)
}

/// Ends the lease of every epoch up to `epoch` now, and for good until the server restarts.
pub fn revoke(epoch: u64, now_ns: u64) {
    let _writer = LEADER_HINT.exclusive();
    lease().revoke(epoch, now_ns);
    worker::set_latch(lease().watcher.load(SeqCst));
}

/// From now on a revocation wakes the process with this latch (see [`worker::own_latch`]).
pub fn set_watcher(latch: usize) {
    lease().watcher.store(latch, SeqCst);
}

/// Sets where the leader is; empty: unknown.
pub fn set_leader_hint(text: &str) {
    *LEADER_HINT.exclusive() = LeaderHint::new(text);
}

/// Where the leader is; empty: unknown.
pub fn leader_hint() -> String {
    LEADER_HINT.share().text().to_owned()
}

#[cfg(test)]
#[path = "tests/lease_unit.rs"]
mod unit;
