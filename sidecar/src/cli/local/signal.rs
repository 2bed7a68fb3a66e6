//! `pgquorum local kill|stop|start|freeze|thaw`

use super::cluster::{LocalCluster, LocalNode};
use super::identity::Identity;
use super::processes::{Running, below, stands_still};
use super::segments::Segments;
use super::up::start_sidecar;
use crate::cli::failure::{Context, Failure};
use crate::cli::output::Out;
use clap::ValueEnum;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pgquorum_agent::types::NodeId;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long a node may take to stop in good order.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone: one that waits for a slow disk goes when the disk has answered.
const KILL_DEADLINE: Duration = Duration::from_secs(60);
/// How long a process may take to stand still; longer only if it waits for a disk.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Directory of the cluster.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The node's number.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    node: NodeId,
    /// Only this part of the node.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// A part of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Sidecar,
    /// PostgreSQL with all its processes.
    Postgres,
    /// PostgreSQL's first process alone.
    Postmaster,
}

fn pids(running: &Running, only: Option<Part>) -> Vec<i32> {
    match only {
        None => running.all(),
        Some(Part::Sidecar) => running.sidecar.into_iter().collect(),
        Some(Part::Postgres) => running.postgres.clone(),
        Some(Part::Postmaster) => running.postmaster.into_iter().collect(),
    }
}

fn node_of(args: &NodeArgs) -> Result<LocalNode, Failure> {
    LocalCluster::open(&args.dir)?.node(args.node)
}

/// A process that is gone already is no error.
fn send(pid: i32, signal: Signal) -> Result<(), Failure> {
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(e) => Err(e).or_fail(format!("cannot send {signal} to process {pid}")),
    }
}

fn report(out: Out, args: &NodeArgs, done: &str, at_ms: u128, pids: &[i32]) {
    let document = json!({ "node": args.node, "action": done, "at_ms": at_ms as u64, "pids": pids });
    out.show(&document, || match pids {
        [] => format!("Node {}: nothing to do, no such process runs.", args.node),
        [pid] => format!("Node {}: {done}, process {pid}.", args.node),
        pids => format!("Node {}: {done}, {} processes.", args.node, pids.len()),
    });
}

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis())
}

pub async fn kill(args: NodeArgs, out: Out) -> Result<(), Failure> {
    let node = node_of(&args)?;
    let first = pids(&Running::of(&node), args.only);
    let mut segments = Segments::default();
    segments.note(&first);
    let at = unix_ms();
    kill_and_wait(&node, args.only, first.clone(), segments).await?;
    report(out, &args, "killed", at, &first);
    Ok(())
}

/// Kills in one go, then whatever was forked meanwhile, and waits until they are gone. A PostgreSQL that a living
/// sidecar has started again since is not touched. What the killed server leaves in shared memory is removed.
async fn kill_and_wait(
    node: &LocalNode,
    only: Option<Part>,
    first: Vec<i32>,
    segments: Segments,
) -> Result<(), Failure> {
    for pid in &first {
        send(*pid, Signal::SIGKILL)?;
    }
    let left = || {
        let now = Running::of(node);
        let restarted = only.is_some() && now.postmaster.is_some_and(|p| !first.contains(&p));
        match only {
            None => now.all(),
            Some(Part::Postgres) if !restarted => now.postgres,
            _ => pids(&now, only).into_iter().filter(|p| first.contains(p)).collect(),
        }
    };
    kill_while(left, segments).await
}

/// Kills what works in a directory that is about to be removed and belongs to no node that could be asked to stop.
pub async fn kill_below(dir: &Path) -> Result<(), Failure> {
    kill_while(|| below(dir), Segments::default()).await
}

