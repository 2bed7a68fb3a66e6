//! The first write of an epoch: it proves that k standbys follow the new primary.

use super::config::standby_name;
use super::error::{Result, failure, sql, timed_out};
use super::session::{Manner, Session};
use super::state::Inner;
use pgquorum_agent::postgres::{PgOutcome, SyncSet};
use pgquorum_agent::types::{Epoch, Lsn, Timeline};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(5);
/// The operation has its own, shorter bound.
const ACK_LIMIT: Duration = Duration::from_secs(600);

/// Writes the epoch's row and returns when it is on the disks of k standbys. That the commit returned is not taken for
/// it: the walsenders are asked.
pub async fn open_epoch(
    inner: &Arc<Inner>,
    epoch: Epoch,
    timeline: Timeline,
    switch_lsn: Lsn,
    sync: SyncSet,
) -> Result<PgOutcome> {
    let manner = Manner { statement: Duration::ZERO, waits_for_standbys: sync.k > 0, ..Manner::default() };
    let session = Session::local(&inner.config, manner).await?;
    let what = format!("opening epoch {epoch}");
    let k = i32::try_from(sync.k).map_err(|_| failure(format!("{what}: k is out of range")))?;
    let members: Vec<i64> = sync.standbys.iter().map(|n| n.cast_signed()).collect();
    let node = inner.config.node.cast_signed();
    let timeline = timeline.cast_signed();
    let lsn = switch_lsn.to_string();
    let statement =
        "SELECT quorum.open_epoch($1::int8, $2::int8, $3::int4, $4::text::pg_lsn, $5::int4, $6::int8[])";
    let arguments: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&epoch.cast_signed(), &node, &timeline, &lsn, &k, &members];
    let row = session.query_one(statement, &arguments).await.map_err(sql(&what))?;
    if row.get::<_, Option<bool>>(0) == Some(false) {
        // Already there from an earlier attempt whose answer was lost; its acknowledgement is checked below.
        tracing::info!(epoch, "the epoch's row was written before");
    }
    if sync.k > 0 {
        acknowledged(&session, &sync, &what).await?;
    }
    Ok(PgOutcome::Done)
}

async fn acknowledged(session: &Session, sync: &SyncSet, what: &str) -> Result<()> {
    let row = session.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.map_err(sql(what))?;
    let end: String = row.get(0);
    let names: Vec<String> = sync.standbys.iter().map(|n| standby_name(*n)).collect();
    let started = Instant::now();
    let mut interval = tokio::time::interval(POLL);
    while started.elapsed() < ACK_LIMIT {
        interval.tick().await;
        let question = "SELECT count(DISTINCT application_name) FROM pg_stat_replication \
                        WHERE application_name = ANY($1) AND flush_lsn >= $2::text::pg_lsn";
        let row = session.query_one(question, &[&names, &end]).await.map_err(sql(what))?;
        if usize::try_from(row.get::<_, i64>(0)).unwrap_or(0) >= sync.k {
            return Ok(());
        }
    }
    Err(timed_out(format!("{what}: {} standbys did not confirm it within {ACK_LIMIT:?}", sync.k)))
}
