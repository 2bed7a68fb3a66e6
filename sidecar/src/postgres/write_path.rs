//! Watching how writes go, without ever waiting for one: a row that a primary commits locally, on a session of its own,
//! a small file beside data and WAL, written by a thread of its own, and a knock for a new session (`knock.rs`). A call that a hung disk holds cannot be
//! cancelled; so each is begun by somebody who has nothing else to do, and others look at how long it takes.

use super::config::PostgresConfig;
use super::session::{Manner, Repeating, Session};
use super::state::Inner;
use pgquorum_agent::write_path::WritePath;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

/// What takes less than this is not reported at all.
const QUICK: Duration = Duration::from_millis(200);
/// Who holds the row's lock for longer is no reason to believe that the disk hangs.
const LOCK_LIMIT: &str = "SET lock_timeout = '200ms'";
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// The same row over and over, so that it stays in its page.
const HEARTBEAT: &str = "INSERT INTO quorum.heartbeat AS h (one, node, at) VALUES (true, $1::int8, \
    pg_catalog.clock_timestamp()) ON CONFLICT (one) DO UPDATE SET node = EXCLUDED.node, at = EXCLUDED.at";
/// Copies and rewinds leave files out whose names begin so.
const PROBE_FILE: &str = "pgsql_tmp_pgquorum_probe";
/// More than the block by which PostgreSQL enlarges a file, so that the sidecar knows of a full disk first.
const PROBE_BYTES: usize = 16 * 1024;

/// What one writer says of itself.
#[derive(Debug, Default)]
struct Gauge {
    begun: Option<Instant>,
    refused: Option<String>,
}

type Shared = Arc<Mutex<Gauge>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(gauge: &Mutex<Gauge>) {
    lock(gauge).begun = Some(Instant::now());
}

fn end(gauge: &Mutex<Gauge>, refused: Option<String>) {
    *lock(gauge) = Gauge { begun: None, refused };
}

fn waits(gauge: &Mutex<Gauge>) -> u64 {
    reported(lock(gauge).begun.map_or(Duration::ZERO, |at| at.elapsed()))
}

fn reported(waits: Duration) -> u64 {
    if waits < QUICK { 0 } else { u64::try_from(waits.as_millis()).unwrap_or(u64::MAX) }
}

/// Since when the leader has known that it leads. Only then the row is written: what a deposed primary wrote on its own
/// would have to be rewound.
#[derive(Clone, Default)]
pub struct Pulse(Arc<(Mutex<Option<Instant>>, Notify)>);

impl Pulse {
    pub fn renewed(&self) {
        if lock(&self.0.0).replace(Instant::now()).is_none() {
            self.0.1.notify_one();
        }
    }

    pub fn ended(&self) {
        *lock(&self.0.0) = None;
    }

    fn beats(&self, within: Duration) -> bool {
        lock(&self.0.0).is_some_and(|at| at.elapsed() < within)
    }

    /// Waits while this node does not lead.
    async fn begun(&self) {
        while lock(&self.0.0).is_none() {
            self.0.1.notified().await;
        }
    }
}

/// What the writers say of themselves.
#[derive(Default)]
pub struct Gauges {
    commit: Shared,
    data: Shared,
    wal: Shared,
    told: Mutex<WritePath>,
}

impl Gauges {
    /// How writes go, if that has changed since it was asked last.
    pub fn if_changed(&self, inner: &Inner) -> Option<WritePath> {
        let (data, wal) = (&self.data, &self.wal);
        let path = WritePath {
            commit_waits: waits(&self.commit),
            commit_refused: lock(&self.commit).refused.clone(),
            door_waits: reported(inner.door.waits()),
            disk_waits: waits(data).max(waits(wal)),
            disk_refused: lock(data).refused.clone().or_else(|| lock(wal).refused.clone()),
        };
        let mut told = lock(&self.told);
        (path != *told).then(|| told.clone_from(&path)).map(|()| path)
    }
}

/// Writes, and says how it goes, until the supervisor ends. The row is committed in `runtime`.
pub fn start(inner: &Arc<Inner>, gauges: &Gauges, pulse: Pulse, runtime: &Handle) -> JoinHandle<()> {
    let supervised = Arc::downgrade(inner);
    start_probe("pgquorum-data", &supervised, &gauges.data, |config| Some(config.data_dir.clone()));
    start_probe("pgquorum-wal", &supervised, &gauges.wal, separate_wal);
    runtime.spawn(commit_rows(inner.clone(), pulse, gauges.commit.clone()))
}

/// Half of what the cluster waits for a silent node.
fn pause(inner: &Inner) -> Duration {
    inner.patience() / 2
}