/// Kills those that `left` finds until there are none, at two looks in a row: a program that was being started during the
/// first has neither its name nor its arguments for a moment.
async fn kill_while(left: impl Fn() -> Vec<i32>, mut segments: Segments) -> Result<(), Failure> {
    let deadline = Instant::now() + KILL_DEADLINE;
    let mut found_none = false;
    loop {
        let left = left();
        if left.is_empty() && found_none {
            segments.remove();
            return Ok(());
        }
        found_none = left.is_empty();
        if Instant::now() > deadline {
            return Err(Failure::failed(
                "still_there",
                format!("processes {left:?} survive SIGKILL; look at ps"),
            ));
        }
        segments.note(&left);
        for pid in left {
            send(pid, Signal::SIGKILL)?;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn freeze(args: NodeArgs, out: Out) -> Result<(), Failure> {
    let node = node_of(&args)?;
    let at = unix_ms();
    let frozen = freeze_all(|| pids(&Running::of(&node), args.only)).await?;
    report(out, &args, "frozen", at, &frozen);
    Ok(())
}

/// Stops those that `look` finds alive until all of them stand still, and returns these: not one that ended meanwhile,
/// and also those that were forked meanwhile. One that waits for a disk does nothing, and stops when the disk has
/// answered; it is waited for no longer than the deadline.
async fn freeze_all(look: impl Fn() -> Vec<i32>) -> Result<Vec<i32>, Failure> {
    let deadline = Instant::now() + FREEZE_DEADLINE;
    loop {
        let found = look();
        let moving: Vec<i32> = found.iter().copied().filter(|pid| !stands_still(*pid)).collect();
        if moving.is_empty() || Instant::now() > deadline {
            return Ok(found);
        }
        for pid in moving {
            send(pid, Signal::SIGSTOP)?;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub async fn thaw(args: NodeArgs, out: Out) -> Result<(), Failure> {
    let node = node_of(&args)?;
    let at = unix_ms();
    let frozen = pids(&Running::of(&node), args.only);
    for pid in frozen.iter().rev() {
        send(*pid, Signal::SIGCONT)?;
    }
    report(out, &args, "thawed", at, &frozen);
    Ok(())
}

pub async fn stop(args: NodeArgs, out: Out) -> Result<(), Failure> {
    let node = node_of(&args)?;
    let at = unix_ms();
    let running = Running::of(&node);
    match args.only {
        Some(Part::Sidecar) => {
            return Err(Failure::usage(
                "a sidecar that is stopped stops its PostgreSQL too; to end the sidecar alone: kill --only sidecar",
            ));
        }
        Some(Part::Postgres | Part::Postmaster) => {
            if let Some(postmaster) = running.postmaster {
                // PostgreSQL's fast shutdown.
                send(postmaster, Signal::SIGINT)?;
            }
        }
        None => stop_node(&node, STOP_DEADLINE).await?,
    }
    report(out, &args, "stopped", at, &pids(&running, args.only));
    Ok(())
}

/// Asks the sidecar to stop; what is left after the deadline is killed.
pub async fn stop_node(node: &LocalNode, wait: Duration) -> Result<(), Failure> {
    let running = Running::of(node);
    if running.nothing() {
        return Ok(());
    }
    // One whose postmaster is gone leaves its shared memory behind, however its processes end.
    let mut segments = Segments::default();
    segments.note(&running.postgres);
    match (running.sidecar, running.postmaster) {
        (Some(sidecar), _) => send(sidecar, Signal::SIGTERM)?,
        // Nobody supervises it any more, so it is stopped directly.
        (None, Some(postmaster)) => send(postmaster, Signal::SIGINT)?,
        (None, None) => {}
    }
    // A frozen process would never see the signal.
    for pid in running.all() {
        send(pid, Signal::SIGCONT)?;
    }
    let deadline = Instant::now() + wait;
    while Instant::now() < deadline {
        if Running::of(node).nothing() {
            segments.remove();
            let _ = std::fs::remove_file(node.pid_file());
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = Running::of(node).all();
    segments.note(&left);
    kill_and_wait(node, None, left, segments).await?;
    let _ = std::fs::remove_file(node.pid_file());
    Ok(())
}

pub async fn start(args: NodeArgs, out: Out) -> Result<(), Failure> {
    if matches!(args.only, Some(Part::Postgres | Part::Postmaster)) {
        return Err(Failure::usage("PostgreSQL is started by the sidecar: leave out --only"));
    }
    let cluster = LocalCluster::open(&args.dir)?;
    let node = cluster.node(args.node)?;
    let at = unix_ms();
    if Running::of(&node).sidecar.is_some() {
        report(out, &args, "started", at, &[]);
        return Ok(());
    }
    let identity = Identity::choose(cluster.marker.user.as_deref())?;
    let pid = start_sidecar(&cluster, &node, &identity).await?;
    report(out, &args, "started", at, &[pid]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::{Child, Command};

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[tokio::test]
    async fn what_ends_before_it_is_frozen_is_not_called_frozen_and_what_is_forked_is() {
        let (mut first, a) = sleeper();
        let (mut ended, b) = sleeper();
        let (mut forked, c) = sleeper();
        let looks = Cell::new(0);
        let look = || {
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                // Found, and gone before the signal comes. Its parent has not collected it.
                let _ = nix::sys::signal::kill(Pid::from_raw(b), Signal::SIGKILL);
                return vec![a, b];
            }
            vec![a, c]
        };
        let frozen = freeze_all(look).await.unwrap();
        let still = (stands_still(a), stands_still(c));
        for child in [&mut first, &mut ended, &mut forked] {
            let _ = child.kill();
            let _ = child.wait();
        }
        assert_eq!((frozen, still), (vec![a, c], (true, true)));
    }
}
