//! A client's session: the first node of a list that takes writes, found as libpq finds it with several hosts and
//! `target_session_attrs=read-write`, and with a limit for everything.

use std::future::poll_fn;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

pub const ROLE: &str = "chaos";
const DB_PORT: u16 = 5432;
/// What PostgreSQL says when it stops waiting for standbys (syncrep.c).
const NOT_WAITED: &str = "synchronous replication";

/// Where the nodes are.
#[derive(Clone)]
pub struct Hosts {
    pub nodes: Vec<(u64, Ipv4Addr)>,
    pub password: String,
}

/// How patient a client is.
#[derive(Clone, Copy)]
pub struct Patience {
    /// For each host: TCP, log-in and the question whether it takes writes.
    pub connect: Duration,
    /// For each call.
    pub call: Duration,
    /// `statement_timeout` of the session; 0: none.
    pub statement: Duration,
}

pub struct Session {
    pub client: Client,
    pub node: u64,
    pub epoch: u64,
    warned: Arc<AtomicBool>,
    connection: JoinHandle<()>,
}

impl Session {
    /// Whether the server said since the last question that it did not wait for standbys.
    pub fn was_warned(&self) -> bool {
        self.warned.swap(false, Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Tries every host once, beginning with this one.
pub async fn find_writable(hosts: &Hosts, first: usize, patience: Patience) -> Result<Session, String> {
    let mut why = String::from("no hosts");
    for at in 0..hosts.nodes.len() {
        let (node, address) = hosts.nodes[(first + at) % hosts.nodes.len()];
        match open(node, address, hosts, patience, true).await {
            Ok(session) => return Ok(session),
            Err(e) => why = format!("node {node}: {e}"),
        }
    }
    Err(why)
}

/// A session with this very node, whatever it is.
pub async fn open_anywhere(hosts: &Hosts, at: usize, patience: Patience) -> Result<Session, String> {
    let (node, address) = hosts.nodes[at % hosts.nodes.len()];
    open(node, address, hosts, patience, false).await
}

async fn open(
    node: u64,
    address: Ipv4Addr,
    hosts: &Hosts,
    patience: Patience,
    writable: bool,
) -> Result<Session, String> {
    let mut config = Config::new();
    config.host(address.to_string()).port(DB_PORT).user(ROLE).password(&hosts.password).dbname("postgres");
    config.application_name("chaos").connect_timeout(patience.connect);
    if writable {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    if !patience.statement.is_zero() {
        config.options(format!("-c statement_timeout={}", patience.statement.as_millis()));
    }
    let opening = async {
        let (client, mut connection) = config.connect(NoTls).await.map_err(|e| crate::outcome::text(&e))?;
        let warned = Arc::new(AtomicBool::new(false));
        let flag = warned.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message {
                    flag.fetch_or(notice.message().contains(NOT_WAITED), Ordering::Relaxed);
                }
            }
        });
        let mut session = Session { client, node, epoch: 0, warned, connection: task };
        let sql = "SELECT coalesce(max(epoch), 0)::bigint FROM quorum.leadership";
        let row = session.client.query_one(sql, &[]).await.map_err(|e| crate::outcome::text(&e))?;
        session.epoch = row.get::<_, i64>(0) as u64;
        Ok(session)
    };
    timeout(patience.connect, opening).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}
