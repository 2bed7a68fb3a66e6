//! Real clusters for tests, benchmarks and the demo: everything goes through the program's own commands, its REST
//! interface and SQL, as users do it. Nothing here knows how the sidecar works inside.

mod applier;
mod cluster;
mod command;
mod fake_remote;
mod http;
mod learner;
mod lines;
mod log_server;
mod net_cluster;
mod netns;
mod npm;
mod pair;
mod plain;
mod ports;
mod probe;
mod psql;
mod recorded;
mod replayed;
mod session;
mod several;
mod shaper;
mod skipped;
mod stalled_disk;
mod tls;
mod user;

pub use applier::{Applied, Applier, Frame, piece_frame, rows};
pub use cluster::{Cluster, Node, PATIENCE, Status};
pub use command::{
    Outcome, pgquorum, pgquorum_as_server, pgquorum_program, pgquorum_reading, pgquorum_shown, run_program,
};
pub use fake_remote::{FakeRemote, Said};
pub use http::{
    Answer, Login, get_with, request, request_as, request_over_tls, request_raw, request_to, request_within,
};
pub use learner::{
    Learned, LearningServer, await_known, await_served, hash_of, is_served, known, served, server_error,
};
pub use lines::LineStream;
pub use log_server::{LogServer, expect_log, take_log};
pub use net_cluster::{NetCluster, Prepare};
pub use netns::{CLIENT, Network};
pub use npm::NpmServer;
pub use pair::Pair;
pub use plain::{Plain, kill_tree, postgres_program};
pub use ports::free_ports;
pub use probe::{Probe, ProbeOptions, Report, await_rows};
pub use psql::{psql, psql_with};
pub use replayed::{Replayed, Rows};
pub use session::{await_answer, refused, run, text};
pub use several::{Follow, Several};
pub use shaper::Shape;
pub use skipped::skipped;
pub use stalled_disk::StalledDisk;
pub use tls::{Authority, Certified};
pub use user::{server_command, server_directory, server_directory_below};

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `look` gives a value, at most this long.
///
/// # Panics
/// The time is over: the message holds what was awaited and what was seen last.
pub fn await_until<T>(within: Duration, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    match poll_until(within, look) {
        Ok(value) => value,
        Err(seen) => panic!("not within {within:?}: {what}; last seen: {seen}"),
    }
}

/// The same for those to whom a time that runs out is an answer; the only wait in this crate.
///
/// # Errors
/// The time is over: what was seen last.
pub fn poll_until<T>(within: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + within;
    loop {
        let seen = match look() {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        if Instant::now() >= deadline {
            return Err(seen);
        }
        std::thread::sleep(POLL);
    }
}
