//! `make chaos`: a cluster whose machines, networks and disks fail all the time, clients that write all the time, and a
//! checker that knows what each of them was told. docs/testing.md describes it.
//!
//! `chaos [--minutes M] [--seed N] [--nodes 3|5] [--keep] [--no-cancels] [--no-clock] [--only KIND] [--weak]
//! [--within S]`; the exit code is 1 when a promise was broken, 2 when it cannot run.

mod checker;
mod disks;
mod history;
mod nemesis;
mod notes;
mod outcome;
mod plan;
mod random;
mod report;
mod run;
mod session;
mod state;
mod workload;

use nix::sched::{CloneFlags, unshare};
use pgquorum_tests::Network;
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the command line asked for.
#[derive(Debug)]
pub struct Options {
    length: Duration,
    seed: u64,
    nodes: u64,
    /// Keep logs and histories although all went well.
    keep: bool,
    /// Clients cancel statements.
    cancels: bool,
    /// Clocks jump, where there is a library for it.
    clock: bool,
    /// Commits wait for no standby: promises will be broken, and the checker must see it.
    weak: bool,
    /// Only faults whose kind contains this, one at a time.
    only: Option<String>,
    /// How soon after everything is healed a write must be acknowledged.
    within: Duration,
}

const USAGE: &str = "usage: chaos [--minutes M] [--seed N] [--nodes 3|5] [--keep] [--no-cancels] [--no-clock] [--only KIND] [--weak] [--within S]";

fn main() -> ExitCode {
    let options = match arguments(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("chaos: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(why) = Network::refused() {
        eprintln!("chaos: cannot run here: {why}");
        return ExitCode::from(2);
    }
    // The small disks are mounts of this process alone, so they go with it however it ends.
    if let Err(e) = own_mounts() {
        eprintln!("chaos: cannot run here: mounts of its own: {e}");
        return ExitCode::from(2);
    }
    println!("chaos: seed {}, {} nodes, {:?}", options.seed, options.nodes, options.length);
    let result = run::run(&options);
    println!("{}", report::render(&result));
    for violation in &result.violations {
        println!("VIOLATION ({}): {}", violation.rule, violation.text);
    }
    if let Some(dir) = &result.kept {
        println!("logs, data and history: {}", dir.display());
    }
    let verdict = if result.violations.is_empty() { "PASSED" } else { "FAILED" };
    println!("chaos: {verdict}, seed {}, {} violations", result.seed, result.violations.len());
    if result.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn own_mounts() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| e.to_string())?;
    let out = Command::new("mount").args(["--make-rprivate", "/"]).output().map_err(|e| e.to_string())?;
    if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Options, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut options = Options {
        length: Duration::from_secs(180),
        seed: u64::from(now.subsec_nanos()),
        nodes: 3,
        keep: false,
        cancels: true,
        clock: true,
        weak: false,
        only: None,
        within: Duration::from_secs(15),
    };
    while let Some(argument) = given.next() {
        if argument == "--only" {
            options.only = Some(given.next().ok_or("--only needs a part of a fault's name")?);
            continue;
        }
        let mut number =
            || given.next().and_then(|n| n.parse::<u64>().ok()).ok_or(format!("{argument} needs a number"));
        match argument.as_str() {
            "--minutes" => options.length = Duration::from_secs(number()?.max(1) * 60),
            "--seed" => options.seed = number()?,
            "--nodes" => options.nodes = number()?,
            "--within" => options.within = Duration::from_secs(number()?.max(1)),
            "--keep" => options.keep = true,
            "--no-cancels" => options.cancels = false,
            "--weak" => options.weak = true,
            "--no-clock" => options.clock = false,
            other => return Err(format!("there is no option {other}")),
        }
    }
    if options.within >= run::WRITABLE {
        return Err(format!(
            "--within is less than {} s: nothing is awaited longer",
            run::WRITABLE.as_secs()
        ));
    }
    match options.nodes {
        3 | 5 => Ok(options),
        other => Err(format!("{other} nodes: there can be 3 or 5")),
    }
}
