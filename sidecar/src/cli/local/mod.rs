//! `pgquorum local`: a whole cluster on one machine, made of the same commands that a real one is made of (`init`,
//! `join`, `run`), each node in a directory of its own. Other programs drive clusters through these commands; what they
//! print as JSON stays as it is.

mod cluster;
mod down;
mod identity;
mod probe;
mod processes;
mod segments;
mod signal;
mod state;
mod up;

use super::failure::Failure;
use super::output::Out;
use clap::Subcommand;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct LocalArgs {
    #[command(subcommand)]
    command: LocalCommand,
}

/// The directory of a local cluster.
#[derive(Debug, clap::Args)]
struct Dir {
    /// Directory of the cluster.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum LocalCommand {
    /// Start a cluster: makes what is missing, starts what is down, waits until every node has caught up.
    Up(up::UpArgs),
    /// Show the nodes with their processes; --json has a fixed shape and holds the connection string.
    Status(Dir),
    /// Print the connection string for psql; the password stays in a file: psql "$(pgquorum local dsn --dir D)"
    Dsn(Dir),
    /// End a node with SIGKILL, sidecar and PostgreSQL, as a power cut would.
    Kill(signal::NodeArgs),
    /// Stop a node in good order; SIGKILL after 20 s.
    Stop(signal::NodeArgs),
    /// Start the sidecar of a node, which starts PostgreSQL.
    Start(signal::NodeArgs),
    /// Halt the processes of a node with SIGSTOP: they keep their connections and answer nothing.
    Freeze(signal::NodeArgs),
    /// Let a frozen node go on.
    Thaw(signal::NodeArgs),
    /// Write numbered rows through the connection string and report the longest gap and what was lost.
    Probe(probe::ProbeArgs),
    /// Stop all nodes in good order and keep the data.
    Down(Dir),
    /// Stop all nodes and remove the directory.
    Destroy(Dir),
}

pub async fn run(args: LocalArgs, out: Out) -> Result<(), Failure> {
    match args.command {
        LocalCommand::Up(args) => up::run(args, out).await,
        LocalCommand::Status(Dir { dir }) => state::run(&dir, out).await,
        LocalCommand::Dsn(Dir { dir }) => state::dsn(&dir, out),
        LocalCommand::Kill(args) => signal::kill(args, out).await,
        LocalCommand::Stop(args) => signal::stop(args, out).await,
        LocalCommand::Start(args) => signal::start(args, out).await,
        LocalCommand::Freeze(args) => signal::freeze(args, out).await,
        LocalCommand::Thaw(args) => signal::thaw(args, out).await,
        LocalCommand::Probe(args) => probe::run(args, out).await,
        LocalCommand::Down(Dir { dir }) => down::down(&dir, out).await,
        LocalCommand::Destroy(Dir { dir }) => down::destroy(&dir, out).await,
    }
}
