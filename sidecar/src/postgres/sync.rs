//! Changing parameters of the running server: the rule of acknowledgement, and the cluster's own parameters.

use super::config_files::synchronous_standby_names;
use super::cut::{confirm, confirm_with};
use super::error::{Result, failure, no_data, sql};
use super::parameters::{is_owned, is_valid_name};
use super::process::run_program;
use super::session::{Manner, Session};
use super::state::Inner;
use pgquorum_agent::postgres::{PgOutcome, SyncSet};
use pgquorum_agent::types::Lsn;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// Puts the rule in force and returns a barrier: a standby that confirms it is counted by the new rule, because the
/// barrier's record was written after every walsender had been told.
pub async fn set_sync(inner: &Arc<Inner>, set: SyncSet) -> Result<PgOutcome> {
    let session = Session::local(&inner.config, Manner::default()).await?;
    let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(sql("setting the rule"))?;
    if row.get::<_, bool>(0) {
        return Err(failure("the rule of acknowledgement is set on the primary; this server is a standby"));
    }
    put_in_force(inner, set).await?;
    let what = "writing the barrier";
    session
        .batch_execute("BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_current_xact_id(); COMMIT")
        .await
        .map_err(sql(what))?;
    let row = session.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.map_err(sql(what))?;
    let lsn: Lsn = row.get::<_, &str>(0).parse().map_err(|e| failure(format!("{what}: {e}")))?;
    Ok(PgOutcome::SyncBarrier(lsn))
}

/// Writes the rule and waits until every process of the server has been told.
pub async fn put_in_force(inner: &Arc<Inner>, set: SyncSet) -> Result<()> {
    let postmaster = inner.require_postmaster("setting the rule of acknowledgement")?;
    let names = synchronous_standby_names(Some(&set));
    inner.change_settings(move |desired| desired.sync = Some(set)).await?;
    inner.reload(postmaster)?;
    confirm(inner, "synchronous_standby_names", names.clone()).await?;
    if names.is_empty() {
        inner.commits_wait.store(false, Ordering::SeqCst);
    } else if !inner.commits_wait.load(Ordering::SeqCst) {
        // Whether commits wait at all is a flag that the checkpointer keeps (SyncRepUpdateSyncStandbysDefined), and in
        // the midst of a checkpoint it reads the configuration late. It does so before it begins a new checkpoint, so
        // one that is asked for now proves it. Only when acknowledgement is switched on.
        let manner = Manner { statement: Duration::from_secs(55), ..Manner::default() };
        let session = Session::local(&inner.config, manner).await?;
        session.batch_execute("CHECKPOINT").await.map_err(sql("switching acknowledgement on"))?;
        inner.commits_wait.store(true, Ordering::SeqCst);
    }
    Ok(())
}

/// Writes the cluster's parameters and reports those that need a restart. What PostgreSQL refuses is left out: with it
/// in the file the server would take no other change either, not even the end of WAL reception, and would not start.
pub async fn configure(inner: &Arc<Inner>, parameters: BTreeMap<String, String>) -> Result<PgOutcome> {
    if !inner.config.data_dir.join("PG_VERSION").exists() {
        return Err(no_data("the parameters cannot be written: there is no database on this node yet"));
    }
    let refused = refused_parameters(inner, &parameters).await?;
    let before = inner.desired().await.parameters;
    let mut accepted = parameters;
    for name in refused.keys() {
        // The value from before, if there is one, was taken once.
        match before.get(name) {
            Some(value) => accepted.insert(name.clone(), value.clone()),
            None => accepted.remove(name),
        };
    }
    let Some(postmaster) = inner.postmaster() else {
        inner.change_settings(move |desired| desired.parameters = accepted).await?;
        return configured(refused, Vec::new());
    };
    let session = Session::local(&inner.config, Manner::default()).await?;
    let loaded = "SELECT pg_conf_load_time()::text";
    let row =
        session.query_one(loaded, &[]).await.map_err(sql("reading when the configuration was loaded"))?;
    let loaded_before: String = row.get(0);
    inner.change_settings(move |desired| desired.parameters = accepted).await?;
    inner.reload(postmaster)?;
    let session = confirm_with(inner, loaded, |at| at != loaded_before, "the cluster's parameters").await?;
    configured(refused, pending_restart(&session).await?)
}

/// Whether PostgreSQL would take these parameters; the failure says which it refuses and why.
pub async fn check_parameters(
    inner: &Arc<Inner>,
    parameters: &BTreeMap<String, String>,
) -> Result<PgOutcome> {
    let refused = refused_parameters(inner, parameters).await?;
    if refused.is_empty() {
        return Ok(PgOutcome::Done);
    }
    let list: Vec<String> = refused.into_values().collect();
    Err(failure(format!("PostgreSQL refuses the change, nothing was changed: {}", list.join("; "))))
}

fn configured(refused: BTreeMap<String, String>, restart_required: Vec<String>) -> Result<PgOutcome> {
    if refused.is_empty() {
        return Ok(PgOutcome::Configured { restart_required });
    }
    let list: Vec<String> = refused.into_values().collect();
    Err(failure(format!(
        "PostgreSQL refuses some of the parameters; they keep their former values and the others are in force: {}. Set \
         them to valid values or remove them",
        list.join("; ")
    )))
}

/// Asks `postgres` itself, without a server: all parameters at once, and one by one only if it objects.
async fn refused_parameters(
    inner: &Inner,
    parameters: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let check = |chosen: Vec<(&String, &String)>| {
        let mut command = tokio::process::Command::new(inner.config.program("postgres"));
        command.arg("-D").arg(&inner.config.data_dir).args(["-C", "port"]).env("LC_ALL", "C");
        for (name, value) in chosen.iter().filter(|(n, _)| !is_owned(n) && is_valid_name(n)) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        run_program("postgres", command, CHECK_LIMIT)
    };
    if parameters.is_empty() || check(parameters.iter().collect()).await.is_ok() {
        return Ok(BTreeMap::new());
    }
    let mut refused = BTreeMap::new();
    for (name, value) in parameters {
        if let Err(error) = check(vec![(name, value)]).await {
            let text = error.message.split("FATAL:").last().unwrap_or(&error.message).trim().to_owned();
            refused.insert(name.clone(), text);
        }
    }
    if refused.is_empty() {
        return Err(failure(
            "PostgreSQL takes each of the parameters alone but not all together; nothing was written",
        ));
    }
    Ok(refused)
}

pub async fn pending_restart(session: &Session) -> Result<Vec<String>> {
    let rows = session.query("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name", &[]).await;
    Ok(rows.map_err(sql("reading which parameters wait for a restart"))?.iter().map(|r| r.get(0)).collect())
}
