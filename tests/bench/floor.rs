//! The floor under every failover: PostgreSQL with a synchronous standby and no tool at all. The script that cuts the
//! primary's power promotes the standby in the same moment, so nothing has to be noticed and nobody to be asked.

use crate::failover::STEADY;
use pgquorum_tests::{Plain, Probe, ProbeOptions, Report, await_rows, free_ports, server_directory};
use std::path::PathBuf;

/// What the servers of a cluster have too.
const CONF: &str = "wal_log_hints = on\nmax_wal_senders = 32\nmax_replication_slots = 32\nwal_keep_size = 512MB\n\
                    wal_retrieve_retry_interval = 100ms\nrestart_after_crash = off\nsynchronous_standby_names = '*'\n";

/// A primary and its standby, which change their parts at every run.
pub struct Floor {
    root: PathBuf,
    servers: Option<(Plain, Plain)>,
    made: usize,
}

impl Floor {
    pub fn start() -> Floor {
        let mut floor = Floor { root: server_directory("pgquorum-floor-"), servers: None, made: 2 };
        let [one, two] = free_ports();
        let primary = Plain::init(&floor.root.join("0"), one, CONF);
        let standby = primary.standby(&floor.root.join("1"), two, "standby");
        floor.servers = Some((primary, standby));
        floor
    }

    /// One failover as a client sees it.
    pub fn once(&mut self) -> Report {
        let Some((mut primary, standby)) = self.servers.take() else { unreachable!("put back below") };
        primary.await_standbys(1);
        let probe = Probe::start(&Plain::dsn(&[&primary, &standby]), &ProbeOptions::default());
        await_rows(&mut primary.connect().expect("a session on the primary"), STEADY);
        // The session is open before, as the sidecar's is.
        let mut session = standby.connect().expect("a session on the standby");
        primary.kill();
        session.query_one("SELECT pg_promote(true, 60)", &[]).expect("the promotion");
        await_rows(&mut session, STEADY);
        let report = probe.finish();
        let port = primary.port();
        primary.remove();
        // What was the standby waits for nobody until it has a standby of its own.
        let next = standby.standby(&self.root.join(self.made.to_string()), port, "standby");
        self.made += 1;
        standby.await_standbys(1);
        standby.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        standby.sql("SELECT pg_reload_conf()");
        self.servers = Some((standby, next));
        report
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        drop(self.servers.take());
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
