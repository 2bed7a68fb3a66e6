//! Checks of PostgreSQL: its port, the password, what is loaded.

use super::Check;
use crate::config::{NodeConfig, Secrets};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Whether anything listens there, seen by trying to listen.
pub fn is_taken(address: SocketAddr) -> Result<bool, String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Ok(true),
        Err(e) => Err(e.to_string()),
    }
}

fn listens(config: &NodeConfig) -> SocketAddr {
    SocketAddr::new(config.db_listen.unwrap_or(config.ip), config.db_port)
}

/// The port is ours while our server runs, and must be free while it does not.
pub fn port(config: &NodeConfig) -> Check {
    const NAME: &str = "database port";
    let address = listens(config);
    let ours = std::fs::read_to_string(config.data_dir.join("postmaster.pid")).ok().and_then(|text| {
        let pid = text.lines().next()?.trim().parse::<u32>().ok()?;
        let port = text.lines().nth(3)?.trim().parse::<u16>().ok()?;
        std::path::Path::new(&format!("/proc/{pid}")).exists().then_some((pid, port))
    });
    match (is_taken(address), ours) {
        (Err(e), _) => Check::fail(
            NAME,
            format!("cannot listen on {address}: {e}. Correct ip or db-listen in node.toml"),
        ),
        (Ok(true), Some((pid, port))) if port == config.db_port => {
            Check::ok(NAME, format!("{address}, PostgreSQL runs as process {pid}"))
        }
        (Ok(true), _) => Check::fail(
            NAME,
            format!(
                "{address} is in use by another program (find it with: ss -ltnp 'sport = :{}')",
                config.db_port
            ),
        ),
        (Ok(false), Some((pid, port))) => {
            Check::fail(NAME, format!("PostgreSQL (process {pid}) listens on port {port}, not on {address}"))
        }
        (Ok(false), None) => Check::warn(NAME, format!("{address} is free: PostgreSQL does not run")),
    }
}

/// What only the running server can tell.
pub async fn inside(config: &NodeConfig, secrets: &Secrets) -> Vec<Check> {
    let mut login = tokio_postgres::Config::new();
    login.host(listens(config).ip().to_string()).port(config.db_port).user("postgres");
    login.password(&secrets.superuser_password).dbname(&config.admin_database).connect_timeout(TIMEOUT);
    login.application_name("pgquorum doctor");
    let client = match tokio::time::timeout(TIMEOUT, login.connect(NoTls)).await {
        Ok(Ok((client, connection))) => {
            tokio::spawn(connection);
            client
        }
        Ok(Err(e)) => return vec![refused(&e)],
        Err(_) => return vec![Check::fail("login", "PostgreSQL accepts the connection and does not answer")],
    };
    let mut checks = vec![Check::ok("login", "the password of postgres is right")];
    let ask = |sql: &'static str| {
        let client = &client;
        async move { tokio::time::timeout(TIMEOUT, client.query_one(sql, &[])).await.ok()?.ok() }
    };
    let libraries = ask("SELECT current_setting('shared_preload_libraries')").await;
    checks.push(match libraries.and_then(|row| row.try_get::<_, String>(0).ok()) {
        Some(list) if list.split(',').any(|l| l.trim() == "pgquorum") => Check::ok("preload", list),
        Some(list) => Check::fail(
            "preload",
            format!("shared_preload_libraries is {list:?} without pgquorum: the sidecar writes it at each start; restart PostgreSQL"),
        ),
        None => Check::warn("preload", "PostgreSQL did not answer"),
    });
    let sql = "SELECT extversion FROM pg_extension WHERE extname = 'pgquorum'";
    checks.push(match ask(sql).await.and_then(|row| row.try_get::<_, String>(0).ok()) {
        Some(version) => Check::ok("extension in database", format!("version {version}")),
        None => Check::fail(
            "extension in database",
            format!(
                "pgquorum is not created in {}: the leader creates it when it opens; see its log",
                config.admin_database
            ),
        ),
    });
    checks
}

fn refused(error: &tokio_postgres::Error) -> Check {
    let text = match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    };
    match error.code() {
        Some(code)
            if *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
        {
            Check::fail(
                "login",
                format!(
                    "wrong password: secrets.toml is not that of this cluster ({text}). Copy it from a node that works"
                ),
            )
        }
        Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => {
            Check::warn("login", format!("PostgreSQL is starting: {text}"))
        }
        Some(_) => Check::fail("login", text),
        None => Check::warn("login", format!("PostgreSQL cannot be reached: {text}")),
    }
}
