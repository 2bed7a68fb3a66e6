//! The fence: who may not commit, and when.
//!
//! A commit is checked at pre-commit (and pre-prepare), where an ERROR is an ordinary abort; one step later
//! it would be a PANIC. COMMIT PREPARED and ROLLBACK PREPARED finish another transaction and have no xid of
//! their own, so they are checked before they run. Reading goes on everywhere.

use std::cell::Cell;

use pgrx::PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION;

use crate::error::Refusal;
use crate::guc;
use crate::pg::single::Single;
use crate::pg::{clock, process, session};
use crate::shmem::{self, LeaseState};
use crate::weak_commits;

/// How often a waiting writer looks at the lease. The sidecar renews every 100 ms.
const LEASE_POLL_MS: i64 = 5;

/// This session was made read-only when it connected, and has not been healed yet.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static MADE_READ_ONLY: Single<Cell<bool>> = Single::cell(false);

/// At pre-commit and pre-prepare of every transaction. An ERROR is legal here.
pub fn before_commit() {
    if MADE_READ_ONLY.get() {
        heal(session::reset_read_only);
    }
    if guc::quick(&guc::FENCE) && process::has_transaction_id() {
        require_lease("commit");
        weak_commits::before_commit();
    }
}

/// Is it plain that [`before_commit`] would let this transaction pass, and do nothing?
#[inline]
pub fn lets_pass() -> bool {
    !MADE_READ_ONLY.get()
        && (!guc::quick(&guc::FENCE)
            || !process::has_transaction_id()
            || (lease_valid() && !weak_commits::must_look()))
}

/// At pre-commit, when the transaction's changes went into the log: that can take a while, and the lease may have run
/// out meanwhile. An ERROR is legal here.
pub fn after_log() {
    if guc::quick(&guc::FENCE) {
        require_lease("commit");
    }
}

/// After an abort. Must not raise anything: an ERROR here would be a PANIC.
pub fn after_abort() {
    if MADE_READ_ONLY.get() {
        heal(session::reset_read_only_in_abort);
    }
}

/// Before COMMIT PREPARED and ROLLBACK PREPARED. Both are fenced: the outcome of a prepared transaction is
/// decided once, and a server that is no longer the leader would decide it for itself alone.
pub fn before_finish_prepared() {
    if guc::FENCE.get() {
        require_lease("finish a prepared transaction");
        weak_commits::before_commit();
    }
}

/// When a client has been authenticated: without a lease the session starts read-only, which libpq sees in the
/// start-up reports, so that `target_session_attrs=read-write` goes on to the next host.
pub fn after_authentication() {
    if guc::FENCE.get() && !process::in_recovery() && !lease_valid() {
        session::make_read_only();
        MADE_READ_ONLY.set(true);
    }
}

/// Is there a valid lease now?
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".text_hot"))]
pub fn lease_valid() -> bool {
    shmem::lease().is_valid(clock::boottime_ns())
}

/// Are ordinary writers being refused now?
pub fn refusing() -> bool {
    guc::FENCE.get() && !process::in_recovery() && !lease_valid()
}

/// Takes back [`after_authentication`] once writing is allowed again, unless the user has chosen a value.
fn heal(reset: fn()) {
    if !session::read_only_is_ours() {
        MADE_READ_ONLY.set(false);
    } else if !guc::FENCE.get() || lease_valid() {
        // The mark stays until the next transaction finds the reset in place: this one may still abort.
        reset();
    }
}

/// Returns when there is a lease or none is needed; else raises 25006 after `pgquorum.lease_wait`.
#[inline]
fn require_lease(action: &str) {
    if !lease_valid() && process::is_fenced_kind() && !guc::BYPASS_FENCE.get() {
        wait_for_lease(action);
    }
}

#[cold]
fn wait_for_lease(action: &str) {
    let wait_ns = u64::try_from(guc::LEASE_WAIT_MS.get()).unwrap_or(0) * clock::NS_PER_MS;
    let give_up_ns = clock::boottime_ns() + wait_ns;
    loop {
        let now_ns = clock::boottime_ns();
        match shmem::lease().state(now_ns) {
            LeaseState::Valid { .. } => return,
            // A revoked epoch does not come back; another node is being made leader.
            state @ LeaseState::Revoked { .. } => refuse(action, state, now_ns),
            state if now_ns >= give_up_ns => refuse(action, state, now_ns),
            LeaseState::None | LeaseState::Expired { .. } => process::wait(LEASE_POLL_MS),
        }
    }
}

fn refuse(action: &str, state: LeaseState, now_ns: u64) -> ! {
    let ago_ms = |ended_ns: u64| now_ns.saturating_sub(ended_ns) / clock::NS_PER_MS;
    let detail = match state {
        LeaseState::Expired { epoch, ended_ns } => {
            format!("The lease of epoch {epoch} ran out {} ms ago.", ago_ms(ended_ns))
        }
        LeaseState::Revoked { epoch, ended_ns } => {
            format!("The lease of epoch {epoch} was revoked {} ms ago.", ago_ms(ended_ns))
        }
        LeaseState::None | LeaseState::Valid { .. } => "No epoch is open on this server.".to_owned(),
    };
    let leader = shmem::leader_hint();
    let hint = if leader.is_empty() {
        "Connect to the cluster's leader to write; reading goes on here.".to_owned()
    } else {
        format!("The leader is {leader}: connect there to write. Reading goes on here.")
    };
    Refusal::new(
        ERRCODE_READ_ONLY_SQL_TRANSACTION,
        format!("cannot {action}: this server does not hold the cluster's lease"),
    )
    .detail(detail)
    .hint(hint)
    .raise()
}
