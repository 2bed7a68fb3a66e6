//! The program's own probe in the background: numbered inserts through the connection string of all nodes.

use crate::command::pgquorum_program;
use crate::{PATIENCE, await_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How the probe writes.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    pub clients: u16,
    pub interval_ms: u64,
    pub table: String,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions { clients: 1, interval_ms: 10, table: "pgquorum_probe".to_owned() }
    }
}

/// What the probe found.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    pub acked: u64,
    pub longest_gap_ms: f64,
    pub lost: u64,
    pub unacked_present: u64,
    pub errors: u64,
    pub gap_start_ms: Option<u64>,
    pub gap_end_ms: Option<u64>,
    #[serde(default)]
    pub lost_sample: Vec<u64>,
    pub first_error: Option<String>,
    pub last_error: Option<String>,
    pub inserts_per_s: f64,
    /// Unix microseconds and number of every acknowledged insert, in order of time.
    #[serde(skip)]
    pub acks: Vec<(u64, u64)>,
}

impl Report {
    /// The promise that every scenario checks.
    ///
    /// # Panics
    /// An acknowledged row is missing, or nothing was written at all.
    pub fn assert_nothing_lost(&self) {
        assert!(self.acked > 0, "the probe wrote nothing: {:?}", self.first_error);
        assert_eq!(self.lost, 0, "acknowledged rows are missing, the first are {:?}", self.lost_sample);
    }

    /// The first acknowledged insert after this moment.
    pub fn first_ack_after(&self, unix_ms: u64) -> Option<u64> {
        self.acks.iter().map(|(us, _)| us / 1000).find(|ms| *ms > unix_ms)
    }
}

/// A probe that runs. Dropped without [`Probe::finish`], it is killed.
pub struct Probe {
    child: Child,
    dir: TempDir,
}

impl Probe {
    /// Starts writing; returns when the first row was acknowledged.
    ///
    /// # Panics
    /// The probe cannot be started, or no write is acknowledged in time.
    pub fn start(dsn: &str, options: &ProbeOptions) -> Probe {
        Probe::launch(Command::new(pgquorum_program()), dsn, options)
    }

    /// The same with a command that becomes the program, for example in another network namespace.
    ///
    /// # Panics
    /// As [`Probe::start`].
    pub fn launch(mut command: Command, dsn: &str, options: &ProbeOptions) -> Probe {
        let dir = tempfile::tempdir().expect("a directory for the probe");
        let (clients, interval) = (options.clients.to_string(), options.interval_ms.to_string());
        command.args([
            "--json",
            "local",
            "probe",
            "--seconds",
            "3600",
            "--dsn",
            dsn,
            "--table",
            &options.table,
        ]);
        command.args(["--clients", &clients, "--interval-ms", &interval]);
        command.arg("--raw").arg(dir.path().join("raw")).arg("--ready-file").arg(dir.path().join("ready"));
        let out = std::fs::File::create(dir.path().join("out")).expect("the probe's output");
        let child =
            command.stdin(Stdio::null()).stdout(out).stderr(Stdio::inherit()).spawn().expect("the probe");
        let mut probe = Probe { child, dir };
        let ready = probe.file("ready");
        await_until(PATIENCE, "the probe's first acknowledged insert", || {
            if let Ok(Some(status)) = probe.child.try_wait() {
                panic!("the probe ended at once: {status}");
            }
            if ready.exists() { Ok(()) } else { Err("nothing yet".to_owned()) }
        });
        probe
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stops writing, lets the probe compare with the table, and returns what it found.
    ///
    /// # Panics
    /// The probe cannot read its table back within two minutes.
    pub fn finish(mut self) -> Report {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).expect("stopping the probe");
        await_until(Duration::from_secs(120), "the probe's end", || match self.child.try_wait() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("it reads back".to_owned()),
            Err(e) => Err(e.to_string()),
        });
        let text = std::fs::read_to_string(self.file("out")).expect("the probe's report");
        let mut report: Report =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("the probe gave no report: {e}: {text:?}"));
        let raw = std::fs::read_to_string(self.file("raw")).expect("the probe's acknowledged numbers");
        let pair =
            |line: &str| line.split_once(' ').and_then(|(us, n)| Some((us.parse().ok()?, n.parse().ok()?)));
        report.acks = raw.lines().filter_map(pair).collect();
        report
    }
}

/// Waits until a probe that runs has written this many more rows into its table, as this session sees it: so a gap is
/// over, and what is measured has a before and an after.
///
/// # Panics
/// They do not come.
pub fn await_rows(session: &mut postgres::Client, more: i64) {
    let sql = format!("SELECT count(*) FROM {}", ProbeOptions::default().table);
    let mut first = None;
    await_until(PATIENCE, &format!("{more} more rows of the probe"), || {
        let now: i64 = session.query_one(&sql, &[]).map_err(|e| format!("{e:?}"))?.get(0);
        let since = now - *first.get_or_insert(now);
        if since >= more { Ok(()) } else { Err(format!("{since}")) }
    });
}

impl Drop for Probe {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
