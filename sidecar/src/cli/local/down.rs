//! `pgquorum local down` and `destroy`

use super::cluster::{LocalCluster, LocalNode};
use super::processes::Running;
use super::signal::{kill_below, stop_node};
use crate::cli::failure::{Context, Failure};
use crate::cli::output::Out;
use futures_util::future::join_all;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// After this time what still runs is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

pub async fn down(dir: &Path, out: Out) -> Result<(), Failure> {
    let cluster = LocalCluster::open(dir)?;
    let stopped = stop_all(&cluster).await?;
    out.show(&json!({ "dir": cluster.dir, "stopped": stopped }), || match stopped.len() {
        0 => "Nothing was running.".to_owned(),
        n => format!(
            "{n} nodes stopped; the data is kept. Start again: pgquorum local up --dir {}",
            cluster.dir.display()
        ),
    });
    Ok(())
}

pub async fn destroy(dir: &Path, out: Out) -> Result<(), Failure> {
    let cluster = LocalCluster::open(dir)?;
    stop_all(&cluster).await?;
    kill_below(&cluster.dir).await?;
    // The marker goes last: a directory that is half removed can be destroyed again.
    for entry in std::fs::read_dir(&cluster.dir).or_fail(cluster.dir.display())? {
        let path = entry.or_fail(cluster.dir.display())?.path();
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path).or_fail(format!("cannot remove {}", path.display()))?;
        }
    }
    std::fs::remove_dir_all(&cluster.dir).or_fail(format!("cannot remove {}", cluster.dir.display()))?;
    out.show(&json!({ "dir": cluster.dir, "removed": true }), || {
        format!("{} is removed.", cluster.dir.display())
    });
    Ok(())
}

/// Stops the followers first, together, so that no leadership is handed on to a node that leaves next; then the leader.
async fn stop_all(cluster: &LocalCluster) -> Result<Vec<u64>, Failure> {
    let _lock = cluster.lock()?;
    let nodes = cluster.nodes()?;
    let running: Vec<&LocalNode> = nodes.iter().filter(|n| !Running::of(n).nothing()).collect();
    let leader = super::state::leader(&nodes).await;
    let (leaders, followers): (Vec<&LocalNode>, Vec<&LocalNode>) =
        running.iter().copied().partition(|n| Some(n.id) == leader);
    for group in [followers, leaders] {
        for done in join_all(group.iter().map(|n| stop_node(n, STOP_DEADLINE))).await {
            done?;
        }
    }
    Ok(running.iter().map(|n| n.id).collect())
}
