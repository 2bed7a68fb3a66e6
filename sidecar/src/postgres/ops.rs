//! Runs operations: process operations one at a time, a new one replacing the one before; the others beside them, at
//! most one of each kind.

use super::PgEvent;
use super::error::{Result, fail, failure, not_running, sql, timed_out};
use super::session::{Manner, Session};
use super::state::Inner;
use super::{basebackup, cut, epoch, lifecycle, promote, rewind, slots, sync};
use pgquorum_agent::postgres::{EntryRecord, PgFailureKind, PgOp, PgOutcome};
use std::sync::Arc;
use std::time::Duration;

/// Reports the end of an operation exactly once, as cancelled if it is dropped before.
struct Report {
    inner: Arc<Inner>,
    id: u64,
    op: &'static str,
    open: bool,
}

impl Report {
    fn done(mut self, result: Result<PgOutcome>) {
        self.open = false;
        match &result {
            Ok(outcome) => tracing::info!(op = self.op, id = self.id, ?outcome, "done"),
            Err(error) => tracing::warn!(op = self.op, id = self.id, kind = ?error.kind, %error, "failed"),
        }
        self.inner.emit(PgEvent::Done { id: self.id, result });
        self.inner.kick.notify_one();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.open {
            let text = format!("{} was replaced by a later operation, or the server went away", self.op);
            let result = Err(fail(PgFailureKind::Cancelled, text));
            tracing::debug!(op = self.op, id = self.id, "cancelled");
            self.inner.emit(PgEvent::Done { id: self.id, result });
            self.inner.kick.notify_one();
        }
    }
}

/// The bound of each operation. The long ones show progress and can be replaced at any time.
fn limit(op: &PgOp) -> Duration {
    Duration::from_secs(match op {
        PgOp::Start | PgOp::Follow(_) | PgOp::CutReception => 600,
        PgOp::Feed(_) => 60,
        PgOp::Stop(_) => 90,
        PgOp::Promote { .. } => 600,
        PgOp::Rewind(_) => 4 * 3600,
        PgOp::Clone(_) => 7 * 24 * 3600,
        PgOp::OpenEpoch { .. } => 600,
        PgOp::SetSync(_) | PgOp::Slots(_) | PgOp::CheckParameters(_) | PgOp::Configure(_) => 60,
        PgOp::RecordEntries(_) => 30,
        PgOp::Checkpoint => 3600,
    })
}

pub fn submit(inner: &Arc<Inner>, id: u64, op: PgOp) {
    let report = Report { inner: inner.clone(), id, op: op.name(), open: true };
    let limit = limit(&op);
    tracing::debug!(op = op.name(), id, "submitted");
    let mut running = inner.running();
    if op.is_process_operation() {
        if let PgOp::Stop(_) | PgOp::Rewind(_) | PgOp::Clone(_) = op {
            for (_, task) in running.beside.drain() {
                task.abort();
            }
        }
        let shared = inner.clone();
        let task = inner.runtime.spawn(async move {
            let _gate = shared.gate.clone().lock_owned().await;
            let work = Box::pin(run_process(&shared, id, op));
            let result = tokio::time::timeout(limit, work).await;
            report.done(result.unwrap_or_else(|_| Err(too_long(limit))));
        });
        // One that is sealed goes on, and the new one waits for the gate.
        if let Some((_, previous)) = running.process.replace((id, task.abort_handle())) {
            previous.abort();
        }
    } else {
        let kind = op.name();
        let shared = inner.clone();
        let task = inner.runtime.spawn(async move {
            let work = Box::pin(run_beside(&shared, op));
            let result = tokio::time::timeout(limit, work).await;
            report.done(result.unwrap_or_else(|_| Err(too_long(limit))));
        });
        if let Some(previous) = running.beside.insert(kind, task.abort_handle()) {
            previous.abort();
        }
    }
}

fn too_long(limit: Duration) -> pgquorum_agent::postgres::PgFailure {
    timed_out(format!(
        "the operation did not end within {limit:?} and was given up; the server's log may say why"
    ))
}

