//! Rejoining after a divergence: `pg_rewind` takes back what only this server has.
//!
//! An interrupted rewind leaves a directory that looks whole and is not. Therefore a marker lies beside it, on disk
//! before the first change and until the last one: while it is there, nothing is started on the directory.

use super::error::{Result, blocking, failure, io, sql};
use super::session::{Manner, Session};
use super::state::Inner;
use super::{config_files, control, durable, lifecycle, process};
use pgquorum_agent::postgres::{PgOutcome, StopMode, Upstream};
use std::sync::Arc;
use std::time::Duration;

/// The bound of the operation is shorter.
const REWIND_LIMIT: Duration = Duration::from_secs(4 * 3600);
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

pub async fn rewind(inner: &Arc<Inner>, upstream: Upstream) -> Result<PgOutcome> {
    let result = rewind_inner(inner, &upstream).await;
    inner.note(|n| n.trouble = result.as_ref().err().map(ToString::to_string));
    result?;
    lifecycle::start(inner, Some(upstream)).await
}

async fn rewind_inner(inner: &Arc<Inner>, upstream: &Upstream) -> Result<()> {
    prepare_source(inner, upstream).await?;
    lifecycle::stop(inner, StopMode::Fast).await?;
    let config = inner.config.clone();
    blocking(move || process::check_data_dir(&config)).await?;
    if !control::read(&inner.config).await?.clean {
        // pg_rewind needs a clean end, and recovery as a standby makes one without writing WAL of its own.
        tracing::info!("the server was not shut down cleanly: recovering it before the rewind");
        lifecycle::start(inner, None).await?;
        lifecycle::stop(inner, StopMode::Fast).await?;
    }
    let marker = inner.config.rewind_marker();
    let text =
        format!("A rewind to node {} at {}:{} is under way.\n", upstream.node, upstream.ip, upstream.port);
    blocking(move || {
        durable::replace(&marker, text.as_bytes()).map_err(io(format!("writing {}", marker.display())))
    })
    .await?;
    let mut command = tokio::process::Command::new(inner.config.program("pg_rewind"));
    command
        .arg("--target-pgdata")
        .arg(&inner.config.data_dir)
        .arg("--source-server")
        .arg(format!(
            "host={} port={} user={} dbname={} application_name='pgquorum rewind' {}",
            upstream.ip,
            upstream.port,
            super::config::SUPERUSER,
            inner.config.admin_database,
            super::config::ALIVE
        ))
        .arg("--no-ensure-shutdown")
        .env("PGPASSFILE", inner.config.passfile())
        .env("PGOPTIONS", "-c pgquorum.bypass_fence=on -c statement_timeout=0")
        .env("LC_ALL", "C");
    process::run_program("pg_rewind", command, REWIND_LIMIT).await.map_err(|e| {
        failure(format!(
            "the WAL that only this node has could not be taken back; the node must be cloned: {e}"
        ))
    })?;
    // The files of the source came along, its configuration among them; the cluster's parameters in it are the newest.
    let parameters = config_files::load(&inner.config).parameters;
    inner
        .write_files(move |desired| {
            desired.upstream = None;
            desired.sync = None;
            desired.parameters = parameters;
        })
        .await?;
    let marker = inner.config.rewind_marker();
    blocking(move || durable::remove(&marker).map_err(io("removing the mark of the rewind"))).await?;
    Ok(())
}

/// The source's control file must name its present timeline, or pg_rewind takes both servers for the same branch and
/// does nothing. After a promotion it does so only with the first checkpoint.
async fn prepare_source(inner: &Arc<Inner>, upstream: &Upstream) -> Result<()> {
    let manner = Manner { connect: Duration::from_secs(5), statement: CHECKPOINT_LIMIT, ..Manner::default() };
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
    Ok(())
}
