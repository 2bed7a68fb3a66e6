//! What is asked for: read from the body, with all that is wrong about it in one answer.

use super::checks::Checks;
use super::fault::Fault;
use super::wanted::{Described, Named, Wanted};
use crate::follow::TableName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a node that is asked over the network may take, unless the request says otherwise, and at most.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
const TIMEOUT_MAX_MS: u64 = 20_000;

/// Where a sidecar of another cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTo {
    pub host: String,
    pub port: u16,
}

/// Whether a node must be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Add,
    Update,
    Either,
}

/// A node, and what is to be exchanged with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRequest {
    pub name: String,
    /// Where older clients say that it is.
    pub at: Option<RouteTo>,
    pub tables: Vec<Wanted>,
}

/// What goes out of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purged {
    /// All but so many of the newest.
    Keep(i64),
    /// What comes before this one.
    Before(i64),
}

/// Own name, and what is shown to other clusters. `None` stays as it is, an empty text takes it away.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NewSelf {
    pub node_name: Option<String>,
    pub login: Option<String>,
    pub secret: Option<String>,
    pub ca: Option<String>,
}

impl std::fmt::Debug for NewSelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewSelf({:?}, …)", self.node_name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    SetRoutes {
        server: String,
        routes: Vec<RouteTo>,
    },
    GetRoutes,
    DeleteRoutes {
        routes: Vec<RouteTo>,
    },
    Exchange {
        mode: Mode,
        node: NodeRequest,
    },
    Remove {
        name: String,
    },
    Configure {
        nodes: Vec<NodeRequest>,
    },
    Status,
    Network {
        timeout: Duration,
        connected_nodes: bool,
        routes: bool,
    },
    Purge {
        table: Named,
        purged: Purged,
    },
    SetConfiguration(NewSelf),
    GetConfiguration,
    /// Asked by other clusters: who are you?
    NodeInfo,
    /// Asked by other clusters: what do these tables look like?
    DescribeTables {
        tables: Vec<Named>,
    },
    /// The other half of what another cluster was asked to do.
    Mirror {
        from: String,
        addresses: Vec<String>,
        tables: Vec<Described>,
    },
    /// The other half of removing a node.
    Forget {
        from: String,
    },
}

/// The operations of this interface. The last three are for other clusters.
pub const NAMES: [&str; 17] = [
    "cluster_set_routes",
    "cluster_get_routes",
    "cluster_delete_routes",
    "add_node",
    "update_node",
    "set_node_replication",
    "remove_node",
    "configure_cluster",
    "cluster_status",
    "cluster_network",
    "purge_stream",
    "set_configuration",
    "get_configuration",
    "node_info",
    "describe_tables",
    "mirror_node",
    "forget_node",
];

impl Operation {
    /// Reads a request.
    ///
    /// # Errors
    /// 400: what it lacks, or what is wrong about it; every field that is wrong has a sentence.
    pub fn parse(body: &Map<String, Value>) -> Result<Operation, Fault> {
        let name = match body.get("operation") {
            Some(Value::String(name)) if !name.is_empty() => name.as_str(),
            None | Some(Value::Null | Value::String(_)) => return Err(Fault::no_operation()),
            Some(_) => return Err(Fault::invalid("'operation' must be a string")),
        };
        let mut checks = Checks::default();
        let operation = match name {
            "cluster_set_routes" => {
                let server = checks.one_of(body, "server", &["hub", "leaf"]);
                let routes = checks.routes(body);
                Operation::SetRoutes { server, routes }
            }
            "cluster_get_routes" => Operation::GetRoutes,
            "cluster_delete_routes" => Operation::DeleteRoutes { routes: checks.routes(body) },
            "add_node" => Operation::Exchange { mode: Mode::Add, node: node(&mut checks, body, "") },
            "update_node" => Operation::Exchange { mode: Mode::Update, node: node(&mut checks, body, "") },
            "set_node_replication" => {
                Operation::Exchange { mode: Mode::Either, node: node(&mut checks, body, "") }
            }
            "remove_node" => Operation::Remove { name: checks.node_name(body, "") },
            "configure_cluster" => Operation::Configure { nodes: connections(&mut checks, body) },
            "cluster_status" => Operation::Status,
            "cluster_network" => network(&mut checks, body),
            "purge_stream" => purge(&mut checks, body),
            "set_configuration" => Operation::SetConfiguration(new_self(&mut checks, body)),
            "get_configuration" => Operation::GetConfiguration,
            "node_info" => Operation::NodeInfo,
            "describe_tables" => {
                let tables = checks.objects(body, "tables", true).into_iter();
                let tables = tables.map(|(label, table)| checks.sent(table, &label)).collect();
                Operation::DescribeTables { tables }
            }
            "mirror_node" => {
                let (from, addresses) = (checks.node_name(body, ""), checks.texts(body, "addresses"));
                let tables = checks.objects(body, "subscriptions", true).into_iter();
                let tables = tables.map(|(label, table)| checks.sent(table, &label)).collect();
                Operation::Mirror { from, addresses, tables }
            }
            "forget_node" => Operation::Forget { from: checks.node_name(body, "") },
            other => return Err(Fault::invalid(format!("Operation '{other}' not found"))),
        };
        checks.done(operation)
    }
}

