//! `pgquorum local probe`

use super::cluster::LocalCluster;
use crate::cli::failure::{Context, Failure};
use crate::cli::init::stopped;
use crate::cli::output::{Out, pairs};
use crate::cli::probe::{Options, probe};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// Numbers are inserted one a transaction through the connection string with all nodes, as an application would; what
/// was acknowledged is compared with the table at the end. An insert whose outcome is unknown is never repeated.
/// SIGINT or SIGTERM ends the writing early. Exit code 1 when an acknowledged row is missing.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// Directory of the cluster.
    #[arg(long, value_name = "DIR", required_unless_present = "dsn")]
    dir: Option<PathBuf>,
    /// Another connection string instead.
    #[arg(long, conflicts_with = "dir")]
    dsn: Option<String>,
    /// How long to write.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Pause of a client after each insert; 0: none.
    #[arg(long, default_value_t = 10)]
    interval_ms: u64,
    /// How many clients write.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    clients: u16,
    /// The table that is made for it; an old one of this name is dropped.
    #[arg(long, default_value = "pgquorum_probe")]
    table: String,
    /// Write a line `unix-microseconds number` for each acknowledged insert to this file.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// Make this file as soon as the first insert was acknowledged.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub async fn run(args: ProbeArgs, out: Out) -> Result<(), Failure> {
    let dsn = match (&args.dsn, &args.dir) {
        (Some(dsn), _) => dsn.clone(),
        (None, Some(dir)) => LocalCluster::open(dir)?.dsn()?,
        (None, None) => return Err(Failure::usage("--dir or --dsn is needed")),
    };
    let duration =
        Duration::try_from_secs_f64(args.seconds).map_err(|e| Failure::usage(format!("--seconds: {e}")))?;
    let options = Options {
        table: args.table,
        clients: usize::from(args.clients),
        interval: Duration::from_millis(args.interval_ms),
        duration,
        ready_file: args.ready_file,
        ..Options::default()
    };
    let (stop, told) = watch::channel(false);
    tokio::spawn(async move {
        stopped().await;
        let _ = stop.send(true);
    });
    let done = probe(&dsn, &options, told).await?;
    if let Some(file) = &args.raw {
        let lines: String = done.acks.iter().map(|a| format!("{} {}\n", a.unix_us, a.number)).collect();
        std::fs::write(file, lines).or_fail(format!("cannot write {}", file.display()))?;
    }
    let document = serde_json::to_value(&done.report).or_fail("report")?;
    out.show(&document, || pairs(["PROBE", ""], &document));
    match done.report.lost {
        0 => Ok(()),
        lost => Err(Failure::failed("rows_lost", format!("{lost} acknowledged rows are missing"))),
    }
}
