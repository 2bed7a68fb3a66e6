//! PostgreSQL servers without any of ours: what measurements are compared with.

use crate::user::{give, server_command};
use crate::{PATIENCE, await_until, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, Config, NoTls};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PASSWORD: &str = "plain";

/// Where PostgreSQL's programs are.
pub fn postgres_program(name: &str) -> PathBuf {
    let chosen = std::env::var_os("PGQUORUM_BIN_DIR").map(PathBuf::from);
    let folder = chosen.unwrap_or_else(|| {
        let version = std::env::var("PG_MAJOR").unwrap_or_else(|_| "15".to_owned());
        PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))
    });
    let installed = folder.join(name);
    if installed.exists() { installed } else { PathBuf::from(name) }
}

/// One server. Killed when dropped; its directory belongs to whoever gave it.
pub struct Plain {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Plain {
    /// A new, empty server with checksums, set up with these lines of `postgresql.conf`, and running.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn init(dir: &Path, port: u16, conf: &str) -> Plain {
        let password = dir.with_extension("password");
        std::fs::write(&password, PASSWORD).expect("the password's file");
        give(&password);
        let mut command = server_command(&postgres_program("initdb"));
        command.arg("-D").arg(dir).arg("--pwfile").arg(&password);
        run(command.args(["-U", "postgres", "-k", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"]));
        let conf = format!("{conf}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n");
        append(&dir.join("postgresql.conf"), &conf);
        append(&dir.join("pg_hba.conf"), "host replication all 127.0.0.1/32 scram-sha-256\n");
        Plain::run(dir, port)
    }

    /// A standby of this server under a name, running.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn standby(&self, dir: &Path, port: u16, name: &str) -> Plain {
        let mut command = server_command(&postgres_program("pg_basebackup"));
        command.arg("-D").arg(dir).env("PGPASSWORD", PASSWORD);
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.port.to_string()]);
        run(command.args(["-R", "-X", "stream", "-c", "fast"]));
        let conninfo = format!(
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres password={PASSWORD} application_name={name}'\n",
            self.port
        );
        // Read last, so it also replaces what the backup wrote or the primary's own file says.
        append(&dir.join("postgresql.auto.conf"), &format!("{conninfo}synchronous_standby_names = ''\n"));
        Plain::run(dir, port)
    }

    fn run(dir: &Path, port: u16) -> Plain {
        let log = File::options().create(true).append(true).open(dir.with_extension("log")).expect("the log");
        let mut command = server_command(&postgres_program("postgres"));
        command.arg("-D").arg(dir).args(["-p", &port.to_string()]).current_dir(dir);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("postgres");
        let server = Plain { dir: dir.to_owned(), port, child: Some(child) };
        server.await_ready();
        server
    }

    fn await_ready(&self) {
        let what = format!("the server in {}", self.dir.display());
        await_until(PATIENCE, &what, || self.connect().map(drop).map_err(|e| format!("{e:?}")));
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection string of several servers; whoever is the primary is found.
    pub fn dsn(servers: &[&Plain]) -> String {
        let hosts: Vec<String> = servers.iter().map(|s| format!("127.0.0.1:{}", s.port)).collect();
        format!(
            "postgresql://postgres:{PASSWORD}@{}/postgres?target_session_attrs=read-write",
            hosts.join(",")
        )
    }

    pub fn connect(&self) -> Result<Client, postgres::Error> {
        self.connect_to("postgres")
    }

    pub fn connect_to(&self, database: &str) -> Result<Client, postgres::Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password(PASSWORD).dbname(database);
        config.connect_timeout(Duration::from_secs(2)).connect(NoTls)
    }

    /// # Panics
    /// The statements fail.
    pub fn sql(&self, statements: &str) {
        let mut client = self.connect().expect("a session");
        client.batch_execute(statements).unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    }

    /// Waits until `n` standbys stream and are as far as this server.
    pub fn await_standbys(&self, n: i64) {
        // Slots that were made are in use.
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND \
                   flush_lsn >= pg_current_wal_flush_lsn() AND NOT EXISTS (SELECT FROM pg_replication_slots \
                   WHERE NOT active)";
        await_until(PATIENCE, &format!("{n} standbys that stream"), || {
            let mut client = self.connect().map_err(|e| e.to_string())?;
            let count: i64 = client.query_one(sql, &[]).map_err(|e| e.to_string())?.get(0);
            if count == n { Ok(()) } else { Err(format!("{count}")) }
        });
    }

    /// SIGKILL to the server and all its processes, as a power cut.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let processes = kill_tree(child.id() as i32);
        let _ = child.wait();
        // Until the last one has gone, the next server takes the memory that they share for its own.
        let lives = |pid: &&i32| Path::new(&format!("/proc/{pid}")).exists();
        let _ = poll_until(PATIENCE, || match processes.iter().find(lives) {
            None => Ok(()),
            Some(pid) => Err(pid.to_string()),
        });
    }

    /// SIGKILL as [`Plain::kill`], and a new start with crash recovery.
    pub fn crash(&mut self) {
        self.kill();
        *self = Plain::run(&self.dir.clone(), self.port);
    }

    /// Stops the server in good order, as `pg_ctl stop -m fast` does.
    ///
    /// # Panics
    /// It does not stop.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("the server runs");
            await_until(PATIENCE, "the server stops", || match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    }

    /// The same, and starts it again.
    ///
    /// # Panics
    /// It does not stop.
    pub fn restart(&mut self) {
        self.stop();
        *self = Plain::run(&self.dir.clone(), self.port);
    }

    /// What the server has logged since its data were made.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Kills the server and removes its data.
    pub fn remove(mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.kill();
    }
}

/// SIGKILL to a process and its children, whose numbers are returned.
pub fn kill_tree(process: i32) -> Vec<i32> {
    // Listed before the first of them is killed: afterwards they are nobody's children. Stopped before that, or it may
    // make one that is not in the list. Who sleeps when it is told to stop does nothing more; who works may.
    let _ = kill(Pid::from_raw(process), Signal::SIGSTOP);
    let _ = poll_until(PATIENCE, || match stat(process) {
        Some((state, _)) if ["R", "D"].contains(&state.as_str()) => Err(state),
        _ => Ok(()),
    });
    let children = children(process);
    for pid in [process].iter().chain(&children) {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    children
}

/// State and parent of a process.
fn stat(pid: i32) -> Option<(String, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets; the state and the parent follow its last bracket.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn children(of: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    numbers.filter(|pid| stat(*pid).is_some_and(|(_, parent)| parent == of)).collect()
}

fn append(file: &Path, text: &str) {
    use std::io::Write;
    let mut file = File::options().create(true).append(true).open(file).expect("a configuration file");
    file.write_all(text.as_bytes()).expect("writing a configuration file");
}

fn run(command: &mut Command) {
    command.current_dir("/");
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}: {said}", out.status);
}
