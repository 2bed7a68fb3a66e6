//! Rejoining after a divergence: `pg_rewind` takes back what only this server has.
//!
//! An interrupted rewind leaves a directory that looks whole and is not. Therefore a marker lies beside it, on disk
//! before the first change and until the last one: while it is there, nothing is started on the directory.

use super::error::{Result, blocking, fail, failure, io, no_data, sql};
use super::lost::Parted;
use super::rewind_mark::RewindMark;
use super::rewind_wal::{KeptWal, application_name};
use super::session::{Manner, Session};
use super::state::Inner;
use super::{config_files, control, cut, lifecycle, lost, process};
use pgquorum_agent::postgres::{PgFailureKind, PgOutcome, StopMode, Upstream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bound of the operation is shorter.
const REWIND_LIMIT: Duration = Duration::from_secs(4 * 3600);
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// What `pg_rewind --progress` says last before it changes anything.
const BEGINS_TO_WRITE: &str = "need to copy";

/// `id` is the number of this operation.
pub async fn rewind(inner: &Arc<Inner>, id: u64, upstream: Upstream) -> Result<PgOutcome> {
    let result = rewind_inner(inner, id, &upstream).await;
    inner.note(|n| n.trouble = result.as_ref().err().map(ToString::to_string));
    result?;
    lifecycle::start(inner, Some(upstream)).await
}

async fn rewind_inner(inner: &Arc<Inner>, id: u64, upstream: &Upstream) -> Result<()> {
    let source = prepare_source(inner, upstream).await?;
    // What is given up is looked at while its catalogs can be asked.
    if inner.postmaster().is_none() {
        lifecycle::start(inner, None).await?;
        // It answers before it has replayed everything.
        if let Err(error) = cut::settle(inner, SETTLE_LIMIT).await {
            tracing::warn!(%error, "what is being given up is looked at before all of it is replayed");
        }
    }
    lost::keep_and_report(inner, &source).await;
    let parted = lost::parted(inner, &source).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "where the histories part is not known, so all WAL of the other server is copied");
        None
    });
    drop(source);
    lifecycle::stop(inner, StopMode::Fast).await?;
    let config = inner.config.clone();
    blocking(move || process::check_data_dir(&config)).await?;
    if !control::read(&inner.config).await?.clean {
        // pg_rewind needs a clean end, and recovery as a standby makes one without writing WAL of its own.
        tracing::info!("the server was not shut down cleanly: recovering it before the rewind");
        lifecycle::start(inner, None).await?;
        lifecycle::stop(inner, StopMode::Fast).await?;
    }
    // Up to here nothing is changed, and a pledge that is asked for puts the rewind off. From here on it is carried
    // through: broken off, it would leave a database that only a copy can replace.
    let Some(sealed) = Sealed::new(inner, id) else { return Err(superseded()) };
    write(inner, upstream, parted).await?;
    if sealed.end() { Ok(()) } else { Err(superseded()) }
}

fn superseded() -> pgquorum_agent::postgres::PgFailure {
    fail(PgFailureKind::Cancelled, "the rewind was replaced by a later operation")
}

/// As long as this lives the operation is not replaced.
struct Sealed<'a> {
    inner: &'a Inner,
    id: u64,
    open: bool,
}

impl Sealed<'_> {
    fn new(inner: &Inner, id: u64) -> Option<Sealed<'_>> {
        inner.seal(id).then_some(Sealed { inner, id, open: true })
    }

    /// Whether no later operation waits.
    fn end(mut self) -> bool {
        self.open = false;
        self.inner.unseal(self.id)
    }
}

impl Drop for Sealed<'_> {
    fn drop(&mut self) {
        if self.open {
            self.inner.unseal(self.id);
        }
    }
}

