//! The server process: starting it, finding one that runs already, watching it, ending it.

use super::config::PostgresConfig;
use super::error::{Result, fail, failure, io, no_data, timed_out};
use super::rewind_mark::RewindMark;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_agent::postgres::PgFailureKind;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// A live postmaster. The start time tells it from a later process with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Postmaster {
    pub pid: u32,
    started: u64,
}

/// What the postmaster says of itself in `postmaster.pid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Starting, or in recovery and not yet consistent.
    Starting,
    /// Accepts connections.
    Ready,
    Stopping,
}

/// State letter and start time of a process, from `/proc/<pid>/stat`.
fn process_stat(pid: u32) -> Option<(char, u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may itself hold any character.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

impl Postmaster {
    /// The segment of WAL that its startup process is at; `None`: it has none, or is not there yet.
    pub fn replaying(&self) -> Option<u64> {
        children(self.pid).into_iter().find_map(|pid| {
            let title = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            segment_of(&String::from_utf8_lossy(&title))
        })
    }

    pub fn of(pid: u32) -> Option<Postmaster> {
        match process_stat(pid) {
            Some((state, _, started)) if !matches!(state, 'Z' | 'X') => Some(Postmaster { pid, started }),
            _ => None,
        }
    }

    pub fn is_alive(&self) -> bool {
        Postmaster::of(self.pid) == Some(*self)
    }

    /// It waits for something to do, or for nothing that will ever come: neither is it stopped, nor does it work, nor
    /// wait for a disk.
    pub fn sleeps(&self) -> bool {
        process_stat(self.pid).is_some_and(|(state, _, started)| state == 'S' && started == self.started)
    }

    /// Sends a signal if the process is still this one.
    pub fn signal(&self, signal: Signal) -> bool {
        self.is_alive() && kill(Pid::from_raw(self.pid.cast_signed()), signal).is_ok()
    }

    /// Ends the server and its children at once: for one that does not obey SIGQUIT.
    pub fn kill_all(&self) {
        let children = children(self.pid);
        self.signal(Signal::SIGKILL);
        for child in children {
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// The segment of WAL in the title that the startup process gives itself ("startup recovering 00000001000000AB000000CD",
/// "startup waiting for ..."), without its timeline: several are tried in turn.
fn segment_of(title: &str) -> Option<u64> {
    let (_, doing) = title.split_once(": startup ")?;
    let file = doing.trim_matches('\0').trim().rsplit(' ').next()?;
    (file.len() == 24).then(|| u64::from_str_radix(file.get(8..)?, 16).ok()).flatten()
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| process_stat(*pid).is_some_and(|(_, ppid, _)| ppid == parent)).collect()
}

/// The postmaster that runs on this data directory, if any. A lock file whose process is another program, or runs in
/// another directory, is left over from a crash.
pub fn find(data_dir: &Path) -> Result<Option<Postmaster>> {
    let path = data_dir.join("postmaster.pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(io(format!("reading {}", path.display()))(e)),
    };
    // A negative number is that of a single-user server.
    let pid = text.lines().next().and_then(|l| l.trim().trim_start_matches('-').parse::<u32>().ok());
    let Some(found) = pid.and_then(Postmaster::of) else { return Ok(None) };
    let directory =
        std::fs::canonicalize(data_dir).map_err(io(format!("resolving {}", data_dir.display())))?;
    match std::fs::read_link(format!("/proc/{}/cwd", found.pid)) {
        Ok(cwd) if cwd == directory => Ok(Some(found)),
        Ok(_) => Ok(None),
        Err(_) if !found.is_alive() => Ok(None),
        Err(error) => Err(failure(format!(
            "process {} may be a PostgreSQL server on {} that belongs to another user ({error}). Nothing was started: \
             two servers on one directory destroy it. Run pgquorum as the directory's owner, or stop that process",
            found.pid,
            data_dir.display()
        ))),
    }
}

/// Removes a lock file that a power cut left empty. PostgreSQL would refuse to start with it for ever, because another
/// server might just be writing it; here that is known: such a server works in this directory, and nobody does.
/// Returns whether there was one.
pub fn remove_empty_lock(data_dir: &Path) -> std::io::Result<bool> {
    let path = data_dir.join("postmaster.pid");
    match std::fs::metadata(&path) {
        Ok(file) if file.len() == 0 => {}
        Ok(_) => return Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    }
    let directory = std::fs::canonicalize(data_dir)?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // Processes of other users cannot be looked into; they could not write into a directory of mode 0700 either.
        if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == directory) {
            return Ok(false);
        }
    }
    std::fs::remove_file(&path)?;
    Ok(true)
}

/// `None`: there is no such file, or the server has not yet said how it is.
pub fn status(data_dir: &Path) -> Option<Status> {
    status_in(&std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?)
}

/// What this one says. A file that a killed server has left may say that all is well, until the next one writes its own.
pub fn status_of(postmaster: Postmaster, data_dir: &Path) -> Option<Status> {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    if pid == postmaster.pid { status_in(&text) } else { None }
}

fn status_in(text: &str) -> Option<Status> {
    match text.lines().nth(7)?.trim() {
        "ready" => Some(Status::Ready),
        "stopping" => Some(Status::Stopping),
        _ => Some(Status::Starting),
    }
}

/// Refuses directories that PostgreSQL could not or must not be started in, with words of our own.
pub fn check_data_dir(config: &PostgresConfig) -> Result<()> {
    let directory = config.data_dir.display();
    if RewindMark::load(config) == RewindMark::Writing {
        return Err(no_data(format!(
            "{directory} is unusable: a rewind of it was interrupted ({} is there). It must be cloned again from another \
             node",
            config.rewind_marker().display()
        )));
    }
    let version = std::fs::metadata(config.data_dir.join("PG_VERSION")).map_err(|e| {
        no_data(format!(
            "{directory} holds no PostgreSQL database ({e}). Clone it from another node, or initialise it"
        ))
    })?;
    if version.uid() != nix::unistd::geteuid().as_raw() {
        return Err(no_data(format!(
            "{directory} belongs to user {} and pgquorum runs as user {}; run it as the owner of the database",
            version.uid(),
            nix::unistd::geteuid()
        )));
    }
    Ok(())
}

/// Starts `postgres` in a process group of its own, so that it survives the sidecar.
pub fn spawn(config: &PostgresConfig, extra: &[&str]) -> Result<tokio::process::Child> {
    let path = &config.log_file;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let log = log.map_err(io(format!("opening the server's log {}", path.display())))?;
    let program = config.program("postgres");
    let mut command = tokio::process::Command::new(&program);
    command.arg("-D").arg(&config.data_dir).args(extra);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
    command.process_group(0).kill_on_drop(false);
    // The sidecar's own surroundings must not reach into the server.
    // A backtrace would stand in the details of errors that the extension passes on.
    for name in
        ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGOPTIONS", "RUST_BACKTRACE"]
    {
        command.env_remove(name);
    }
    command.spawn().map_err(io(format!("starting {}", program.display())))
}

/// Ends helper programs of this user that a killed sidecar left behind, by an argument that only they have.
pub fn end_left_over(program: &str, is_ours: impl Fn(&[u8]) -> bool) {
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut words = line.split(|b| *b == 0);
        let name = words.next().unwrap_or_default().rsplit(|b| *b == b'/').next().unwrap_or_default();
        if name == program.as_bytes() && words.any(&is_ours) {
            tracing::warn!(pid, program, "ending a program that an earlier sidecar left behind");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// How long the log is now: what comes later belongs to the next start.
pub fn log_length(config: &PostgresConfig) -> u64 {
    std::fs::metadata(&config.log_file).map(|m| m.len()).unwrap_or(0)
}

/// The newest part of the server's log after `offset`, at most 16 kB of it; empty if it cannot be read.
pub fn log_since(config: &PostgresConfig, offset: u64) -> String {
    const READ_MAX: u64 = 16 * 1024;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(&config.log_file)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(offset.max(end.saturating_sub(READ_MAX))))?;
        let mut bytes = Vec::new();
        file.take(READ_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// The last telling lines of the server's log after `offset`. Lines that speak of passwords are left out.
pub fn log_tail(config: &PostgresConfig, offset: u64) -> String {
    const LINES_MAX: usize = 4;
    let text = log_since(config, offset);
    let harmless = |l: &&str| !l.to_lowercase().contains("password") && !l.trim().is_empty();
    let lines: Vec<&str> = text.lines().filter(harmless).collect();
    let grave = |l: &&&str| ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:"].iter().any(|w| l.contains(w));
    let mut chosen: Vec<&str> = lines.iter().filter(grave).copied().collect();
    if chosen.is_empty() {
        chosen = lines;
    }
    let skip = chosen.len().saturating_sub(LINES_MAX);
    chosen[skip..].join(" | ")
}

/// What a helper program did.
pub struct Ended {
    status: std::process::ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The last that a program which failed said.
    pub fn complaint(&self, name: &str) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let skip = lines.len().saturating_sub(4);
        format!("{name} failed ({}): {}", self.status, lines[skip..].join(" | "))
    }
}

/// Runs a helper program to its end, whatever it is. It dies with the caller.
pub async fn run_to_end(name: &str, mut command: tokio::process::Command, limit: Duration) -> Result<Ended> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(output)) => Ok(Ended {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(error)) => Err(failure(format!("{name} cannot be run: {error}"))),
        Err(_) => Err(timed_out(format!("{name} did not end within {limit:?} and was ended"))),
    }
}

/// Runs a helper program that must succeed, and returns what it printed.
pub async fn run_program(name: &str, command: tokio::process::Command, limit: Duration) -> Result<String> {
    let ended = run_to_end(name, command, limit).await?;
    if ended.success() {
        return Ok(ended.stdout);
    }
    Err(fail(PgFailureKind::Other, ended.complaint(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_process_says_in_its_title_where_it_is() {
        let at = |title: &str| segment_of(title);
        assert_eq!(at("postgres: c: startup recovering 0000007400000002000000AB\0\0"), Some(0x2_0000_00ab));
        assert_eq!(at("postgres: startup waiting for 0000007100000002000000AB"), Some(0x2_0000_00ab));
        assert_eq!(at("postgres: c: startup "), None);
        assert_eq!(at("postgres: c: walreceiver streaming 2/AB000000"), None);
    }

    #[test]
    fn only_an_empty_lock_file_that_nobody_holds_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("postmaster.pid");
        assert!(!remove_empty_lock(dir.path()).unwrap());
        std::fs::write(&lock, "4711\n").unwrap();
        assert!(!remove_empty_lock(dir.path()).unwrap() && lock.exists());
        std::fs::write(&lock, "").unwrap();
        // Somebody works in the directory, as a server that starts would.
        let mut holder =
            std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        assert!(!remove_empty_lock(dir.path()).unwrap() && lock.exists());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(remove_empty_lock(dir.path()).unwrap() && !lock.exists());
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = Postmaster::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(!Postmaster { started: own.started + 1, ..own }.is_alive());
        assert!(!Postmaster { started: own.started + 1, ..own }.signal(Signal::SIGKILL), "we are still here");
    }

    #[test]
    fn a_left_over_lock_file_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        let lock = |pid: u32| {
            let text = format!("{pid}\n{}\n0\n5432\n/tmp\n127.0.0.1\n 0 0\nready   \n", dir.path().display());
            std::fs::write(dir.path().join("postmaster.pid"), text).unwrap();
        };
        lock(4_000_000);
        assert_eq!(find(dir.path()).unwrap(), None);
        lock(std::process::id());
        assert_eq!(find(dir.path()).unwrap(), None, "this process runs in another directory");
        let (own, another) = (Postmaster::of(std::process::id()).unwrap(), Postmaster { pid: 1, started: 0 });
        assert_eq!(status(dir.path()), Some(Status::Ready));
        assert_eq!(status_of(own, dir.path()), Some(Status::Ready));
        assert_eq!(status_of(another, dir.path()), None, "it has not written its own yet");
    }
}
