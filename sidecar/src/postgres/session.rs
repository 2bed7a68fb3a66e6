//! Sessions of the sidecar in the server beside it, and in its upstream.

use super::config::{APPLICATION_NAME, PostgresConfig, SUPERUSER};
use super::error::{Result, chain, fail, sql, timed_out};
use super::gathering::Gathering;
use pgquorum_agent::postgres::{PgFailure, PgFailureKind};
use pgquorum_agent::types::{Lsn, Timeline};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Connection, NoTls, Row, Statement};

/// A connection that ends when this is dropped, whatever it is doing.
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
    ended: watch::Receiver<bool>,
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A session that says one thing again and again: that is prepared when it comes first, so whoever watches how long an answer
/// takes sees that, too.
pub struct Repeating {
    session: Session,
    text: &'static str,
    statement: Option<Statement>,
}

impl Repeating {
    pub fn new(session: Session, text: &'static str) -> Repeating {
        Repeating { session, text, statement: None }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub async fn say(
        &mut self,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
        let statement = match &self.statement {
            Some(statement) => statement,
            None => self.statement.insert(self.session.prepare(self.text).await?),
        };
        self.session.query(statement, parameters).await
    }
}

/// How a session acts.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub connect: Duration,
    /// 0 is no limit.
    pub statement: Duration,
    /// Commits wait for the standbys. Only the epoch's row and what clients ask for does: upkeep must not hang on
    /// missing standbys.
    pub waits_for_standbys: bool,
    /// Writes and stays also where clients may not: without a lease, and before the server admits clients.
    pub bypasses_fence: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Manner {
            connect: Duration::from_secs(2),
            statement: Duration::from_secs(5),
            waits_for_standbys: false,
            bypasses_fence: true,
        }
    }
}

/// Why there is no session.
#[derive(Debug)]
pub enum ConnectError {
    TimedOut(Duration),
    /// Nobody listens there.
    Unreachable(std::io::Error),
    Refused(tokio_postgres::Error),
}

impl ConnectError {
    fn explain(self, what: &str) -> PgFailure {
        match self {
            ConnectError::TimedOut(after) => timed_out(format!("{what}: no answer within {after:?}")),
            ConnectError::Unreachable(error) => fail(PgFailureKind::NotRunning, format!("{what}: {error}")),
            ConnectError::Refused(error) if error.as_db_error().is_none() => {
                fail(PgFailureKind::NotRunning, format!("{what}: {}", chain(&error)))
            }
            ConnectError::Refused(error) => sql(what)(error),
        }
    }
}

impl Session {
    /// Connects through the Unix socket to the admin database.
    pub async fn local(config: &PostgresConfig, manner: Manner) -> Result<Session> {
        let what = "connecting to the local server";
        Session::in_database(config, &config.admin_database, manner).await.map_err(|e| e.explain(what))
    }

    /// Connects through the Unix socket to any database.
    pub async fn in_database(
        config: &PostgresConfig,
        database: &str,
        manner: Manner,
    ) -> std::result::Result<Session, ConnectError> {
        let mut target = tokio_postgres::Config::new();
        target.host_path(&config.socket_dir).port(config.port).dbname(database);
        Session::connect(config, target, manner).await
    }

    /// The same for a session that copies tables out: what a COPY brings comes in pieces of many rows.
    pub async fn copying(
        config: &PostgresConfig,
        database: &str,
        manner: Manner,
    ) -> std::result::Result<Session, ConnectError> {
        let mut target = tokio_postgres::Config::new();
        target.dbname(database);
        ready(config, &mut target, manner);
        let socket = config.socket_dir.join(format!(".s.PGSQL.{}", config.port));
        Session::settle(manner, async {
            let stream = UnixStream::connect(socket).await.map_err(ConnectError::Unreachable)?;
            target.connect_raw(Gathering::new(stream), NoTls).await.map_err(ConnectError::Refused)
        })
        .await
    }

