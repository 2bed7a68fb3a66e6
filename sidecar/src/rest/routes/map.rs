//! `GET /map`: all nodes and who leads.

use super::node::NodeInfo;
use crate::rest::api::{Api, read};
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::types::NodeId;
use serde::Serialize;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterMap {
    leader: Option<NodeId>,
    /// A change of members, settings or durability is on its way.
    change_in_flight: bool,
    nodes: Vec<NodeInfo>,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("map").and(read()).map(move || respond(map(&api))).boxed()
}

fn map(api: &Api) -> Result<ClusterMap, Refusal> {
    let view = api.member_view()?;
    Ok(ClusterMap {
        leader: view.leader.as_ref().map(|leader| leader.id),
        change_in_flight: view.change_in_flight,
        nodes: NodeInfo::all(&view),
    })
}
