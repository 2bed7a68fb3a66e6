//! A commit that waits for its standbys cannot be given up.
//!
//! Its record is on this server's disk, so it can be neither aborted nor called a success. PostgreSQL ends such a wait
//! when the session is cancelled or told to end, makes the transaction visible and answers with a warning. That report
//! is where we step in, before it has any effect: the session goes on waiting there, its transaction stays invisible,
//! and when enough standbys have it the commit returns as any other. If the lease ends meanwhile, another node decides
//! what becomes of the transaction; the client is told just that and hears no more, and the session still waits.
//!
//! Nothing here may raise an ERROR: in this place it would be a PANIC.

use std::cell::Cell;

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;

use crate::error::Refusal;
use crate::guc;
use crate::pg::client::{self, Message};
use crate::pg::single::Single;
use crate::pg::syncrep::{self, Waited};
use crate::pg::{clock, process};
use crate::shmem::{self, LeaseState};

/// How often a session that was told to end looks at the lease.
const POLL_MS: i64 = 50;
/// How long after a revocation the standbys' word may still come: a planned change of leader waits for it, and a leader
/// that stumbled may be elected again. After 500 ms the sidecar stops the server.
const REVOKED_WAIT_NS: u64 = 350 * clock::NS_PER_MS;
/// When the dead-man makes waiting sessions look.
pub const REVOKED_LOOK_NS: u64 = 300 * clock::NS_PER_MS;
/// How long after its last word the connection stays open.
const HANG_UP_NS: u64 = 100 * clock::NS_PER_MS;
/// A shutdown waits for this session. Without a lease nobody will release it, so the server is stopped at once.
const STOP_AFTER_NS: u64 = 3_000 * clock::NS_PER_MS;

const STILL_WAITING: Message = Message {
    severity: "WARNING",
    code: "01000",
    message: "the commit still waits for its standbys and cannot be cancelled",
    detail: "The transaction is on this server's disk and counts when enough standbys have it too. COMMIT returns then.",
    hint: "See with \"pgquorum status\" which nodes are missing.",
};

const UNKNOWN: Message = Message {
    severity: "FATAL",
    code: "08007",
    message: "the outcome of the commit is unknown: this server lost the cluster's lease while the commit waited for its standbys",
    detail: "The transaction may be kept or given up; that is decided where the cluster's leader is now.",
    hint: "Connect to the leader and look for what the transaction wrote before you repeat it.",
};

/// What is to be done at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    SayUnknown,
    StopServer,
}

/// How far one wait has got.
#[derive(Default)]
struct Hold {
    /// Since when there is no lease, as far as this session knows.
    fenced_since_ns: Option<u64>,
    said_unknown: bool,
    stopped_ns: Option<u64>,
}

impl Hold {
    /// The decision, without effects. `ending`: the session was told to end.
    fn step(&mut self, now_ns: u64, lease: LeaseState, grace_ns: u64, ending: bool) -> Step {
        let (since_ns, patience_ns) = match lease {
            LeaseState::Valid { .. } => {
                self.fenced_since_ns = None;
                return Step::Nothing;
            }
            LeaseState::Expired { ended_ns, .. } => (ended_ns, grace_ns),
            LeaseState::Revoked { ended_ns, .. } => (ended_ns, REVOKED_WAIT_NS),
            LeaseState::None => (now_ns, grace_ns),
        };
        // A repeated revocation moves its moment on; what was seen first counts.
        let since_ns = *self.fenced_since_ns.get_or_insert(since_ns);
        if !self.said_unknown && now_ns >= since_ns + patience_ns {
            self.said_unknown = true;
            return Step::SayUnknown;
        }
        let recently = self.stopped_ns.is_some_and(|at_ns| now_ns < at_ns + STOP_AFTER_NS);
        if ending && !recently && now_ns >= since_ns + STOP_AFTER_NS.max(2 * grace_ns) {
            self.stopped_ns = Some(now_ns);
            return Step::StopServer;
        }
        Step::Nothing
    }
}

static HOLDS_ON: Single<Cell<bool>> = Single::cell(false);

/// From now on cancel requests do not end this process's waits, also where there is no fence. For the cutter: what it
/// shows when its commit returns must be on the standbys.
pub fn hold_on() {
    HOLDS_ON.set(true);
}

/// Is a wait that is being given up to go on? With the fence always; in the cutter unless it was told to end, since it
/// shows nothing then.
#[inline]
pub fn goes_on() -> bool {
    guc::FENCE.get() || (HOLDS_ON.get() && !syncrep::told_to_end())
}

/// Without a fence nobody stops a server whose standbys are gone, so whoever is told to end does.
fn until_acknowledged_or_told() {
    loop {
        match syncrep::wait(POLL_MS) {
            Waited::Acknowledged => return syncrep::acknowledged(),
            Waited::ServerDied => process::exit_at_once(),
            Waited::NotYet if syncrep::told_to_end() => return,
            Waited::NotYet => {}
        }
    }
}

/// Goes on waiting for a session that was cancelled or told to end. Returns when enough standbys have the transaction.
pub fn until_acknowledged(tell_client: bool) {
    if syncrep::is_acknowledged() {
        return syncrep::acknowledged();
    }
    log(
        "pgquorum: a commit goes on waiting for its standbys although it was asked to end",
        "It is on this server's disk; calling it done now could show what a failover takes back.",
    );
    if !guc::FENCE.get() {
        return until_acknowledged_or_told();
    }
    if tell_client {
        client::notify(&STILL_WAITING);
    }
    let grace_ns = u64::try_from(guc::FENCE_GRACE_MS.get()).unwrap_or(0) * clock::NS_PER_MS;
    let mut hold = Hold::default();
    let mut said_ns = None;
    loop {
        match syncrep::wait(POLL_MS) {
            Waited::Acknowledged => break,
            // Whatever is still alive must not see the transaction, so nothing of it is cleaned up.
            Waited::ServerDied => process::exit_at_once(),
            Waited::NotYet => {}
        }
        let now_ns = clock::boottime_ns();
        if said_ns.is_some_and(|at_ns| now_ns >= at_ns + HANG_UP_NS) {
            said_ns = None;
            client::hang_up();
        }
        match hold.step(now_ns, shmem::lease().state(now_ns), grace_ns, syncrep::told_to_end()) {
            Step::Nothing => {}
            // The sidecar's own sessions: it knows better than this server, and asks again.
            Step::SayUnknown if guc::BYPASS_FENCE.get() => {}
            Step::SayUnknown => {
                log(
                    "pgquorum: the lease ended while a commit waited for its standbys; the client was told that its outcome is unknown",
                    "The session goes on waiting, so that nobody sees the transaction before it is safe.",
                );
                client::end_with(&UNKNOWN);
                said_ns = Some(now_ns);
            }
            Step::StopServer => {
                log(
                    "pgquorum: a commit waits for its standbys and there is no lease: stopping the server at once",
                    "A shutdown that waits would not end, and one that does not would show the transaction. Nothing that was acknowledged is lost: crash recovery runs at the next start.",
                );
                process::stop_server_immediately();
            }
        }
    }
    if hold.said_unknown && !guc::BYPASS_FENCE.get() {
        syncrep::end_session_after();
    } else {
        syncrep::acknowledged();
    }
}

fn log(message: &str, detail: &str) {
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message).detail(detail).log();
}

#[cfg(test)]
#[path = "tests/commit_wait_unit.rs"]
mod unit;
