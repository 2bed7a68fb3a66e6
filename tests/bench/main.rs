//! `make bench`: one JSON line a benchmark on standard output, progress on standard error. What is compared is measured
//! in turns in the same run, because machines are shared and their speed changes from minute to minute.
//!
//! `bench [NAME…] [--runs N] [--with-patroni] [--list]`; the exit code is 1 when a line says that it missed its mark.

mod apply;
mod black_hole;
mod capture;
mod failover;
mod fan_out;
mod feed;
mod floor;
mod follow;
mod is_leader;
mod keep_alive;
mod line;
mod load;
mod native;
mod parameters;
mod patroni;
mod pgbench;
mod registry;
mod replication;
mod statement_hash;
mod statements;
mod tps;
mod usage;

use std::process::ExitCode;

/// What the command line asked for.
pub struct Options {
    names: Vec<String>,
    runs: usize,
    with_patroni: bool,
}

impl Options {
    pub fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|n| n == name)
    }
}

/// A group shares its servers; it prints a line for each of its benchmarks that is wanted and says whether all are good.
type Group = fn(&Options) -> bool;

const GROUPS: [(&[&str], Group); 19] = [
    (&failover::NAMES, failover::run),
    (&[black_hole::NAME], black_hole::run),
    (&tps::NAMES, tps::run),
    (&[is_leader::NAME], is_leader::run),
    (&[registry::NAME], registry::run),
    (&[fan_out::NAME], fan_out::run),
    (&replication::NAMES, replication::run),
    (&capture::tpcb::NAMES, capture::tpcb::run),
    (&[capture::updates::NAME], capture::updates::run),
    (&capture::bulk::NAMES, capture::bulk::run),
    (&[capture::memory::NAME], capture::memory::run),
    (&[feed::latency::NAME], feed::latency::run),
    (&[feed::throughput::NAME], feed::throughput::run),
    (&apply::NAMES, apply::run),
    (&follow::NAMES, follow::run),
    (&[statement_hash::NAME], statement_hash::run),
    (&statements::selects::NAMES, statements::selects::run),
    (&[statements::distinct::NAME], statements::distinct::run),
    (&[statements::requests::NAME], statements::requests::run),
];

fn main() -> ExitCode {
    let options = match arguments(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}\nusage: bench [NAME…] [--runs N] [--with-patroni] [--list]");
            return ExitCode::from(2);
        }
    };
    let mut good = true;
    for (_, run) in GROUPS.iter().filter(|(names, _)| names.iter().any(|n| options.wants(n))) {
        good &= run(&options);
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let known = || GROUPS.iter().flat_map(|(names, _)| names.iter().copied());
    let mut options = Options { names: Vec::new(), runs: 10, with_patroni: false };
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--list" => {
                known().for_each(|name| println!("{name}"));
                return Ok(None);
            }
            "--with-patroni" => options.with_patroni = true,
            "--runs" => {
                let runs = given.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                options.runs = runs.ok_or("--runs needs a number from 1")?;
            }
            name if known().any(|k| k == name) => options.names.push(name.to_owned()),
            other => return Err(format!("there is no benchmark or option {other}; --list shows them")),
        }
    }
    Ok(Some(options))
}
