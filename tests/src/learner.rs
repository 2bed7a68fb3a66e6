//! Servers that learn which statements write nothing, and what they have learned, as their clients see it.

use crate::{PATIENCE, Plain, await_until, free_ports, server_directory, text};
use postgres::Client;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// What was learned is in the table, and served, after a second; machines may be busy.
const SOON: Duration = PATIENCE;

/// A single server with the extension, and a hot standby if one is asked for. Everything goes when it is dropped.
pub struct LearningServer {
    pub primary: Plain,
    standby: Option<Plain>,
    root: PathBuf,
}

impl LearningServer {
    /// A server with these settings beside what the extension needs.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn start(conf: &str) -> LearningServer {
        let root = server_directory("pgquorum-learner-");
        let [port] = free_ports();
        let conf = format!("shared_preload_libraries = 'pgquorum'\nfsync = off\n{conf}\n");
        let primary = Plain::init(&root.join("primary"), port, &conf);
        primary.sql("CREATE EXTENSION pgquorum");
        LearningServer { primary, standby: None, root }
    }

    /// The same with a hot standby that streams.
    ///
    /// # Panics
    /// One of the two cannot be made.
    pub fn with_standby(conf: &str) -> LearningServer {
        let mut servers = LearningServer::start(conf);
        let [port] = free_ports();
        let standby = servers.primary.standby(&servers.root.join("standby"), port, "standby");
        servers.primary.await_standbys(1);
        servers.standby = Some(standby);
        servers
    }

    /// # Panics
    /// It was started without one.
    pub fn standby(&self) -> &Plain {
        self.standby.as_ref().expect("a standby was asked for")
    }

    /// Waits until a reader on the standby sees what is committed on the primary now.
    pub fn await_replayed(&self) {
        let mut primary = self.connect();
        let mut standby = self.standby().connect().expect("a session on the standby");
        let lsn = text(&mut primary, "SELECT pg_current_wal_flush_lsn()::text");
        let sql = format!("SELECT (pg_last_wal_replay_lsn() >= '{lsn}')::text");
        await_until(PATIENCE, &format!("the standby replays up to {lsn}"), || {
            let reached = text(&mut standby, &sql);
            if reached == "true" { Ok(()) } else { Err(reached) }
        });
    }

    /// A session on the primary.
    ///
    /// # Panics
    /// There is none to be had.
    pub fn connect(&self) -> Client {
        self.primary.connect().expect("a session")
    }
}

impl Drop for LearningServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and data of the failed test are kept in {}", self.root.display());
            return;
        }
        if let Some(standby) = &mut self.standby {
            standby.kill();
        }
        self.primary.kill();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// What is known of a statement: a row of `quorum.readonly_statements`, of this session's database.
#[derive(Clone, Debug)]
pub struct Learned {
    pub search_path: String,
    /// `proven` or `observed`; empty: neither, for now.
    pub how: String,
    pub served: bool,
    pub calls: i64,
    pub withdrawn: bool,
    pub reason: String,
    pub statement: String,
    pub query_id: Option<i64>,
}

/// The hash that drivers compute, as SQL and JSON write it.
pub fn hash_of(statement: &str) -> String {
    format!("{:016x}", pgquorum_statement::hash(statement.as_bytes()))
}

/// All rows of this statement, one for each search path.
///
/// # Panics
/// The view cannot be read.
pub fn known(client: &mut Client, statement: &str) -> Vec<Learned> {
    let sql = "SELECT search_path, coalesce(how, ''), served, calls, withdrawn IS NOT NULL, coalesce(reason, ''), coalesce(statement, ''), \
               query_id FROM quorum.readonly_statements WHERE hash = $1 AND database = current_database() ORDER BY 1";
    let rows = client.query(sql, &[&hash_of(statement)]).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let one = |row: &postgres::Row| Learned {
        search_path: row.get(0),
        how: row.get(1),
        served: row.get(2),
        calls: row.get(3),
        withdrawn: row.get(4),
        reason: row.get(5),
        statement: row.get(6),
        query_id: row.get(7),
    };
    rows.iter().map(one).collect()
}

/// Waits until what is known of a statement is as it should be, in one of its rows.
pub fn await_known(
    client: &mut Client,
    statement: &str,
    what: &str,
    good: impl Fn(&Learned) -> bool,
) -> Learned {
    await_until(SOON, &format!("{statement}: {what}"), || {
        let rows = known(client, statement);
        rows.iter().find(|row| good(row)).cloned().ok_or_else(|| format!("{rows:?}"))
    })
}

/// All hashes that this server serves of this session's database.
///
/// # Panics
/// They cannot be had.
pub fn served(client: &mut Client) -> BTreeSet<String> {
    let sql = "SELECT quorum.served_statements()";
    let row = client.query_one(sql, &[]).unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    row.get::<_, Vec<String>>(0).into_iter().collect()
}

pub fn is_served(client: &mut Client, statement: &str) -> bool {
    served(client).contains(&hash_of(statement))
}

/// Waits until this server serves a statement.
pub fn await_served(client: &mut Client, statement: &str) {
    await_until(SOON, &format!("served: {statement}"), || {
        if is_served(client, statement) { Ok(()) } else { Err(format!("{:?}", known(client, statement))) }
    });
}

/// The code of a statement's error; `None`: the server raised none.
///
/// # Panics
/// The session is gone.
pub fn server_error(client: &mut Client, statement: &str) -> Option<String> {
    let error = client.batch_execute(statement).err()?;
    // This client does not know what to do with the rows of a COPY, which is no error of the server.
    assert!(!client.is_closed() || error.code().is_some(), "{statement}: {error:?}");
    error.code().map(|code| code.code().to_owned())
}
