//! The supervisor of the PostgreSQL server beside this node: it observes the server and does to it what the agent
//! decides ([`pgquorum_agent::postgres`] is the contract).
//!
//! A server is only ever started as a standby: `standby.signal` is in the data directory at all times, also while the
//! server is a primary. `restart_after_crash` is off, so a crash of any server process ends the server and is seen at
//! once. Nothing but [`PgOp::Promote`] makes it writable.
//!
//! [`PgOp::Promote`]: pgquorum_agent::postgres::PgOp::Promote

mod barrier;
mod basebackup;
pub mod bootstrap;
mod config;
mod config_files;
mod control;
mod cut;
mod durable;
mod epoch;
mod error;
mod gathering;
mod knock;
mod lease;
mod lifecycle;
mod lost;
mod observe;
mod ops;
mod parameters;
mod process;
mod promote;
mod rewind;
mod rewind_mark;
mod rewind_wal;
mod session;
mod shadows;
mod slots;
mod state;
mod sync;
mod timeline;
mod weak_commits;
mod write_path;

pub use basebackup::clone_from;
pub use config::{PostgresConfig, Secrets};
pub use error::PostgresError;
pub use session::{ConnectError, Manner, Session};
pub use weak_commits::WeakCommits;

/// Where the WAL of a stopped server ends, as far as can be told without starting it.
///
/// # Errors
/// There is no database that could be started by itself: none at all, one that a rewind or a copy has left unusable, or
/// one that needs WAL of another server first.
pub async fn stopped_at(config: &PostgresConfig) -> Result<(Timeline, Lsn)> {
    process::check_data_dir(config)?;
    if let RewindMark::Replaying(timeline, lsn) = RewindMark::load(config) {
        return Err(error::no_data(format!(
            "{} was rewound and has not replayed the WAL up to {lsn} of timeline {timeline} that makes it whole; that may \
             have to come from another node ({} is there)",
            config.data_dir.display(),
            config.rewind_marker().display()
        )));
    }
    if process::find(&config.data_dir)?.is_some() {
        return Err(error::failure(format!(
            "PostgreSQL runs in {}: stop it first, with pg_ctl stop -m immediate",
            config.data_dir.display()
        )));
    }
    let control = control::read(config).await?;
    Ok(control::wal_end(config, &control).await)
}

use error::Result;
use lease::Lease;
use pgquorum_agent::lost::LostReport;
use pgquorum_agent::postgres::{PgFailure, PgObservation, PgOp, PgOutcome, StopMode};
use pgquorum_agent::types::{Lsn, Timeline};
use pgquorum_agent::write_path::WritePath;
use rewind_mark::RewindMark;
use state::Inner;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use write_path::{Gauges, Pulse};

/// What the supervisor reports.
#[derive(Debug)]
pub enum PgEvent {
    /// The server's state changed, or half a second passed.
    Observed(Box<PgObservation>),
    /// An operation ended. Every submitted operation ends exactly once.
    Done { id: u64, result: std::result::Result<PgOutcome, PgFailure> },
    /// Transactions that are being given up, or were; the report is on disk.
    Lost(Box<LostReport>),
    /// The server's process is gone.
    Exited { pid: u32, status: String },
}

/// Events that wait for the driver. Observations are skipped while many wait; results never are.
const EVENTS_MAX: usize = 256;

