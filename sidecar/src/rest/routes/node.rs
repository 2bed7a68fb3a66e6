//! `/node` and `/node/{id}`: look at nodes, add, upgrade and remove them.

use crate::rest::api::{Api, query, read};
use crate::rest::query::{Query, bad, node_id};
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::member::{Member, Role};
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::types::{Epoch, Lsn, NodeId};
use pgquorum_agent::view::{NodeStatus, State, View};
use serde::Serialize;
use serde_json::{Value, json};
use std::net::IpAddr;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

/// A member and what is known of it. What is not known, or what a witness does not have, is `null`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::rest) struct NodeInfo {
    #[serde(flatten)]
    member: Member,
    state: State,
    epoch: Option<Epoch>,
    lsn: Option<Lsn>,
    replay_lsn: Option<Lsn>,
    /// How much of what the leader wrote is not visible to readers of this node.
    lag_bytes: Option<u64>,
    streaming: bool,
    pending_restart: Vec<String>,
    trouble: Option<String>,
    copy_progress: Option<(u64, u64)>,
}

impl NodeInfo {
    /// The node and how far it is behind, if that is known.
    pub(in crate::rest) fn lag(&self) -> Option<(NodeId, u64)> {
        Some((self.member.id, self.lag_bytes?))
    }

    pub(in crate::rest) fn all(view: &View) -> Vec<NodeInfo> {
        view.cluster.members.values().map(|member| NodeInfo::new(view, member)).collect()
    }

    pub(in crate::rest) fn new(view: &View, member: &Member) -> NodeInfo {
        let status = view.nodes.get(&member.id);
        let data = status.filter(|_| member.holds_data());
        NodeInfo {
            state: status.map_or(State::Unknown, |status| status.state),
            epoch: data.map(|status| status.position.epoch),
            lsn: data.map(|status| status.position.lsn),
            replay_lsn: data.map(|status| status.replay_lsn),
            lag_bytes: data.and_then(|status| lag_bytes(view, member.id, status)),
            streaming: data.is_some_and(|status| status.streaming),
            pending_restart: status.map_or_else(Vec::new, |status| status.pending_restart.clone()),
            trouble: status.and_then(|status| status.trouble.clone()),
            copy_progress: status.and_then(|status| status.copy_progress),
            member: member.clone(),
        }
    }
}

fn lag_bytes(view: &View, node: NodeId, status: &NodeStatus) -> Option<u64> {
    let leader = view.leader.as_ref()?.id;
    if leader == node {
        return Some(0);
    }
    Some(view.nodes.get(&leader)?.position.lsn.bytes_after(status.replay_lsn))
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (lister, shower, adder, upgrader, remover) =
        (api.clone(), api.clone(), api.clone(), api.clone(), api.clone());
    let list = warp::path!("node")
        .and(read())
        .map(move || respond(lister.member_view().map(|view| NodeInfo::all(&view))));
    let show =
        warp::path!("node" / String).and(read()).map(move |node: String| respond(show(&shower, &node)));
    let add = warp::path!("node").and(warp::post()).and(query()).then(move |query: String| {
        let api = adder.clone();
        async move { respond(add(&api, &query).await) }
    });
    let upgrade = warp::path!("node" / String).and(warp::patch()).and(query()).then(
        move |node: String, query: String| {
            let api = upgrader.clone();
            async move { respond(upgrade(&api, &node, &query).await) }
        },
    );
    let remove = warp::path!("node" / String).and(warp::delete()).and(query()).then(
        move |node: String, query: String| {
            let api = remover.clone();
            async move { respond(remove(&api, &node, &query).await) }
        },
    );
    list.or(show).unify().or(add).unify().or(upgrade).unify().or(remove).unify().boxed()
}

fn show(api: &Api, node: &str) -> Result<NodeInfo, Refusal> {
    let view = api.member_view()?;
    let node = node_id("node", node)?;
    let member = view.cluster.member(node).ok_or_else(|| {
        let message = format!("the cluster has no node {node}; GET /map lists its nodes");
        Refusal::new(410, "unknown_node", message)
    })?;
    Ok(NodeInfo::new(&view, member))
}

async fn add(api: &Api, query: &str) -> Result<NodeInfo, Refusal> {
    api.writable_view()?;
    let query = Query::strict(query, &["ip", "role", "db-port", "api-port", "auto-upgrade"])?;
    let text = query.need("ip")?;
    let ip = text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
    let ip = ip.ok_or_else(|| bad("ip", text, "an IPv4 or IPv6 address that other nodes reach"))?;
    let text = query.need("role")?;
    let role = Role::parse(text).map_err(|_| bad("role", text, "listener, node or witness"))?;
    let auto_upgrade = query.flag("auto-upgrade")?.unwrap_or(role == Role::Node);
    // Every new node that holds data starts as a listener; one that shall be a node becomes one when it has caught up.
    let role = if role == Role::Node { Role::Listener } else { role };
    if role == Role::Witness && auto_upgrade {
        return Err(bad(
            "auto-upgrade",
            "true",
            "no such parameter for a witness, which votes as soon as it runs",
        ));
    }
    let (db_port, api_port) = (query.port("db-port")?, query.port("api-port")?);
    node_reply(api, api.ask(Request::AddNode { ip, db_port, api_port, role, auto_upgrade }).await?)
}

async fn upgrade(api: &Api, node: &str, query: &str) -> Result<NodeInfo, Refusal> {
    api.writable_view()?;
    let node = node_id("node", node)?;
    let query = Query::strict(query, &["db-port", "api-port"])?;
    let (db_port, api_port) = (query.need_port("db-port")?, query.need_port("api-port")?);
    node_reply(api, api.ask(Request::UpgradeNode { node, db_port, api_port }).await?)
}

async fn remove(api: &Api, node: &str, query: &str) -> Result<Value, Refusal> {
    api.writable_view()?;
    let node = node_id("node", node)?;
    Query::strict(query, &[])?;
    match api.ask(Request::RemoveNode { node }).await? {
        Reply::Removed { node } => Ok(json!({"id": node, "removed": true})),
        _ => Err(Refusal::unexpected_reply()),
    }
}

/// The node that the driver's answer is about.
pub(in crate::rest) fn node_reply(api: &Api, reply: Reply) -> Result<NodeInfo, Refusal> {
    match reply {
        Reply::Node { member } => Ok(NodeInfo::new(&api.view(), &member)),
        _ => Err(Refusal::unexpected_reply()),
    }
}
