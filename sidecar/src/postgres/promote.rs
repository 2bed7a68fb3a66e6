//! Making a standby the primary, on exactly the timeline that the appointment gave it.

use super::config_files;
use super::error::{Result, blocking, fail, failure, io, sql, timed_out};
use super::process::{self, Status};
use super::state::Inner;
use super::timeline::{self, Obstacle};
use super::{cut, lifecycle};
use pgquorum_agent::postgres::{PgFailure, PgFailureKind, PgOutcome, StopMode, SyncSet};
use pgquorum_agent::types::{Lsn, Timeline};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

const SETTLE_LIMIT: Duration = Duration::from_secs(300);
const PROMOTE_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(1);
const RESEND: Duration = Duration::from_millis(100);

pub async fn promote(inner: &Arc<Inner>, wanted: Timeline, sync: SyncSet) -> Result<PgOutcome> {
    inner.require_postmaster("promotion")?;
    if process::status(&inner.config.data_dir) != Some(Status::Ready) {
        lifecycle::wait_until_ready(inner, process::log_length(&inner.config)).await?;
    }
    let position = inner.session().await?.position().await?;
    if !position.in_recovery {
        return already_primary(inner, position.timeline, wanted, sync).await;
    }
    // The server must receive nothing from now on, and must judge its first commit by the new rule. Until the
    // checkpointer has read it, commits wait for a standby that does not exist: never the other way round.
    set_rule(inner, wanted, sync).await?;
    let mut position = cut::settle(inner, SETTLE_LIMIT).await?;
    for attempt in 0.. {
        let (wal_dir, present) = (inner.config.wal_dir(), position.replayed_timeline);
        let obstacle = blocking(move || {
            timeline::find_obstacle(&wal_dir, present, wanted).map_err(io("reading timeline histories"))
        });
        match obstacle.await? {
            None => break,
            Some(Obstacle::Foreign(other)) if attempt == 0 => {
                tracing::warn!(
                    other,
                    present,
                    "a dead timeline is known here: restarting without it before promotion"
                );
                let rule = inner.desired().await.sync;
                lifecycle::restart_standby(inner).await?;
                set_rule(inner, wanted, rule.unwrap_or_default()).await?;
                position = cut::settle(inner, SETTLE_LIMIT).await?;
            }
            Some(Obstacle::Foreign(other) | Obstacle::Used(other)) => {
                return Err(fail(
                    PgFailureKind::WrongTimeline,
                    format!(
                        "cannot promote from timeline {present} to {wanted}: timeline {other} is already in use on this \
                         server. It was not promoted; appoint it on a timeline that was never used"
                    ),
                ));
            }
        }
    }
    let (wal_dir, present) = (inner.config.wal_dir(), position.replayed_timeline);
    blocking(move || timeline::plant(&wal_dir, present, wanted).map_err(io("reserving timeline numbers")))
        .await?;
    let offset = process::log_length(&inner.config);
    leave_recovery(inner).await.map_err(|failure| explained(inner, offset, failure))?;
    let config = inner.config.clone();
    // PostgreSQL has just removed it; from now on a restart is a standby's again.
    blocking(move || config_files::ensure_standby_signal(&config)).await?;
    let reached = inner.session().await?.position().await?.timeline;
    if reached != wanted {
        lifecycle::stop(inner, StopMode::Immediate).await?;
        return Err(wrong_timeline(reached, wanted));
    }
    promoted(inner, wanted).await
}

fn wrong_timeline(reached: Timeline, wanted: Timeline) -> pgquorum_agent::postgres::PgFailure {
    fail(
        PgFailureKind::WrongTimeline,
        format!(
            "the server is a primary on timeline {reached}, not on {wanted} as appointed, and was stopped at once. \
             Nothing that it wrote there counts; it must be rewound or cloned"
        ),
    )
}

async fn set_rule(inner: &Arc<Inner>, wanted: Timeline, sync: SyncSet) -> Result<()> {
    if sync.k == 0 {
        inner.commits_wait.store(false, Ordering::SeqCst);
    }
    inner
        .change_settings(move |desired| {
            desired.upstream = None;
            desired.rejoining = false;
            desired.sync = Some(sync);
            desired.primary_on = Some(wanted);
        })
        .await?;
    inner.reload(inner.require_postmaster("promotion")?)
}

/// A repeated promotion: nothing to do but the rule.
async fn already_primary(
    inner: &Arc<Inner>,
    present: Timeline,
    wanted: Timeline,
    sync: SyncSet,
) -> Result<PgOutcome> {
    if present != wanted {
        lifecycle::stop(inner, StopMode::Immediate).await?;
        return Err(wrong_timeline(present, wanted));
    }
    let config = inner.config.clone();
    blocking(move || config_files::ensure_standby_signal(&config)).await?;
    inner.change_settings(move |desired| desired.primary_on = Some(wanted)).await?;
    super::sync::put_in_force(inner, sync).await?;
    promoted(inner, wanted).await
}

/// Asks for promotion until the server is writable. The signal is repeated because a startup process that waits for a
/// conflicting query looks at it late.
async fn leave_recovery(inner: &Arc<Inner>) -> Result<()> {
    let started = Instant::now();
    let mut asked: Option<Instant> = None;
    let mut interval = tokio::time::interval(POLL);
    while started.elapsed() < PROMOTE_LIMIT {
        let session = inner.session().await?;
        if asked.is_none_or(|at| at.elapsed() >= RESEND) {
            let sent =
                session.query_one("SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(false) END", &[]);
            match sent.await {
                Ok(_) => asked = Some(Instant::now()),
                // It may have left recovery between the question and the call.
                Err(error) => tracing::debug!(%error, "the promotion signal was not taken"),
            }
        }
        let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await;
        if !row.map_err(sql("waiting for the end of recovery"))?.get::<_, bool>(0) {
            return Ok(());
        }
        interval.tick().await;
    }
    Err(timed_out(format!("the server did not leave recovery within {PROMOTE_LIMIT:?}; its log may say why")))
}

/// With what the server's log says about one of the usual causes. A promotion begins with a new segment of WAL, so it is
/// where a full disk shows first, and the server ends then.
fn explained(inner: &Inner, offset: u64, mut failure: PgFailure) -> PgFailure {
    let log = process::log_since(&inner.config, offset);
    if let Some(advice) = lifecycle::advice(&log, inner.config.port) {
        failure.message = format!("{}: {advice} (see {})", failure.message, inner.config.log_file.display());
    }
    failure
}

async fn promoted(inner: &Arc<Inner>, wanted: Timeline) -> Result<PgOutcome> {
    let wal_dir = inner.config.wal_dir();
    let history = blocking(move || timeline::read_history(&wal_dir, wanted).map_err(failure)).await?;
    let switch_lsn = history.last().map(|(_, lsn)| *lsn).unwrap_or(Lsn(0));
    Ok(PgOutcome::Promoted { timeline: wanted, switch_lsn })
}
