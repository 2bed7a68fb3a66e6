//! The first node's database.

use super::config::{PostgresConfig, REPLICATION_ROLE, SUPERUSER};
use super::config_files::{self, Desired};
use super::control;
use super::error::{PostgresError, Result, blocking, failure, io, sql, timed_out};
use super::lifecycle;
use super::parameters::quote;
use super::process::{self, Postmaster, Status};
use super::session::{Manner, Session};
use nix::sys::signal::Signal;
use std::io::Write;
use std::time::Duration;

const INITDB_LIMIT: Duration = Duration::from_secs(600);
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Creates the database, its roles and the extension, and leaves it stopped, so that its next start is a standby's.
/// Returns its system identifier. An existing database is never touched.
pub async fn initialise(config: &PostgresConfig) -> std::result::Result<u64, PostgresError> {
    if nix::unistd::geteuid().is_root() {
        return Err(PostgresError::Root);
    }
    check_is_new(config)?;
    match create(config).await {
        Ok(system_identifier) => Ok(system_identifier),
        Err(error) => {
            // It was empty or not there before, so nothing but a half-made database is lost, and it can be tried again.
            if process::find(&config.data_dir).is_ok_and(|found| found.is_none()) {
                let _ = std::fs::remove_dir_all(&config.data_dir);
            }
            Err(error.into())
        }
    }
}

async fn create(config: &PostgresConfig) -> Result<u64> {
    initdb(config).await?;
    let own = config.clone();
    blocking(move || config_files::write_configuration(&own, &Desired::default())).await?;
    // A private server: no TCP, nobody else knows the password, and it waits for no standby.
    let offset = process::log_length(config);
    let rule = format!("{}=", config_files::ACKNOWLEDGEMENT_RULE);
    let mut options =
        vec!["-c", "listen_addresses=", "-c", "synchronous_standby_names=", "-c", "synchronous_commit=local"];
    if config.extension_library.is_some() {
        options.extend(["-c", &rule]);
    }
    let mut child = process::spawn(config, &options)?;
    let pid = child.id().ok_or_else(|| failure("the new server ended at once"))?;
    let prepared = prepare(config, &mut child, offset).await;
    let stopped = stop(pid, &mut child).await;
    prepared?;
    stopped?;
    let own = config.clone();
    blocking(move || config_files::ensure_standby_signal(&own)).await?;
    let control = control::read(config).await?;
    tracing::info!(system_identifier = control.system_identifier, "the database is initialised");
    Ok(control.system_identifier)
}

fn check_is_new(config: &PostgresConfig) -> Result<()> {
    let entries = match std::fs::read_dir(&config.data_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(io(format!("reading {}", config.data_dir.display()))(e)),
    };
    if entries {
        return Err(failure(format!(
            "{} is not empty, and an existing database is never overwritten. Choose another directory, or move this one \
             away if it is not needed",
            config.data_dir.display()
        )));
    }
    if let Some(library) = &config.extension_library {
        let found = std::process::Command::new(config.program("pg_config")).arg("--sharedir").output();
        let share = found.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        let control = std::path::Path::new(&share).join("extension").join(format!("{library}.control"));
        if !share.is_empty() && !control.exists() {
            return Err(failure(format!(
                "the extension {library} is not installed for the PostgreSQL in {} ({} is missing). Install it on every \
                 node, then try again",
                config.bin_dir.display(),
                control.display()
            )));
        }
    }
    Ok(())
}

async fn initdb(config: &PostgresConfig) -> Result<()> {
    let password = config.secrets.superuser_password.clone();
    let directory = super::config::parent_of(&config.data_dir).to_path_buf();
    // Mode 0600, removed when it is dropped.
    let pwfile = blocking(move || {
        std::fs::create_dir_all(&directory).map_err(io(format!("creating {}", directory.display())))?;
        let what = "writing the password for initdb";
        let mut file =
            tempfile::Builder::new().prefix(".initdb-").tempfile_in(&directory).map_err(io(what))?;
        writeln!(file, "{password}").map_err(io(what))?;
        file.flush().map_err(io(what))?;
        Ok(file)
    })
    .await?;
    let mut command = tokio::process::Command::new(config.program("initdb"));
    command.arg("-D").arg(&config.data_dir).arg("--pwfile").arg(pwfile.path());
    command.args(["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8", "--username", SUPERUSER]);
    command.args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"]).env("LC_ALL", "C.UTF-8");
    process::run_program("initdb", command, INITDB_LIMIT).await.map(drop)
}

async fn prepare(config: &PostgresConfig, child: &mut tokio::process::Child, offset: u64) -> Result<()> {
    let ready = async {
        let mut interval = tokio::time::interval(Duration::from_millis(5));
        while process::status(&config.data_dir) != Some(Status::Ready) {
            interval.tick().await;
        }
    };
    tokio::select! {
        status = child.wait() => {
            let status = status.map(|s| s.to_string()).unwrap_or_default();
            let tail = process::log_tail(config, offset);
            let advice = lifecycle::advice(&tail, config.port).map(|a| format!(": {a}")).unwrap_or_default();
            return Err(failure(format!("the new server ended ({status}){advice}; its log says: {tail}")));
        }
        ready = tokio::time::timeout(START_LIMIT, ready) => {
            ready.map_err(|_| timed_out(format!("the new server was not ready within {START_LIMIT:?}")))?;
        }
    }
    let manner = Manner { statement: Duration::from_secs(60), ..Manner::default() };
    let session = Session::local(config, manner).await?;
    let what = "creating the cluster's roles";
    // The statement carries a password, so it must not get into the server's log if it fails or is slow.
    session
        .batch_execute("SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1")
        .await
        .map_err(sql(what))?;
    let password = literal(&config.secrets.replication_password);
    session
        .batch_execute(&format!("CREATE ROLE {REPLICATION_ROLE} REPLICATION LOGIN PASSWORD {password}"))
        .await
        .map_err(sql(what))?;
    if config.extension_library.is_some() {
        session.batch_execute("CREATE EXTENSION pgquorum").await.map_err(sql("creating the extension"))?;
    }
    Ok(())
}

/// The text as an SQL literal that means the same under any setting.
fn literal(text: &str) -> String {
    format!("E{}", quote(text))
}

async fn stop(pid: u32, child: &mut tokio::process::Child) -> Result<()> {
    if let Some(postmaster) = Postmaster::of(pid) {
        postmaster.signal(Signal::SIGINT);
        if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
            postmaster.kill_all();
            return Err(timed_out(format!("the new server did not stop within {STOP_LIMIT:?}")));
        }
    }
    Ok(())
}
