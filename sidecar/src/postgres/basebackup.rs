//! Copying a whole database from another node: into a side directory first, then put in place by renaming.

use super::config::{PostgresConfig, REPLICATION_ROLE, beside, parent_of};
use super::config_files::{self, Desired};
use super::error::{Result, blocking, failure, io};
use super::rewind_mark::RewindMark;
use super::rewind_wal::KeptWal;
use super::session::{Manner, Session};
use super::state::Inner;
use super::{control, durable, lifecycle, lost, process};
use pgquorum_agent::postgres::{PgOutcome, StopMode, Upstream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Between the directory's name and a time in seconds.
const SET_ASIDE: &str = ".old-";
/// The same for a copy in the making.
const CLONE: &str = ".clone-";

/// Copies, starts the server on the copy, and removes the old directory once that runs.
pub async fn clone_and_follow(inner: &Arc<Inner>, upstream: Upstream) -> Result<PgOutcome> {
    if inner.notes().rewind == RewindMark::None && inner.config.data_dir.join("PG_VERSION").exists() {
        // Whatever it has that the source has not will be gone.
        let manner = Manner { connect: inner.patience(), ..Manner::default() };
        match Session::remote(&inner.config, upstream.ip, upstream.port, manner).await {
            Ok(source) => lost::keep_and_report(inner, &source).await,
            Err(error) => tracing::warn!(%error, "what is being given up could not be looked at"),
        }
    }
    lifecycle::stop(inner, StopMode::Fast).await?;
    inner.note(|n| n.copy_progress = Some((0, 0)));
    let progress = ClearProgress(inner.clone());
    let note = |done, total| inner.note(|n| n.copy_progress = Some((done, total)));
    let copied = copy(&inner.config, &upstream, note).await;
    drop(progress);
    inner.note(|n| n.trouble = copied.as_ref().err().map(ToString::to_string));
    copied?;
    let parameters = config_files::load(&inner.config).parameters;
    inner
        .change_settings(move |desired| {
            desired.rejoining = true;
            desired.parameters = parameters;
        })
        .await?;
    inner.note(|n| n.rewind = RewindMark::None);
    let outcome = lifecycle::start(inner, Some(upstream)).await?;
    let data_dir = inner.config.data_dir.clone();
    inner.runtime.spawn_blocking(move || remove_set_aside(&data_dir));
    Ok(outcome)
}

/// Removes the databases that copies have replaced, this one's and those of earlier attempts.
fn remove_set_aside(data_dir: &Path) {
    for directory in numbered(data_dir, SET_ASIDE) {
        match std::fs::remove_dir_all(&directory) {
            Ok(()) => tracing::info!(directory = %directory.display(), "removed the old database"),
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(%error, %directory, "the old database could not be removed; remove it by hand");
            }
        }
    }
}

/// Directories beside `data_dir` that are called like it with `infix` and a number.
fn numbered(data_dir: &Path, infix: &str) -> Vec<PathBuf> {
    let prefix = format!("{}{infix}", data_dir.file_name().unwrap_or_default().to_string_lossy());
    let entries = std::fs::read_dir(parent_of(data_dir)).into_iter().flatten().flatten();
    let ours = |name: &std::ffi::OsStr| {
        let digits = name.to_str().and_then(|n| n.strip_prefix(&prefix));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    };
    entries.filter(|e| ours(&e.file_name())).map(|e| e.path()).collect()
}

/// Ends and removes what copies left that were broken off. A copy whose sidecar was killed goes on by itself, and
/// would write into, or clean up, whatever lies at its place: so every copy has a place of its own.
fn remove_unfinished(data_dir: &Path) {
    let side = beside(data_dir, CLONE);
    process::end_left_over("pg_basebackup", |word| word.starts_with(side.as_os_str().as_encoded_bytes()));
    process::end_left_over("pg_rewind", |word| word == data_dir.as_os_str().as_encoded_bytes());
    for directory in numbered(data_dir, CLONE) {
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::warn!(%error, directory = %directory.display(), "an unfinished copy could not be removed");
        }
    }
}

/// Takes the progress out of the observation however the copy ends.
struct ClearProgress(Arc<Inner>);

impl Drop for ClearProgress {
    fn drop(&mut self) {
        self.0.note(|n| n.copy_progress = None);
    }
}

