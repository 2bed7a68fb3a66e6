//! `GET /is-leader`: asked many times a second by load balancers, so it costs one look at the view and a short text.

use crate::clock;
use crate::rest::api::{Api, leads, probe};
use crate::rest::refusal::{Refusal, with_body};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::Method;
use warp::reply::Response;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path!("is-leader")
        .and(probe())
        .map(move |method: Method| {
            let mut response = answer(&api).unwrap_or_else(Refusal::into_response);
            if method == Method::OPTIONS {
                *response.body_mut() = String::new().into();
            }
            response
        })
        .boxed()
}

fn answer(api: &Api) -> Result<Response, Refusal> {
    let view = api.member_view()?;
    let now = clock::now();
    if leads(&view, now) {
        let body = format!("{{\"leader\":true,\"id\":{},\"epoch\":{}}}", view.id, view.epoch);
        return Ok(with_body(200, "application/json", body));
    }
    match &view.leader {
        Some(leader) if leader.id != view.id => {
            let message = format!("node {} is the leader; its REST is at {}", leader.id, leader.api);
            Err(Refusal::new(417, "not_the_leader", message).naming(leader.clone()))
        }
        _ => Err(Refusal::no_leader()),
    }
}
