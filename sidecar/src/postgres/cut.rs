//! Cutting a standby off its upstream, and finding the true end of its WAL. On the path of every failover.
//!
//! The order matters (traps T4 and T5). `primary_conninfo` is emptied durably, then the server reloads. A backend that
//! is forked later and sees the new value proves that the postmaster has signalled the startup process, which from
//! then on starts no receiver any more and ends the one that runs. Only if it is held up (a query on the standby
//! conflicts with replay) the receiver is ended from here.

use super::error::{Result, failure, sql, timed_out};
use super::process::{self, Status};
use super::session::{Manner, Session};
use super::state::Inner;
use super::{lifecycle, session::WalPosition};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_agent::postgres::{PgFailure, PgOutcome};
use pgquorum_agent::types::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(3);
/// How long the startup process gets to end the receiver itself.
const PATIENCE: Duration = Duration::from_millis(5);
/// Replay may have to catch up with WAL from before a restart; the agent replaces the operation if it takes too long.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

/// The processes that tell whether WAL still comes in or is still being replayed.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub receiver: Option<i32>,
    /// The startup process waits for WAL that is not there: everything on disk is replayed.
    pub idle: bool,
    pub primary: bool,
    /// A session here holds replay up.
    pub conflict: bool,
}

const SAMPLE: &str = "SELECT max(pid) FILTER (WHERE backend_type = 'walreceiver'), \
    COALESCE(bool_or(wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) \
      FILTER (WHERE backend_type = 'startup'), false), NOT pg_is_in_recovery(), \
    COALESCE(bool_or(wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin')) \
      FILTER (WHERE backend_type = 'startup'), false) \
    FROM pg_stat_get_activity(NULL)";

pub async fn sample(session: &Session) -> Result<Sample> {
    let row = session.query_one(SAMPLE, &[]).await.map_err(sql("looking at the WAL receiver"))?;
    Ok(Sample { receiver: row.get(0), idle: row.get(1), primary: row.get(2), conflict: row.get(3) })
}

/// Polls until the end of the WAL is known and no receiver is left, and returns that end.
struct Settling {
    quiet: u32,
    last: Option<(Lsn, bool)>,
}

impl Settling {
    fn new() -> Settling {
        Settling { quiet: 0, last: None }
    }

    /// Two samples in a row must agree, four if the startup process is busy, since one sample may fall between the end
    /// of a receiver and the start of the next.
    fn step(&mut self, sample: &Sample, position: &WalPosition) -> bool {
        if sample.receiver.is_some() {
            *self = Settling::new();
            return false;
        }
        let now = (position.replayed, sample.idle);
        self.quiet = if self.last.is_none_or(|l| l == now) || !sample.idle { self.quiet + 1 } else { 1 };
        self.last = Some(now);
        // A receiver that streamed since the start began where the local WAL ended, so its position is the end.
        // Without one, the end is where replay stops by itself.
        let known = sample.idle || position.received.is_some_and(|r| r >= position.replayed);
        known && self.quiet >= if sample.idle { 2 } else { 4 }
    }
}

pub async fn cut_reception(inner: &Arc<Inner>) -> Result<PgOutcome> {
    let postmaster = inner.require_postmaster("cutting WAL reception")?;
    inner.change_settings(|desired| desired.upstream = None).await?;
    inner.reload(postmaster)?;
    let reloaded = Instant::now();
    if process::status(&inner.config.data_dir) != Some(Status::Ready) {
        // Recovery after a crash: the position is known only once it is over.
        lifecycle::wait_until_ready(inner, process::log_length(&inner.config)).await?;
    }
    let session = inner.session().await?;
    let position = session.position().await?;
    if !position.in_recovery {
        let (timeline, lsn) = position.end();
        return Ok(PgOutcome::Cut { timeline, lsn });
    }
    let mut confirmed = Box::pin(confirm(inner, "primary_conninfo", String::new()));
    let mut confirmed_yet = false;
    let mut settling = Settling::new();
    let mut terminated = None;
    let mut interval = tokio::time::interval(POLL);
    while reloaded.elapsed() < SETTLE_LIMIT {
        tokio::select! {
            biased;
            result = &mut confirmed, if !confirmed_yet => {
                result?;
                confirmed_yet = true;
                continue;
            }
            _ = interval.tick() => {}
        }
        if !confirmed_yet {
            continue;
        }
        let seen = sample(&session).await?;
        let position = session.position().await?;
        if !position.in_recovery {
            return Err(failure("the server left recovery while its WAL reception was being cut"));
        }
        if settling.step(&seen, &position) {
            let (timeline, lsn) = position.end();
            return Ok(PgOutcome::Cut { timeline, lsn });
        }
        if let Some(pid) = seen.receiver.filter(|p| terminated != Some(*p))
            && reloaded.elapsed() > PATIENCE
        {
            tracing::debug!(pid, "ending the WAL receiver");
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            terminated = Some(pid);
        }
    }
    Err(timed_out(format!(
        "reception is cut, but the end of the WAL is not known after {SETTLE_LIMIT:?}: replay has not caught up. A query \
         on this standby may hold it up; see pg_stat_activity and max_standby_streaming_delay"
    )))
}

/// Sessions that replay may be waiting for: they hold a snapshot, or a lock that the startup process wants.
const END_CONFLICTS: &str = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a \
    WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.application_name <> 'pgquorum sidecar' \
    AND (a.backend_xmin IS NOT NULL OR a.pid = ANY (SELECT unnest(pg_blocking_pids(s.pid)) \
      FROM pg_stat_activity s WHERE s.backend_type = 'startup'))";

