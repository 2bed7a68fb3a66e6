//! The restart barrier: a server that was a primary lets clients in again when its end of the WAL is settled.
//!
//! After a crash such a server is started as a standby and replays all it has, also commits that were never
//! acknowledged and that no other node has. Whoever reads them may see what is taken back. So until the sidecar says
//! that the question is settled (this server's next lease, or a later epoch that it has replayed), log-ins are refused
//! as by a server that is starting. The sidecar's own sessions and standbys come in.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgrx::PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW;
use pgrx::prelude::*;
use pgrx::{PgAtomic, pg_shmem_init};

use crate::error::Refusal;
use crate::guc;
use crate::pg::login;
use crate::pg::single::Single;

// SAFETY: the name is this extension's own.
static ADMITTED: PgAtomic<AtomicBool> = unsafe { PgAtomic::new(c"pgquorum clients admitted") };
/// Written by the postmaster before it forks, read by its children. What the file says later is for the next start.
static HELD_AT_START: AtomicBool = AtomicBool::new(false);

/// Takes what the configuration says at the start of the server; from `_PG_init`, after the settings are defined.
#[allow(unexpected_cfgs)] // the macro asks for pgrx's feature pg13, which this crate does not have
pub fn init() {
    pg_shmem_init!(ADMITTED);
    HELD_AT_START.store(guc::FENCE.get() && guc::LAST_PRIMARY_TIMELINE.get() > 0, SeqCst);
}

/// This session was let in because it asks to bypass the fence, and has not shown yet that it may.
#[cfg_attr(all(target_os = "linux", not(feature = "pg_test")), unsafe(link_section = ".data_hot"))]
static MUST_BYPASS: Single<Cell<bool>> = Single::cell(false);

/// From now on clients may log in, until the server is started again.
pub fn admit() {
    ADMITTED.get().store(true, SeqCst);
}

fn holds() -> bool {
    HELD_AT_START.load(SeqCst) && !ADMITTED.get().load(SeqCst)
}

/// When a client has been authenticated.
pub fn after_authentication() {
    if !holds() || login::is_replication() {
        return;
    }
    if !login::asks_to_bypass_fence() {
        refuse();
    }
    MUST_BYPASS.set(true);
}

/// Has [`before_commit`] anything to look at?
#[inline]
pub fn must_look() -> bool {
    MUST_BYPASS.get()
}

/// At pre-commit. The first one is that of the log-in itself, after PostgreSQL took the session's options.
#[inline]
pub fn before_commit() {
    if MUST_BYPASS.take() && !guc::BYPASS_FENCE.get() {
        refuse();
    }
}

fn refuse() -> ! {
    Refusal::new(
        ERRCODE_CANNOT_CONNECT_NOW,
        "this server was the primary when it stopped and is not open for clients yet",
    )
    .detail("It may hold transactions that no other node has. Clients are let in when it is settled what becomes of them.")
    .hint("Connect to another node of the cluster, or try again. If it lasts, see \"pgquorum status\".")
    .refuse_login()
}

/// Lets clients log in on a server that was a primary when it stopped. The sidecar calls it when the server has
/// replayed the beginning of a later epoch that is open. Always true.
#[pg_extern]
fn admit_clients() -> bool {
    admit();
    true
}

/// May clients log in on this server? Not while it is held after a restart because it was the primary.
#[pg_extern(parallel_safe)]
fn admits_clients() -> bool {
    !holds()
}
