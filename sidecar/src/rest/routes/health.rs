//! Health checks as Patroni answers them, so that set-ups of HAProxy and Kubernetes work unchanged: 200 if it is so,
//! 503 if not, with the same body either way.

use crate::clock;
use crate::rest::api::{Api, is_running, leads, probe, query};
use crate::rest::query::{Query, bad};
use crate::rest::refusal::{Refusal, json};
use pgquorum_agent::member::Role;
use pgquorum_agent::postgres::PgProcess;
use pgquorum_agent::types::Millis;
use pgquorum_agent::view::View;
use serde_json::{Value, json};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::http::Method;
use warp::path::FullPath;
use warp::reply::Response;

/// How far behind a standby may be and still count as ready, unless the request says otherwise.
const READY_LAG_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Primary,
    Replica,
    ReadOnly,
    Synchronous,
    Asynchronous,
    Health,
    Liveness,
    Readiness,
}

impl Check {
    fn of(path: &str) -> Option<Check> {
        Some(match path {
            "" | "/primary" | "/master" | "/read-write" | "/leader-check" => Check::Primary,
            "/replica" => Check::Replica,
            "/read-only" => Check::ReadOnly,
            "/synchronous" | "/sync" | "/quorum" => Check::Synchronous,
            "/asynchronous" | "/async" => Check::Asynchronous,
            "/health" => Check::Health,
            "/liveness" => Check::Liveness,
            "/readiness" => Check::Readiness,
            _ => return None,
        })
    }
}

pub(in crate::rest) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path::full()
        .and_then(|path: FullPath| {
            let path = path.as_str();
            let check = Check::of(path.strip_suffix('/').unwrap_or(path));
            async move { check.ok_or_else(warp::reject::not_found) }
        })
        .and(probe())
        .and(query())
        .map(move |check, method, query: String| {
            let mut response = answer(&api, check, &query).unwrap_or_else(Refusal::into_response);
            if method == Method::OPTIONS {
                *response.body_mut() = String::new().into();
            }
            response
        })
        .boxed()
}

fn answer(api: &Api, check: Check, query: &str) -> Result<Response, Refusal> {
    // Other parameters of Patroni's (tags, replication_state) have nothing to choose from here.
    let query = Query::lenient(query)?;
    let lag =
        query.get("lag").map(|text| size(text).ok_or_else(|| bad("lag", text, "bytes, or for example 10MB")));
    let lag = lag.transpose()?;
    let written = match query.get("mode") {
        None | Some("apply") => false,
        Some("write") => true,
        Some(other) => return Err(bad("mode", other, "apply or write")),
    };
    let view = api.view();
    let holds = holds(check, &view, clock::now(), lag, written);
    Ok(json(if holds { 200 } else { 503 }, &body(&view)))
}

fn holds(check: Check, view: &View, now: Millis, lag: Option<u64>, written: bool) -> bool {
    // What the driver knew long ago says nothing about now.
    if !is_running(view, now) {
        return false;
    }
    let leader = leads(view, now) && view.postgres.admits_clients();
    let within = |max| lag_bytes(view, written).is_some_and(|behind| behind <= max);
    let replica = |max: Option<u64>| is_replica(view) && max.is_none_or(within);
    let synchronous = view.cluster.durability.k > 0 && view.cluster.durability.voters.contains(&view.id);
    match check {
        Check::Primary => leader,
        Check::Replica => replica(lag),
        Check::ReadOnly => leader || replica(lag),
        Check::Synchronous => synchronous && replica(lag),
        Check::Asynchronous => !synchronous && replica(lag),
        Check::Health => view.postgres.admits_clients(),
        Check::Liveness => true,
        Check::Readiness => leader || replica(Some(lag.unwrap_or(READY_LAG_BYTES_MAX))),
    }
}

/// A standby that streams, lets clients in, and that nobody has marked as down.
fn is_replica(view: &View) -> bool {
    let postgres = &view.postgres;
    let well = view.cluster.member(view.id).is_some_and(|member| !member.down);
    view.member
        && !view.removed
        && well
        && postgres.admits_clients()
        && postgres.in_recovery
        && postgres.streaming
}

/// How far this standby is behind the leader; `None` when the leader's position is not known.
fn lag_bytes(view: &View, written: bool) -> Option<u64> {
    let leader = view.nodes.get(&view.leader.as_ref()?.id)?.position.lsn;
    let own = if written { view.postgres.flush_lsn } else { view.postgres.replay_lsn };
    Some(leader.bytes_after(own))
}

fn body(view: &View) -> Value {
    let postgres = &view.postgres;
    let primary = postgres.is_primary();
    let witness = view.cluster.member(view.id).is_some_and(|member| member.role == Role::Witness);
    let role = match (witness, primary) {
        (true, _) => "witness",
        (false, true) => "primary",
        (false, false) => "replica",
    };
    let state = match postgres.process {
        PgProcess::Running if postgres.admits_clients() => "running",
        PgProcess::Running | PgProcess::Starting => "starting",
        PgProcess::Stopped => "stopped",
        PgProcess::Absent => "uninitialized",
    };
    let mut body = json!({
        "state": state,
        "role": role,
        "patroni": {
            "version": env!("CARGO_PKG_VERSION"),
            "scope": view.cluster.cluster_id,
            "name": view.id.to_string(),
        },
    });
    if postgres.is_running() {
        body["timeline"] = json!(postgres.timeline);
        body["database_system_identifier"] = json!(postgres.system_identifier.to_string());
        body["xlog"] = if primary {
            json!({"location": postgres.flush_lsn.0})
        } else {
            json!({"received_location": postgres.flush_lsn.0, "replayed_location": postgres.replay_lsn.0})
        };
    }
    if postgres.streaming {
        body["replication_state"] = json!("streaming");
    }
    if !postgres.pending_restart.is_empty() {
        body["pending_restart"] = json!(true);
    }
    body
}

/// A size as PostgreSQL writes it: bytes, or with one of its units.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}
