//! pgbench that lives through many short slices of time.

use crate::pgbench::command;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgquorum_tests::{PATIENCE, await_until};
use postgres::Client;
use std::process::{Child, Stdio};

/// A pgbench that stands still until it is told to go on. Starting sessions and warming up their caches takes as much as
/// some dozen transactions, which would weigh on short slices.
pub struct Load(Child);

impl Load {
    /// With these further arguments; `session` is one in the same server.
    ///
    /// # Panics
    /// It does not start, or its sessions do nothing.
    pub fn start(dsn: &str, args: &[&str], session: &mut Client) -> Load {
        // It ends long before this.
        let mut command = command(dsn, &[args, &["-T", "7200"]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let load = Load(command.spawn().expect("pgbench"));
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND xact_start IS NOT NULL";
        await_until(PATIENCE, "pgbench's sessions", || match number(session, sql) {
            0 => Err("no transaction yet".to_owned()),
            _ => Ok(()),
        });
        load.stop();
        await_idle(session);
        load
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("pgbench runs");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until every session of pgbench waits for its client, also within a transaction, or for another one's lock.
///
/// # Panics
/// They do not.
pub fn await_idle(session: &mut Client) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND state = 'active' AND \
               wait_event_type IS DISTINCT FROM 'Lock'";
    await_until(PATIENCE, "sessions that wait for their clients", || match number(session, sql) {
        0 => Ok(()),
        more => Err(more.to_string()),
    });
}

/// # Panics
/// The query fails, or its only value is no number.
pub fn number(session: &mut Client, query: &str) -> i64 {
    let row = session.query_one(query, &[]).unwrap_or_else(|e| panic!("{query}: {e:?}"));
    row.get(0)
}
