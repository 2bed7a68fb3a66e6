//! Checks of the sidecar and of the node's place in the cluster, over REST.

use super::look::{LIMIT, Look, hung};
use super::server::is_taken;
use super::{Check, machine, target};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::bytes;
use crate::cli::status::Map;
use crate::config::NodeConfig;
use serde_json::Value;
use std::path::Path;

/// A standby further behind than this is worth a word.
const LAG_BYTES: u64 = 64 * 1024 * 1024;

/// What the node's own sidecar said.
pub struct Sidecar {
    info: Result<Value, Failure>,
    map: Option<Map>,
}

pub async fn ask(config: &NodeConfig, file: &Path) -> Sidecar {
    debug_assert!(config.check().is_ok());
    let file = file.to_owned();
    // Token and authority lie in files.
    let client = Look::begin(LIMIT, move || target(&file).client()).end();
    let client = match client.unwrap_or_else(|| Err(Failure::failed("timed_out", hung(LIMIT)))) {
        Ok(client) => client,
        Err(failure) => return Sidecar { info: Err(failure), map: None },
    };
    let info = client.get("/info").await;
    let map = Map::read(&client).await.ok();
    Sidecar { info, map }
}

impl Sidecar {
    pub fn port(&self, config: &NodeConfig) -> Check {
        const NAME: &str = "sidecar";
        let address = config.api_listen();
        match (&self.info, is_taken(address)) {
            (_, Err(e)) => Check::fail(
                NAME,
                format!("cannot listen on {address}: {e}. Correct ip or listen in node.toml"),
            ),
            (Ok(info), _) if info["id"].as_u64().is_some_and(|id| id != config.node) => Check::fail(
                NAME,
                format!("node {} answers at {address}: another node has this port", info["id"]),
            ),
            (Ok(_), _) => Check::ok(NAME, format!("answers at {address}")),
            (Err(f), Ok(true)) if f.exit == Exit::Unreachable => Check::fail(
                NAME,
                format!(
                    "{address} is in use, but no sidecar answers there; see who has it: ss -ltnp 'sport = :{}'",
                    config.api_port
                ),
            ),
            (Err(_), Ok(false)) => {
                Check::fail(NAME, format!("does not run; start it with `pgquorum run` ({address} is free)"))
            }
            (Err(failure), Ok(true)) => Check::fail(NAME, failure.message.clone()),
        }
    }

    /// Nothing is said about what a sidecar that does not answer could have told.
    pub fn checks(&self, config: &NodeConfig) -> Vec<Check> {
        let Ok(info) = &self.info else { return Vec::new() };
        let mut checks = vec![identity(info, config)];
        let Some(map) = &self.map else {
            checks.push(Check::fail("map", "GET /map gives no answer"));
            return checks;
        };
        checks.push(match map.leader {
            Some(leader) => Check::ok("leader", format!("node {leader}")),
            None => Check::fail(
                "leader",
                "the cluster has no leader: most voting nodes must run and reach each other",
            ),
        });
        let Some(own) = map.node(config.node) else {
            checks.push(Check::fail(
                "member",
                format!("node {} is not in the cluster's map: it was removed", config.node),
            ));
            return checks;
        };
        checks.push(match own.down {
            true => {
                Check::warn("member", format!("{}, marked as down: no votes, no acknowledgements", own.role))
            }
            false => Check::ok("member", own.role.clone()),
        });
        for node in &map.nodes {
            if let Some(trouble) = &node.trouble {
                let verdict = if node.id == config.node { Check::fail } else { Check::warn };
                checks.push(verdict("trouble", format!("node {}: {trouble}", node.id)));
            }
            if let Some(lag) = node.lag_bytes.filter(|lag| *lag > LAG_BYTES) {
                checks.push(Check::warn("lag", format!("node {} is {} behind", node.id, bytes(lag))));
            }
            if let Some(names) = node.pending_restart.as_ref().filter(|names| !names.is_empty()) {
                checks.push(Check::warn(
                    "restart",
                    format!("node {} must be restarted for {}", node.id, names.join(", ")),
                ));
            }
        }
        checks
    }
}

fn identity(info: &Value, config: &NodeConfig) -> Check {
    const NAME: &str = "system identifier";
    let cluster = &info["system-identifier"];
    let cluster = cluster.as_u64().or_else(|| cluster.as_str().and_then(|t| t.parse().ok()));
    match (cluster, machine::system_identifier(config)) {
        (Some(cluster), Some(own)) if cluster == own => Check::ok(NAME, own.to_string()),
        (Some(cluster), Some(own)) => Check::fail(
            NAME,
            format!(
                "{} holds another database ({own}) than the cluster ({cluster}): move it away and use `pgquorum join`",
                config.data_dir.display()
            ),
        ),
        _ => Check::warn(NAME, "cannot be compared: the cluster or the data directory did not tell it"),
    }
}
