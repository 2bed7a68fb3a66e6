//! `pgquorum run`: puts the parts together and runs until told to stop.

use crate::config::{ConfigError, NodeConfig, Secrets};
use crate::control::Control;
use crate::driver::{Driver, DriverError, Sources};
use crate::feed;
use crate::follow;
use crate::handle::{Handle, Traces};
use crate::login::cluster_key;
use crate::peer::{Identity, PeerTls, Peers};
use crate::postgres::{Postgres, PostgresConfig, PostgresError};
use crate::rest::{self, RestConfig, RestError, TlsFiles};
use crate::statements::{self, Statements};
use crate::store::{Store, StoreError};
use crate::watchdog::Watchdog;
use pgquorum_agent::node::Input;
use pgquorum_agent::standing::Outcast;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing_appender::non_blocking::WorkerGuard;

/// Inputs that may wait for the driver.
const INPUTS: usize = 4096;
const REQUESTS: usize = 256;
const INCOMING: usize = 64;

/// Why the sidecar cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(
        "the sidecar must not run as root, because PostgreSQL does not: run it as the user that owns the data"
    )]
    Root,
    #[error("cannot read the token file: {0}")]
    Token(String),
    #[error("{0}")]
    Tls(String),
    #[error("this node must not run: {0}")]
    Superseded(String),
    #[error("cannot start threads: {0}")]
    Threads(std::io::Error),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs this node until SIGTERM or SIGINT, or until it cannot go on.
pub async fn run(config: NodeConfig) -> Result<(), RunError> {
    if nix::unistd::geteuid().is_root() {
        return Err(RunError::Root);
    }
    let _log = start_logging(&config);
    let secrets = Secrets::load(&config.secrets_file())?;
    let (store, identity, restored) = Store::open(&config.store_file(), config.node)?;
    if restored.superseded {
        return Err(RunError::Superseded(Outcast::Superseded.explain(config.node)));
    }
    let tls = PeerTls::load(&config).map_err(RunError::Tls)?;
    let bound = rest::bind(&rest_config(&config, &secrets)?).await?;
    let mut postgres_config = postgres_config(&config, &secrets);
    postgres_config.system_identifier = restored.system_identifier();
    let pool = feed::Pool::new(postgres_config.clone());
    let channels = Arc::new(feed::Server::new(Arc::clone(&pool)));
    let statements = Arc::new(Statements::new(Arc::new(statements::Server::new(Arc::clone(&pool)))));
    let control = Control::start().map_err(RunError::Threads)?;
    let (postgres, postgres_events) =
        Postgres::supervise(postgres_config.clone(), control.handle().clone()).await?;
    tracing::info!(node = config.node, cluster = %identity.cluster_id, api = %config.api_listen(), "sidecar started");

    let (inputs, inputs_receiver) = mpsc::channel(INPUTS);
    let (requests, requests_receiver) = mpsc::channel(REQUESTS);
    let (incoming, incoming_receiver) = mpsc::channel(INCOMING);
    let me = Identity {
        cluster: identity.cluster_id,
        identity: restored.identity,
        node: config.node,
        address: SocketAddr::new(config.ip, config.api_port),
        secret: secrets.cluster_secret,
        tls,
    };
    let peers = Peers::new(me, inputs.clone(), incoming_receiver, control.handle());
    let traces = Traces::default();
    let watchdog = Watchdog::new(config.watchdog_config());
    let (driver, view) =
        Driver::new(config.node, &restored, store, postgres.clone(), peers, traces.clone(), watchdog);
    let changed = Arc::new(Notify::new());
    let board = follow::Board::default();
    let server = Some(Arc::new(postgres_config.clone()));
    let face = face(&config)?;
    tokio::spawn(follow::oversee(
        postgres_config,
        pool,
        view.clone(),
        Arc::clone(&changed),
        board.clone(),
        face,
    ));
    let weak_commits = postgres.weak_commits();
    let handle = Handle {
        view,
        requests,
        traces,
        weak_commits,
        subscriptions_changed: changed,
        subscriptions: board,
        server,
    };
    tokio::spawn(statements::rounds(Arc::clone(&statements), handle.view.clone()));
    let (stop_rest, rest_stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(bound.serve(handle, channels, statements, incoming, async {
        // Told to stop, or the sender is gone: both mean the end.
        let _ = rest_stopped.await;
    }));
    watch_signals(inputs).map_err(RunError::Signals)?;
    let sources = Sources { inputs: inputs_receiver, postgres: postgres_events, requests: requests_receiver };
    let ended = match control.handle().spawn(driver.run(sources)).await {
        Ok(ended) => ended,
        Err(died) => std::panic::resume_unwind(died.into_panic()),
    };
    if let Err(error) = &ended {
        tracing::error!(%error, "the sidecar cannot go on");
    }
    let _ = stop_rest.send(());
    let _ = server.await;
    // Whatever the agent wanted stopped is stopped by now; otherwise the server runs on, fenced by its own lease.
    let _ = postgres.shutdown(None).await;
    tracing::info!("sidecar stopped");
    Ok(ended?)
}

/// Starts the log. What is logged until the guard is dropped gets written by a thread of its own, in order: whoever logs
/// may hold the lease, and must not stand still because a disk does, or because nobody reads the pipe. While the writer
/// stands still, lines beyond the first 128,000 are left out. Dropping the guard waits a second for what is not written yet.
fn start_logging(config: &NodeConfig) -> WorkerGuard {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    // A second call in one process (tests) keeps the first subscriber.
    let _ = if config.log_json { builder.json().try_init() } else { builder.try_init() };
    guard
}

fn rest_config(config: &NodeConfig, secrets: &Secrets) -> Result<RestConfig, RunError> {
    let token = match &config.token_file {
        Some(path) => Some(read_token(path)?),
        None => None,
    };
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => {
            Some(TlsFiles { cert: cert.clone(), key: key.clone(), ca: config.tls_ca.clone() })
        }
        _ => None,
    };
    let cluster_key = Some(cluster_key(&secrets.cluster_secret));
    Ok(RestConfig { listen: config.api_listen(), token, cluster_key, tls })
}

