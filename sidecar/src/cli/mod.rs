//! The command line: one file a command. Every command prints a table for people and, with `--json`, one JSON document
//! for programs. Exit codes are part of the interface and stand in [`failure::Exit`].

mod channel;
mod client;
mod config;
mod db_config;
mod doctor;
mod each;
mod engine;
mod events;
mod failure;
mod follow;
mod force_leader;
mod init;
mod join;
mod leader;
mod local;
mod node;
mod output;
mod place;
mod probe;
mod publish;
mod readonly;
mod registry;
mod rejected;
mod run;
mod secret_input;
mod status;
mod subscribe;
mod subscriptions;
mod user;

use clap::{Parser, Subcommand};
use failure::Failure;
use output::Out;
use std::process::ExitCode;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  refused or failed; the message says why and what to do
  2  wrong usage of the command
  3  no leader, or no node of the cluster can be reached; try again later
  4  the node, file or cluster that was named does not exist";

/// Makes PostgreSQL servers a cluster that elects its leader and fails over by itself.
#[derive(Debug, Parser)]
#[command(name = "pgquorum", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// Print one JSON document instead of a table; errors become {"code", "message"} on standard error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run this node's sidecar in the foreground: it starts and supervises PostgreSQL.
    Run(run::RunArgs),
    /// Make this machine the first node of a new cluster.
    Init(init::InitArgs),
    /// Add this machine to a cluster: copy the leader's data, then run.
    Join(join::JoinArgs),
    /// Show all nodes: role, state, position, lag and trouble.
    Status(status::StatusArgs),
    /// Show the leader, or make another node the leader.
    Leader(leader::LeaderArgs),
    /// Add, upgrade, remove or mark down a node.
    Node(node::NodeArgs),
    /// Show or change the cluster's settings (timeouts, replication factor, automatic removal).
    Config(config::ConfigArgs),
    /// Show or change PostgreSQL's parameters on all nodes.
    DbConfig(db_config::DbConfigArgs),
    /// Last resort: go on with this node alone when the majority is lost for good.
    ForceLeader(force_leader::ForceLeaderArgs),
    /// Create, drop and look after channels: the logs of changes that readers follow.
    Channel(channel::ChannelArgs),
    /// Print the changes of a channel as they come.
    Follow(follow::FollowArgs),
    /// Follow a channel of another cluster: copy its tables, then apply their changes.
    Subscribe(Box<subscribe::SubscribeArgs>),
    /// Follow it no longer.
    Unsubscribe(subscribe::UnsubscribeArgs),
    /// Show what is followed and how far, and let it rest or go on.
    Subscriptions(subscriptions::SubscriptionsArgs),
    /// Have another cluster follow a channel of this one, set up from here.
    Publish(Box<publish::PublishArgs>),
    /// Have the other cluster follow no longer.
    Unpublish(publish::UnpublishArgs),
    /// Show what other clusters are to follow, and whether they do.
    Publications(publish::PublicationsArgs),
    /// Show which statements are known to write nothing, and may be sent to standbys.
    Readonly(readonly::ReadonlyArgs),
    /// Add, change, remove and list those who may log in at the REST interface, and make tokens for them.
    User(user::UserArgs),
    /// Show which servers of others are registered, take one out, and print keys for those who check their tokens.
    Registry(registry::RegistryArgs),
    /// Send one REST request to every node and show all answers.
    Each(each::EachArgs),
    /// Show what happened in the cluster.
    Events(events::EventsArgs),
    /// Look for what is wrong on this node and say what to do.
    Doctor(doctor::DoctorArgs),
    /// Run a whole cluster on this machine, for trying out and for tests.
    Local(local::LocalArgs),
}

/// Reads the command line, does what it says and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let out = Out { json: cli.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return out.failed(&Failure::failed("no_runtime", format!("cannot start threads: {e}"))),
    };
    let done = runtime.block_on(Box::pin(dispatch(cli.command, out)));
    // A name look-up or a read of standard input that still blocks a thread must not keep the process alive.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => out.failed(&failure),
    }
}

async fn dispatch(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Init(args) => init::run(args, out).await,
        Command::Join(args) => join::run(args, out).await,
        Command::Status(args) => status::run(args, out).await,
        Command::Leader(args) => leader::run(args, out).await,
        Command::Node(args) => node::run(args, out).await,
        Command::Config(args) => config::run(args, out).await,
        Command::DbConfig(args) => db_config::run(args, out).await,
        Command::ForceLeader(args) => force_leader::run(args, out).await,
        Command::Channel(args) => channel::run(args, out).await,
        Command::Follow(args) => follow::run(args, out).await,
        Command::Subscribe(args) => subscribe::run(*args, out).await,
        Command::Unsubscribe(args) => subscribe::end(args, out).await,
        Command::Subscriptions(args) => subscriptions::run(args, out).await,
        Command::Publish(args) => publish::run(*args, out).await,
        Command::Unpublish(args) => publish::end(args, out).await,
        Command::Publications(args) => publish::all(args, out).await,
        Command::Readonly(args) => readonly::run(args, out).await,
        Command::User(args) => user::run(args, out).await,
        Command::Registry(args) => registry::run(args, out).await,
        Command::Each(args) => each::run(args, out).await,
        Command::Events(args) => events::run(args, out).await,
        Command::Doctor(args) => doctor::run(args, out).await,
        Command::Local(args) => local::run(args, out).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The check of the library is not there in release.
    fn assert_no_name_twice(command: &clap::Command) {
        let mut seen = std::collections::BTreeSet::new();
        for argument in command.get_arguments() {
            let name = argument.get_id().to_string();
            assert!(seen.insert(name.clone()), "{} has two arguments {name}", command.get_name());
        }
        command.get_subcommands().for_each(assert_no_name_twice);
    }

    #[test]
    fn no_command_has_two_arguments_of_one_name() {
        assert_no_name_twice(&Cli::command());
    }

    #[test]
    fn wrong_usage_is_exit_code_2_and_help_is_0() {
        let code = |args: &[&str]| Cli::try_parse_from(args).map_err(|e| e.exit_code()).err();
        assert_eq!(code(&["pgquorum", "status"]), None);
        assert_eq!(code(&["pgquorum", "leader", "set", "two"]), Some(2));
        assert_eq!(code(&["pgquorum", "init", "--ip", "127.0.0.1"]), Some(2));
        assert_eq!(code(&["pgquorum", "local", "kill", "--dir", "/x", "--node", "0"]), Some(2));
        assert_eq!(code(&["pgquorum", "user", "add", "bob"]), Some(2));
        assert_eq!(code(&["pgquorum", "user", "add", "bob", "--role", "root"]), Some(2));
        assert_eq!(code(&["pgquorum", "user", "add", "bob", "--role", "reader,ApiImport"]), None);
        assert_eq!(code(&["pgquorum", "user", "add", "bob", "--role", "reader", "--password", "x"]), Some(2));
        assert_eq!(code(&["pgquorum", "--help"]), Some(0));
    }

    #[test]
    fn json_may_stand_anywhere() {
        for args in [["pgquorum", "--json", "status"], ["pgquorum", "status", "--json"]] {
            assert!(Cli::try_parse_from(args).unwrap().json);
        }
    }
}