    /// Connects over TCP to the admin database of another node's server, as the superuser.
    pub async fn remote(config: &PostgresConfig, ip: IpAddr, port: u16, manner: Manner) -> Result<Session> {
        let server = SocketAddr::new(ip, port);
        let what = format!("connecting to the server at {ip} port {port}");
        let connected = Session::remote_database(config, server, &config.admin_database, manner).await;
        connected.map_err(|e| e.explain(&what))
    }

    /// Connects over TCP to any database of another node's server, as the superuser.
    pub async fn remote_database(
        config: &PostgresConfig,
        server: SocketAddr,
        database: &str,
        manner: Manner,
    ) -> std::result::Result<Session, ConnectError> {
        let mut target = tokio_postgres::Config::new();
        target.host(server.ip().to_string()).port(server.port()).dbname(database);
        target.tcp_user_timeout(manner.connect.saturating_mul(2));
        Session::connect(config, target, manner).await
    }

    async fn connect(
        config: &PostgresConfig,
        mut target: tokio_postgres::Config,
        manner: Manner,
    ) -> std::result::Result<Session, ConnectError> {
        ready(config, &mut target, manner);
        Session::settle(manner, async { target.connect(NoTls).await.map_err(ConnectError::Refused) }).await
    }

    async fn settle<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        manner: Manner,
        connecting: impl Future<Output = std::result::Result<(Client, Connection<S, NoTlsStream>), ConnectError>>,
    ) -> std::result::Result<Session, ConnectError> {
        let late = |_| ConnectError::TimedOut(manner.connect);
        let (client, connection) = tokio::time::timeout(manner.connect, connecting).await.map_err(late)??;
        let (end, ended) = watch::channel(false);
        let settings = settings(connection.parameter("server_version"));
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session of the sidecar ended");
            }
            end.send_replace(true);
        });
        let session = Session { client, connection, ended };
        let settled = session.batch_execute(settings);
        tokio::time::timeout(manner.connect, settled).await.map_err(late)?.map_err(ConnectError::Refused)?;
        Ok(session)
    }

    /// Returns when the connection is lost.
    pub async fn closed(&self) {
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Whether the extension's function exists in this database.
    pub async fn has_function(&self, signature: &str) -> Result<bool> {
        let row = self.query_one("SELECT to_regprocedure($1::text) IS NOT NULL", &[&signature]).await;
        row.map(|r| r.get(0)).map_err(sql("looking for the extension's functions"))
    }

    /// Where the server's WAL is.
    pub async fn position(&self) -> Result<WalPosition> {
        let extension = self.has_function(POSITION_FUNCTION).await?;
        let row =
            self.query_one(&position_query(extension), &[]).await.map_err(sql("reading the WAL position"))?;
        WalPosition::from_row(&row)
    }
}

/// Who connects, and how the session acts.
fn ready(config: &PostgresConfig, target: &mut tokio_postgres::Config, manner: Manner) {
    let bypass = if manner.bypasses_fence { "-c pgquorum.bypass_fence=on " } else { "" };
    let commit = if manner.waits_for_standbys { "on" } else { "local" };
    target
        .user(SUPERUSER)
        .password(&config.secrets.superuser_password)
        .application_name(APPLICATION_NAME)
        .connect_timeout(manner.connect)
        .options(format!(
            "{bypass}-c synchronous_commit={commit} \
             -c statement_timeout={} -c lock_timeout=0 -c idle_session_timeout=0 -c client_min_messages=error \
             -c DateStyle=ISO",
            manner.statement.as_millis()
        ));
}

/// What a new session sets for itself, by the server's version.
fn settings(server_version: Option<&str>) -> &'static str {
    let major = server_version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    // On a primary without a lease the extension makes new sessions read-only after the options were taken.
    match major.and_then(|major| major.parse::<u32>().ok()) {
        // Earlier ones refuse the name of that limit, which would end copies and what holds a snapshot for others.
        Some(17..) => "SET default_transaction_read_only = off; SET transaction_timeout = 0",
        _ => "SET default_transaction_read_only = off",
    }
}

pub const POSITION_FUNCTION: &str = "quorum.wal_position()";

