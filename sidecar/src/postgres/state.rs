//! What the supervisor's tasks share.

use super::PgEvent;
use super::config::PostgresConfig;
use super::config_files::{self, Desired};
use super::error::{Result, blocking, not_running};
use super::knock::Door;
use super::process::Postmaster;
use super::rewind_mark::RewindMark;
use super::session::{Manner, Session};
use super::weak_commits::WeakCommits;
use nix::sys::signal::Signal;
use pgquorum_agent::types::Timeline;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

pub struct Inner {
    pub config: PostgresConfig,
    pub process: watch::Sender<Option<Postmaster>>,
    pub events: mpsc::Sender<PgEvent>,
    /// Held by the process operation that runs; a new one gets it when the old one's work is taken down.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// Something changed: observe now.
    pub kick: Notify,
    pub runtime: tokio::runtime::Handle,
    /// What the configuration files say. Held while they are written.
    desired: Arc<tokio::sync::Mutex<Desired>>,
    running: Mutex<Running>,
    notes: Mutex<Notes>,
    /// Known for certain: the server makes commits wait for standbys. Whether it does is a flag that the checkpointer
    /// keeps, from its start on or when it comes to read the configuration again.
    pub commits_wait: AtomicBool,
    /// Whether the server lets new sessions in.
    pub door: Door,
    pub weak_commits: watch::Sender<Vec<WeakCommits>>,
    /// How long an operation waits for another node's server, in milliseconds.
    patience: AtomicU64,
    /// A kept session for the operations on the failover path.
    kept: tokio::sync::Mutex<Option<Arc<Session>>>,
}

/// The operations under way.
#[derive(Default)]
pub struct Running {
    /// With the number of the operation, 0 for one that the supervisor began itself.
    pub process: Option<(u64, AbortHandle)>,
    /// A process operation that must not be cut short: a later one waits for its end.
    pub sealed: Option<AbortHandle>,
    pub beside: HashMap<&'static str, AbortHandle>,
}

