//! The work of the applier: copy what is to be copied, follow the log; and when something keeps it from that, say so, and try
//! again or stop, as the settings have it.

use super::config::Config;
use super::copy;
use super::fault::{Fault, INVALID_CONFIG, Kind, Result};
use super::following::Following;
use super::here::Here;
use super::remote::{Identity, Remote};
use super::transactions::Known;
use crate::replication::SYSTEM;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two attempts when the database here takes nothing.
const HERE_PAUSE: Duration = Duration::from_secs(1);
/// The shortest one when the remote does not answer.
const REMOTE_PAUSE: Duration = Duration::from_millis(100);
/// A run that lasted so long was a good one: copies before it do not count against `autoResyncRetries`.
const GOOD: Duration = Duration::from_secs(120);

/// The row of `quorum.applier`.
#[derive(Clone, Deserialize)]
pub struct Row {
    pub generation: i64,
    config: Value,
    password: Option<String>,
    pub running: bool,
    pub resync: bool,
}

impl Row {
    /// # Errors
    /// The extension has another version of it.
    pub fn read(row: Value) -> Result<Row> {
        // The parser's own message could quote the password.
        serde_json::from_value(row).map_err(|_| {
            let message = "the extension's table of the applier is not the one that this program knows. Are both of the same \
                           version? `make install` brings both, ALTER EXTENSION pgquorum UPDATE the table";
            Fault::stopped(500, message)
        })
    }

    /// It is to be started when a leader begins its work, although it rests.
    pub fn starts_by_itself(&self) -> bool {
        !self.running && self.config["autoStart"] == true && self.config["endpoint"].is_string()
    }
}

/// What was asked of the remote since it was said last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub requests: u64,
    pub failed: u64,
    pub fetches: u64,
    pub fetch_seconds: f64,
}

/// One run of the applier.
pub struct Runner {
    pub here: Arc<Here>,
    pub generation: i64,
    pub config: Config,
    password: Option<String>,
    resync: bool,
    /// Requests that failed one after the other.
    failed: u64,
    pub tally: Tally,
    /// How many more events may be passed over.
    pub left: u64,
    resyncs: u64,
    /// Since when the remote's log is followed without a copy in between.
    followed: Option<Instant>,
    /// Since when the remote does not know a tick that it has given before.
    behind: Option<Instant>,
    /// What the last reading of the log found out.
    pub known: Known,
}

/// Runs the applier until it is stopped.
pub async fn run(here: Here, row: Row) {
    let here = Arc::new(here);
    let config = match Config::read(&row.config) {
        Ok(config) => config,
        Err(fault) => return stop(&here, row.generation, &fault).await,
    };
    let left = config.ignore_errors;
    let runner = Runner {
        here,
        generation: row.generation,
        config,
        password: row.password,
        resync: row.resync,
        failed: 0,
        tally: Tally::default(),
        left,
        resyncs: 0,
        followed: None,
        behind: None,
        known: Known::default(),
    };
    runner.run().await;
}

/// Writes down why the applier stops. It may be the database itself that is the trouble; it is told as soon as it answers.
async fn stop(here: &Here, generation: i64, fault: &Fault) {
    let database = &here.database;
    // What it says may hold what a row holds; the log has the number alone.
    tracing::warn!(
        database,
        number = fault.number,
        "the applier stops; GET /_api/replication/applier-state says why"
    );
    while let Err(trouble) = here.failed(generation, fault).await {
        if trouble.kind == Kind::Gone {
            return;
        }
        tokio::time::sleep(HERE_PAUSE).await;
    }
}

impl Runner {
    async fn run(mut self) {
        loop {
            let Err(fault) = self.attempt().await;
            if self.followed.take().is_some_and(|since| since.elapsed() >= GOOD) {
                self.resyncs = 0;
            }
            let (retries, resyncs) = (self.config.max_connect_retries, self.config.auto_resync_retries);
            match fault.kind {
                Kind::Gone => return,
                Kind::Here => {
                    tracing::warn!(
                        database = self.here.database,
                        "the applier waits for the database here: {fault}"
                    );
                    tokio::time::sleep(HERE_PAUSE).await;
                }
                Kind::Lost if self.config.auto_resync && self.resyncs < resyncs.max(1) => {
                    tracing::warn!(
                        database = self.here.database,
                        "the applier copies all tables anew: {fault}"
                    );
                    self.resyncs += 1;
                    self.resync = true;
                }
                Kind::Remote if self.failed < retries => {
                    self.failed += 1;
                    self.tally.failed += 1;
                    if self.wait_for_remote(&fault).await.is_err_and(|fault| fault.kind == Kind::Gone) {
                        return;
                    }
                }
                _ => return stop(&self.here, self.generation, &fault).await,
            }
        }
    }

