//! `pgquorum events`

use super::client::Target;
use super::failure::Failure;
use super::output::{Out, plain, table};
use serde_json::Value;

/// Every line is an entry of the cluster's log, the oldest first.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    #[command(flatten)]
    target: Target,
    /// Show what comes, until interrupted. With --json: one document a line.
    #[arg(short, long)]
    follow: bool,
    /// Show what nodes said to each other and did (elections, pledges, promotions) as the asked node saw it.
    #[arg(long)]
    rpc: bool,
}

pub async fn run(args: EventsArgs, out: Out) -> Result<(), Failure> {
    let client = args.target.client()?;
    let path = if args.rpc { "/rpc" } else { "/events" };
    if args.follow {
        return client
            .follow(path, |event| {
                out.show(&event, || row(&event).join("  "));
                true
            })
            .await;
    }
    let answer = client.get(path).await?;
    let head: &[&str] = if args.rpc {
        &["UNIX MS", "KIND", "MESSAGE"]
    } else {
        &["INDEX", "TERM", "KIND", "NODE", "MESSAGE"]
    };
    out.show(&answer, || table(head, answer.as_array().into_iter().flatten().map(row).collect()));
    Ok(())
}

fn row(event: &Value) -> Vec<String> {
    let names: &[&str] = if event.get("at").is_some() {
        &["at", "kind", "message"]
    } else {
        &["index", "term", "kind", "node", "message"]
    };
    names.iter().map(|name| plain(&event[*name])).collect()
}