/// How often replay must be seen held up before sessions are ended for it.
const CONFLICT_SAMPLES: u32 = 3;

async fn end_conflicts(session: &Session) -> Result<()> {
    let row =
        session.query_one(END_CONFLICTS, &[]).await.map_err(sql("ending sessions that hold replay up"))?;
    match row.get::<_, i64>(0) {
        // Ended already; the startup process has not noticed yet.
        0 => tracing::debug!("replay is still held up"),
        sessions => tracing::warn!(sessions, "ended sessions that held replay up while the primary changes"),
    }
    Ok(())
}

/// Ends sessions that hold replay up on a standby that gets a new upstream: until replay goes on it starts no receiver,
/// and the new primary may be waiting for its acknowledgement.
pub async fn free_replay(session: &Session) -> Result<()> {
    let mut interval = tokio::time::interval(POLL);
    for _ in 0..CONFLICT_SAMPLES {
        interval.tick().await;
        if !sample(session).await?.conflict {
            return Ok(());
        }
    }
    end_conflicts(session).await
}

/// Waits until a standby that is about to be promoted has replayed all it has. It must have been cut before. Sessions
/// that hold replay up are ended: the whole cluster waits for this server.
pub async fn settle(inner: &Arc<Inner>, limit: Duration) -> Result<WalPosition> {
    let session = inner.session().await?;
    let started = Instant::now();
    let mut interval = tokio::time::interval(POLL);
    let mut before: Option<Lsn> = None;
    let mut conflicts = 0;
    while started.elapsed() < limit {
        let seen = sample(&session).await?;
        let position = session.position().await?;
        if seen.primary || !position.in_recovery {
            return Ok(position);
        }
        conflicts = if seen.conflict { conflicts + 1 } else { 0 };
        if conflicts >= CONFLICT_SAMPLES {
            end_conflicts(&session).await?;
            conflicts = 0;
        }
        let idle = seen.idle && seen.receiver.is_none();
        if idle && before == Some(position.replayed) {
            return Ok(position);
        }
        before = idle.then_some(position.replayed);
        interval.tick().await;
    }
    Err(timed_out(format!("replay of the WAL on disk did not end within {limit:?}")))
}

/// Waits until new sessions see this value of a parameter: then the postmaster has read the configuration and has
/// signalled all its children, since it forks only after that.
pub async fn confirm(inner: &Inner, parameter: &str, value: String) -> Result<()> {
    let question = format!("SELECT current_setting('{parameter}')");
    confirm_with(inner, &question, |seen| seen == value, parameter).await.map(drop)
}

/// Asks new sessions until the answer is right, and returns the session that gave it.
pub async fn confirm_with(
    inner: &Inner,
    question: &str,
    right: impl Fn(&str) -> bool,
    what: &str,
) -> Result<Session> {
    const LIMIT: Duration = Duration::from_secs(10);
    const SIGNAL_AGAIN: Duration = Duration::from_millis(500);
    let started = Instant::now();
    let mut interval = tokio::time::interval(POLL);
    let mut problem = None;
    let mut signalled = started;
    while started.elapsed() < LIMIT {
        interval.tick().await;
        let postmaster = inner.require_postmaster("a change of the configuration")?;
        if signalled.elapsed() > SIGNAL_AGAIN {
            inner.reload(postmaster)?;
            signalled = Instant::now();
        }
        let asked = async {
            let session = Session::local(&inner.config, Manner::default()).await?;
            let row = session.query_one(question, &[]).await.map_err(sql("reading a setting"))?;
            Ok((session, row.get::<_, String>(0)))
        };
        match asked.await {
            Ok((session, seen)) if right(&seen) => return Ok(session),
            Ok(_) => problem = None,
            Err(error) => problem = Some(error),
        }
    }
    let why: String =
        problem.map_or_else(|| "it still has its old value".to_owned(), |e: PgFailure| e.to_string());
    Err(timed_out(format!(
        "the server did not take over {what} within {LIMIT:?}: {why}. See pg_file_settings and the server's log"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(received: Option<u64>, replayed: u64) -> WalPosition {
        WalPosition {
            in_recovery: true,
            received: received.map(Lsn),
            replayed: Lsn(replayed),
            ..Default::default()
        }
    }

    #[test]
    fn the_end_needs_two_quiet_samples() {
        let idle = Sample { idle: true, ..Sample::default() };
        let mut s = Settling::new();
        assert!(!s.step(&idle, &position(None, 5)));
        assert!(!s.step(&idle, &position(None, 6)), "replay went on");
        assert!(s.step(&idle, &position(None, 6)));
        let mut s = Settling::new();
        assert!(!s.step(&idle, &position(None, 6)));
        assert!(!s.step(&Sample { receiver: Some(1), ..idle.clone() }, &position(None, 6)));
        assert!(!s.step(&idle, &position(None, 6)), "a receiver was there in between");
    }

    #[test]
    fn a_busy_replay_does_not_hide_the_end_of_what_was_received() {
        let busy = Sample::default();
        let mut s = Settling::new();
        assert_eq!([(); 4].map(|()| s.step(&busy, &position(Some(9), 5))), [false, false, false, true]);
        let mut s = Settling::new();
        assert_eq!([(); 6].map(|()| s.step(&busy, &position(None, 5))), [false; 6]);
    }
}
