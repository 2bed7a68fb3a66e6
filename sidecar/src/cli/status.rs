//! `pgquorum status`

use super::client::{Client, Target};
use super::failure::{Context, Failure};
use super::output::{Out, bytes, table};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// All nodes of the cluster as the asked node knows them. Exit code 3 when nobody answers or there is no leader.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    target: Target,
}

/// The answer to `GET /map`. What an older or newer node leaves out is empty.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Map {
    #[serde(default, deserialize_with = "leader")]
    pub leader: Option<u64>,
    #[serde(default, rename = "change-in-flight")]
    pub change_in_flight: bool,
    #[serde(default)]
    pub nodes: Vec<MapNode>,
}

/// One node of the map.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MapNode {
    pub id: u64,
    pub ip: String,
    pub db_port: u16,
    pub api_port: u16,
    pub role: String,
    pub down: bool,
    pub state: Option<String>,
    pub epoch: Option<u64>,
    pub lsn: Option<String>,
    pub replay_lsn: Option<String>,
    pub lag_bytes: Option<u64>,
    pub streaming: Option<bool>,
    pub pending_restart: Option<Vec<String>>,
    pub trouble: Option<String>,
    pub copy_progress: Option<Value>,
}

/// The leader is a number; an object that has one is understood too.
fn leader<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_u64().or_else(|| value.get("id").and_then(Value::as_u64)))
}

impl Map {
    pub async fn read(client: &Client) -> Result<Map, Failure> {
        Map::of(client.get("/map").await?)
    }

    pub fn of(answer: Value) -> Result<Map, Failure> {
        serde_json::from_value(answer).or_fail("the answer to GET /map is not understood")
    }

    pub fn node(&self, id: u64) -> Option<&MapNode> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// The node, or a failure that lists those that exist.
    pub fn expect(&self, id: u64) -> Result<&MapNode, Failure> {
        self.node(id).ok_or_else(|| {
            let known: Vec<String> = self.nodes.iter().map(|n| n.id.to_string()).collect();
            Failure::not_found(
                "unknown_node",
                format!("there is no node {id}; the nodes are {}", known.join(", ")),
            )
        })
    }

    pub fn text(&self) -> String {
        let rows = self.nodes.iter().map(|n| self.row(n)).collect();
        let mut text =
            table(&["NODE", "ADDRESS", "DB", "API", "ROLE", "STATE", "EPOCH", "LSN", "LAG", "REMARKS"], rows);
        if self.leader.is_none() {
            text.push_str("\nThere is no leader now: reads are served, writes are not.\n");
        }
        text
    }

    fn row(&self, node: &MapNode) -> Vec<String> {
        let mark = if self.leader == Some(node.id) { "*" } else { "" };
        vec![
            format!("{}{mark}", node.id),
            node.ip.clone(),
            node.db_port.to_string(),
            node.api_port.to_string(),
            node.role.clone(),
            if node.down {
                "down".to_owned()
            } else {
                node.state.clone().unwrap_or_else(|| "unknown".to_owned())
            },
            node.epoch.map_or("-".to_owned(), |e| e.to_string()),
            node.lsn.clone().unwrap_or_else(|| "-".to_owned()),
            node.lag_bytes.map_or("-".to_owned(), bytes),
            node.remarks(),
        ]
    }
}

impl MapNode {
    fn remarks(&self) -> String {
        let mut remarks: Vec<String> = self.trouble.iter().cloned().collect();
        if let Some([done, total]) = self.copy_progress.as_ref().and_then(|v| v.as_array()).map(Vec::as_slice)
        {
            let (done, total) = (done.as_u64().unwrap_or(0), total.as_u64().unwrap_or(0));
            remarks.push(format!("copying: {} of {}", bytes(done), bytes(total)));
        }
        if let Some(parameters) = self.pending_restart.as_ref().filter(|p| !p.is_empty()) {
            remarks.push(format!("restart needed for {}", parameters.join(", ")));
        }
        if self.streaming == Some(false) && self.state.as_deref() == Some("replica") {
            remarks.push("does not stream".to_owned());
        }
        remarks.join("; ")
    }
}

pub async fn run(args: StatusArgs, out: Out) -> Result<(), Failure> {
    let answer = args.target.client()?.get("/map").await?;
    let map = Map::of(answer.clone())?;
    out.show(&answer, || map.text());
    match map.leader {
        Some(_) => Ok(()),
        None => Err(Failure::unreachable("no_leader", "the cluster has no leader now")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_map_reads_and_prints() {
        let map = Map::of(json!({"leader": 2, "nodes": [
            {"id": 1, "ip": "127.0.0.1", "db-port": 5433, "api-port": 8009, "role": "node", "down": false,
             "state": "replica", "epoch": 3, "lsn": "0/3000060", "replay-lsn": "0/3000060", "lag-bytes": 2048,
             "streaming": false, "pending-restart": ["max_connections"], "trouble": null, "copy-progress": [1024, 2048]},
            {"id": 2, "ip": "127.0.0.1", "db-port": 5434, "api-port": 8010, "role": "node", "down": false,
             "state": "leader", "epoch": 3, "lsn": "0/3000860"}]}))
        .unwrap();
        let text = map.text();
        assert!(text.contains("2*"), "{text}");
        assert!(
            text.contains("copying: 1.0 kB of 2.0 kB; restart needed for max_connections; does not stream"),
            "{text}"
        );
        assert!(map.expect(3).unwrap_err().message.contains("1, 2"));
    }

    #[test]
    fn no_leader_is_said() {
        for leader in [json!(null), json!({})] {
            let map = Map::of(json!({"leader": leader, "nodes": []})).unwrap();
            assert_eq!(map.leader, None);
            assert!(map.text().contains("no leader"));
        }
        assert_eq!(Map::of(json!({"leader": {"id": 7}})).unwrap().leader, Some(7));
    }
}