async fn run_process(inner: &Arc<Inner>, id: u64, op: PgOp) -> Result<PgOutcome> {
    match op {
        PgOp::Start => lifecycle::start(inner, None).await,
        PgOp::Stop(mode) => lifecycle::stop(inner, mode).await,
        PgOp::CutReception => cut::cut_reception(inner).await,
        PgOp::Follow(upstream) => lifecycle::follow(inner, upstream).await,
        PgOp::Feed(upstream) => lifecycle::feed(inner, upstream).await,
        PgOp::Promote { timeline, sync } => promote::promote(inner, timeline, sync).await,
        PgOp::Rewind(upstream) => rewind::rewind(inner, id, upstream).await,
        PgOp::Clone(upstream) => basebackup::clone_and_follow(inner, upstream).await,
        other => Err(failure(format!("{} is not a process operation", other.name()))),
    }
}

async fn run_beside(inner: &Arc<Inner>, op: PgOp) -> Result<PgOutcome> {
    if let PgOp::Configure(parameters) = op {
        return sync::configure(inner, parameters).await;
    }
    if let PgOp::CheckParameters(parameters) = op {
        return sync::check_parameters(inner, &parameters).await;
    }
    if inner.postmaster().is_none() {
        return Err(not_running(op.name()));
    }
    match op {
        PgOp::OpenEpoch { epoch, timeline, switch_lsn, sync } => {
            epoch::open_epoch(inner, epoch, timeline, switch_lsn, sync).await
        }
        PgOp::SetSync(set) => sync::set_sync(inner, set).await,
        PgOp::Checkpoint => checkpoint(inner).await,
        PgOp::Slots(nodes) => slots::set_slots(inner, nodes).await,
        PgOp::RecordEntries(entries) => record_entries(inner, entries).await,
        other => Err(failure(format!("{} is a process operation", other.name()))),
    }
}

async fn checkpoint(inner: &Arc<Inner>) -> Result<PgOutcome> {
    let manner = Manner { statement: Duration::ZERO, ..Manner::default() };
    let session = Session::local(&inner.config, manner).await?;
    session.batch_execute("CHECKPOINT").await.map_err(sql("checkpoint"))?;
    Ok(PgOutcome::Done)
}

/// Records entries in one transaction: either the database holds all of them or none.
async fn record_entries(inner: &Arc<Inner>, entries: Vec<EntryRecord>) -> Result<PgOutcome> {
    let mut session = Session::local(&inner.config, Manner::default()).await?;
    let what = "recording the cluster's entries in the database";
    let transaction = session.transaction().await.map_err(sql(what))?;
    let entry = "SELECT quorum.apply_entry($1, $2, $3)";
    let snapshot = "SELECT quorum.apply_snapshot($1, $2, $3)";
    for record in entries {
        let statement = if record.snapshot { snapshot } else { entry };
        let (index, term) = (record.index.cast_signed(), record.term.cast_signed());
        let done = transaction.execute(statement, &[&index, &term, &record.payload]).await;
        done.map_err(sql(format!("{what}: entry {index}")))?;
    }
    let row = transaction.query_one("SELECT quorum.applied_index()::int8", &[]).await.map_err(sql(what))?;
    transaction.commit().await.map_err(sql(what))?;
    Ok(PgOutcome::Recorded { index: row.get::<_, Option<i64>>(0).unwrap_or(0).cast_unsigned() })
}

/// Restarts a standby if no process operation is under way; whether it was begun. A later operation replaces it.
pub fn restart_if_free(inner: &Arc<Inner>) -> bool {
    let mut running = inner.running();
    let Ok(gate) = inner.gate.clone().try_lock_owned() else { return false };
    let shared = inner.clone();
    let task = inner.runtime.spawn(async move {
        let _gate = gate;
        if let Err(error) = Box::pin(lifecycle::restart_standby(&shared)).await {
            tracing::warn!(%error, "the restart failed");
        }
    });
    running.process = Some((0, task.abort_handle()));
    true
}
