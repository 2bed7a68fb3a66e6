//! A subscription of PostgreSQL's own, the peer of those who follow.

use pgquorum_tests::{await_until, run, text};
use postgres::Client;
use std::time::Duration;

/// Has subscription `n` rest: what is written at the source from then on waits there.
pub fn rest(here: &mut Client, there: &mut Client, patience: Duration) {
    run(here, "ALTER SUBSCRIPTION n DISABLE");
    let idle = "SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'n'";
    await_until(patience, "the subscription rests", || match text(there, idle).as_str() {
        "0" => Ok(()),
        other => Err(other.to_owned()),
    });
}
