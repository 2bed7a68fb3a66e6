//! SQL functions in Rust: the lease, and where this server's WAL stands.
//!
//! Functions that touch only tables are in `sql/`. EXECUTE is granted in `sql/grants.sql`.

use pgrx::PgSqlErrorCode::{
    self, ERRCODE_INVALID_PARAMETER_VALUE, ERRCODE_NULL_VALUE_NOT_ALLOWED,
    ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, ERRCODE_READ_ONLY_SQL_TRANSACTION,
};
use pgrx::prelude::*;

use crate::error::Refusal;
use crate::pg::wal::{self, Lsn};
use crate::pg::{clock, process};
use crate::shmem::{self, LeaseState, RenewRefusal};
use crate::{barrier, fence, guc};

/// Longest lease that can be asked for: an hour.
const LEASE_MS_MAX: i32 = 3_600_000;
/// How far a sending time may lie ahead. Both processes read one clock, so this is rounding, not drift.
const SENT_AHEAD_NS_MAX: u64 = 10 * clock::NS_PER_MS;

/// Grants or renews the lease of `epoch` and returns how many milliseconds of it remain.
///
/// `sent_at_ns` is the `CLOCK_BOOTTIME` reading, in nanoseconds, of the moment at which the heartbeat that a
/// quorum has confirmed was *sent*; without it, now. The lease ends `milliseconds` after that moment, and within
/// one epoch it never gets shorter. A renewal that comes too late for its sending time returns what is left, down to 0.
/// The first lease of an epoch must have something left.
///
/// Errors: 25006 in recovery; 55000 for an epoch that is older than the lease's, revoked, or not opened (by
/// `quorum.open_epoch`, committed); 22023 for arguments out of range, 22004 for NULL.
#[pg_extern]
fn lease_renew(
    epoch: Option<i64>,
    milliseconds: Option<i32>,
    sent_at_ns: default!(Option<i64>, "NULL"),
) -> i64 {
    let epoch = positive_epoch(epoch);
    let milliseconds = required(milliseconds, "milliseconds");
    if !(1..=LEASE_MS_MAX).contains(&milliseconds) {
        invalid(format!("a lease lasts 1 to {LEASE_MS_MAX} milliseconds, not {milliseconds}"));
    }
    if process::in_recovery() {
        Refusal::new(ERRCODE_READ_ONLY_SQL_TRANSACTION, "cannot grant a lease: this server is in recovery")
            .hint("A lease is for a primary. Promote the server first.")
            .raise();
    }
    let now_ns = clock::boottime_ns();
    let deadline_ns =
        sending_time(sent_at_ns, now_ns) + u64::from(milliseconds.unsigned_abs()) * clock::NS_PER_MS;
    match shmem::lease().check(epoch) {
        Ok(true) => {}
        // Storing it would start the dead-man on a server that has only just become the leader.
        Ok(false) if deadline_ns <= now_ns => {
            invalid(format!(
                "sent_at_ns lies too far back: the lease of epoch {epoch} would have ended already"
            ));
        }
        Ok(false) => require_opened(epoch),
        Err(reason) => refuse_renewal(epoch, reason),
    }
    // The check is repeated under the lock: a revocation may have come in between.
    match shmem::grant(epoch, deadline_ns) {
        Ok(deadline_ns) => {
            // Its epoch's first row is on enough nodes, and with it everything before.
            barrier::admit();
            milliseconds_until(deadline_ns, now_ns)
        }
        Err(reason) => refuse_renewal(epoch, reason),
    }
}

/// Ends the lease of every epoch up to and including `epoch` now; later renewals of them are refused until the
/// server restarts. `leader_hint`, if given, says where the leader is. On a standby only the hint is set.
///
/// Errors: 22023 for an epoch below 1, 22004 for NULL.
#[pg_extern]
fn lease_revoke(epoch: Option<i64>, leader_hint: default!(Option<&str>, "NULL")) {
    let epoch = positive_epoch(epoch);
    if !process::in_recovery() {
        shmem::revoke(epoch, clock::boottime_ns());
    }
    if let Some(text) = leader_hint {
        shmem::set_leader_hint(text);
    }
}

/// Sets where the leader is, for the hint that a refused writer gets (e.g. `node 2 at 127.0.0.1:5433`). At most
/// 200 bytes are kept. NULL or an empty text: unknown.
#[pg_extern]
fn set_leader_hint(leader_hint: Option<&str>) {
    shmem::set_leader_hint(leader_hint.unwrap_or(""));
}

/// The lease of this server: its epoch (0: none since the server started), whether it is valid now, how many
/// milliseconds remain (0: none), whether ordinary writers are being refused now, and the highest revoked epoch.
#[pg_extern(parallel_safe)]
#[allow(clippy::type_complexity)]
fn lease() -> TableIterator<
    'static,
    (
        name!(epoch, i64),
        name!(valid, bool),
        name!(remaining_ms, i64),
        name!(fenced, bool),
        name!(revoked_epoch, i64),
    ),
> {
    let now_ns = clock::boottime_ns();
    let lease = shmem::lease();
    let remaining_ms = match lease.state(now_ns) {
        LeaseState::Valid { deadline_ns, .. } => Some(milliseconds_until(deadline_ns, now_ns)),
        _ => None,
    };
    TableIterator::once((
        signed(lease.epoch()),
        remaining_ms.is_some(),
        remaining_ms.unwrap_or(0),
        fence::refusing(),
        signed(lease.revoked_epoch()),
    ))
}

