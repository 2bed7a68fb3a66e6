//! A session of the database that hangs: its readers hear that nothing is known, and nobody waits for ever.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{Cluster, LineStream, PATIENCE, await_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A wait of a second, the grace that it is given, and the time between two heartbeats.
const SOON: Duration = Duration::from_secs(12);

/// Waits for a heartbeat after which the end is known, or is not.
fn await_end(stream: &mut LineStream, known: bool) {
    let (begin, mut line) = (Instant::now(), Vec::new());
    loop {
        assert!(stream.text(&mut line).expect("the next line"), "the stream ended");
        let beat: Value = serde_json::from_slice(&line).expect("JSON");
        if beat["type"] == "heartbeat" && beat["end"].is_string() == known {
            return;
        }
        assert!(begin.elapsed() < SOON, "{beat}");
    }
}

#[test]
fn a_session_that_hangs_is_given_up() {
    let cluster = Cluster::start(1);
    let (status, answer) = cluster.post(1, "/channels", Some(&json!({"name": "shop"})));
    assert_eq!(status, 200, "{answer}");
    let port = cluster.node(1).api_port();
    let mut stream =
        LineStream::open(port, "/channels/shop/stream?after=now", "application/x-ndjson").expect("a stream");
    await_end(&mut stream, true);
    let waits =
        "SELECT pid::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT quorum.wait(%'";
    let mut pid = 0;
    await_until(PATIENCE, "a session that waits, stopped", || {
        pid = cluster.try_ask(1, waits)?.parse().map_err(|e| format!("{e}"))?;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).map_err(|e| e.to_string())?;
        // Each wait lasts a second: one that was just over is nobody's any more, and its session may rest unnoticed.
        let still = format!("SELECT count(*)::text FROM ({waits}) AS w WHERE pid = '{pid}'");
        match cluster.try_ask(1, &still)?.as_str() {
            "1" => Ok(()),
            other => {
                kill(Pid::from_raw(pid), Signal::SIGCONT).map_err(|e| e.to_string())?;
                Err(format!("{other} sessions wait"))
            }
        }
    });
    await_end(&mut stream, false);
    // Another session does its work meanwhile.
    await_end(&mut stream, true);
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("the session");
}
