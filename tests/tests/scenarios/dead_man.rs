//! A primary whose sidecar stands still stops by itself, step by step, each within its bound.

use pgquorum_tests::{Cluster, PATIENCE, await_answer, await_until, run};
use postgres::Client;
use postgres::error::SqlState;
use std::time::{Duration, Instant};

/// When others elect: so long after the end of the lease that no commit waits for standbys which have gone over to them.
const NODE_TIMEOUT: &str = "4s";
/// From the freeze on, the lease has at most this long to live …
const LEASE: Duration = Duration::from_secs(3);
/// … writers then wait for `pgquorum.lease_wait`; sessions end after `pgquorum.fence_grace`, the server after twice that.
const LEASE_WAIT: Duration = Duration::from_millis(200);
/// Longer than usual: a writer that is slow to learn of its refusal must not be overtaken by the end of its session.
const FENCE_GRACE: Duration = Duration::from_secs(2);
/// For a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(15);

fn within(what: &str, took: Duration, bound: Duration) {
    eprintln!("{what}: {} ms after the sidecar stood still", took.as_millis());
    assert!(took <= bound + SLACK, "{what} after {took:?}, expected {bound:?}");
}

/// Inserts until it is refused. When the last insert was acknowledged, when the first was refused, and how.
fn write_until_refused(mut client: Client, since: Instant) -> (Duration, Duration, SqlState) {
    let mut last = Duration::ZERO;
    loop {
        match client.execute("INSERT INTO kept VALUES (1)", &[]) {
            Ok(_) => last = since.elapsed(),
            Err(error) => {
                let code = error.code().unwrap_or_else(|| panic!("no answer of the server: {error:?}"));
                return (last, since.elapsed(), code.clone());
            }
        }
        assert!(since.elapsed() < PATIENCE, "writes are never refused");
    }
}

/// A process whose parent, the sidecar, stands still is not fetched by it when it has ended.
fn has_ended(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn an_abandoned_primary_refuses_then_ends_its_sessions_then_itself() {
    let cluster = Cluster::start_with(3, &[("node-timeout", NODE_TIMEOUT)]);
    let old = cluster.leader();
    let server = cluster.node(old).postgres_pid;
    let mut idle = cluster.connect(old).expect("a session");
    run(&mut idle, &format!("ALTER SYSTEM SET pgquorum.fence_grace = '{} ms'", FENCE_GRACE.as_millis()));
    run(&mut idle, "SELECT pg_reload_conf()");
    await_answer(&mut idle, PATIENCE, "SHOW pgquorum.fence_grace", "2s");
    cluster.sql("CREATE TABLE kept (n int)");
    let writer = cluster.connect(old).expect("a session");
    cluster.freeze(old, Some("sidecar"));
    let frozen = Instant::now();
    let writes = std::thread::spawn(move || write_until_refused(writer, frozen));
    let ended = await_until(PATIENCE, "the idle session ends", || match idle.simple_query("SELECT 1") {
        Ok(_) => Err("it answers".to_owned()),
        Err(_) => Ok(frozen.elapsed()),
    });
    let stopped = await_until(PATIENCE, "the server ends", || {
        if has_ended(server) { Ok(frozen.elapsed()) } else { Err("it runs".to_owned()) }
    });
    let (last, refused, code) = writes.join().expect("the writer");
    // No write begins to wait later than the lease allows, and none is acknowledged that was refused.
    within("the last acknowledged write", last, LEASE);
    within("the first refusal", refused, LEASE + LEASE_WAIT);
    within("the end of a session", ended, LEASE + FENCE_GRACE);
    within("the end of the server", stopped, LEASE + 2 * FENCE_GRACE);
    // So it was refused before its session ended; this and the other were watched by two threads.
    assert_eq!(code, SqlState::READ_ONLY_SQL_TRANSACTION, "refused, not broken off");
    assert!(last <= refused && ended <= stopped, "{last:?} {refused:?} {ended:?} {stopped:?}");
    cluster.await_leader(Some(old));
    cluster.thaw(old, Some("sidecar"));
    cluster.await_replicas(2);
    cluster.assert_one_writable();
}