fn node(checks: &mut Checks, body: &Map<String, Value>, prefix: &str) -> NodeRequest {
    let name = checks.node_name(body, prefix);
    let at = match (body.get("host"), body.get("port")) {
        (None | Some(Value::Null), _) => None,
        (Some(_), port) => Some(RouteTo {
            host: checks.text(body, "host", prefix).unwrap_or_default(),
            port: match port {
                None | Some(Value::Null) => 0,
                Some(_) => checks.port(body, prefix),
            },
        }),
    };
    let mut tables: Vec<Wanted> = Vec::new();
    for (label, table) in checks.objects(body, &format!("{prefix}subscriptions"), false) {
        let wanted = Wanted::read(checks, &table, &label);
        // What is said last counts.
        tables.retain(|earlier| earlier.table != wanted.table);
        tables.push(wanted);
    }
    NodeRequest { name, at, tables }
}

fn connections(checks: &mut Checks, body: &Map<String, Value>) -> Vec<NodeRequest> {
    let all = checks.objects(body, "connections", true);
    let mut nodes: Vec<NodeRequest> = Vec::new();
    for (label, connection) in all {
        let node = node(checks, &connection, &format!("{label}."));
        if !node.name.is_empty() && nodes.iter().any(|earlier| earlier.name == node.name) {
            checks.fault(format!("'{label}.node_name' is there twice"));
        }
        nodes.push(node);
    }
    nodes
}

fn network(checks: &mut Checks, body: &Map<String, Value>) -> Operation {
    let timeout = checks.number(body, "timeout", 1);
    let timeout = timeout.map(|ms| Duration::from_millis(ms.unsigned_abs().min(TIMEOUT_MAX_MS)));
    Operation::Network {
        timeout: timeout.unwrap_or(TIMEOUT_DEFAULT),
        // True leaves it out.
        connected_nodes: !checks.flag(body, "connected_nodes", "").unwrap_or(false),
        routes: !checks.flag(body, "routes", "").unwrap_or(false),
    }
}

fn purge(checks: &mut Checks, body: &Map<String, Value>) -> Operation {
    let database = checks.alias(body, &["database", "schema"], "");
    let database = database.unwrap_or_else(|| checks.missing("database"));
    let table = checks.text(body, "table", "").unwrap_or_else(|| checks.missing("table"));
    let options = match body.get("options") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(options)) => options.clone(),
        Some(_) => {
            checks.fault("'options' must be of type object");
            Map::new()
        }
    };
    let (keep, seq) = (checks.number(&options, "keep", 0), checks.number(&options, "seq", 0));
    if keep.is_some() && seq.is_some() {
        checks.fault("'options' contains a conflict between exclusive peers [keep, seq]");
    }
    let purged = seq.map_or_else(|| Purged::Keep(keep.unwrap_or(0)), Purged::Before);
    Operation::Purge { table: Named { database, table: TableName::read(&table) }, purged }
}

fn new_self(checks: &mut Checks, body: &Map<String, Value>) -> NewSelf {
    const KEYS: [&str; 5] = [
        "clustering_nodeName",
        "clustering_user",
        "clustering_password",
        "clustering_token",
        "clustering_ca",
    ];
    let unknown = body.keys().find(|key| *key != "operation" && !KEYS.contains(&key.as_str()));
    if let Some(key) = unknown {
        checks.fault(format!("'{key}' cannot be set; these can: {}", KEYS.join(", ")));
    }
    if body.len() < 2 {
        checks.fault(format!("give one of {}", KEYS.join(", ")));
    }
    // Null and an empty text take it away. What is said of a secret never shows it.
    let mut setting = |key: &str| match body.get(key) {
        None => None,
        Some(Value::Null) => Some(String::new()),
        Some(Value::String(text)) if !text.contains('\0') => Some(text.clone()),
        Some(_) => {
            checks.fault(format!("'{key}' must be a string"));
            None
        }
    };
    let [node_name, user, password, token, ca] = KEYS.map(&mut setting);
    if let Some(name) = node_name.as_deref().filter(|name| !name.is_empty()) {
        checks.name(name, "clustering_nodeName");
    }
    if token.is_some() && (user.is_some() || password.is_some()) {
        checks.fault("'clustering_token' contains a conflict between exclusive peers [clustering_token, clustering_user]");
    }
    // A token says by itself whose it is.
    let login = if token.is_some() { Some(String::new()) } else { user };
    NewSelf { node_name, login, secret: token.or(password), ca }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