/// Runs `pg_rewind`, and leaves the directory so that it starts as a standby. `parted`: as [`lost::parted`] says.
async fn write(inner: &Arc<Inner>, upstream: &Upstream, parted: Option<Parted>) -> Result<()> {
    let kept = keep_wal(inner, parted).await;
    inner.mark_rewind(RewindMark::Writing).await?;
    let patience = inner.patience();
    let mut command = tokio::process::Command::new(inner.config.program("pg_rewind"));
    command
        .arg("--progress")
        .arg("--target-pgdata")
        .arg(&inner.config.data_dir)
        .arg("--source-server")
        .arg(format!(
            "host={} port={} user={} dbname={} application_name='{}' {}",
            upstream.ip,
            upstream.port,
            super::config::SUPERUSER,
            inner.config.admin_database,
            application_name(kept.as_ref().map(|(parted, _)| *parted)),
            super::config::alive(patience)
        ))
        .arg("--no-ensure-shutdown")
        .env("PGPASSFILE", inner.config.passfile())
        .env("PGOPTIONS", "-c pgquorum.bypass_fence=on -c statement_timeout=0")
        .env("LC_ALL", "C");
    let begun = Instant::now();
    let ended = process::run_to_end("pg_rewind", command, REWIND_LIMIT).await?;
    // Where the time went, when somebody asks why a node was away.
    let copied =
        ended.stderr.lines().find(|line| line.contains(BEGINS_TO_WRITE)).unwrap_or("nothing to copy");
    tracing::info!(took = ?begun.elapsed(), well = ended.success(), copied, "pg_rewind has ended");
    let kept = kept.map(|(_, kept)| kept);
    give_back_wal(kept, ended.success()).await;
    if !ended.success() {
        if !ended.stderr.contains(BEGINS_TO_WRITE) {
            inner.mark_rewind(RewindMark::None).await?;
            return Err(failure(format!(
                "the WAL that only this node has could not be taken back, and nothing was changed yet: {}",
                ended.complaint("pg_rewind")
            )));
        }
        return Err(failure(format!(
            "taking back the WAL that only this node has was broken off half-way; the node must be cloned: {}",
            ended.complaint("pg_rewind")
        )));
    }
    if parted.is_some() && !ended.stderr.contains(BEGINS_TO_WRITE) {
        // Up to PostgreSQL 15 pg_rewind takes a server that died before its first checkpoint as a primary to be on the
        // timeline before. The WAL that has to go is still there, and would be after each further attempt.
        inner.mark_rewind(RewindMark::None).await?;
        return Err(no_data(
            "the WAL that only this node has could not be taken back: pg_rewind does not see it. Nothing was changed; the \
             node must be cloned",
        ));
    }
    let control = control::read(&inner.config).await?;
    // Where there was nothing to take back the directory is as it was.
    let (timeline, end) = (control.minimum_recovery_timeline, control.minimum_recovery_end);
    let mark = if control.clean { RewindMark::None } else { RewindMark::Replaying(timeline, end) };
    // The files of the source came along, its configuration among them; the cluster's parameters in it are the newest.
    let parameters = config_files::load(&inner.config).parameters;
    inner
        .write_files(move |desired| {
            desired.upstream = None;
            desired.sync = None;
            desired.rejoining = true;
            desired.parameters = parameters;
        })
        .await?;
    inner.mark_rewind(mark).await
}

/// Keeps beside what the source need not send. `None`: it sends everything.
async fn keep_wal(inner: &Arc<Inner>, parted: Option<Parted>) -> Option<(Parted, KeptWal)> {
    let parted = parted?;
    let config = inner.config.clone();
    let kept = blocking(move || {
        KeptWal::keep(&config, parted).map_err(io("keeping the WAL that both servers have"))
    });
    let kept =
        kept.await.inspect_err(|error| tracing::warn!(%error, "all WAL of the other server is copied"));
    Some((parted, kept.ok()?))
}

/// Without it the server gets what it needs from the primary, as long as that has it.
async fn give_back_wal(kept: Option<KeptWal>, well: bool) {
    let Some(kept) = kept else { return };
    let given = blocking(move || {
        let done = if well { kept.put_back() } else { kept.remove().map(|()| 0) };
        done.map_err(io("putting back the WAL that both servers have"))
    });
    match given.await {
        Ok(segments) => tracing::info!(segments, "WAL that both servers have was not copied"),
        Err(error) => tracing::warn!(%error, "WAL is missing after a rewind; the primary has it"),
    }
}

/// The source's control file must name its present timeline, or pg_rewind takes both servers for the same branch and
/// does nothing. After a promotion it does so only with the first checkpoint.
async fn prepare_source(inner: &Arc<Inner>, upstream: &Upstream) -> Result<Session> {
    let manner = Manner { connect: inner.patience(), statement: CHECKPOINT_LIMIT, ..Manner::default() };
    let source = Session::remote(&inner.config, upstream.ip, upstream.port, manner).await?;
    let what = "asking the server to rewind to";
    let row = source
        .query_one("SELECT timeline_id::int8, pg_is_in_recovery() FROM pg_control_checkpoint()", &[])
        .await
        .map_err(sql(what))?;
    let (checkpointed, in_recovery): (i64, bool) = (row.get(0), row.get(1));
    let position = source.position().await?;
    if in_recovery {
        return Err(failure(format!(
            "node {} is a standby; a rewind goes to the primary. Try again when a primary is appointed",
            upstream.node
        )));
    }
    if checkpointed != i64::from(position.timeline) {
        source.batch_execute("CHECKPOINT").await.map_err(sql("a checkpoint on the server to rewind to"))?;
    }
    Ok(source)
}
