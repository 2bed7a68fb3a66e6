//! `GET /leader` and `POST /leader?node=`: who leads, and who shall.

use crate::rest::api::{Api, query, read};
use crate::rest::forward::HOP_HEADER;
use crate::rest::query::{Query, node_id};
use crate::rest::refusal::{Refusal, respond};
use pgquorum_agent::member::Member;
use pgquorum_agent::request::{Reply, Request};
use pgquorum_agent::types::{Epoch, NodeId};
use serde::Serialize;
use std::net::IpAddr;
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Leader {
    id: NodeId,
    ip: IpAddr,
    db_port: u16,
    api_port: u16,
    api: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let (getter, poster) = (api.clone(), api.clone());
    let get = warp::path!("leader").and(read()).map(move || respond(get(&getter)));
    let hop = warp::header::optional::<String>(HOP_HEADER);
    let post =
        warp::path!("leader").and(warp::post()).and(query()).and(hop).then(move |query: String, hop| {
            let api = poster.clone();
            async move {
                let forwarded = Option::<String>::is_some(&hop);
                // This route knows 412, 500, 530 and 531 only: what is gone cannot lead, and who is asked while the
                // leadership moves on knows no leader.
                let known = |status| match status {
                    410 | 420 => 412,
                    417 => 530,
                    other => other,
                };
                post(&api, &query, forwarded)
                    .await
                    .unwrap_or_else(|refusal| refusal.with_status(known).into_response())
            }
        });
    get.or(post).unify().boxed()
}

fn get(api: &Api) -> Result<Leader, Refusal> {
    let view = api.member_view()?;
    let leader = view.leader.as_ref().ok_or_else(Refusal::no_leader)?;
    Ok(Leader {
        id: leader.id,
        ip: leader.api.ip(),
        db_port: leader.db.port(),
        api_port: leader.api.port(),
        api: format!("{}://{}", api.scheme(), leader.api),
        epoch: Some(view.epoch),
    })
}

async fn post(api: &Api, query: &str, forwarded: bool) -> Result<Response, Refusal> {
    let view = api.writable_view()?;
    let node = node_id("node", Query::strict(query, &["node"])?.need("node")?)?;
    let leads = view.is_open_leader || view.raft_leader == Some(view.id);
    if leads || forwarded {
        return match api.ask(Request::ChangeLeader { node }).await? {
            Reply::Leader { node } => {
                let view = api.view();
                let member = view.cluster.member(node).ok_or_else(Refusal::unexpected_reply)?;
                Ok(respond(Ok(changed(api, member))))
            }
            _ => Err(Refusal::unexpected_reply()),
        };
    }
    let leader = view.leader.as_ref().filter(|leader| leader.id != view.id).ok_or_else(Refusal::no_leader)?;
    api.forward().post(leader.api, &format!("/leader?node={node}"), view.id).await
}

fn changed(api: &Api, member: &Member) -> Leader {
    Leader {
        id: member.id,
        ip: member.ip,
        db_port: member.db_port,
        api_port: member.api_port,
        api: format!("{}://{}", api.scheme(), member.api_address()),
        epoch: None,
    }
}