/// Where a server's WAL is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalPosition {
    pub in_recovery: bool,
    /// Primary: the timeline it writes.
    pub timeline: Timeline,
    pub flush: Lsn,
    pub received: Option<Lsn>,
    pub received_timeline: Timeline,
    pub replayed: Lsn,
    pub replayed_timeline: Timeline,
}

/// Seven columns that [`WalPosition::from_row`] reads. Without the extension the timelines of a standby come from the
/// control file, which follows at restart points only.
pub fn position_query(extension: bool) -> String {
    if extension {
        return "SELECT in_recovery, timeline::int8, flush_lsn::text, receive_lsn::text, receive_timeline::int8, \
                replay_lsn::text, replay_timeline::int8 FROM quorum.wal_position()"
            .to_owned();
    }
    "SELECT r, t, CASE WHEN NOT r THEN pg_current_wal_flush_lsn() END::text, \
     CASE WHEN r THEN pg_last_wal_receive_lsn() END::text, t, CASE WHEN r THEN pg_last_wal_replay_lsn() END::text, t \
     FROM (SELECT r, CASE WHEN r THEN (SELECT GREATEST(c.timeline_id, m.min_recovery_end_timeline)::int8 \
       FROM pg_control_checkpoint() c, pg_control_recovery() m) \
     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int8 END AS t \
     FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) p OFFSET 0) q"
        .to_owned()
}

impl WalPosition {
    pub fn from_row(row: &Row) -> Result<WalPosition> {
        let read = || -> std::result::Result<WalPosition, Box<dyn std::error::Error + Send + Sync>> {
            let lsn =
                |i: usize| -> std::result::Result<Option<Lsn>, Box<dyn std::error::Error + Send + Sync>> {
                    Ok(row.try_get::<_, Option<&str>>(i)?.map(str::parse).transpose()?)
                };
            let timeline =
                |i: usize| -> std::result::Result<Timeline, Box<dyn std::error::Error + Send + Sync>> {
                    Ok(Timeline::try_from(row.try_get::<_, Option<i64>>(i)?.unwrap_or(0))?)
                };
            Ok(WalPosition {
                in_recovery: row.try_get(0)?,
                timeline: timeline(1)?,
                flush: lsn(2)?.unwrap_or_default(),
                received: lsn(3)?,
                received_timeline: timeline(4)?,
                replayed: lsn(5)?.unwrap_or_default(),
                replayed_timeline: timeline(6)?,
            })
        };
        read()
            .map_err(|e| fail(PgFailureKind::Other, format!("the server's WAL position is unreadable: {e}")))
    }

    /// The end of the WAL on this node's disk and the timeline it lies on. A receiver that begins anew starts at the
    /// beginning of a segment, so what is received may be behind what is replayed.
    pub fn end(&self) -> (Timeline, Lsn) {
        match self.received {
            _ if !self.in_recovery => (self.timeline, self.flush),
            Some(received) if received > self.replayed => {
                (self.received_timeline.max(self.replayed_timeline), received)
            }
            _ => (self.replayed_timeline, self.replayed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_know_a_limit_are_told_about_it() {
        for version in ["17.2 (Debian 17.2-1)", "18beta1", "18.0"] {
            assert!(settings(Some(version)).contains("transaction_timeout"), "{version}");
        }
        for version in [Some("15.14"), Some("16rc1"), Some("odd"), None] {
            assert!(!settings(version).contains("transaction_timeout"), "{version:?}");
        }
    }

    #[test]
    fn the_end_is_the_farther_of_received_and_replayed() {
        let mut p =
            WalPosition { in_recovery: true, replayed: Lsn(10), replayed_timeline: 2, ..Default::default() };
        assert_eq!(p.end(), (2, Lsn(10)));
        (p.received, p.received_timeline) = (Some(Lsn(8)), 3);
        assert_eq!(p.end(), (2, Lsn(10)));
        p.received = Some(Lsn(12));
        assert_eq!(p.end(), (3, Lsn(12)));
        let p = WalPosition { timeline: 5, flush: Lsn(7), received: Some(Lsn(99)), ..Default::default() };
        assert_eq!(p.end(), (5, Lsn(7)));
    }
}
