//! Start, adopt, follow, stop.

use super::PgEvent;
use super::error::{Result, blocking, failure, io, no_data, not_running, timed_out};
use super::process::{self, Postmaster, Status};
use super::rewind_mark::RewindMark;
use super::session::{Manner, Session};
use super::state::Inner;
use super::{config_files, control, cut, shadows, timeline};
use nix::sys::signal::Signal;
use pgquorum_agent::postgres::{PgOutcome, StopMode, Upstream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const EXIT_POLL: Duration = Duration::from_millis(20);
const FAST_STOP_LIMIT: Duration = Duration::from_secs(30);
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(5);
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Takes charge of a server that runs already.
pub async fn adopt(inner: &Arc<Inner>) -> Result<bool> {
    let data_dir = inner.config.data_dir.clone();
    let Some(found) = blocking(move || process::find(&data_dir)).await? else { return Ok(false) };
    let config = inner.config.clone();
    blocking(move || {
        control::require_own(&config)?;
        config_files::write_passfile(&config)?;
        config_files::ensure_standby_signal(&config)
    })
    .await?;
    tracing::info!(pid = found.pid, "adopted the running server");
    // A standby waits for nobody in vain since its start; what a primary was told last may not have arrived.
    inner.commits_wait.store(inner.desired().await.sync.is_none(), Ordering::SeqCst);
    attach(inner, found, None);
    // The files may have been changed just before the last sidecar went.
    inner.reload(found)?;
    Ok(true)
}

/// Watches the process to its end: as its parent, so that no zombie is left, or by its entry in `/proc`.
fn attach(inner: &Arc<Inner>, postmaster: Postmaster, child: Option<tokio::process::Child>) {
    inner.note(|n| n.answered = false);
    inner.process.send_replace(Some(postmaster));
    inner.kick.notify_one();
    let weak = Arc::downgrade(inner);
    inner.runtime.spawn(async move {
        let status = match child {
            Some(mut child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("unknown ({error})"),
            },
            None => {
                let mut interval = tokio::time::interval(EXIT_POLL);
                while postmaster.is_alive() {
                    interval.tick().await;
                    if weak.strong_count() == 0 {
                        return;
                    }
                }
                "unknown (not started by this process)".to_owned()
            }
        };
        let Some(inner) = weak.upgrade() else { return };
        tracing::info!(pid = postmaster.pid, %status, "PostgreSQL ended");
        inner.process.send_replace(None);
        inner.abort_beside();
        inner.note(|n| n.answered = false);
        inner.emit(PgEvent::Exited { pid: postmaster.pid, status });
        inner.kick.notify_one();
    });
}

/// Starts the server as a standby that receives from `upstream`, or from nobody. Does nothing if it runs.
pub async fn start(inner: &Arc<Inner>, upstream: Option<Upstream>) -> Result<PgOutcome> {
    let started = start_inner(inner, upstream).await;
    inner.note(|n| n.trouble = started.as_ref().err().map(ToString::to_string));
    started.map(|()| PgOutcome::Done)
}

async fn start_inner(inner: &Arc<Inner>, upstream: Option<Upstream>) -> Result<()> {
    if inner.postmaster().is_some() || adopt(inner).await? {
        if process::status(&inner.config.data_dir) != Some(Status::Stopping) {
            return wait_until_ready(inner, 0).await;
        }
        // A stop that was given up half-way goes on by itself; it ends, or is made to.
        wait_for_exit(inner, StopMode::Fast).await?;
    }
    let config = inner.config.clone();
    blocking(move || {
        process::check_data_dir(&config)?;
        control::require_own(&config)
    })
    .await?;
    let control = control::read(&inner.config).await?;
    let floors = control.floors.clone();
    let rewound = matches!(inner.notes().rewind, RewindMark::Replaying(..));
    inner
        .write_files(move |desired| {
            desired.upstream = upstream;
            // Once it is, it stays so until it has replayed the beginning of the newest epoch.
            desired.rejoining |= rewound || desired.primary_on.is_some();
            desired.sync = None;
            desired.floors = floors;
        })
        .await?;
    let hid = shadows::remove_shadows(&inner.config).await?;
    if !hid.is_empty() {
        tracing::warn!(
            segments = ?hid,
            "removed WAL segments that break off before their timeline begins; the timeline before has that part whole"
        );
    }
    let empty = shadows::remove_empty_branches(&inner.config, &control).await?;
    if !empty.is_empty() {
        tracing::info!(segments = ?empty, "removed WAL segments of timelines that have nothing of their own in them");
    }
    let config = inner.config.clone();
    // Last: a history stays as long as there is a segment of its timeline.
    let removed = blocking(move || {
        timeline::remove_futures(&config.wal_dir(), control.timeline())
            .map_err(io("cleaning up timeline histories"))
    })
    .await?;
    if !removed.is_empty() {
        tracing::info!(?removed, "removed histories of timelines that this server has nothing of");
    }
    let data_dir = inner.config.data_dir.clone();
    if blocking(move || process::remove_empty_lock(&data_dir).map_err(io("removing an empty postmaster.pid")))
        .await?
    {
        tracing::warn!("removed an empty postmaster.pid, left by a server that was killed while it started");
    }
    let offset = process::log_length(&inner.config);
    inner.commits_wait.store(true, Ordering::SeqCst);
    let child = process::spawn(&inner.config, &[])?;
    let pid = child.id().ok_or_else(|| failure("PostgreSQL ended as soon as it was started"))?;
    match Postmaster::of(pid) {
        Some(postmaster) => attach(inner, postmaster, Some(child)),
        None => return Err(died(inner, offset)),
    }
    tracing::info!(pid, "started PostgreSQL as a standby");
    wait_until_ready(inner, offset).await
}

fn died(inner: &Inner, offset: u64) -> pgquorum_agent::postgres::PgFailure {
    let tail = process::log_tail(&inner.config, offset);
    let said = if tail.is_empty() {
        "it wrote nothing to its log".to_owned()
    } else {
        format!("its log says: {tail}")
    };
    let advice = advice(&tail, inner.config.port).map(|a| format!(": {a}")).unwrap_or_default();
    let message = format!(
        "PostgreSQL ended while it was starting{advice}; {said} (see {})",
        inner.config.log_file.display()
    );
    if DAMAGE.iter().any(|sign| tail.contains(sign)) { no_data(message) } else { failure(message) }
}

/// What to do about the usual causes, by what PostgreSQL says of them.
pub(super) fn advice(tail: &str, port: u16) -> Option<String> {
    if tail.contains("could not create any TCP/IP sockets") {
        Some(format!(
            "port {port} is in use by another program (find it with: ss -ltnp 'sport = :{port}'), or the address is not \
             this machine's"
        ))
    } else if tail.contains("could not access file") {
        Some(
            "a library of shared_preload_libraries is not installed for this PostgreSQL; pgquorum comes with `make \
             install`, or is copied from another node"
                .to_owned(),
        )
    } else if tail.contains("No space left on device") {
        Some("the disk is full; make room or enlarge it".to_owned())
    } else {
        None
    }
}

/// What PostgreSQL says when its data cannot be used any more: no later start can succeed. Anything else (a port in
/// use, a full disk, a wrong parameter) may pass, and is no reason to replace a database.
const DAMAGE: &[&str] = &[
    "could not locate a valid checkpoint record",
    "could not locate required checkpoint record",
    "incorrect checksum in control file",
    "control file appears to be corrupt",
    "invalid checkpoint record",
    "could not open file \"global/pg_control\"",
];

const WRONG_PASSWORD: &str = "PostgreSQL refuses the sidecar's password for the role postgres: secrets.toml is not that of \
                              this cluster. Copy it from a node that works, then start the sidecar again";

/// Waits until the server answers. Recovery may take long: the bound is that of the operation.
pub async fn wait_until_ready(inner: &Arc<Inner>, offset: u64) -> Result<()> {
    let mut process = inner.process.subscribe();
    let mut interval = tokio::time::interval(Duration::from_millis(4));
    loop {
        if process::status(&inner.config.data_dir) == Some(Status::Ready) {
            match Session::local(&inner.config, Manner::default()).await {
                Ok(_) => {
                    inner.is_consistent().await?;
                    inner.note(|n| {
                        n.answered = true;
                        n.trouble = None;
                    });
                    return Ok(());
                }
                // Waiting does not help against a wrong password.
                Err(error) if error.message.contains("[28P01]") => {
                    inner.note(|n| n.trouble = Some(WRONG_PASSWORD.to_owned()));
                    return Err(failure(WRONG_PASSWORD));
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            gone = process.wait_for(Option::is_none) => {
                drop(gone);
                return Err(died(inner, offset));
            }
            _ = interval.tick() => {}
        }
    }
}

/// Receives WAL from `upstream`, starting the server if need be. Streaming itself is observed, not waited for.
pub async fn follow(inner: &Arc<Inner>, upstream: Upstream) -> Result<PgOutcome> {
    let stopping = process::status(&inner.config.data_dir) == Some(Status::Stopping);
    let Some(postmaster) = inner.postmaster().filter(|_| !stopping) else {
        return start(inner, Some(upstream)).await;
    };
    // A server that does not answer yet is in recovery: it was started as a standby.
    let mut answering = None;
    if process::status(&inner.config.data_dir) == Some(Status::Ready) {
        let session = inner.session().await?;
        let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await;
        if !row.map_err(super::error::sql("asking whether the server is in recovery"))?.get::<_, bool>(0) {
            return Err(failure(
                "this server is a primary and cannot follow another while it runs; it must be stopped first",
            ));
        }
        answering = Some(session);
    }
    let changed = inner
        .change_settings(move |desired| {
            desired.upstream = Some(upstream);
            desired.sync = None;
        })
        .await?;
    inner.reload(postmaster)?;
    if let (true, Some(session)) = (changed, answering)
        && let Err(error) = cut::free_replay(&session).await
    {
        tracing::warn!(%error, "looking for sessions that hold replay up");
    }
    Ok(PgOutcome::Done)
}

/// Receives WAL from `upstream` on a server that is starting, under a name that acknowledges nothing: until it answers
/// nobody can say whether its history is the upstream's. Whoever sees it answer asks it to follow.
pub async fn feed(inner: &Arc<Inner>, upstream: Upstream) -> Result<PgOutcome> {
    let postmaster = inner.require_postmaster("giving it WAL")?;
    if process::status(&inner.config.data_dir) != Some(Status::Starting) {
        return Err(failure("this server is not starting; it needs no WAL to come up"));
    }
    inner
        .change_settings(move |desired| {
            desired.upstream = Some(upstream);
            desired.rejoining = true;
            desired.sync = None;
        })
        .await?;
    inner.reload(postmaster)?;
    Ok(PgOutcome::Done)
}

/// Stops the server and leaves the directory so that it starts as a standby without an upstream.
pub async fn stop(inner: &Arc<Inner>, mode: StopMode) -> Result<PgOutcome> {
    if inner.postmaster().is_some() || adopt(inner).await? {
        wait_for_exit(inner, mode).await?;
    }
    if inner.config.data_dir.join("PG_VERSION").exists() && inner.notes().rewind != RewindMark::Writing {
        inner
            .write_files(|desired| {
                desired.upstream = None;
                desired.sync = None;
            })
            .await?;
    }
    Ok(PgOutcome::Done)
}

/// Signals the server and waits for its end, with harder means as time passes.
async fn wait_for_exit(inner: &Arc<Inner>, mode: StopMode) -> Result<()> {
    let Some(postmaster) = inner.postmaster() else { return Ok(()) };
    let mut process = inner.process.subscribe();
    if mode == StopMode::Fast {
        postmaster.signal(Signal::SIGINT);
        let gone = tokio::time::timeout(FAST_STOP_LIMIT, process.wait_for(Option::is_none)).await.is_ok();
        if gone {
            return Ok(());
        }
        tracing::warn!(limit = ?FAST_STOP_LIMIT, "the fast shutdown takes too long: ending the server at once");
    }
    postmaster.signal(Signal::SIGQUIT);
    let gone = tokio::time::timeout(IMMEDIATE_STOP_LIMIT, process.wait_for(Option::is_none)).await.is_ok();
    if gone {
        return Ok(());
    }
    tracing::warn!("the server does not obey: killing its processes");
    postmaster.kill_all();
    match tokio::time::timeout(KILL_LIMIT, process.wait_for(Option::is_none)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(timed_out(format!(
            "process {} did not end even after SIGKILL: the storage under {} probably does not answer. Check the disk \
             and the kernel log",
            postmaster.pid,
            inner.config.data_dir.display()
        ))),
    }
}

/// Stops and starts the server as the standby it is, with its present upstream.
pub async fn restart_standby(inner: &Arc<Inner>) -> Result<()> {
    let present = inner.desired().await;
    stop(inner, StopMode::Fast).await?;
    start(inner, present.upstream).await?;
    inner.require_postmaster("the restart").map(drop).map_err(|_| not_running("the restart"))
}
