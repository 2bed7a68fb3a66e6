//! How the nodes are, as far as one can see from here.

use super::engine::Engine;
use super::fault::Fault;
use super::known::{Known, Neighbour};
use super::others::{NodeInfo, Others, Silence};
use super::tables;
use crate::feed::Kind;
use crate::follow::{Base, TableName};
use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a node may take to answer before it counts as one that does not.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// How many nodes `cluster_network` goes to, and how far.
const NETWORK_MAX: usize = 256;
const HOPS_MAX: usize = 5;
/// What of a subscription's state is shown.
const SHOWN: [&str; 15] = [
    "name",
    "database",
    "state",
    "code",
    "detail",
    "position",
    "end",
    "end_seen_at",
    "lag_ticks",
    "lag_bytes",
    "lag_seconds",
    "committed_at",
    "applied_at",
    "tables_stopped",
    "rejected",
];

impl Engine<'_> {
    pub async fn status(&self) -> Result<Value, Fault> {
        let known = self.known().await?;
        let others = self.others(&known);
        let connections = join_all(known.nodes.iter().map(|node| self.connection(&others, node))).await;
        Ok(json!({
            "node_name": known.name(),
            "is_enabled": true,
            "connections": connections.into_iter().collect::<Result<Vec<Value>, Fault>>()?,
        }))
    }

    async fn connection(&self, others: &Others, node: &Neighbour) -> Result<Value, Fault> {
        let (answer, took) = others.info(&node.remote, STATUS_DEADLINE).await;
        let port = node.bases().first().map_or(0, Base::port);
        let flow = |flow: &super::known::Flow| {
            json!({
                "schema": flow.named.database,
                "database": flow.named.database,
                "table": flow.named.table.short(),
                "publish": flow.publish,
                "subscribe": flow.subscribe,
            })
        };
        let mut shown = json!({
            "node_name": node.name,
            "status": "open",
            "ports": {"clustering": port, "operations_api": port},
            "latency_ms": null,
            "uptime": null,
            "subscriptions": node.tables.iter().map(flow).collect::<Vec<_>>(),
            "databases": self.following(node).await?,
        });
        match answer {
            Ok(info) if info.node_name == node.name => {
                shown["latency_ms"] = json!(milliseconds(took));
                shown["uptime"] = uptime(info.uptime_seconds).into();
                shown["system_info"] = json!({"hdb_version": info.version, "platform": std::env::consts::OS});
            }
            Ok(info) => {
                shown["status"] = "closed".into();
                shown["error"] = format!("at its addresses is now '{}'", info.node_name).into();
            }
            Err(silence) => {
                shown["status"] = silence.status().into();
                shown["error"] = silence.message().into();
            }
        }
        Ok(shown)
    }

    /// How far its changes are applied here, for each database.
    async fn following(&self, node: &Neighbour) -> Result<Vec<Value>, Fault> {
        let followed = node.tables.iter().filter(|flow| flow.subscribe);
        let databases: BTreeSet<&str> = followed.map(|flow| flow.named.database.as_str()).collect();
        let name = tables::subscription_name(&node.name);
        let mut following = Vec::with_capacity(databases.len());
        for database in databases {
            let state = match self.source.subscriptions(database, Some(&name)).await {
                Ok(states) => states.into_iter().next(),
                Err(error) if matches!(error.kind, Kind::UnknownDatabase | Kind::NoExtension) => None,
                Err(error) => return Err(error.into()),
            };
            following.push(match state {
                Some(Value::Object(state)) => {
                    let shown = |name: &&str| Some(((*name).to_owned(), state.get(*name)?.clone()));
                    let mut shown: Map<String, Value> = SHOWN.iter().filter_map(shown).collect();
                    if state.get("tables_stopped").and_then(Value::as_u64).is_some_and(|stopped| stopped > 0)
                    {
                        shown.insert("stopped".to_owned(), self.stopped(database, &name).await?);
                    }
                    Value::Object(shown)
                }
                _ => json!({"database": database, "name": name, "state": "missing",
                    "detail": "it was ended by somebody else; update_node sets it up again"}),
            });
        }
        Ok(following)
    }

    /// The tables that do not go on, and why.
    async fn stopped(&self, database: &str, subscription: &str) -> Result<Value, Fault> {
        let tables = self.source.subscription_tables(database, subscription).await?;
        let stopped = tables.into_iter().filter(|table| table["state"] == "stopped");
        let shown = stopped.map(|table| {
            let name = |field: &str| table[field].as_str().unwrap_or_default().to_owned();
            let name = TableName { schema: name("schema"), table: name("table") };
            json!({"table": name.short(), "code": table["code"], "message": table["message"]})
        });
        Ok(shown.collect())
    }

    /// All nodes that can be found from here, from node to node.
    pub async fn network(
        &self,
        timeout: Duration,
        connected_nodes: bool,
        routes: bool,
    ) -> Result<Value, Fault> {
        let known = self.known().await?;
        let others = self.others(&known);
        let own = self.info(&known);
        let show = |name: &str, answer: Result<&NodeInfo, &Silence>, took: Option<Duration>| {
            let mut node = json!({"name": name, "response_time": took.map(milliseconds)});
            match answer {
                Ok(info) => {
                    node["status"] = "open".into();
                    if connected_nodes {
                        node["connected_nodes"] =
                            info.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().into();
                    }
                    if routes {
                        node["routes"] = json!(info.routes);
                    }
                }
                Err(silence) => {
                    node["status"] = silence.status().into();
                    node["error"] = silence.message().into();
                    for (shown, field) in [(connected_nodes, "connected_nodes"), (routes, "routes")] {
                        if shown {
                            node[field] = json!([]);
                        }
                    }
                }
            }
            node
        };
        let mut nodes = vec![show(known.name(), Ok(&own), Some(Duration::ZERO))];
        let mut seen = BTreeSet::from([known.name().to_owned()]);
        let mut next = self.neighbours_of(&known);
        for _ in 0..HOPS_MAX {
            if nodes.len() >= NETWORK_MAX {
                break;
            }
            seen.extend(next.keys().cloned());
            let asked = next.values().map(|addresses| others.info(addresses, timeout));
            let answers = join_all(asked).await;
            let mut further = BTreeMap::new();
            for ((name, _), (answer, took)) in next.iter().zip(answers) {
                if let Ok(info) = &answer {
                    for node in &info.nodes {
                        if !seen.contains(&node.name) {
                            further.insert(node.name.clone(), node.addresses.clone());
                        }
                    }
                }
                let took = answer.is_ok().then_some(took);
                nodes.push(show(name, answer.as_ref(), took));
            }
            next = further;
        }
        Ok(json!({ "nodes": nodes }))
    }

    fn neighbours_of(&self, known: &Known) -> BTreeMap<String, Vec<String>> {
        known.nodes.iter().map(|node| (node.name.clone(), node.remote.clone())).collect()
    }
}

fn milliseconds(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// `30d 1h 18m 8s`
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    format!("{days}d {}h {}m {}s", hours % 24, minutes % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_uptime_reads_as_clients_know_it() {
        assert_eq!(super::uptime(30 * 86_400 + 3600 + 18 * 60 + 8), "30d 1h 18m 8s");
        assert_eq!(super::uptime(0), "0d 0h 0m 0s");
    }
}
