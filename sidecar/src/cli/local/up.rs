//! `pgquorum local up`

use super::cluster::{LocalCluster, LocalNode, Marker};
use super::identity::Identity;
use super::processes::Running;
use super::state;
use crate::cli::config::settings_patch;
use crate::cli::failure::{Context, Exit, Failure};
use crate::cli::output::{Out, assignment, bytes};
use crate::cli::status::{Map, MapNode};
use hyper::Method;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(50);

/// Made by root, the cluster runs as the user postgres (or --user). The first node has number 1.
#[derive(Debug, clap::Args)]
pub struct UpArgs {
    /// How many nodes [default: 3 for a new cluster, those that there are for an old one].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=50))]
    nodes: Option<u64>,
    /// The last of them is a witness: it votes and holds no data. Only when it is made.
    #[arg(long)]
    witness: bool,
    /// Directory of the cluster; the user that it runs as must be able to enter it.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Node i has its sidecar at this port plus i, and PostgreSQL at this port plus 100 plus i.
    #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..65000))]
    base_port: u16,
    /// A setting of the cluster, for example --set node-timeout=2s; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = assignment)]
    settings: Vec<(String, String)>,
    /// Run as this user; only root can.
    #[arg(long)]
    user: Option<String>,
    /// Where PostgreSQL's programs are.
    #[arg(long, env = "PGQUORUM_BIN_DIR", value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// How long to wait until all nodes have caught up.
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub async fn run(args: UpArgs, out: Out) -> Result<(), Failure> {
    settings_patch(&args.settings)?;
    if args.witness && args.nodes.is_none_or(|n| n < 2) {
        return Err(Failure::usage(
            "--witness needs --nodes with at least 2: the last of them is the witness",
        ));
    }
    let deadline = Instant::now() + args.timeout;
    let (cluster, identity, new) = open_or_create(&args)?;
    let _lock = cluster.lock()?;
    let existing = cluster.nodes()?;
    let wanted = args.nodes.unwrap_or(if existing.is_empty() { 3 } else { existing.len() as u64 });
    if wanted < existing.len() as u64 {
        return Err(Failure::failed(
            "too_many_nodes",
            format!(
                "the cluster has {} nodes already; take one out with `pgquorum node remove`, or leave out --nodes",
                existing.len()
            ),
        ));
    }
    if existing.is_empty() {
        free_port(&cluster, 1)?;
        out.note(&format!("making node 1 in {}", cluster.node_dir(1).display()));
        make(&cluster, &identity, &args, 1, &["init"]).await?;
    }
    for node in cluster.nodes()? {
        if Running::of(&node).sidecar.is_none() {
            start_sidecar(&cluster, &node, &identity).await?;
        }
    }
    let mut joined = BTreeSet::new();
    for number in 1..=wanted {
        if !cluster.node_dir(number).join("node.toml").exists() {
            joined.insert(join(&cluster, &identity, &args, number, deadline, out).await?);
        }
    }
    if !new && !args.settings.is_empty() {
        change_settings(&cluster, &args.settings, deadline).await?;
    }
    await_all(&cluster, &joined, deadline, out).await?;
    state::show(&cluster, out).await
}

fn open_or_create(args: &UpArgs) -> Result<(LocalCluster, Identity, bool), Failure> {
    if LocalCluster::is_one(&args.dir) {
        let cluster = LocalCluster::open(&args.dir)?;
        let identity = Identity::choose(args.user.as_deref().or(cluster.marker.user.as_deref()))?;
        return Ok((cluster, identity, false));
    }
    if u32::from(args.base_port) + 100 + args.nodes.unwrap_or(3) as u32 > u32::from(u16::MAX) {
        return Err(Failure::usage("--base-port is too high: the last node's port would be beyond 65535"));
    }
    let identity = Identity::choose(args.user.as_deref())?;
    let dir = std::path::absolute(&args.dir).or_fail(args.dir.display())?;
    std::fs::create_dir_all(&dir).or_fail(format!("cannot make {}", dir.display()))?;
    let marker = Marker { base_port: args.base_port, user: identity.name() };
    let parent = dir.parent().unwrap_or(Path::new("/")).canonicalize().or_fail(dir.display())?;
    if let (Some(barred), Some(user)) = (identity.barred_from(&parent), identity.name()) {
        return Err(Failure::failed(
            "no_access",
            format!(
                "the user {user} cannot enter {}; take a --dir that it can reach, below /var/tmp for example",
                barred.display()
            ),
        ));
    }
    let cluster = LocalCluster::create(&dir, marker)?;
    identity.own(&cluster.dir)?;
    Ok((cluster, identity, true))
}

/// Refuses a port that another program has, before anything is made.
fn free_port(cluster: &LocalCluster, number: u64) -> Result<(), Failure> {
    for port in [cluster.api_port(number), cluster.db_port(number)] {
        TcpListener::bind(("127.0.0.1", port)).map_err(|e| {
            Failure::failed(
                "port_in_use",
                format!("port {port} for node {number} cannot be used ({e}); take another --base-port"),
            )
        })?;
    }
    Ok(())
}

/// Runs `pgquorum init` or `pgquorum join` for the node as the cluster's user.
async fn make(
    cluster: &LocalCluster,
    identity: &Identity,
    args: &UpArgs,
    number: u64,
    what: &[&str],
) -> Result<Value, Failure> {
    let dir = cluster.node_dir(number);
    if dir.exists() {
        // Made by a command that was killed half way: without node.toml it is no node.
        std::fs::remove_dir_all(&dir).or_fail(format!("cannot remove the half made {}", dir.display()))?;
    }
    let mut command = identity.command(&identity.executable(&cluster.dir)?);
    command.arg("--json").args(what).arg("--dir").arg(&dir).args(["--ip", "127.0.0.1"]);
    command.args(["--api-port", &cluster.api_port(number).to_string()]);
    command.args(["--db-port", &cluster.db_port(number).to_string()]);
    if let Some(bin_dir) = &args.bin_dir {
        command.arg("--bin-dir").arg(bin_dir);
    }
    if what == ["init"] {
        for (name, value) in &args.settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
    }
    command.current_dir(&cluster.dir).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let done = tokio::time::timeout(args.timeout, command.kill_on_drop(true).output()).await;
    let done = done.map_err(|_| {
        Failure::failed("timed_out", format!("node {number} was not made within {:?}", args.timeout))
    })?;
    let done = done.or_fail(format!("cannot run pgquorum {}", what.join(" ")))?;
    if done.status.success() {
        return serde_json::from_slice(&done.stdout)
            .or_fail(format!("pgquorum {} printed no JSON", what.join(" ")));
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    let last: Value = said.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or(Value::Null);
    let code = last["code"].as_str().unwrap_or("failed");
    let message = last["message"].as_str().unwrap_or(&said);
    let exit = if done.status.code() == Some(3) { Exit::Unreachable } else { Exit::Failed };
    Err(Failure { exit, code: code.to_owned(), message: format!("node {number}: {message}") })
}

/// Adds node `number` to the running cluster, copies the data and starts it.
async fn join(
    cluster: &LocalCluster,
    identity: &Identity,
    args: &UpArgs,
    number: u64,
    deadline: Instant,
    out: Out,
) -> Result<u64, Failure> {
    let (_, map) = await_leader(cluster, deadline).await?;
    free_port(cluster, number)?;
    out.note(&format!("making node {number} in {}", cluster.node_dir(number).display()));
    let first = cluster
        .nodes()?
        .first()
        .cloned()
        .ok_or_else(|| Failure::failed("no_nodes", "the first node is gone"))?;
    let url = format!("http://127.0.0.1:{}", first.config.api_port);
    let secrets = first.config.secrets_file().display().to_string();
    let mut what = vec!["join", "--no-run", "--leader", &url, "--secrets", &secrets];
    if args.witness && Some(number) == args.nodes {
        what.push("--witness");
    }
    // Listed by a command that was killed before it finished.
    let listed = map.nodes.iter().find(|n| n.api_port == cluster.api_port(number)).map(|n| n.id.to_string());
    if let Some(id) = &listed {
        what.extend(["--node", id]);
    }
    let made = make(cluster, identity, args, number, &what).await?;
    let id =
        made["node"].as_u64().ok_or_else(|| Failure::failed("no_node_id", "pgquorum join named no node"))?;
    start_sidecar(cluster, &cluster.node(id)?, identity).await?;
    Ok(id)
}

/// Starts the sidecar in a session of its own, its output in the node's sidecar.log, and notes its process id.
pub async fn start_sidecar(
    cluster: &LocalCluster,
    node: &LocalNode,
    identity: &Identity,
) -> Result<i32, Failure> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(node.log_file());
    let log = log.or_fail(format!("cannot write {}", node.log_file().display()))?;
    identity.own(&node.log_file())?;
    let errors = log.try_clone().or_fail("cannot share the log file")?;
    // setsid takes the sidecar out of this terminal and then becomes it, so the process id stays the same.
    let mut command = identity.command(Path::new("/usr/bin/setsid"));
    command.arg(identity.executable(&cluster.dir)?).arg("run").arg("--config").arg(node.config_file());
    command.current_dir(&node.dir).stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = command.spawn().or_fail("cannot start the sidecar through /usr/bin/setsid")?;
    let pid = i32::try_from(child.id()).unwrap_or_default();
    std::fs::write(node.pid_file(), format!("{pid}\n"))
        .or_fail(format!("cannot write {}", node.pid_file().display()))?;
    identity.own(&node.pid_file())?;
    // Until setsid has become the sidecar, others would not recognise it.
    let deadline = Instant::now() + Duration::from_secs(30);
    while Running::of(node).sidecar != Some(pid) {
        if let Some(status) = child.try_wait().or_fail("cannot watch the sidecar")? {
            return Err(died(node, &status.to_string()));
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(
                "not_started",
                format!("the sidecar of node {} did not start", node.id),
            ));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(pid)
}

fn died(node: &LocalNode, how: &str) -> Failure {
    Failure::failed(
        "sidecar_died",
        format!(
            "the sidecar of node {} ended ({how}); the end of {}:{}",
            node.id,
            node.log_file().display(),
            node.log_tail()
        ),
    )
}

/// Waits until a node says that it leads, and returns it with its map.
async fn await_leader(cluster: &LocalCluster, deadline: Instant) -> Result<(LocalNode, Map), Failure> {
    let nodes = cluster.nodes()?;
    loop {
        for node in &nodes {
            if Running::of(node).sidecar.is_none() {
                return Err(died(node, "no process"));
            }
            let map = node.client().get("/map").await.and_then(Map::of);
            if let Ok(map) = map
                && map.node(node.id).and_then(|n| n.state.as_deref()) == Some("leader")
            {
                return Ok((node.clone(), map));
            }
        }
        if Instant::now() > deadline {
            let logs: Vec<String> = nodes.iter().map(|n| n.log_file().display().to_string()).collect();
            return Err(Failure::unreachable(
                "no_leader",
                format!("no leader in time; see {}", logs.join(", ")),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn change_settings(
    cluster: &LocalCluster,
    settings: &[(String, String)],
    deadline: Instant,
) -> Result<(), Failure> {
    let (leader, _) = await_leader(cluster, deadline).await?;
    let patch = serde_json::to_value(settings_patch(settings)?).or_fail("settings")?;
    leader.client().call(Method::POST, "/config", Some(&patch)).await.map(drop)
}

/// Waits until every node streams, those that were added now are full nodes, and commits wait for them.
async fn await_all(
    cluster: &LocalCluster,
    joined: &BTreeSet<u64>,
    deadline: Instant,
    out: Out,
) -> Result<(), Failure> {
    let nodes = cluster.nodes()?;
    let mut said: BTreeMap<u64, String> = BTreeMap::new();
    loop {
        let (_, map) = await_leader(cluster, deadline).await?;
        let mut waiting = Vec::new();
        for node in &nodes {
            let entry = map.node(node.id);
            let now = entry
                .map_or("not part of the cluster any more; its directory is left alone".to_owned(), progress);
            if said.get(&node.id) != Some(&now) {
                out.note(&format!("node {}: {now}", node.id));
                said.insert(node.id, now);
            }
            if entry.is_some_and(|e| !is_ready(e, joined.contains(&node.id))) {
                waiting.push(node);
            }
        }
        if waiting.is_empty() && !map.change_in_flight {
            return Ok(());
        }
        if Instant::now() > deadline {
            let list: Vec<String> =
                waiting.iter().map(|n| format!("node {} (see {})", n.id, n.log_file().display())).collect();
            return Err(Failure::failed(
                "not_caught_up",
                format!("not caught up in time: {}", list.join(", ")),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn is_ready(entry: &MapNode, must_be_full: bool) -> bool {
    let runs = match entry.state.as_deref() {
        Some("leader" | "witness") => true,
        Some("replica") => entry.streaming != Some(false),
        _ => false,
    };
    runs && !entry.down && (!must_be_full || entry.role != "listener")
}

fn progress(entry: &MapNode) -> String {
    let mut text = format!("{}, {}", entry.role, entry.state.as_deref().unwrap_or("unknown"));
    if let Some([done, total]) = entry.copy_progress.as_ref().and_then(|p| p.as_array()).map(Vec::as_slice) {
        let (done, total) = (done.as_u64().unwrap_or(0), total.as_u64().unwrap_or(0));
        text.push_str(&format!(", {} of {} copied", bytes(done), bytes(total)));
    }
    if let Some(trouble) = &entry.trouble {
        text.push_str(&format!(", {trouble}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_it_streams_and_has_its_role() {
        let node = |role: &str, state: &str, streaming| MapNode {
            role: role.to_owned(),
            state: Some(state.to_owned()),
            streaming: Some(streaming),
            ..MapNode::default()
        };
        assert!(is_ready(&node("node", "leader", false), true));
        assert!(is_ready(&node("node", "replica", true), true));
        assert!(!is_ready(&node("node", "replica", false), true));
        assert!(!is_ready(&node("listener", "replica", true), true));
        assert!(is_ready(&node("listener", "replica", true), false));
        assert!(!is_ready(&node("node", "starting", false), false));
        assert!(!is_ready(&MapNode { down: true, ..node("node", "replica", true) }, true));
    }
}