    async fn wait_for_remote(&mut self, fault: &Fault) -> Result<()> {
        if self.failed == 1 {
            let database = &self.here.database;
            tracing::warn!(
                database,
                number = fault.number,
                "the applier's remote cannot be asked now, it is asked again"
            );
        }
        let pause = self.config.connection_retry_wait_time.duration().max(REMOTE_PAUSE);
        let message = format!("the remote is asked again in {pause:?}");
        let error = json!({"error_number": fault.number, "error_message": fault.message});
        let said = self.say("connecting", &message, error).await;
        tokio::time::sleep(pause).await;
        said
    }

    /// Says how the work goes on, with more of the report's fields.
    pub async fn say(&mut self, phase: &str, message: &str, more: Value) -> Result<()> {
        let tally = std::mem::take(&mut self.tally);
        let mut report = json!({"phase": phase, "message": message, "failed_connects": self.failed,
            "requests": tally.requests, "failed": tally.failed, "fetches": tally.fetches,
            "fetch_seconds": tally.fetch_seconds});
        if let (Some(report), Value::Object(more)) = (report.as_object_mut(), more) {
            report.extend(more);
        }
        self.here.report(self.generation, &report).await
    }

    async fn attempt(&mut self) -> Result<Infallible> {
        let name = if self.here.is_system() { SYSTEM } else { self.here.database.as_str() };
        let remote = Remote::new(&self.config, self.password.as_deref(), name)?;
        let mut names = vec![self.here.database.clone()];
        names.extend(self.here.is_system().then(|| SYSTEM.to_owned()));
        let remote = remote.known_as(names);
        self.say("connecting", "asking what the remote is", json!({})).await?;
        self.tally.requests += 2;
        let identity = remote.identify().await?;
        copy::not_itself(&self.here, &remote, &identity).await?;
        if self.resync {
            self.copy(&remote, &identity).await?;
        }
        self.followed = Some(Instant::now());
        Following::begin(self, &remote, &identity).await?.follow().await
    }

    async fn copy(&mut self, remote: &Remote, identity: &Identity) -> Result<()> {
        self.say("dumping", "copying all tables", json!({})).await?;
        let copied = copy::sync(&self.here, remote, identity, &self.config, Some(self.generation)).await;
        let synced = match copied {
            // What does not fit while a copy is made will not fit the next time.
            Err(fault) if fault.number == INVALID_CONFIG => {
                return Err(Fault { kind: Kind::Stopped, ..fault });
            }
            synced => synced?,
        };
        self.resync = false;
        self.known = Known::default();
        self.heard().await?;
        let message = format!(
            "{} collections were copied, following from tick {}",
            synced.collections.len(),
            synced.tick
        );
        self.say("running", &message, json!({"available": synced.tick.to_string()})).await
    }

    /// The remote has answered well.
    pub async fn heard(&mut self) -> Result<()> {
        self.behind = None;
        if self.failed > 0 {
            self.failed = 0;
            return self.say("running", "the remote answers again", json!({"error_number": 0})).await;
        }
        Ok(())
    }

    /// Since when the remote does not know the tick that it is asked for.
    pub fn behind_for(&mut self) -> Duration {
        self.behind.get_or_insert_with(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_it_starts_by_itself_and_never_its_password() {
        let row = |running: bool, config: Value| {
            json!({"one": true, "generation": 7, "config": config, "password": "hush", "running": running, "resync": false,
                "started_at": null})
        };
        let auto = json!({"autoStart": true, "endpoint": "tcp://a:1"});
        assert!(Row::read(row(false, auto.clone())).unwrap().starts_by_itself());
        assert!(!Row::read(row(true, auto)).unwrap().starts_by_itself());
        assert!(!Row::read(row(false, json!({"autoStart": true}))).unwrap().starts_by_itself());
        let broken = json!({"generation": "hush"});
        assert!(!Row::read(broken).err().unwrap().message.contains("hush"));
    }
}
