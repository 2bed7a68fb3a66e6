//! `POST /_open/auth`: a token for a name and a password.

use super::{Call, json};
use crate::login::Denied;
use crate::replication::{Failure, Result};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use warp::http::{HeaderValue, header};
use warp::reply::Response;

pub(super) async fn open(call: Call) -> Result<Response> {
    let body = call.body?;
    let text = |name: &str| match body.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(Failure::bad(format!("the body must have {name}, a text"))),
    };
    let (name, password) = (text("username")?, text("password")?);
    let from = call.sender.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |sender| sender.from);
    let view = call.api.view();
    let opened = call.api.logins().open_session(&view.cluster.users, name, password, from).await;
    match opened {
        Ok(token) => Ok(json(&json!({"jwt": token}))),
        Err(Denied::TooOften { seconds }) => {
            let message = format!("too many logins failed; the next one is looked at in {seconds} s");
            let mut response = super::refuse(&Failure::new(429, 429, message));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            Ok(response)
        }
        Err(Denied::Busy) => Err(Failure::new(503, 503, "too many passwords are being verified; try again")),
        Err(Denied::Wrong | Denied::Missing | Denied::Outdated) => {
            Err(Failure::new(401, 401, "wrong credentials: the name or the password is wrong"))
        }
    }
}
