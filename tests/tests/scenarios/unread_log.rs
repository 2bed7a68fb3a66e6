//! Nobody takes what a sidecar logs: a pipe that is not read, as a disk that hangs.

use pgquorum_tests::{Cluster, PATIENCE, await_until, pgquorum_program, server_command};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A sidecar that logs into a pipe.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sidecar {
    /// Does one of its threads stand in a pipe that is full?
    fn is_held_up(&self) -> Result<(), String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).map_err(|e| e.to_string())?;
        let places = threads
            .flatten()
            .map(|thread| std::fs::read_to_string(thread.path().join("wchan")).unwrap_or_default());
        let places: Vec<String> = places.collect();
        let held_up = places.iter().any(|place| place.contains("pipe_write"));
        if held_up { Ok(()) } else { Err(format!("{places:?}")) }
    }
}

#[test]
fn a_leader_whose_log_nobody_reads_goes_on() {
    let cluster = Cluster::start_with(1, &[("node-timeout", "3s")]);
    let file = cluster.node(1).data_dir.with_file_name("node.toml");
    cluster.kill(1, Some("sidecar"));
    let config = std::fs::read_to_string(&file).expect("the configuration");
    let loud = config.lines().filter(|line| !line.starts_with("log =")).collect::<Vec<_>>().join("\n");
    std::fs::write(&file, format!("log = \"trace\"\n{loud}\n")).expect("the configuration");
    let mut command = server_command(&pgquorum_program());
    command.arg("run").arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
    let sidecar = Sidecar(command.stderr(Stdio::piped()).spawn().expect("a sidecar"));
    await_until(PATIENCE, "its log is held up", || sidecar.is_held_up());
    cluster.await_leader(None);
    let epoch = cluster.node(1).epoch;
    // A lease lasts less than three seconds, and one later the server would have ended itself.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(8) {
        cluster.sql("CREATE TABLE IF NOT EXISTS t (id int); INSERT INTO t VALUES (1)");
    }
    assert_eq!(cluster.node(1).epoch, epoch, "it has led without a break");
    sidecar.is_held_up().expect("its log is held up all the time");
}
