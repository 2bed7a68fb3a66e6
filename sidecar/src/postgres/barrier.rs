//! The restart barrier: when clients may log in again on a server that was a primary, and when a server that came back
//! acknowledges again.
//!
//! Such a server may hold commits that nobody else has. As a primary it is opened by its next lease. As a standby it is
//! by what it has replayed; [`Replayed`] judges that.

use super::config_files::Desired;
use super::error::{Result, sql, timed_out};
use super::session::Session;
use super::state::Inner;
use pgquorum_agent::barrier::Replayed;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Error;

const REPLAYED: &str = "SELECT (SELECT min(l.epoch) FROM quorum.leadership AS l WHERE l.timeline > $1::int4)::int8, \
    (SELECT c.term FROM quorum.cluster_log AS c ORDER BY c.index DESC LIMIT 1)::int8";
/// The newest epoch whose beginning is replayed here.
const EPOCH: &str = "SELECT max(l.epoch)::int8 FROM quorum.leadership AS l";
/// How long a standby that takes another name may be without a stream, and how often that is looked at.
const RECONNECTION: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ADMIT: &str = "SELECT quorum.admit_clients()";

/// Lets a standby that came back acknowledge what it receives, if it has replayed the beginning of the epoch that it
/// follows. Everything before that was settled by the appointment, and nobody waits for it any more.
pub async fn acknowledge_if_past(inner: &Arc<Inner>, session: &Session) -> Result<()> {
    let desired = inner.desired().await;
    let Some(upstream) = desired.upstream.filter(|_| desired.rejoining) else { return Ok(()) };
    if inner.config.extension_library.is_some() {
        let row = soon("asking for the newest epoch", session.query_one(EPOCH, &[])).await?;
        if row.get::<_, Option<i64>>(0).is_none_or(|epoch| epoch.cast_unsigned() < upstream.epoch) {
            return Ok(());
        }
    }
    let epoch = upstream.epoch;
    let past = move |desired: &mut Desired| {
        // A newer one may have been appointed meanwhile.
        desired.rejoining &= desired.upstream.as_ref() != Some(&upstream);
    };
    let what = "looking at the WAL receiver";
    let row = soon(what, session.query_opt("SELECT pid FROM pg_stat_wal_receiver", &[])).await?;
    let present: Option<i32> = row.and_then(|r| r.get(0));
    if !inner.change_settings(past).await? {
        return Ok(());
    }
    tracing::info!(epoch, "the beginning of the epoch is replayed here: this server acknowledges again");
    inner.reload(inner.require_postmaster("acknowledging again")?)?;
    // It connects anew. Whoever looked meanwhile would take that for the end of the primary.
    const ANEW: &str =
        "SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming' AND pid IS DISTINCT FROM $1";
    let begun = Instant::now();
    while begun.elapsed() < RECONNECTION && soon(what, session.query_opt(ANEW, &[&present])).await?.is_none()
    {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The server may stand still, and whoever looks at it must go on and say so.
async fn soon<T>(what: &str, answer: impl Future<Output = std::result::Result<T, Error>>) -> Result<T> {
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(answer) => answer.map_err(sql(what)),
        Err(_) => Err(timed_out(format!("{what}: the server did not answer within {ANSWER_LIMIT:?}"))),
    }
}

/// Lets clients in on a standby, if it was a primary and it is settled what became of its last commits; then later
/// starts are those of an ordinary standby.
pub async fn admit_if_settled(inner: &Arc<Inner>, session: &Session) -> Result<()> {
    let Some(timeline) = inner.primary_on().await else { return Ok(()) };
    let what = "admitting clients";
    let row = soon(what, session.query_one(REPLAYED, &[&timeline.cast_signed()])).await?;
    let number = |i: usize| row.get::<_, Option<i64>>(i).map(i64::cast_unsigned);
    let replayed = Replayed { later_epoch: number(0), recorded_term: number(1) };
    if !replayed.is_settled() {
        return Ok(());
    }
    soon(what, session.execute(ADMIT, &[])).await?;
    tracing::info!(timeline, "a later epoch is open and replayed here: clients may log in");
    // A promotion may have begun meanwhile; its mark stays.
    let settled = move |desired: &mut Desired| {
        desired.primary_on = desired.primary_on.filter(|marked| *marked != timeline);
    };
    inner.change_settings(settled).await.map(drop)
}
