//! `pgquorum leader`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, pairs};
use super::status::Map;
use clap::Subcommand;
use hyper::Method;

/// Without a command: shows the leader's addresses.
#[derive(Debug, clap::Args)]
pub struct LeaderArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Option<LeaderCommand>,
}

#[derive(Debug, Subcommand)]
enum LeaderCommand {
    /// Hand over to another node: it must be a node (no listener, no witness) and have caught up.
    Set {
        /// The new leader's number.
        node: u64,
    },
}

pub async fn run(args: LeaderArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    match args.command {
        None => {
            let answer = client.get("/leader").await?;
            out.show(&answer, || pairs(["LEADER", ""], &answer));
        }
        Some(LeaderCommand::Set { node }) => {
            Map::read(&client).await?.expect(node)?;
            let answer = client.call(Method::POST, &format!("/leader?node={node}"), None).await?;
            out.show(&answer, || format!("Node {node} is the leader."));
        }
    }
    Ok(())
}
