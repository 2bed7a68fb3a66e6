//! `pgquorum`: the sidecar's daemon and its command line.

mod cli;
mod clock;
mod config;
mod control;
mod driver;
mod feed;
mod follow;
mod handle;
mod login;
mod operations;
mod peer;
mod postgres;
mod registry;
mod replication;
mod rest;
mod run;
mod statements;
mod store;
mod timer;
mod uri;
mod watchdog;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