/// What operations tell the observer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub copy_progress: Option<(u64, u64)>,
    pub trouble: Option<String>,
    /// A rewind of the data directory that is not over.
    pub rewind: RewindMark,
    /// The server answered since its process began: it is not `Starting` any more.
    pub answered: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub fn new(config: PostgresConfig, events: mpsc::Sender<PgEvent>) -> Arc<Inner> {
        let desired = config_files::load(&config);
        let rewind = RewindMark::load(&config);
        Arc::new(Inner {
            config,
            process: watch::Sender::new(None),
            events,
            gate: Arc::default(),
            kick: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
            desired: Arc::new(tokio::sync::Mutex::new(desired)),
            running: Mutex::default(),
            notes: Mutex::new(Notes { rewind, ..Notes::default() }),
            commits_wait: AtomicBool::new(false),
            door: Door::default(),
            weak_commits: watch::Sender::default(),
            patience: AtomicU64::new(1000),
            kept: tokio::sync::Mutex::default(),
        })
    }

    pub fn postmaster(&self) -> Option<Postmaster> {
        *self.process.borrow()
    }

    pub fn require_postmaster(&self, what: &str) -> Result<Postmaster> {
        self.postmaster().ok_or_else(|| not_running(what))
    }

    pub fn running(&self) -> MutexGuard<'_, Running> {
        lock(&self.running)
    }

    pub fn notes(&self) -> Notes {
        lock(&self.notes).clone()
    }

    pub fn note(&self, change: impl FnOnce(&mut Notes)) {
        let changed = {
            let mut notes = lock(&self.notes);
            let before = notes.clone();
            change(&mut notes);
            *notes != before
        };
        if changed {
            self.kick.notify_one();
        }
    }

    pub fn abort_beside(&self) {
        for (_, task) in self.running().beside.drain() {
            task.abort();
        }
    }

    pub fn abort_all(&self) {
        self.abort_beside();
        let mut running = self.running();
        let sealed = running.sealed.take();
        for task in running.process.take().map(|(_, task)| task).into_iter().chain(sealed) {
            task.abort();
        }
    }

    pub fn set_patience(&self, patience: Duration) {
        let ms = patience.clamp(Duration::from_millis(300), Duration::from_secs(5)).as_millis();
        self.patience.store(ms as u64, Ordering::Relaxed);
    }

    /// How long to wait for an answer of another node's server.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.load(Ordering::Relaxed))
    }

    /// From now on this operation is not cut short. False if a later one has replaced it already.
    pub fn seal(&self, id: u64) -> bool {
        let mut running = self.running();
        let own = running.process.take_if(|(running, _)| *running == id).map(|(_, task)| task);
        running.sealed = own;
        running.sealed.is_some()
    }

    /// The operation may be replaced again. False if a later one is waiting for it to end.
    pub fn unseal(&self, id: u64) -> bool {
        let mut running = self.running();
        let own = running.sealed.take();
        if running.process.is_some() {
            return false;
        }
        running.process = own.map(|task| (id, task));
        true
    }

    pub async fn desired(&self) -> Desired {
        self.desired.lock().await.clone()
    }

    /// The timeline on which this server was a primary, while clients have to wait for what becomes of it.
    pub async fn primary_on(&self) -> Option<Timeline> {
        self.desired.lock().await.primary_on
    }

    /// Changes `pgquorum.conf` durably. Whether the file changed. A change that has begun completes even if the caller
    /// is cancelled, so files and memory agree.
    pub async fn change_settings(&self, change: impl FnOnce(&mut Desired) + Send + 'static) -> Result<bool> {
        self.write(change, config_files::write_settings).await
    }

    /// As [`Inner::change_settings`], with all the other files as well.
    pub async fn write_files(&self, change: impl FnOnce(&mut Desired) + Send + 'static) -> Result<()> {
        self.write(change, |config, desired| {
            config_files::write_configuration(config, desired)?;
            config_files::ensure_standby_signal(config)
        })
        .await
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Desired) + Send + 'static,
        write: impl FnOnce(&PostgresConfig, &Desired) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut desired = self.desired.clone().lock_owned().await;
        let config = self.config.clone();
        blocking(move || {
            let mut next = desired.clone();
            change(&mut next);
            let written = write(&config, &next)?;
            *desired = next;
            Ok(written)
        })
        .await
    }

    /// Marks, durably, how far a rewind is.
    pub async fn mark_rewind(&self, mark: RewindMark) -> Result<()> {
        let config = self.config.clone();
        blocking(move || mark.store(&config)).await?;
        self.note(|n| n.rewind = mark);
        Ok(())
    }

    /// The server is consistent: what a rewind brought fits together.
    pub async fn is_consistent(&self) -> Result<()> {
        match self.notes().rewind {
            RewindMark::Replaying(..) => self.mark_rewind(RewindMark::None).await,
            _ => Ok(()),
        }
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self, postmaster: Postmaster) -> Result<()> {
        if postmaster.signal(Signal::SIGHUP) {
            Ok(())
        } else {
            Err(not_running("a change of the configuration"))
        }
    }

    /// The kept session, opened if there is none.
    pub async fn session(&self) -> Result<Arc<Session>> {
        let mut kept = self.kept.lock().await;
        if let Some(session) = kept.as_ref().filter(|s| !s.is_closed()) {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::local(&self.config, Manner::default()).await?);
        *kept = Some(session.clone());
        Ok(session)
    }

    /// Sends an observation unless the driver is behind; it will see a later one.
    pub fn emit_observation(&self, event: PgEvent) {
        let _ = self.try_emit(event);
    }

    /// Sends an event unless the driver is behind. Whether it was sent.
    pub fn try_emit(&self, event: PgEvent) -> bool {
        self.events.capacity() > self.events.max_capacity() / 2 && self.events.try_send(event).is_ok()
    }

    /// Sends an event that must arrive.
    pub fn emit(&self, event: PgEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            let events = self.events.clone();
            self.runtime.spawn(async move {
                let _ = events.send(event).await;
            });
        }
    }
}
