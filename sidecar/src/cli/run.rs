//! `pgquorum run`

use super::engine;
use super::failure::Failure;
use crate::config::NodeConfig;
use std::path::PathBuf;

/// Stops with SIGTERM or SIGINT, and stops PostgreSQL with it. A server that still runs after this process was killed
/// is taken over at the next start.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// This node's configuration, written by `pgquorum init` or `pgquorum join`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub async fn run(args: RunArgs) -> Result<(), Failure> {
    super::place::refuse_root("run")?;
    let config = NodeConfig::load(&args.config)?;
    Box::pin(engine::run(config)).await
}
