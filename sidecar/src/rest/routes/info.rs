//! `GET /info`: what a node that was added before needs to know to start.

use crate::rest::api::{Api, read};
use crate::rest::refusal::{Refusal, respond};
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("info").and(read()).map(move || respond(info(&api))).boxed()
}

fn info(api: &Api) -> Result<Value, Refusal> {
    let view = api.member_view()?;
    let cluster = &view.cluster;
    Ok(json!({
        "term": view.term,
        "applied-index": cluster.applied_index,
        "config": cluster.settings,
        "logs": cluster.log,
        "id": view.id,
        "cluster-id": cluster.cluster_id,
        // As text: JSON numbers of this size lose digits in JavaScript and others.
        "system-identifier": cluster.system_identifier.to_string(),
        "nodes": cluster.members.values().collect::<Vec<_>>(),
        "appointment": cluster.appointment,
        "durability": cluster.durability,
    }))
}
