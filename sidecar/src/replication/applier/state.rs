//! The applier's state as the interface shows it, from what `quorum.applier_show` says: names and order are ArangoDB's.

use super::config::Config;
use super::fault::Result;
use super::remote::number_of;
use crate::replication::now;
use serde::Serialize;
use serde_json::Value;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    state: State,
    server: Server<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    database: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State {
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    running: bool,
    phase: String,
    last_applied_continuous_tick: Option<String>,
    last_processed_continuous_tick: Option<String>,
    last_available_continuous_tick: Option<String>,
    safe_resume_tick: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ticks_behind: Option<u64>,
    progress: Progress,
    total_requests: u64,
    total_failed_connects: u64,
    total_events: u64,
    total_documents: u64,
    total_removals: u64,
    total_resyncs: u64,
    total_operations_excluded: u64,
    total_apply_time: f64,
    average_apply_time: f64,
    total_fetch_time: f64,
    average_fetch_time: f64,
    last_error: LastError,
    time: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    time: String,
    message: String,
    failed_connects: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LastError {
    error_num: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Server<'a> {
    version: &'a str,
    server_id: String,
}

/// The body of an answer. `database` is the name under which the one here is known, `version` and `server` are this server's.
///
/// # Errors
/// The extension keeps settings of another version.
pub fn body(shown: &Value, database: &str, version: &str, server: u64) -> Result<String> {
    let config = Config::read(&shown["config"])?;
    let text = |name: &str| shown[name].as_str().map(str::to_owned);
    let count = |name: &str| shown[name].as_u64().unwrap_or(0);
    let seconds = |name: &str| shown[name].as_f64().unwrap_or(0.0);
    let mean = |total: f64, of: u64| if of == 0 { 0.0 } else { total / of as f64 };
    let running = shown["running"] == true;
    let behind = number_of(&shown["available"])
        .map(|available| available.saturating_sub(number_of(&shown["applied"]).unwrap_or(0)));
    let error = count("error_number");
    let state = State {
        started: text("started"),
        running,
        phase: text("phase").unwrap_or_default(),
        last_applied_continuous_tick: text("applied"),
        last_processed_continuous_tick: text("processed"),
        last_available_continuous_tick: text("available"),
        safe_resume_tick: text("resume"),
        ticks_behind: behind.filter(|_| running),
        progress: Progress {
            time: text("message_at").unwrap_or_default(),
            message: text("message").unwrap_or_default(),
            failed_connects: count("failed_connects"),
        },
        total_requests: count("requests"),
        total_failed_connects: count("total_failed_connects"),
        total_events: count("events"),
        total_documents: count("documents"),
        total_removals: count("removals"),
        total_resyncs: count("resyncs"),
        total_operations_excluded: count("excluded"),
        total_apply_time: seconds("apply_seconds"),
        average_apply_time: mean(seconds("apply_seconds"), count("applies")),
        total_fetch_time: seconds("fetch_seconds"),
        average_fetch_time: mean(seconds("fetch_seconds"), count("fetches")),
        last_error: LastError {
            error_num: error,
            error_message: text("error_message").filter(|_| error != 0),
            time: text("error_at").filter(|_| error != 0),
        },
        time: now(),
    };
    let body = Body {
        state,
        server: Server { version, server_id: server.to_string() },
        endpoint: config.endpoint,
        database: config.database.unwrap_or_else(|| database.to_owned()),
    };
    Ok(serde_json::to_string(&body).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_is_written_in_arangodbs_order() {
        let fresh = json!({"config": {}, "running": false, "phase": "inactive", "message": "applier initially created",
            "message_at": "2026-01-01T00:00:00Z", "error_number": 0});
        let body = body(&fresh, "_system", "3.11.0", u64::MAX).unwrap();
        let start = r#"{"state":{"running":false,"phase":"inactive","lastAppliedContinuousTick":null,"lastProcessedContinuousTick":null,"lastAvailableContinuousTick":null,"safeResumeTick":null,"progress":{"time":"2026-01-01T00:00:00Z","message":"applier initially created","failedConnects":0},"totalRequests":0,"#;
        assert!(body.starts_with(start), "{body}");
        let end =
            r#"},"server":{"version":"3.11.0","serverId":"18446744073709551615"},"database":"_system"}"#;
        assert!(body.ends_with(end) && body.contains(r#""lastError":{"errorNum":0},"time":"#), "{body}");
    }

    #[test]
    fn one_that_runs_says_how_far_behind_it_is() {
        let shown = json!({"config": {"endpoint": "tcp://a:1", "database": "shop"}, "running": true, "phase": "running",
            "started": "2026-01-01T00:00:00Z", "applied": "90", "processed": "95", "available": "100", "resume": "90",
            "message": "", "applies": 2, "apply_seconds": 3.0, "error_number": 1400, "error_message": "down",
            "error_at": "2026-01-01T00:00:00Z"});
        let body: Value = serde_json::from_str(&body(&shown, "x", "3.11.0", 7).unwrap()).unwrap();
        let state = &body["state"];
        assert_eq!((&state["ticksBehind"], &state["averageApplyTime"]), (&json!(10), &json!(1.5)));
        assert_eq!(state["lastError"]["errorMessage"], "down");
        assert_eq!((&body["endpoint"], &body["database"]), (&json!("tcp://a:1"), &json!("shop")));
    }
}
