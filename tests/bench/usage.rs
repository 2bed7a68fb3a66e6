//! What processes have used, from /proc.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::Path;

/// A server with all its processes.
#[derive(Clone, Copy)]
pub struct Tree {
    postmaster: i32,
}

impl Tree {
    /// # Panics
    /// No server runs on these data.
    pub fn of(data: &Path) -> Tree {
        let file = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
        Tree { postmaster: pid.unwrap_or_else(|| panic!("{} has no number", file.display())) }
    }

    fn processes(&self) -> BTreeSet<i32> {
        children(self.postmaster)
    }

    /// All of its processes.
    pub fn all(&self) -> Vec<i32> {
        self.processes().into_iter().chain([self.postmaster]).collect()
    }

    /// CPU seconds since the server's start, those of processes that have ended too.
    pub fn seconds(&self) -> f64 {
        let living: f64 = self.processes().into_iter().map(main_thread_seconds).sum();
        living + main_thread_seconds(self.postmaster) + ended_children_seconds(self.postmaster)
    }
}

/// CPU seconds of a process of many threads, without its children.
pub fn process_seconds(pid: i32) -> f64 {
    stat(pid).map_or(0.0, |fields| ticks(&fields, UTIME) + ticks(&fields, STIME))
}

/// CPU seconds of the threads that a process has now: finer than [`process_seconds`], which counts ended ones as well.
pub fn threads_seconds(pid: i32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| nanoseconds(&thread.path().join("schedstat").display().to_string())).sum()
}

/// CPU seconds of the calling thread.
pub fn own_thread_seconds() -> f64 {
    nanoseconds("/proc/thread-self/schedstat")
}

/// A number of `/proc/PID/status` that is given in kB, in bytes.
pub fn status_bytes(pid: i32, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Position of fields in what follows the name in `/proc/PID/stat`.
const PARENT: usize = 1;
const UTIME: usize = 11;
const STIME: usize = 12;
const ENDED_UTIME: usize = 13;
const ENDED_STIME: usize = 14;

fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; what follows its last bracket is numbers.
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String], at: usize) -> f64 {
    // The unit that the kernel shows, on every machine that this runs on.
    const PER_SECOND: f64 = 100.0;
    fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0) / PER_SECOND
}

fn ended_children_seconds(pid: i32) -> f64 {
    stat(pid).map_or(0.0, |fields| ticks(&fields, ENDED_UTIME) + ticks(&fields, ENDED_STIME))
}

/// CPU seconds of a process's first thread. PostgreSQL's processes have one; this file is a hundred thousand times finer than
/// ticks.
pub fn main_thread_seconds(pid: i32) -> f64 {
    nanoseconds(&format!("/proc/{pid}/schedstat"))
}

fn nanoseconds(file: &str) -> f64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn children(of: i32) -> BTreeSet<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let is_child = |pid: &i32| stat(*pid).is_some_and(|f| f.get(PARENT) == Some(&of.to_string()));
    numbers.filter(is_child).collect()
}

/// From now on the process, and whatever it starts, runs on the first processor that we may use.
///
/// # Panics
/// That is refused.
pub fn bind(process: i32) {
    let ours = sched_getaffinity(Pid::this()).expect("our own processors");
    let first = (0..CpuSet::count()).find(|at| ours.is_set(*at).unwrap_or(false)).expect("a processor");
    let mut processors = CpuSet::new();
    processors.set(first).expect("a processor");
    // Processes of a server come and go.
    match sched_setaffinity(Pid::from_raw(process), &processors) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("process {process} is bound to a processor: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id() as i32;
        assert!(status_bytes(pid, "VmHWM").is_some_and(|bytes| bytes > 1 << 20));
        assert!(status_bytes(pid, "NoSuchField").is_none());
        // The kernel adds up when a thread gives way.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while own_thread_seconds() == 0.0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(pid).contains(&(child.id() as i32)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
