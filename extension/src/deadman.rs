//! The dead-man: stops a primary whose sidecar no longer renews the lease.
//!
//! The fence already refuses commits. What is left on such a server is sessions that read old data and
//! believe they talk to the leader, and writers waiting for standbys. So first the sessions go, then the
//! server, in immediate mode: a smart or fast shutdown could release waiting writers as successful.

use std::time::Duration;

use pgrx::PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION;
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
use pgrx::prelude::*;

use crate::commit_wait::REVOKED_LOOK_NS;
use crate::error::Refusal;
use crate::guc;
use crate::pg::{clock, process, syncrep, worker};
use crate::shmem::{self, LeaseState};

const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// While a lease lasts nothing is to be done until its end, and a revocation wakes the worker. Being woken for nothing costs
/// a server with clients more than the look itself.
const LEASED_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// With the fence off there is nothing to do until the server's end.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);
/// A revocation shows a living sidecar, which is busy demoting the server: it gets more time.
const REVOKED_GRACE_NS: u64 = 10_000 * clock::NS_PER_MS;
/// A postmaster that did not react is asked again.
const STOP_AGAIN_NS: u64 = 1_000 * clock::NS_PER_MS;

/// Registers the worker. It runs on a primary only: recovery must have finished.
pub fn init() {
    BackgroundWorkerBuilder::new("pgquorum fence")
        .set_type("pgquorum fence")
        .set_library("pgquorum")
        .set_function("pgquorum_deadman_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_shmem_access(None)
        .load();
}

/// What to do at one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// Only those whose commit waits for standbys: each tells its client that the outcome is unknown.
    EndWaiting,
    EndSessions,
    StopServer,
}

/// How far an incident (one lease that ended and did not come back) has gone.
#[derive(Default)]
struct DeadMan {
    revoked_since_ns: Option<u64>,
    waiting_ended: bool,
    sessions_ended_ns: Option<u64>,
    stop_asked_ns: Option<u64>,
}

impl DeadMan {
    /// The decision, without effects. `grace_ns` is `pgquorum.fence_grace`.
    fn step(&mut self, now_ns: u64, lease: LeaseState, grace_ns: u64) -> Step {
        let (ended_ns, grace_ns) = match lease {
            LeaseState::Expired { ended_ns, .. } => (ended_ns, grace_ns),
            LeaseState::Revoked { ended_ns, .. } => (ended_ns, grace_ns.max(REVOKED_GRACE_NS)),
            LeaseState::None | LeaseState::Valid { .. } => {
                *self = Self::default();
                return Step::Nothing;
            }
        };
        let mut revoked_since_ns = None;
        if let LeaseState::Revoked { .. } = lease {
            // The sidecar repeats a revocation, which moves its moment on; this one stays.
            let since_ns = *self.revoked_since_ns.get_or_insert(ended_ns);
            revoked_since_ns = Some(since_ns);
            if !self.waiting_ended && now_ns >= since_ns + REVOKED_LOOK_NS {
                self.waiting_ended = true;
                return Step::EndWaiting;
            }
        }
        if now_ns <= ended_ns + grace_ns {
            let waiting_ended = self.waiting_ended && revoked_since_ns.is_some();
            *self = Self { revoked_since_ns, waiting_ended, ..Self::default() };
            return Step::Nothing;
        }
        let Some(sessions_ended_ns) = self.sessions_ended_ns else {
            self.sessions_ended_ns = Some(now_ns);
            return Step::EndSessions;
        };
        // After a pause of the whole machine both limits have passed at the first check. The sidecar was
        // paused too: it gets one grace from there before the server is stopped.
        let stop_ns = (ended_ns + 2 * grace_ns).max(sessions_ended_ns + grace_ns);
        let asked_recently = self.stop_asked_ns.is_some_and(|asked_ns| now_ns < asked_ns + STOP_AGAIN_NS);
        if now_ns <= stop_ns || asked_recently {
            return Step::Nothing;
        }
        self.stop_asked_ns = Some(now_ns);
        Step::StopServer
    }
}

/// Main function of the worker `pgquorum fence`.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgquorum_deadman_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    shmem::set_watcher(worker::own_latch());
    let mut deadman = DeadMan::default();
    loop {
        let interval = if guc::FENCE.get() { until_check() } else { IDLE_INTERVAL };
        if !BackgroundWorker::wait_latch(Some(interval)) {
            return;
        }
        if BackgroundWorker::sighup_received() {
            process::reload_settings();
        }
        check(&mut deadman);
    }
}

fn until_check() -> Duration {
    let now_ns = clock::boottime_ns();
    pause(now_ns, shmem::lease().state(now_ns))
}

/// How long the next check can wait: while a lease lasts until its end, unless it is renewed by then.
fn pause(now_ns: u64, lease: LeaseState) -> Duration {
    match lease {
        LeaseState::Valid { deadline_ns, .. } => {
            // Latches wait for whole milliseconds.
            let left = Duration::from_nanos(deadline_ns.saturating_sub(now_ns)) + Duration::from_millis(1);
            left.min(LEASED_INTERVAL_MAX)
        }
        LeaseState::None | LeaseState::Expired { .. } | LeaseState::Revoked { .. } => CHECK_INTERVAL,
    }
}

fn check(deadman: &mut DeadMan) {
    if !guc::FENCE.get() {
        *deadman = DeadMan::default();
        return;
    }
    let now_ns = clock::boottime_ns();
    let lease = shmem::lease().state(now_ns);
    let grace_ns = u64::try_from(guc::FENCE_GRACE_MS.get()).unwrap_or(0) * clock::NS_PER_MS;
    match deadman.step(now_ns, lease, grace_ns) {
        Step::Nothing => {}
        Step::EndWaiting => {
            syncrep::end_waiting_sessions();
        }
        Step::EndSessions => {
            let count = process::end_client_sessions();
            incident(format!("pgquorum fence: {}; ended {count} client session(s)", describe(lease, now_ns)))
                .detail("The sidecar does not renew the lease, so another node may be the leader by now. Writes are refused already.")
                .hint("Look after the sidecar of this node: is it running, and does it reach the other nodes?")
                .log();
        }
        Step::StopServer => {
            incident(format!("pgquorum fence: {}; stopping the server at once", describe(lease, now_ns)))
                .detail("The server must not go on as a primary without a lease. No committed transaction is lost: crash recovery runs at the next start.")
                .hint("Start the sidecar of this node; it starts the server again in the right role. Do not start the server by hand.")
                .log();
            process::stop_server_immediately();
        }
    }
}

fn incident(message: String) -> Refusal {
    Refusal::new(ERRCODE_SUCCESSFUL_COMPLETION, message)
}

fn describe(lease: LeaseState, now_ns: u64) -> String {
    let (epoch, ended_ns, how) = match lease {
        LeaseState::Expired { epoch, ended_ns } => (epoch, ended_ns, "ran out"),
        LeaseState::Revoked { epoch, ended_ns } => (epoch, ended_ns, "was revoked"),
        LeaseState::None | LeaseState::Valid { .. } => return "there is no lease".to_owned(),
    };
    let ago_ms = now_ns.saturating_sub(ended_ns) / clock::NS_PER_MS;
    format!("the lease of epoch {epoch} {how} {ago_ms} ms ago and was not renewed")
}

#[cfg(test)]
#[path = "tests/deadman_unit.rs"]
mod unit;
