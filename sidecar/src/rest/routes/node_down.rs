//! `POST /node-down/{id}`: a node has problems and shall neither vote, acknowledge nor serve reads until it is well.

use super::node::{NodeInfo, node_reply};
use crate::rest::api::{Api, query};
use crate::rest::query::{Query, bad, node_id};
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::request::Request;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

const REASON_CHARS_MAX: usize = 200;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("node-down" / String)
        .and(warp::post())
        .and(query())
        .then(move |node: String, query: String| {
            let api = api.clone();
            async move { respond(node_down(&api, &node, &query).await) }
        })
        .boxed()
}

async fn node_down(api: &Api, node: &str, query: &str) -> Result<NodeInfo, Refusal> {
    api.writable_view()?;
    let node = node_id("node", node)?;
    let query = Query::strict(query, &["reason"])?;
    let reason =
        query.get("reason").filter(|text| !text.is_empty()).unwrap_or("an administrator asked for it");
    if reason.chars().count() > REASON_CHARS_MAX || reason.contains(char::is_control) {
        return Err(bad("reason", reason, "one line of at most 200 characters"));
    }
    node_reply(api, api.ask(Request::NodeDown { node, reason: reason.to_owned() }).await?)
}