/// How other clusters reach this one's sidecars.
fn face(config: &NodeConfig) -> Result<follow::Face, RunError> {
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| RunError::Tls(format!("{}: {error}", path.display())))
    };
    Ok(follow::Face { scheme, ca: config.tls_ca.as_ref().map(read).transpose()? })
}

fn read_token(path: &Path) -> Result<String, RunError> {
    let text =
        std::fs::read_to_string(path).map_err(|e| RunError::Token(format!("{}: {e}", path.display())))?;
    let token = text.trim();
    if token.len() < 16 {
        let text =
            format!("{}: the token is shorter than 16 characters; generate a longer one", path.display());
        return Err(RunError::Token(text));
    }
    Ok(token.to_owned())
}

/// The supervisor's configuration for this node.
pub fn postgres_config(config: &NodeConfig, secrets: &Secrets) -> PostgresConfig {
    let passwords = crate::postgres::Secrets {
        superuser_password: secrets.superuser_password.clone(),
        replication_password: secrets.replication_password.clone(),
    };
    let listen = config.db_listen.unwrap_or(config.ip);
    let mut postgres = PostgresConfig::new(
        config.node,
        config.data_dir.clone(),
        config.bin_dir.clone(),
        listen,
        config.db_port,
        passwords,
    );
    postgres.socket_dir = config.socket_dir().to_owned();
    postgres.log_file = config.postgres_log();
    postgres.admin_database = config.admin_database.clone();
    postgres.lost_wal_keep_bytes = u64::from(config.lost_wal_keep_mb) << 20;
    postgres.extra_hba = config.hba.clone();
    postgres
}

/// The first signal asks the node to leave in order; the second ends the process, and PostgreSQL runs on fenced.
fn watch_signals(inputs: mpsc::Sender<Input>) -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut told = false;
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if told {
                tracing::warn!("second signal: the sidecar ends at once, PostgreSQL is left running");
                std::process::exit(1);
            }
            told = true;
            tracing::info!("told to stop: leadership is handed over, then PostgreSQL is stopped");
            if inputs.send(Input::Leave).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
