//! The initial copy: tables in parallel, all in one snapshot of the source, each in a transaction here that also says up to
//! which position its rows are.

use super::copy_end::CopyEnd;
use super::runner::Runner;
use super::source::CopyBegun;
use super::subscription::TableName;
use super::target::Report;
use super::trouble::{Kind, Result, Trouble};
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is said how far the copy is, and that it is still wanted.
const REPORT: Duration = Duration::from_secs(1);
const RENEW: Duration = Duration::from_secs(25);
/// How long no row may come before it is asked whether the source is still there.
const STALLED: Duration = Duration::from_secs(10);

pub struct Copying<'a> {
    pub runner: &'a Runner,
    pub origin: &'a str,
}

/// A table that is being copied.
struct Job {
    table: TableName,
    columns: Vec<String>,
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl Copying<'_> {
    /// Copies these tables. One that does not fit here is stopped, and the others go on.
    pub async fn run(&self, tables: &[TableName]) -> Result<()> {
        let (source, target) = (&self.runner.source, &self.runner.target);
        let report = Report { state: "copying", code: None, detail: None, end: self.runner.end };
        target.report(report).await?;
        let copy = source.begin_copy(tables).await?;
        if copy.origin != self.origin {
            let message = "the source's leader is of another database than the node that was asked before: the addresses in \
                           remote belong to different clusters";
            return Err(Trouble::stopped("PQ015", message));
        }
        target.begin_load(copy.version).await?;
        let job = |(table, columns): &(TableName, Vec<String>)| Job {
            table: table.clone(),
            columns: columns.clone(),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        let jobs: Vec<Job> = copy.tables.iter().map(job).collect();
        let waiting: Mutex<VecDeque<&Job>> = Mutex::new(jobs.iter().collect());
        let workers = usize::try_from(self.runner.subscription.jobs).unwrap_or(1).clamp(1, jobs.len().max(1));
        let workers: FuturesUnordered<_> = (0..workers).map(|_| self.work(&copy, &waiting)).collect();
        let copied = tokio::select! {
            copied = workers.try_collect::<Vec<()>>() => copied.map(drop),
            failed = self.watch(&copy, &jobs) => failed,
        };
        // It ends by itself, too.
        let _ = source.end_copy(&copy.id).await;
        copied?;
        target.end_load().await
    }

    async fn work(&self, copy: &CopyBegun, waiting: &Mutex<VecDeque<&Job>>) -> Result<()> {
        loop {
            let next = waiting.lock().map(|mut jobs| jobs.pop_front()).unwrap_or_default();
            let Some(job) = next else { return Ok(()) };
            match self.table(copy, job).await {
                Err(trouble) if trouble.kind == Kind::Table => {
                    let target = &self.runner.target;
                    target.report_stopped(&job.table, &trouble.code, &trouble.message).await?;
                }
                done => done?,
            }
        }
    }

    async fn table(&self, copy: &CopyBegun, job: &Job) -> Result<()> {
        let mut copier = self.runner.target.copier().await?;
        let columns = copier.begin(&job.table, &job.columns, self.origin).await?;
        let filter = self.runner.subscription.filter_of(&job.table);
        let mut lines = self.runner.source.copy(&copy.id, &job.table, &columns, filter).await?;
        let mut end = CopyEnd::default();
        while let Some(bytes) = lines.next().await? {
            let ready = end.push(&bytes);
            if !ready.is_empty() {
                copier.write(ready).await?;
            }
            job.rows.store(end.rows, Ordering::Relaxed);
            job.bytes.store(end.bytes, Ordering::Relaxed);
        }
        if !end.is_whole() {
            let message =
                format!("the copy of table {} was broken off by the source; it begins anew", job.table);
            return Err(Trouble::waiting("copy_broken_off", message));
        }
        copier.finish(&job.table, copy.position, end.rows, end.bytes).await
    }

    /// Says how far the copy is, and keeps it at the source. Returns when that fails.
    async fn watch(&self, copy: &CopyBegun, jobs: &[Job]) -> Result<()> {
        let (mut renewed, mut moved) = (Instant::now(), Instant::now());
        let mut said = vec![(0, 0); jobs.len()];
        loop {
            tokio::time::sleep(REPORT).await;
            for (job, said) in jobs.iter().zip(&mut said) {
                let now = (job.rows.load(Ordering::Relaxed), job.bytes.load(Ordering::Relaxed));
                if now != *said {
                    self.runner.target.report_rows(&job.table, now.0, now.1).await?;
                    *said = now;
                    moved = Instant::now();
                }
            }
            // A network that drops everything closes no connection.
            let pause = if moved.elapsed() >= STALLED { STALLED } else { RENEW };
            if renewed.elapsed() >= pause {
                self.runner.source.renew_copy(&copy.id).await?;
                renewed = Instant::now();
            }
        }
    }
}
