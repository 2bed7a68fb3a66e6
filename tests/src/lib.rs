//! Real clusters for tests, benchmarks and the demo: everything goes through the program's own commands, its REST
//! interface and SQL, as users do it. Nothing here knows how the sidecar works inside.

mod cluster;
mod command;
mod http;
mod net_cluster;
mod netns;
mod plain;
mod probe;
mod stalled_disk;
mod user;

pub use cluster::{Cluster, Node, PATIENCE, Status, free_ports};
pub use command::{pgquorum, pgquorum_program, pgquorum_shown};
pub use http::{request, request_raw, request_to};
pub use net_cluster::NetCluster;
pub use netns::{CLIENT, Network};
pub use plain::{Plain, kill_tree, postgres_program};
pub use probe::{Probe, ProbeOptions, Report, await_rows};
pub use stalled_disk::StalledDisk;
pub use user::{server_command, server_directory, server_directory_below};

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `look` gives a value, at most this long; the only wait in this crate.
///
/// # Panics
/// The time is over: the message holds what was awaited and what was seen last.
pub fn await_until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + within;
    loop {
        let seen = match look() {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(Instant::now() < deadline, "not within {within:?}: {what}; last seen: {seen}");
        std::thread::sleep(POLL);
    }
}
