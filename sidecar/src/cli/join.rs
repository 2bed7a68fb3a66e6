//! `pgquorum join`

use super::client::{Client, Target};
use super::engine;
use super::failure::{Context, Failure};
use super::init::stopped;
use super::output::{Out, bytes};
use super::place::{Place, PlaceArgs, refuse_root};
use crate::config::Secrets;
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use pgquorum_agent::postgres::Upstream;
use pgquorum_agent::types::NodeId;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long to wait while another change of the membership is under way, or nobody leads.
const TURN_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether that is over.
const TURN_PAUSE: Duration = Duration::from_millis(200);

/// Adds the machine as a listener, copies the leader's data and runs the sidecar in the foreground. The leader makes it
/// a full node by itself as soon as it has caught up. If anything goes wrong, the node is taken out again and what was
/// made here is removed.
#[derive(Debug, clap::Args)]
pub struct JoinArgs {
    /// A sidecar of the cluster; any node will do.
    #[arg(long, value_name = "URL")]
    leader: String,
    /// The cluster's secrets.toml, copied from the first node.
    #[arg(long, value_name = "FILE")]
    secrets: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    /// Stay a listener: serve reads, never vote.
    #[arg(long)]
    no_upgrade: bool,
    /// Vote without holding data.
    #[arg(long, conflicts_with = "no_upgrade")]
    witness: bool,
    /// The node was added before (`pgquorum node add`) and has this number.
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
    /// Do not run the sidecar afterwards.
    #[arg(long)]
    no_run: bool,
    /// The cluster's token, copied from the first node.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the authority that signed the nodes' certificates; needed for https.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

pub async fn run(args: JoinArgs, out: Out) -> Result<(), Failure> {
    refuse_root("join")?;
    let secrets = Secrets::load(&args.secrets)?;
    let client =
        Target::at(&args.leader, args.token_file.clone(), args.tls_ca.clone(), Some(&secrets)).client()?;
    let info = client.get("/info").await?;
    let cluster_id = info["cluster-id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned);
    let cluster_id = cluster_id.ok_or_else(|| {
        Failure::failed("not_a_cluster", format!("{} did not say which cluster it belongs to", args.leader))
    })?;
    // Everything that can be refused here is refused before the cluster is touched.
    let mut place = Place::prepare(&args.place, 1, "join")?;
    let node = match args.node {
        Some(node) => {
            unused(&client, node).await?;
            node
        }
        None => add(&client, &args, out).await?,
    };
    place.config.node = node;
    let made = tokio::select! {
        made = make(&client, &args, place, &secrets, &cluster_id, out) => made,
        () = stopped() => Err(Failure::failed("interrupted", "interrupted; what was made is removed")),
    };
    let (config, file) = match made {
        Ok(made) => made,
        Err(failure) => {
            if args.node.is_none() {
                take_out(&client, node, out).await;
            }
            return Err(failure);
        }
    };
    let document = json!({ "node": node, "cluster-id": cluster_id, "config": file, "running": !args.no_run });
    if args.no_run {
        out.show(&document, || {
            format!("Node {node} is ready. Start it:\n  pgquorum run --config {}", file.display())
        });
        return Ok(());
    }
    out.note(&format!(
        "Node {node} is ready and starts now; from now on: pgquorum run --config {}",
        file.display()
    ));
    Box::pin(engine::run(config)).await
}

/// Refuses a number under which a node has run already: that one voted and promised, and this one knows nothing of it.
async fn unused(client: &Client, node: NodeId) -> Result<(), Failure> {
    let known = client.get(&format!("/node/{node}")).await?;
    if known["identity"].is_null() {
        return Ok(());
    }
    Err(Failure::failed(
        "number_in_use",
        format!(
            "node {node} has run already; its number cannot be taken over by a directory that does not know what it \
             voted and promised. Take it out (pgquorum node remove {node}) and join without --node"
        ),
    ))
}

/// Adds the node to the cluster; waits for its turn when another change is under way, and for a leader.
async fn add(client: &Client, args: &JoinArgs, out: Out) -> Result<NodeId, Failure> {
    let role = if args.witness { "witness" } else { "listener" };
    let path = format!(
        "/node?ip={}&role={role}&db-port={}&api-port={}&auto-upgrade={}",
        args.place.ip,
        args.place.db_port,
        args.place.api_port,
        !args.no_upgrade && !args.witness
    );
    let deadline = Instant::now() + TURN_DEADLINE;
    let mut said = false;
    loop {
        match client.call(Method::POST, &path, None).await {
            Ok(answer) => {
                return node_id(&answer).ok_or_else(|| {
                    Failure::failed(
                        "no_node_id",
                        format!("the leader added the node but named no number: {answer}"),
                    )
                });
            }
            Err(f) if (f.code.contains("in_flight") || leaderless(&f)) && Instant::now() < deadline => {
                if !said {
                    out.note(&format!("waiting: {f}"));
                    said = true;
                }
                tokio::time::sleep(TURN_PAUSE).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Nobody leads now, so nothing was done; somebody will in a moment.
fn leaderless(failure: &Failure) -> bool {
    failure.code == "no_leader"
}

/// The node's number in the answer to `POST /node`.
pub fn node_id(answer: &Value) -> Option<NodeId> {
    ["node", "member"]
        .iter()
        .filter_map(|k| answer.get(k))
        .chain([answer])
        .find_map(|v| v.as_u64().or(v["id"].as_u64()))
}

async fn make(
    client: &Client,
    args: &JoinArgs,
    mut place: Place,
    secrets: &Secrets,
    cluster_id: &str,
    out: Out,
) -> Result<(crate::config::NodeConfig, PathBuf), Failure> {
    let token = match &args.token_file {
        Some(file) => Some(std::fs::read_to_string(file).or_fail(format!("cannot read {}", file.display()))?),
        None if place.config.token_file.as_ref().is_some_and(|f| !f.exists()) => {
            return Err(Failure::usage(
                "this node is reached beyond loopback, so the cluster has a token: copy it here and name it with \
                 --token-file",
            ));
        }
        None => None,
    };
    place.write_secrets(secrets, token.as_deref())?;
    if !args.witness {
        let upstream = upstream(client).await?;
        let bar = progress_bar();
        let last_said = Mutex::new(Instant::now());
        let show = |done: u64, total: u64| match &bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            None => {
                let mut last_said = last_said.lock().unwrap_or_else(PoisonError::into_inner);
                if last_said.elapsed() >= Duration::from_secs(5) {
                    *last_said = Instant::now();
                    out.note(&format!("copied {} of {}", bytes(done), bytes(total)));
                }
            }
        };
        out.note(&format!("copying the data of node {}", upstream.node));
        engine::clone_from(&place.config, secrets, &upstream, &show).await?;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }
    engine::create_joiner(&place.config, cluster_id)?;
    place.finish()
}

/// The leader's PostgreSQL.
async fn upstream(client: &Client) -> Result<Upstream, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Leader {
        id: NodeId,
        ip: IpAddr,
        db_port: u16,
    }
    let deadline = Instant::now() + TURN_DEADLINE;
    let found = loop {
        match client.get("/leader").await {
            Err(f) if leaderless(&f) && Instant::now() < deadline => tokio::time::sleep(TURN_PAUSE).await,
            done => break done?,
        }
    };
    let leader: Leader =
        serde_json::from_value(found).or_fail("the answer to GET /leader is not understood")?;
    Ok(Upstream { node: leader.id, ip: leader.ip, port: leader.db_port, epoch: 0, timeline: 0 })
}

async fn take_out(client: &Client, node: NodeId, out: Out) {
    if let Err(e) = client.call(Method::DELETE, &format!("/node/{node}"), None).await {
        out.note(&format!(
            "the cluster still lists node {node} ({e}); take it out with: pgquorum node remove {node}"
        ));
    }
}

fn progress_bar() -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    Some(ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_every_shape_of_the_answer() {
        for answer in [
            json!({"id": 4}),
            json!({"type": "node", "member": {"id": 4}}),
            json!({"node": {"id": 4}}),
            json!({"node": 4}),
        ] {
            assert_eq!(node_id(&answer), Some(4), "{answer}");
        }
        assert_eq!(node_id(&json!({"ok": true})), None);
    }
}
