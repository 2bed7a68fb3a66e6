//! `POST /`: the operations interface. Any node takes operations; those that do not lead pass them on to the leader.

use crate::operations::{Engine, Fault, Operation};
use crate::rest::api::Api;
use crate::rest::body;
use crate::rest::forward::HOP_HEADER;
use crate::rest::refusal::{Refusal, json};
use serde_json::{Map, Value};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

type Body = Result<Map<String, Value>, Refusal>;

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    let hop = warp::header::optional::<String>(HOP_HEADER);
    warp::path::end()
        .and(warp::post())
        .and(hop)
        .and(body::object())
        .then(move |hop: Option<String>, body: Body| {
            let api = api.clone();
            async move {
                match answer(&api, hop.is_some(), body).await {
                    Ok(response) => response,
                    Err(fault) => json(fault.status, &fault.body()),
                }
            }
        })
        .boxed()
}

async fn answer(api: &Api, forwarded: bool, body: Body) -> Result<Response, Fault> {
    let body = body.map_err(|refusal| match refusal.code() {
        "malformed_json" => Fault::invalid("Invalid JSON."),
        "not_an_object" => Fault::no_operation(),
        _ => Fault::new(refusal.status(), refusal.message()),
    })?;
    // What is wrong anywhere is said here.
    let operation = Operation::parse(&body)?;
    let view = match api.leader_view() {
        Ok(view) => view,
        Err(refusal) => {
            let here = api.view();
            let leader = here.leader.as_ref().filter(|leader| leader.id != here.id && !forwarded);
            let Some(leader) = leader.filter(|_| refusal.status() == 417) else {
                return Err(refused(&refusal));
            };
            let body = Value::Object(body).to_string();
            return api.forward().pass_on(leader.api, "/", here.id, body).await.map_err(|e| refused(&e));
        }
    };
    let engine = Engine {
        source: api.feed().source(),
        view,
        scheme: api.scheme(),
        nudge: &api.handle().subscriptions_changed,
        uptime: api.uptime(),
    };
    let answer = api.operations().perform(&engine, operation).await?;
    Ok(json(200, &answer))
}

/// A refusal of the cluster's, in this interface's form.
fn refused(refusal: &Refusal) -> Fault {
    Fault::new(503, refusal.message())
}
