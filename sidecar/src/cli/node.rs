//! `pgquorum node`

use super::client::Target;
use super::failure::Failure;
use super::join::node_id;
use super::output::Out;
use super::status::Map;
use crate::uri::encoded;
use clap::{Subcommand, ValueEnum};
use hyper::Method;
use std::net::IpAddr;

/// One change of the membership at a time: a second one is refused while the first is under way.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NewRole {
    /// Streams and serves reads; can be upgraded to a full node.
    Listener,
    /// Votes and holds no data.
    Witness,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// List a new node; `pgquorum join --node ID` on its machine brings it to life (join alone does both).
    Add {
        /// Address of the machine, as the other nodes and the clients reach it.
        #[arg(long)]
        ip: IpAddr,
        #[arg(long, value_enum, default_value = "listener")]
        role: NewRole,
        /// PostgreSQL's port [default: the leader's].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        db_port: Option<u16>,
        /// The sidecar's port [default: the leader's].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        api_port: Option<u16>,
        /// Make it a full node as soon as it has caught up.
        #[arg(long)]
        auto_upgrade: bool,
    },
    /// Make a listener that has caught up a full node: it votes, acknowledges and can become the leader.
    Upgrade {
        node: u64,
        /// PostgreSQL's port, if it changes.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        db_port: Option<u16>,
        /// The sidecar's port, if it changes.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        api_port: Option<u16>,
    },
    /// Take a node out of the cluster for good. Its number is never used again; its files stay.
    Remove { node: u64 },
    /// Take a node out of votes and acknowledgements until it is well again.
    Down {
        node: u64,
        /// Why, for `pgquorum events`.
        #[arg(long)]
        reason: Option<String>,
    },
}

pub async fn run(args: NodeArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    match args.command {
        NodeCommand::Add { ip, role, db_port, api_port, auto_upgrade } => {
            let role = match role {
                NewRole::Listener => "listener",
                NewRole::Witness => "witness",
            };
            let mut path = format!("/node?ip={ip}&role={role}&auto-upgrade={auto_upgrade}");
            for (name, port) in [("db-port", db_port), ("api-port", api_port)] {
                if let Some(port) = port {
                    path.push_str(&format!("&{name}={port}"));
                }
            }
            let answer = client.call(Method::POST, &path, None).await?;
            out.show(&answer, || {
                let id = node_id(&answer).unwrap_or_default();
                format!("Node {id} is listed. On its machine:\n  pgquorum join --node {id} --leader URL --secrets FILE …")
            });
        }
        NodeCommand::Upgrade { node, db_port, api_port } => {
            let map = Map::read(&client).await?;
            let known = map.expect(node)?;
            let (db, api) = (db_port.unwrap_or(known.db_port), api_port.unwrap_or(known.api_port));
            let path = format!("/node/{node}?db-port={db}&api-port={api}");
            let answer = client.call(Method::PATCH, &path, None).await?;
            out.show(&answer, || format!("Node {node} is a full node."));
        }
        NodeCommand::Remove { node } => {
            let answer = client.call(Method::DELETE, &format!("/node/{node}"), None).await?;
            out.show(&answer, || {
                format!("Node {node} is no longer part of the cluster. Its files are left on its machine.")
            });
        }
        NodeCommand::Down { node, reason } => {
            let reason = reason.map(|r| format!("?reason={}", encoded(&r))).unwrap_or_default();
            let path = format!("/node-down/{node}{reason}");
            let answer = client.call(Method::POST, &path, None).await?;
            out.show(&answer, || {
                format!("Node {node} takes no part in votes and acknowledgements until it is well again.")
            });
        }
    }
    Ok(())
}
