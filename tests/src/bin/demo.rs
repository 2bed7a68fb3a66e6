//! `make demo`: three nodes, a pgbench database and writing clients; the leader loses its power; what happens is shown
//! in milliseconds, and at the end every acknowledged row is looked for. Exit code 1 if one is missing.

use pgquorum_tests::{Cluster, Probe, ProbeOptions, Report, pgquorum_shown, postgres_program, request};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// What the new leader's trace shows of a failover, in order.
const MILESTONES: [(&str, &str); 6] = [
    ("suspect", "the leader's death was noticed"),
    ("elected", "elected by a majority"),
    ("pledged", "the standbys take nothing from the old leader any more"),
    ("appointed", "the appointment is in the cluster's log"),
    ("promoted", "PostgreSQL is a primary"),
    ("opened", "open for writes"),
];

fn main() -> ExitCode {
    let dir = match arguments() {
        Ok(dir) => dir,
        Err(why) => {
            eprintln!("demo: {why}\nusage: demo [--dir DIR] [--base-port PORT]");
            return ExitCode::from(2);
        }
    };
    match run(&dir.0, dir.1) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("demo: {why}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<(PathBuf, u16), String> {
    let (mut dir, mut port) = (PathBuf::from("/var/tmp/pgquorum-demo"), 7400);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--dir" => dir = PathBuf::from(value),
            "--base-port" => port = value.parse().map_err(|_| format!("{value} is not a port"))?,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok((dir, port))
}

fn run(dir: &std::path::Path, base_port: u16) -> Result<bool, String> {
    let shown = dir.display().to_string();
    headline("Three nodes");
    let port = base_port.to_string();
    if !pgquorum_shown(["local", "up", "--nodes", "3", "--dir", &shown, "--base-port", &port]) {
        return Err("the cluster could not be started".to_owned());
    }
    let cluster = Cluster::at(dir);

    headline("A pgbench database, scale 10");
    let status = cluster.status();
    let database = Pgbench::of(&status.dsn)?;
    database.run(&["-i", "-q", "-s", "10"])?;
    println!(
        "loaded; now 4 clients write numbered rows and pgbench runs its transactions, all through\n{}",
        hidden(&status.dsn)
    );
    let probe = Probe::start(&status.dsn, &ProbeOptions { clients: 4, ..ProbeOptions::default() });
    let load = Load::start(database);

    let old = cluster.leader();
    headline(&format!("SIGKILL of node {old}, the leader: sidecar and PostgreSQL"));
    let killed = cluster.kill(old, None);
    let new = cluster.await_leader(Some(old));
    let timeline = timeline(&cluster, new, killed)?;

    headline(&format!("Node {old} starts again"));
    let started = cluster.start_node(old);
    cluster.await_replicas(2);
    cluster.await_replayed(old);
    println!("node {old} streams from node {new} again after {} ms", unix_ms().saturating_sub(started));
    show_nodes(&cluster);
    let transactions = load.finish();
    let report = probe.finish();

    headline("The failover");
    show_timeline(&timeline, &report, killed);
    headline("What was promised and what is there");
    let kept = compare(&cluster, &report, transactions);
    next_steps(&cluster, &shown);
    Ok(kept)
}

fn headline(text: &str) {
    println!("\n== {text}");
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
}

fn show_nodes(cluster: &Cluster) {
    for n in cluster.status().nodes {
        println!(
            "node {}  {:8} {:9} sidecar {} (pid {})  PostgreSQL {}:{} (pid {})  epoch {} at {}",
            n.id, n.role, n.state, n.api, n.sidecar_pid, n.db_host, n.db_port, n.postgres_pid, n.epoch, n.lsn
        );
    }
}

/// The first trace of each kind after the kill, from the new leader.
fn timeline(cluster: &Cluster, leader: u64, killed: u64) -> Result<Vec<(u64, String)>, String> {
    let port = cluster.node(leader).api_port();
    let (_, traces) = request(port, "GET", "/rpc", None).map_err(|e| e.to_string())?;
    let empty = Vec::new();
    let traces: &Vec<Value> = traces.as_array().unwrap_or(&empty);
    let at =
        |trace: &Value, kind: &str| trace["at"].as_u64().filter(|at| trace["kind"] == kind && *at >= killed);
    let first = |kind: &str| traces.iter().find_map(|trace| at(trace, kind));
    // Each standby pledges; the one that completed the number counts.
    let appointed = first("appointed").unwrap_or(u64::MAX);
    let moment = |kind: &str| match kind {
        "pledged" => traces.iter().filter_map(|t| at(t, kind)).take_while(|at| *at <= appointed).last(),
        kind => first(kind),
    };
    Ok(MILESTONES
        .iter()
        .filter_map(|(kind, meaning)| Some((moment(kind)?, format!("node {leader}: {kind:10} {meaning}"))))
        .collect())
}

fn show_timeline(timeline: &[(u64, String)], report: &Report, killed: u64) {
    println!("{:>7} ms  SIGKILL", 0);
    for (at, what) in timeline {
        println!("{:>7} ms  {what}", at - killed);
    }
    match report.first_ack_after(timeline.last().map_or(killed, |(at, _)| *at)) {
        Some(ack) => println!("{:>7} ms  a client's write is acknowledged", ack - killed),
        None => println!("no write was acknowledged any more"),
    }
    println!("longest time without an acknowledged write: {:.0} ms", report.longest_gap_ms);
}

fn compare(cluster: &Cluster, report: &Report, transactions: u64) -> bool {
    println!("acknowledged rows      {:>9}", report.acked);
    println!("missing                {:>9}", report.lost);
    println!(
        "present, not confirmed {:>9}  (allowed: the answer was lost with the leader)",
        report.unacked_present
    );
    let leader = cluster.leader();
    let sums = "SELECT concat_ws(' ', (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM \
                pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM \
                pgbench_history))";
    let sums = cluster.ask(leader, sums);
    let balanced = sums.split(' ').collect::<std::collections::BTreeSet<_>>().len() == 1;
    let history: u64 = cluster.ask(leader, "SELECT count(*)::text FROM pgbench_history").parse().unwrap_or(0);
    println!("pgbench transactions   {transactions:>9}  reported as done, {history} in the table");
    println!("pgbench balances       {:>9}", if balanced { "agree" } else { "DIFFER" });
    let kept = report.acked > 0 && report.lost == 0 && balanced && history >= transactions;
    println!(
        "{}",
        if kept { "Nothing that was acknowledged is lost." } else { "SOMETHING IS LOST OR WRONG." }
    );
    kept
}

fn next_steps(cluster: &Cluster, dir: &str) {
    let leader = cluster.node(cluster.leader());
    headline("The cluster goes on running");
    println!("psql \"$(target/release/pgquorum local dsn --dir {dir})\"");
    println!("curl {}/map", leader.api);
    println!("curl {}/events", leader.api);
    println!("curl -X POST '{}/leader?node={}'", leader.api, cluster.follower());
    println!("make demo-stop");
}

/// The connection string without its password.
fn hidden(dsn: &str) -> String {
    match (dsn.split_once("://postgres:"), dsn.split_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://postgres:…@{rest}"),
        _ => "the multi-host connection string".to_owned(),
    }
}

/// pgbench with the password in its environment, not in its arguments.
struct Pgbench {
    program: PathBuf,
    dsn: String,
    password: String,
}

impl Pgbench {
    fn of(dsn: &str) -> Result<Pgbench, String> {
        let config: postgres::Config = dsn.parse().map_err(|e| format!("connection string: {e}"))?;
        let password = String::from_utf8_lossy(config.get_password().unwrap_or_default()).into_owned();
        let program = postgres_program("pgbench");
        let dsn = dsn.replacen(&format!(":{password}@"), "@", 1);
        Ok(Pgbench { program, dsn, password })
    }

    fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(args).arg(&self.dsn).env("PGPASSWORD", &self.password).env("PGCONNECT_TIMEOUT", "2");
        let out = command.stdin(Stdio::null()).output().map_err(|e| format!("pgbench: {e}"))?;
        let said = String::from_utf8_lossy(&out.stderr);
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        Err(format!("pgbench {}: {}", args.join(" "), said.trim()))
    }
}

/// pgbench's own transactions, again and again: a run ends when its connections break, the next one finds the leader.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(pgbench: Pgbench) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A run that breaks off reports no number, so only whole runs are counted.
                if let Ok(said) = pgbench.run(&["-n", "-c", "2", "-T", "1"]) {
                    let line =
                        said.lines().find(|l| l.starts_with("number of transactions actually processed:"));
                    let count = line.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok());
                    counted.fetch_add(count.unwrap_or(0), Ordering::Relaxed);
                }
            }
        });
        Load { stop, done, thread }
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.done.load(Ordering::Relaxed)
    }
}