/// Copies the database of `upstream` into place, for the command line: the server must not run, and is not started.
/// A database that was there before stays beside it under the name that is returned.
pub async fn clone_from(
    config: &PostgresConfig,
    upstream: &Upstream,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Option<PathBuf>> {
    let data_dir = config.data_dir.clone();
    if let Some(running) = blocking(move || super::process::find(&data_dir)).await? {
        return Err(failure(format!(
            "a server runs on {} (process {}); stop it before its database is replaced",
            config.data_dir.display(),
            running.pid
        )));
    }
    copy(config, upstream, progress).await
}

async fn copy(
    config: &PostgresConfig,
    upstream: &Upstream,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Option<PathBuf>> {
    let number = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_micros()).unwrap_or(0);
    let side = beside(&config.data_dir, &format!("{CLONE}{number}"));
    let own = config.clone();
    blocking(move || {
        config_files::write_passfile(&own)?;
        let parent = parent_of(&own.data_dir);
        std::fs::create_dir_all(parent).map_err(io(format!("creating {}", parent.display())))?;
        remove_unfinished(&own.data_dir);
        // Nothing but a copy brings that database back, and the copy needs the room.
        if let Err(error) = KeptWal::remove_left(&own) {
            tracing::warn!(%error, "what a rewind that was broken off kept cannot be removed");
        }
        Ok(())
    })
    .await?;
    run_basebackup(config, upstream, &side, progress).await?;
    let copied = PostgresConfig { data_dir: side.clone(), ..config.clone() };
    let control = control::read(&copied).await?;
    tracing::info!(system_identifier = control.system_identifier, "the copy is complete");
    let config = config.clone();
    blocking(move || put_in_place(&config, &side)).await
}

async fn run_basebackup(
    config: &PostgresConfig,
    upstream: &Upstream,
    side: &Path,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<()> {
    let mut command = tokio::process::Command::new(config.program("pg_basebackup"));
    command.arg("-D").arg(side);
    // The program itself must remove nothing: it does so by name, maybe long after this copy was given up.
    command.args(["-X", "stream", "-c", "fast", "--progress", "--no-password", "--no-clean"]);
    let (ip, port) = (upstream.ip, upstream.port);
    command.arg("-d").arg(format!("host={ip} port={port} user={REPLICATION_ROLE} {}", super::config::ALIVE));
    command.env("PGPASSFILE", config.passfile()).env("LC_ALL", "C");
    command.env("PGAPPNAME", "pgquorum copy");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(io("starting pg_basebackup"))?;
    let stderr = child.stderr.take().ok_or_else(|| failure("pg_basebackup has no output"))?;
    let mut lines = BufReader::new(stderr).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.map_err(io("reading pg_basebackup's output"))? {
        match parse_progress(&line) {
            Some((done, total)) => progress(done, total),
            None if !line.trim().is_empty() => {
                said.push(line);
                if said.len() > 4 {
                    said.remove(0);
                }
            }
            None => {}
        }
    }
    let status = child.wait().await.map_err(io("waiting for pg_basebackup"))?;
    if status.success() {
        return Ok(());
    }
    Err(failure(format!(
        "copying the database from node {} at {} port {} failed ({status}): {}",
        upstream.node,
        upstream.ip,
        upstream.port,
        said.join(" | ")
    )))
}

/// `  12345/67890 kB (18%), 0/1 tablespace (…)` in bytes.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, rest) = line.trim().split_once(" kB")?;
    if !rest.contains("tablespace") {
        return None;
    }
    let (done, total) = numbers.split_once('/')?;
    Some((done.trim().parse::<u64>().ok()? * 1024, total.trim().parse::<u64>().ok()? * 1024))
}

/// Everything from here on is quick and not interrupted. Returns where the old database is.
fn put_in_place(config: &PostgresConfig, side: &Path) -> Result<Option<PathBuf>> {
    let copied = PostgresConfig { data_dir: side.to_path_buf(), ..config.clone() };
    // The source's settings came along; the cluster's parameters among them are the newest.
    let parameters = config_files::load(&copied).parameters;
    let desired = Desired { rejoining: true, parameters, ..Desired::default() };
    config_files::ensure_standby_signal(&copied)?;
    // The password file is beside the place where the directory will be, not beside the copy.
    config_files::write_data_dir(&copied, &desired)?;
    let place = &config.data_dir;
    let empty = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let mut old = None;
    if empty(place) {
        std::fs::remove_dir(place).map_err(io(format!("removing the empty {}", place.display())))?;
    } else if place.exists() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0);
        let aside = beside(place, &format!("{SET_ASIDE}{seconds}"));
        durable::rename(place, &aside).map_err(io(format!(
            "setting {} aside as {} (it must not be a mount point: use a directory below it)",
            place.display(),
            aside.display()
        )))?;
        old = Some(aside);
    }
    durable::rename(side, place).map_err(io(format!("putting the copy in place as {}", place.display())))?;
    durable::remove(&config.rewind_marker()).map_err(io("removing the mark of an interrupted rewind"))?;
    Ok(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_unfinished_copies_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let kept = ["data", "data.clone", "data.clone-", "data.clone-1x", "data2.clone-1", "data.old-1"];
        for name in kept.iter().chain(&["data.clone-17", "data.clone-18"]) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        remove_unfinished(&data);
        let left = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name());
        let left: std::collections::BTreeSet<String> = left.map(|n| n.into_string().unwrap()).collect();
        assert_eq!(left, kept.iter().map(|n| (*n).to_owned()).collect());
    }

    #[test]
    fn progress_lines_are_read() {
        assert_eq!(
            parse_progress("  1024/4096 kB (25%), 0/1 tablespace (...base/5/1)"),
            Some((1 << 20, 4 << 20))
        );
        assert_eq!(parse_progress("4096/4096 kB (100%), 1/1 tablespace"), Some((4 << 20, 4 << 20)));
        assert_eq!(parse_progress("pg_basebackup: error: 1/2 kB is odd"), None);
        assert_eq!(parse_progress("waiting for checkpoint"), None);
    }
}
