//! How a request is refused: one type, one place that knows the status codes, one JSON body.
//!
//! A body is `{"code", "message"}`, with `"leader"` where that helps. `code` is a stable word for programs, `message`
//! says what happened and what to do. Neither ever holds a secret.

use super::interface;
use crate::feed::{FeedError, Kind};
use bytes::Bytes;
use pgquorum_agent::request::{LeaderAddress, Rejection, RejectionKind};
use serde::Serialize;
use std::borrow::Cow;
use warp::http::{HeaderName, HeaderValue, StatusCode, header};
use warp::reply::Response;

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    code: Cow<'static, str>,
    message: String,
    leader: Option<Box<LeaderAddress>>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<&'a LeaderAddress>,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code: Cow::Borrowed(code), message: message.into(), leader: None, header: None }
    }

    /// A parameter or a body that is not right (400).
    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal::new(400, code, message)
    }

    /// The driver answered with something that does not belong to the question (500).
    pub(super) fn unexpected_reply() -> Refusal {
        Refusal::new(
            500,
            "unexpected_reply",
            "the driver's answer does not fit the request; please report this",
        )
    }

    pub(super) fn no_leader() -> Refusal {
        Refusal::new(
            530,
            "no_leader",
            "the cluster has no leader now; try again in a moment, GET /events says why",
        )
    }

    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn code(&self) -> &str {
        &self.code
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn naming(mut self, leader: LeaderAddress) -> Refusal {
        self.leader = Some(Box::new(leader));
        self
    }

    pub(super) fn with_header(mut self, name: &'static str, value: &str) -> Refusal {
        self.header =
            HeaderValue::from_str(value).ok().map(|value| Box::new((HeaderName::from_static(name), value)));
        self
    }

    /// The same refusal with another status, for routes that know fewer of them.
    pub(super) fn with_status(mut self, map: impl Fn(u16) -> u16) -> Refusal {
        self.status = map(self.status);
        self
    }

    pub(super) fn into_response(mut self) -> Response {
        let leader = self.leader.take();
        self.in_words(|status, code, message| {
            json(status, &Body { code, message, leader: leader.as_deref() })
        })
    }

    /// The same in the words of the registry's clients, who know no statuses of our own making: to them a cluster that
    /// cannot decide now is a service that is not available.
    pub(super) fn into_registry_response(self) -> Response {
        self.in_words(|status, code, message| {
            let status = match status {
                417 | 420 | 530 | 531 => 503,
                other => other,
            };
            let mut response = interface::registry(status, code, message, None);
            if status == 503 {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        })
    }

    /// The answer with another interface's body, made of status, code and message.
    pub(super) fn in_words(self, words: impl FnOnce(u16, &str, &str) -> Response) -> Response {
        if self.status == 500 {
            tracing::error!(code = %self.code, "{}", self.message);
        }
        let mut response = words(self.status, &self.code, &self.message);
        if let Some((name, value)) = self.header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<FeedError> for Refusal {
    fn from(error: FeedError) -> Refusal {
        let status = match error.kind {
            Kind::UnknownColumn | Kind::Refused => 400,
            Kind::UnknownDatabase | Kind::NoExtension | Kind::UnknownChannel => 404,
            Kind::UnknownTable | Kind::UnknownFollower | Kind::UnknownSubscription => 404,
            Kind::AlreadyExists | Kind::PositionUnknownEpoch | Kind::PositionInFuture => 409,
            Kind::PositionPurged | Kind::CopyGone => 410,
            Kind::Removed => 412,
            Kind::RecordBroken | Kind::Internal => 500,
            Kind::Busy => 503,
            Kind::SnapshotTooOld | Kind::ReadOnly | Kind::Locked | Kind::TimedOut => 531,
            Kind::Unavailable | Kind::OutOfResources => 531,
        };
        Refusal::new(status, error.kind.code(), error.message)
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Refusal {
        let status = match rejection.kind {
            RejectionKind::InvalidValue => 400,
            RejectionKind::Gone | RejectionKind::UnknownNode => 410,
            RejectionKind::UnknownUser => 404,
            RejectionKind::Exists => 409,
            RejectionKind::NotMember | RejectionKind::Precondition => 412,
            RejectionKind::NotLeader => 417,
            RejectionKind::ChangeInFlight => 420,
            RejectionKind::NoLeader => 530,
            RejectionKind::Unavailable => 531,
            RejectionKind::Internal => 500,
        };
        Refusal {
            status,
            code: Cow::Owned(rejection.code),
            message: rejection.message,
            leader: rejection.leader.map(Box::new),
            header: None,
        }
    }
}

/// Every answer of the cluster's routes goes out through here.
pub(super) fn respond<T: Serialize>(answer: Result<T, Refusal>) -> Response {
    match answer {
        Ok(value) => json(200, &value),
        Err(refusal) => refusal.into_response(),
    }
}

pub(super) fn json(status: u16, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => with_body(status, "application/json", text),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            let text = r#"{"code":"not_serializable","message":"the answer could not be written as JSON"}"#;
            with_body(500, "application/json", text.to_owned())
        }
    }
}

pub(super) fn with_body(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
