//! `pgquorum local status`: each node is asked about itself, so that a stale map of another node cannot mislead.

use super::cluster::{LocalCluster, LocalNode};
use super::processes::Running;
use crate::cli::failure::Failure;
use crate::cli::output::{Out, table};
use crate::cli::status::Map;
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// What `local status --json` prints. Other programs read it: fields are not renamed, removed or reordered.
#[derive(Debug, PartialEq, Serialize)]
pub struct LocalStatus {
    pub dsn: String,
    pub leader: Option<u64>,
    pub nodes: Vec<NodeState>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct NodeState {
    pub id: u64,
    pub role: String,
    /// As in the cluster's map; `down` when nothing of the node runs, `unknown` when it runs and does not answer.
    pub state: String,
    pub api: String,
    pub db_host: String,
    pub db_port: u16,
    pub data_dir: String,
    /// 0 when it does not run.
    pub sidecar_pid: i32,
    pub postgres_pid: i32,
    pub epoch: u64,
    pub lsn: String,
}

pub async fn run(dir: &Path, out: Out) -> Result<(), Failure> {
    show(&LocalCluster::open(dir)?, out).await
}

pub async fn show(cluster: &LocalCluster, out: Out) -> Result<(), Failure> {
    let status = read(cluster).await?;
    out.show(&status, || text(&status, &cluster.dir));
    Ok(())
}

pub fn dsn(dir: &Path, out: Out) -> Result<(), Failure> {
    let dsn = LocalCluster::open(dir)?.psql_dsn()?;
    out.show(&json!({ "dsn": dsn }), || dsn.clone());
    Ok(())
}

async fn read(cluster: &LocalCluster) -> Result<LocalStatus, Failure> {
    let nodes = cluster.nodes()?;
    let maps = join_all(nodes.iter().map(own_map)).await;
    let running: Vec<Running> = nodes.iter().map(Running::of).collect();
    Ok(assemble(cluster.dsn()?, &nodes, &maps, &running))
}

async fn own_map(node: &LocalNode) -> Option<Map> {
    node.client().get("/map").await.and_then(Map::of).ok()
}

/// The node that leads, if one says so of itself.
pub async fn leader(nodes: &[LocalNode]) -> Option<u64> {
    let maps = join_all(nodes.iter().map(own_map)).await;
    newest_leader(nodes, &maps).map(|i| nodes[i].id)
}

fn newest_leader(nodes: &[LocalNode], maps: &[Option<Map>]) -> Option<usize> {
    let own = |i: usize| maps[i].as_ref().and_then(|m| m.node(nodes[i].id));
    let leading = (0..nodes.len()).filter(|i| own(*i).and_then(|n| n.state.as_deref()) == Some("leader"));
    leading.max_by_key(|i| own(*i).and_then(|n| n.epoch))
}

fn assemble(dsn: String, nodes: &[LocalNode], maps: &[Option<Map>], running: &[Running]) -> LocalStatus {
    let own = |i: usize| maps[i].as_ref().and_then(|m| m.node(nodes[i].id));
    let leader = newest_leader(nodes, maps);
    let map =
        leader.and_then(|i| maps[i].as_ref()).or_else(|| maps.iter().flatten().max_by_key(|m| m.nodes.len()));
    let states = (0..nodes.len()).map(|i| {
        let (node, running) = (&nodes[i], &running[i]);
        let own = own(i);
        let state = match own.and_then(|n| n.state.clone()) {
            _ if running.nothing() => "down".to_owned(),
            Some(state) => state,
            None => "unknown".to_owned(),
        };
        let role = match map {
            Some(map) => map.node(node.id).map_or("removed".to_owned(), |n| n.role.clone()),
            None => "unknown".to_owned(),
        };
        NodeState {
            id: node.id,
            role,
            state,
            api: format!("http://{}:{}", node.config.ip, node.config.api_port),
            db_host: node.config.ip.to_string(),
            db_port: node.config.db_port,
            data_dir: node.config.data_dir.display().to_string(),
            sidecar_pid: running.sidecar.unwrap_or(0),
            postgres_pid: running.postmaster.unwrap_or(0),
            epoch: own.and_then(|n| n.epoch).unwrap_or(0),
            lsn: own.and_then(|n| n.lsn.clone()).unwrap_or_else(|| "0/0".to_owned()),
        }
    });
    LocalStatus { dsn, leader: leader.map(|i| nodes[i].id), nodes: states.collect() }
}

fn text(status: &LocalStatus, dir: &Path) -> String {
    let row = |n: &NodeState| {
        vec![
            format!("{}{}", n.id, if status.leader == Some(n.id) { "*" } else { "" }),
            n.role.clone(),
            n.state.clone(),
            n.api.clone(),
            format!("{}:{}", n.db_host, n.db_port),
            n.sidecar_pid.to_string(),
            n.postgres_pid.to_string(),
            n.epoch.to_string(),
            n.lsn.clone(),
        ]
    };
    let head = ["NODE", "ROLE", "STATE", "SIDECAR", "POSTGRESQL", "PID", "PG PID", "EPOCH", "LSN"];
    let table = table(&head, status.nodes.iter().map(row).collect());
    format!("{table}\nConnect:  psql \"$(pgquorum local dsn --dir {})\"", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    fn node(id: u64) -> LocalNode {
        let toml = format!(
            "node = {id}\nip = \"127.0.0.1\"\napi-port = {}\ndb-port = {}\ndata-dir = \"/d/node{id}/data\"\nstate-dir = \"/d\"",
            7400 + id,
            7500 + id
        );
        let config: NodeConfig = toml::from_str(&toml).unwrap();
        LocalNode { id, dir: format!("/d/node{id}").into(), config }
    }

    fn map(leader: u64, entries: &[(u64, &str, u64)]) -> Option<Map> {
        let nodes: Vec<_> = entries
            .iter()
            .map(|(id, state, epoch)| json!({"id": id, "role": "node", "state": state, "epoch": epoch, "lsn": "0/5"}))
            .collect();
        Map::of(json!({"leader": leader, "nodes": nodes})).ok()
    }

    fn alive(pid: i32) -> Running {
        Running { sidecar: Some(pid), postmaster: Some(pid + 1), postgres: vec![pid + 1], helpers: vec![] }
    }

    #[test]
    fn the_document_keeps_its_shape() {
        let maps = [map(1, &[(1, "leader", 1)])];
        let status = assemble("postgresql://x".to_owned(), &[node(1)], &maps, &[alive(10)]);
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(
            text,
            r#"{"dsn":"postgresql://x","leader":1,"nodes":[{"id":1,"role":"node","state":"leader","api":"http://127.0.0.1:7401","db_host":"127.0.0.1","db_port":7501,"data_dir":"/d/node1/data","sidecar_pid":10,"postgres_pid":11,"epoch":1,"lsn":"0/5"}]}"#
        );
    }

    #[test]
    fn every_node_speaks_for_itself_and_the_newest_leader_counts() {
        let nodes = [node(1), node(2), node(3), node(4)];
        let maps = [
            map(1, &[(1, "leader", 3), (2, "replica", 3), (3, "replica", 3)]),
            map(2, &[(1, "replica", 4), (2, "leader", 4), (3, "stopped", 4)]),
            None,
            None,
        ];
        let running = [alive(10), alive(20), Running::default(), alive(40)];
        let status = assemble(String::new(), &nodes, &maps, &running);
        assert_eq!(status.leader, Some(2));
        let states: Vec<_> =
            status.nodes.iter().map(|n| (n.role.as_str(), n.state.as_str(), n.postgres_pid)).collect();
        assert_eq!(
            states,
            [("node", "leader", 11), ("node", "leader", 21), ("node", "down", 0), ("removed", "unknown", 41)]
        );
        let nobody = assemble(String::new(), &nodes[..1], &[None], &[Running::default()]);
        assert_eq!((nobody.leader, nobody.nodes[0].role.as_str()), (None, "unknown"));
    }
}