/// Does this server accept writes as the cluster's leader now? True on a primary whose fence is off or whose
/// lease is valid.
#[pg_extern(parallel_safe)]
fn is_leader() -> bool {
    !process::in_recovery() && (!guc::FENCE.get() || fence::lease_valid())
}

/// Where this server's WAL stands.
///
/// On a primary: `timeline` is the one it writes, `flush_lsn` is what is on its disk, the rest is NULL. In recovery:
/// what was received (NULL when nothing was received since the server started) and what was replayed, each with its
/// timeline; `flush_lsn` and `timeline` are those of the one that is further on.
#[pg_extern(parallel_restricted)]
#[allow(clippy::type_complexity)]
fn wal_position() -> TableIterator<
    'static,
    (
        name!(in_recovery, bool),
        name!(timeline, Option<i32>),
        name!(flush_lsn, Option<Lsn>),
        name!(receive_lsn, Option<Lsn>),
        name!(receive_timeline, Option<i32>),
        name!(replay_lsn, Option<Lsn>),
        name!(replay_timeline, Option<i32>),
    ),
> {
    if !process::in_recovery() {
        let flushed = wal::flushed();
        let row = (false, Some(flushed.timeline), Some(flushed.lsn), None, None, None, None);
        return TableIterator::once(row);
    }
    let (received, replayed) = (wal::received(), wal::replayed());
    // At the same position what was replayed is the surer knowledge, but the receiver's timeline is the newer one.
    let furthest = [replayed, received].into_iter().flatten().max_by_key(|position| position.lsn);
    TableIterator::once((
        true,
        furthest.map(|position| position.timeline),
        furthest.map(|position| position.lsn),
        received.map(|position| position.lsn),
        received.map(|position| position.timeline),
        replayed.map(|position| position.lsn),
        replayed.map(|position| position.timeline),
    ))
}

fn invalid(message: String) -> ! {
    Refusal::new(ERRCODE_INVALID_PARAMETER_VALUE, message).raise()
}

/// pgrx's own complaint about a NULL has no useful SQLSTATE.
fn required<T>(argument: Option<T>, name: &str) -> T {
    argument.unwrap_or_else(|| {
        Refusal::new(ERRCODE_NULL_VALUE_NOT_ALLOWED, format!("{name} must not be null")).raise()
    })
}

fn positive_epoch(epoch: Option<i64>) -> u64 {
    let epoch = required(epoch, "epoch");
    match u64::try_from(epoch) {
        Ok(epoch) if epoch > 0 => epoch,
        _ => invalid(format!("an epoch is a positive number, not {epoch}")),
    }
}

fn sending_time(sent_at_ns: Option<i64>, now_ns: u64) -> u64 {
    let Some(sent_at_ns) = sent_at_ns else { return now_ns };
    let Ok(sent_at_ns) = u64::try_from(sent_at_ns) else {
        invalid(format!("sent_at_ns is a CLOCK_BOOTTIME reading in nanoseconds, not {sent_at_ns}"));
    };
    let ahead_ns = sent_at_ns.saturating_sub(now_ns);
    if ahead_ns > SENT_AHEAD_NS_MAX {
        invalid(format!("sent_at_ns lies {} ms in the future", ahead_ns / clock::NS_PER_MS));
    }
    sent_at_ns
}

fn milliseconds_until(deadline_ns: u64, now_ns: u64) -> i64 {
    signed(deadline_ns.saturating_sub(now_ns) / clock::NS_PER_MS)
}

/// Epochs and milliseconds came in as `bigint`, so they fit.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn refuse_renewal(epoch: u64, reason: RenewRefusal) -> ! {
    let message = match reason {
        RenewRefusal::Older(current) => {
            format!("cannot renew the lease of epoch {epoch}: epoch {current} is open")
        }
        RenewRefusal::Revoked(revoked) => {
            format!("cannot renew the lease of epoch {epoch}: everything up to epoch {revoked} was revoked")
        }
    };
    not_now(message)
        .hint("Another appointment has been made since. Only a newer epoch can get a lease here.")
        .raise()
}

fn not_now(message: String) -> Refusal {
    let code: PgSqlErrorCode = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
    Refusal::new(code, message)
}

/// Clients may write once there is a lease, so the epoch's row must be committed (and with synchronous replication:
/// acknowledged) before. A row that the caller itself has just written is not.
fn require_opened(epoch: u64) {
    if process::has_transaction_id() {
        not_now(format!("cannot grant the lease of epoch {epoch} in a transaction that has written"))
            .hint("Commit first (quorum.open_epoch), then ask for the lease in a transaction of its own.")
            .raise();
    }
    // `Spi::get_one` would assign a transaction id, which makes the caller a writer.
    let newest = Spi::connect(|client| {
        client
            .select("SELECT pg_catalog.max(l.epoch) FROM quorum.leadership AS l", Some(1), &[])?
            .first()
            .get_one::<i64>()
    });
    match newest {
        Ok(Some(newest)) if newest == signed(epoch) => {}
        Ok(newest) => {
            let found =
                newest.map_or("no epoch was ever opened".to_owned(), |e| format!("the newest is {e}"));
            not_now(format!("cannot grant the lease of epoch {epoch}: it has not been opened, {found}"))
                .hint("Open it with quorum.open_epoch first.")
                .raise();
        }
        Err(error) => Refusal::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "cannot read quorum.leadership")
            .detail(error.to_string())
            .raise(),
    }
}
