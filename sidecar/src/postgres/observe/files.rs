//! What the files of a server say that does not run, or does not answer.

use super::{Observer, STOPPED_KEPT};
use crate::postgres::process::{self, Postmaster};
use crate::postgres::{control, lifecycle};
use pgquorum_agent::postgres::{PgObservation, PgProcess};
use std::time::Duration;
use tokio::time::Instant;

/// A server that has been silent for so long may stand still.
const SILENT: Duration = Duration::from_secs(1);
/// Its disk may hang, too.
const READ_LIMIT: Duration = Duration::from_secs(1);

impl Observer {
    /// Of a server that let sessions in and does not answer: what its control file says. That is changed before sessions are
    /// let in at the start, and at once when it is promoted.
    ///
    /// Asked only of one that has been silent for a while: that a server does not answer is often the first that is seen of
    /// its death, which must be told at once.
    pub(super) async fn is_silent_in_production(&mut self, postmaster: Postmaster) -> bool {
        let known = self.silent.filter(|(of, _)| *of == postmaster);
        let (_, since) = *self.silent.insert(known.unwrap_or((postmaster, Instant::now())));
        if since.elapsed() < SILENT {
            return false;
        }
        match self.in_production {
            Some((of, is, at)) if of == postmaster && at.elapsed() < STOPPED_KEPT => is,
            _ => {
                let read = tokio::time::timeout(READ_LIMIT, control::read(&self.inner.config)).await;
                let is = read.is_ok_and(|read| read.is_ok_and(|control| control.in_production));
                self.in_production = Some((postmaster, is, Instant::now()));
                is
            }
        }
    }

    pub(super) async fn gone(&mut self) -> PgObservation {
        if let Some((known, _)) = self.stopped.as_ref().filter(|(_, at)| at.elapsed() < STOPPED_KEPT) {
            return known.clone();
        }
        // Somebody may have started the server by hand; while an operation runs, that is its business.
        let free = self.inner.gate.try_lock().is_ok();
        if free && let Err(error) = lifecycle::adopt(&self.inner).await {
            tracing::warn!(%error, "looking for a running server");
        }
        let mut observation = PgObservation::default();
        match process::check_data_dir(&self.inner.config) {
            Ok(()) => {
                observation.process = PgProcess::Stopped;
                self.read_control(&mut observation).await;
            }
            Err(error) => observation.trouble = Some(error.to_string()),
        }
        self.stopped = Some((observation.clone(), Instant::now()));
        observation
    }

    async fn read_control(&mut self, observation: &mut PgObservation) {
        let control = match control::read(&self.inner.config).await {
            Ok(control) => control,
            Err(error) => {
                observation.trouble = Some(error.to_string());
                return;
            }
        };
        let (timeline, end) = control::wal_end(&self.inner.config, &control).await;
        observation.system_identifier = control.system_identifier;
        observation.in_recovery = true;
        (observation.timeline, observation.flush_lsn, observation.replay_lsn) = (timeline, end, end);
        // A standby that is shut down may have received more than it has replayed, and confirmed it: only a start shows
        // where its WAL ends. What a primary wrote ends with its shutdown checkpoint.
        observation.settled = control.clean && !control.clean_in_recovery;
        observation.history = self.history(timeline);
    }
}