/// A handle on the server. Clones share one supervisor; it ends with the last of them, the server goes on.
#[derive(Clone)]
pub struct Postgres {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<Inner>,
    lease: Lease,
    pulse: Pulse,
    gauges: Gauges,
    tasks: Vec<AbortHandle>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inner.abort_all();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Postgres {
    /// Takes charge of the data directory, and of the server on it if one runs. Starts nothing. The lease and the
    /// heartbeat row are told to the server in the runtime `control`.
    pub async fn supervise(
        config: PostgresConfig,
        control: Handle,
    ) -> std::result::Result<(Postgres, mpsc::Receiver<PgEvent>), PostgresError> {
        if nix::unistd::geteuid().is_root() {
            return Err(PostgresError::Root);
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let inner = Inner::new(config, events);
        lifecycle::adopt(&inner).await?;
        lost::report_again(&inner);
        let (lease, pulse, gauges) = (Lease::default(), Pulse::default(), Gauges::default());
        let tasks = vec![
            tokio::spawn(observe::run(inner.clone())).abort_handle(),
            control.spawn(lease::run(inner.clone(), lease.clone())).abort_handle(),
            write_path::start(&inner, &gauges, pulse.clone(), &control).abort_handle(),
            tokio::spawn(knock::run(inner.clone())).abort_handle(),
        ];
        Ok((Postgres { shared: Arc::new(Shared { inner, lease, pulse, gauges, tasks }) }, receiver))
    }

    /// Begins the operation and returns at once; its end is reported as [`PgEvent::Done`] with this `id`.
    pub fn submit(&self, id: u64, op: PgOp) {
        ops::submit(&self.shared.inner, id, op);
    }

    /// Reports that the operation was not begun.
    pub fn refuse(&self, id: u64, why: String) {
        self.shared.inner.emit(PgEvent::Done { id, result: Err(error::failure(why)) });
    }

    /// What was committed weakly on this server; nothing while it does not run.
    pub fn weak_commits(&self) -> watch::Receiver<Vec<WeakCommits>> {
        self.shared.inner.weak_commits.subscribe()
    }

    /// How writes go, if that has changed since it was asked last.
    pub fn write_path_if_changed(&self) -> Option<WritePath> {
        self.shared.gauges.if_changed(&self.shared.inner)
    }

    /// The cluster's log holds this report of lost transactions.
    pub fn lost_reported(&self, id: &str) {
        lost::reported(&self.shared.inner, id);
    }

    /// Something has happened outside that the server may show, too: it is looked at at once, and often for a while.
    pub fn look(&self) {
        self.shared.inner.kick.notify_one();
    }

    /// How long the cluster waits for a node that is silent; so long, too, is waited for another node's server.
    pub fn set_patience(&self, node_timeout_ms: u64) {
        self.shared.inner.set_patience(std::time::Duration::from_millis(node_timeout_ms));
    }

    /// Renews the server's lease: it lasts `ms` from `sent_at_ns` (`CLOCK_BOOTTIME`) on. Only the newest call counts.
    pub fn renew_lease(&self, epoch: u64, sent_at_ns: u64, ms: u64) {
        self.shared.pulse.renewed();
        self.shared.lease.renew(epoch, sent_at_ns, ms);
    }

    /// Ends the lease of this epoch and of all before it, ahead of any renewal that waits.
    pub fn revoke_lease(&self, epoch: u64, leader_hint: String) {
        self.shared.pulse.ended();
        self.shared.lease.revoke(epoch, leader_hint);
    }

    /// Ends the supervision: cancels what is under way and, if a mode is given, stops the server. Without a mode the
    /// server runs on and the next [`Postgres::supervise`] adopts it.
    pub async fn shutdown(&self, mode: Option<StopMode>) -> Result<()> {
        let inner = &self.shared.inner;
        inner.abort_all();
        let stopped = match mode {
            Some(mode) => {
                let _gate = inner.gate.clone().lock_owned().await;
                lifecycle::stop(inner, mode).await.map(drop)
            }
            None => Ok(()),
        };
        for task in &self.shared.tasks {
            task.abort();
        }
        stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_cannot_be_started_by_itself_ends_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let secrets = Secrets { superuser_password: String::new(), replication_password: String::new() };
        let listen = std::net::IpAddr::from([127, 0, 0, 1]);
        let config = PostgresConfig::new(1, data.clone(), "/no/programs".into(), listen, 5432, secrets);
        let refused = async || stopped_at(&config).await.unwrap_err().message;
        assert!(refused().await.contains("holds no PostgreSQL database"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        for (mark, why) in [
            (RewindMark::Writing, "a rewind of it was interrupted"),
            (
                RewindMark::Replaying(3, Lsn(0x30)),
                "was rewound and has not replayed the WAL up to 0/30 of timeline 3",
            ),
            (RewindMark::None, "control file"),
        ] {
            mark.store(&config).unwrap();
            let said = refused().await;
            assert!(said.contains(why), "{said}");
        }
    }
}
