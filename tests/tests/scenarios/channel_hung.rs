//! A session of the database that hangs: another one does its work, and nobody waits for ever.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{Cluster, LineStream, PATIENCE, await_until};
use serde_json::json;
use std::time::{Duration, Instant};

/// A wait of a second and the grace that it is given are over long before this.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_session_that_hangs_is_given_up() {
    let cluster = Cluster::start(1);
    cluster.sql("CREATE TABLE orders (id int PRIMARY KEY)");
    for (path, body) in
        [("/channels", json!({"name": "shop"})), ("/channels/shop/tables", json!({"table": "orders"}))]
    {
        let (status, answer) = cluster.post(1, path, Some(&body));
        assert_eq!(status, 200, "{answer}");
    }
    let port = cluster.node(1).api_port();
    let mut stream =
        LineStream::open(port, "/channels/shop/stream?after=now", "application/x-ndjson").expect("a stream");
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
    // The stream waits for that session alone; what is written now would never come.
    let begin = Instant::now();
    cluster.sql("INSERT INTO orders VALUES (7)");
    let change = loop {
        let next = stream.next_change();
        if next["op"] == "insert" {
            break next;
        }
    };
    assert_eq!(change["new"]["id"], 7, "{change}");
    assert!(begin.elapsed() < SOON, "it came after {:?}", begin.elapsed());
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("the session");
}