async fn commit_rows(inner: Arc<Inner>, pulse: Pulse, gauge: Shared) {
    let mut session: Option<Repeating> = None;
    loop {
        let pause = pause(&inner);
        tokio::time::sleep(pause).await;
        if !pulse.beats(pause) {
            // Nothing is asked for, and what was refused before is of no interest.
            end(&gauge, None);
            pulse.begun().await;
            continue;
        }
        let mut open = match session.take().filter(|s| !s.session().is_closed()) {
            Some(open) => open,
            None => match open_session(&inner).await {
                Ok(open) => open,
                Err(error) => {
                    tracing::debug!(%error, "no session for the heartbeat row");
                    tokio::time::sleep(CONNECT_AGAIN).await;
                    continue;
                }
            },
        };
        let node = inner.config.node.cast_signed();
        begin(&gauge);
        let refused = match open.say(&[&node]).await {
            Ok(_) => None,
            Err(error) => refusal(&error),
        };
        end(&gauge, refused);
        session = Some(open);
    }
}

async fn open_session(inner: &Inner) -> super::error::Result<Repeating> {
    let session = Session::local(&inner.config, Manner::default()).await?;
    let limited = session.batch_execute(LOCK_LIMIT).await;
    limited.map_err(super::error::sql("preparing the heartbeat row"))?;
    Ok(Repeating::new(session, HEARTBEAT))
}

/// The text, if the server could not write. Everything else (no such table, a lock, a shutdown) says nothing of disks.
fn refusal(error: &tokio_postgres::Error) -> Option<String> {
    let Some(db) = error.as_db_error() else {
        tracing::debug!(%error, "the heartbeat row got no answer");
        return None;
    };
    let disk = [SqlState::DISK_FULL, SqlState::IO_ERROR].contains(db.code());
    if !disk {
        tracing::debug!(%error, "the heartbeat row was refused");
    }
    disk.then(|| format!("{} [{}]", db.message(), db.code().code()))
}

/// The WAL's directory, if it lies on another disk than the data.
fn separate_wal(config: &PostgresConfig) -> Option<PathBuf> {
    let (data, wal) = (std::fs::metadata(&config.data_dir).ok()?, std::fs::metadata(config.wal_dir()).ok()?);
    (data.dev() != wal.dev()).then(|| config.wal_dir())
}

fn start_probe(
    name: &str,
    supervised: &Weak<Inner>,
    gauge: &Shared,
    directory: impl Fn(&PostgresConfig) -> Option<PathBuf> + Send + 'static,
) {
    let (supervised, gauge) = (supervised.clone(), gauge.clone());
    let work = move || {
        while let Some(inner) = supervised.upgrade() {
            let (pause, config) = (pause(&inner), inner.config.clone());
            drop(inner);
            begin(&gauge);
            // A directory without a database (yet) is nobody's to write into.
            let there = directory(&config).filter(|_| config.data_dir.join("PG_VERSION").exists());
            let refused = there.and_then(|dir| probe(&dir).err().map(|e| cannot_write(&dir, &e)));
            end(&gauge, refused);
            std::thread::sleep(pause);
        }
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::warn!(%error, "the disk is not watched: no thread for it");
    }
}

fn cannot_write(dir: &Path, error: &io::Error) -> String {
    format!("cannot write in {}: {error}", dir.display())
}

/// Writes a little to the disk, and gives the room back.
fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE_FILE);
    let mut options = std::fs::OpenOptions::new();
    // The directory may just be gone, replaced by a copy.
    let mut file = match options.write(true).create(true).truncate(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let written = file.write_all(&[0x5a; PROBE_BYTES]).and_then(|()| file.sync_all());
    let emptied = file.set_len(0);
    written.and(emptied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_no_bytes_and_a_missing_directory_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(PROBE_FILE)).unwrap().len(), 0);
        probe(&dir.path().join("gone")).unwrap();
    }

    #[test]
    fn a_disk_that_is_full_is_told_from_one_that_writes() {
        // Every write to this device says that there is no room.
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(PROBE_FILE)).unwrap();
        let refused = probe(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(cannot_write(dir.path(), &refused).contains("No space left"), "{refused}");
    }

    #[test]
    fn only_a_write_that_takes_its_time_is_reported() {
        let gauge = Mutex::new(Gauge::default());
        begin(&gauge);
        assert_eq!(waits(&gauge), 0);
        lock(&gauge).begun = Instant::now().checked_sub(Duration::from_millis(900));
        assert!((900..2000).contains(&waits(&gauge)));
        end(&gauge, Some("full".to_owned()));
        assert_eq!((waits(&gauge), lock(&gauge).refused.as_deref()), (0, Some("full")));
    }
}
