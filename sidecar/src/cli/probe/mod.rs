//! Writes through a connection string the way an application does and finds out what it was promised and what it got:
//! the longest time without an acknowledged write, and whether everything acknowledged is still there.

mod report;

use super::failure::{Context, Failure};
use futures_util::TryStreamExt;
pub use report::{Ack, Report};
use report::{Seen, Start, report};
use std::collections::HashSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::config::{Host, TargetSessionAttrs};
use tokio_postgres::{Client, Config, NoTls};

/// How a probe writes. Every wait in it is bounded by one of these.
#[derive(Clone, Debug)]
pub struct Options {
    pub table: String,
    pub clients: usize,
    /// Pause of a client after each acknowledged insert.
    pub interval: Duration,
    /// Pause after a failed connection or insert.
    pub retry: Duration,
    pub duration: Duration,
    /// For each host of the connection string, greeting and login included.
    pub connect_timeout: Duration,
    /// After this time an insert counts as unanswered and its connection is given up.
    pub answer_timeout: Duration,
    /// How long to try to make and to read back the table.
    pub table_timeout: Duration,
    /// Made once the first insert was acknowledged.
    pub ready_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            table: "pgquorum_probe".to_owned(),
            clients: 1,
            interval: Duration::from_millis(10),
            retry: Duration::from_millis(10),
            duration: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(10),
            table_timeout: Duration::from_secs(60),
            ready_file: None,
        }
    }
}

/// The report, and every acknowledged insert in order of time.
#[derive(Clone, Debug)]
pub struct Probed {
    pub report: Report,
    pub acks: Vec<Ack>,
}

/// Writes until the duration is over or `stop` becomes true, then reads back and compares.
///
/// # Errors
/// The table cannot be made or read back: then nothing can be said about what was lost.
pub async fn probe(dsn: &str, options: &Options, stop: watch::Receiver<bool>) -> Result<Probed, Failure> {
    let hosts = Arc::new(single_hosts(dsn, options)?);
    check_name(&options.table)?;
    let make = format!(
        "DROP TABLE IF EXISTS {0}; CREATE TABLE {0} (n bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())",
        options.table
    );
    within(options.table_timeout, || prepare(&hosts, options, &make)).await?;

    let shared =
        Arc::new(Shared { next: AtomicU64::new(1), ready: AtomicBool::new(false), start: Start::now() });
    let deadline = Instant::now() + options.duration;
    let writers: Vec<_> = (0..options.clients)
        .map(|_| {
            let writer = Writer {
                hosts: Arc::clone(&hosts),
                options: options.clone(),
                shared: Arc::clone(&shared),
                stop: stop.clone(),
                deadline,
                seen: Seen::default(),
            };
            tokio::spawn(writer.run())
        })
        .collect();
    let mut seen = Seen::default();
    for writer in writers {
        seen.add(writer.await.or_fail("a writer of the probe failed")?);
    }
    let end = Instant::now();
    let present = within(options.table_timeout, || read_back(&hosts, options)).await?;
    seen.acks.sort_by_key(|a| a.at);
    seen.errors.sort_by_key(|e| e.0);
    let report = report(&seen, &present, &shared.start, end);
    Ok(Probed { report, acks: seen.acks })
}

/// One configuration a host, in the order of the string: the greeting of a host that accepts connections and does not
/// answer must be bounded too, which a timeout for the TCP connection alone would not do.
fn single_hosts(dsn: &str, options: &Options) -> Result<Vec<Config>, Failure> {
    let all: Config = dsn.parse().map_err(|e| Failure::usage(format!("not a connection string: {e}")))?;
    let hosts = all.get_hosts();
    if hosts.is_empty() {
        return Err(Failure::usage("the connection string names no host"));
    }
    Ok(hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let mut one = Config::new();
            match host {
                Host::Tcp(name) => one.host(name),
                Host::Unix(path) => one.host_path(path),
            };
            one.port(all.get_ports().get(i).or(all.get_ports().first()).copied().unwrap_or(5432));
            if let Some(user) = all.get_user() {
                one.user(user);
            }
            if let Some(password) = all.get_password() {
                one.password(password);
            }
            if let Some(database) = all.get_dbname() {
                one.dbname(database);
            }
            one.target_session_attrs(TargetSessionAttrs::ReadWrite);
            one.connect_timeout(options.connect_timeout);
            one.tcp_user_timeout(options.connect_timeout);
            one.application_name("pgquorum_probe");
            one
        })
        .collect())
}

fn check_name(table: &str) -> Result<(), Failure> {
    let plain = table.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && table.starts_with(|c: char| c.is_ascii_lowercase()) && table.len() < 64 {
        return Ok(());
    }
    Err(Failure::usage(format!("{table:?} is not a plain table name (a-z, 0-9 and _)")))
}

/// The first host that accepts writes.
async fn connect(hosts: &[Config], options: &Options) -> Result<Client, String> {
    let mut why = String::new();
    for host in hosts {
        match tokio::time::timeout(options.connect_timeout, host.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                tokio::spawn(connection);
                return Ok(client);
            }
            Ok(Err(e)) => why = with_cause(&e),
            Err(_) => why = "no connection in time".to_owned(),
        }
    }
    Err(why)
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Runs a statement; the outer error says that the answer did not come.
async fn statement(client: &Client, text: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, client.batch_execute(text)).await {
        Ok(done) => done.map_err(|e| with_cause(&e)),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn prepare(hosts: &[Config], options: &Options, sql: &str) -> Result<(), String> {
    let client = connect(hosts, options).await?;
    statement(&client, sql, options.answer_timeout).await
}

async fn read_back(hosts: &[Config], options: &Options) -> Result<HashSet<u64>, String> {
    let client = connect(hosts, options).await?;
    let sql = format!("SELECT n FROM {}", options.table);
    let read = async {
        let rows = client.query_raw(&sql, std::iter::empty::<&str>()).await.map_err(|e| with_cause(&e))?;
        let mut rows = pin!(rows);
        let mut present = HashSet::new();
        while let Some(row) = rows.try_next().await.map_err(|e| with_cause(&e))? {
            let number: i64 = row.try_get(0).map_err(|e| with_cause(&e))?;
            present.insert(number.unsigned_abs());
        }
        Ok(present)
    };
    tokio::time::timeout(options.table_timeout, read)
        .await
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// Tries again until it works or the time is over.
async fn within<T, F: Future<Output = Result<T, String>>>(
    limit: Duration,
    mut work: impl FnMut() -> F,
) -> Result<T, Failure> {
    let deadline = Instant::now() + limit;
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(why) if Instant::now() > deadline => {
                return Err(Failure::unreachable(
                    "no_database",
                    format!("the probe's table cannot be reached: {why}"),
                ));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

struct Shared {
    next: AtomicU64,
    ready: AtomicBool,
    start: Start,
}

struct Writer {
    hosts: Arc<Vec<Config>>,
    options: Options,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    deadline: Instant,
    seen: Seen,
}

impl Writer {
    async fn run(mut self) -> Seen {
        let mut client = None;
        while !*self.stop.borrow() && Instant::now() < self.deadline {
            let pause = match self.insert(&mut client).await {
                Ok(()) => self.options.interval,
                Err(why) => {
                    client = None;
                    self.seen.errors.push((Instant::now(), why));
                    self.options.retry
                }
            };
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        self.seen
    }

    /// One number, one transaction. A number is drawn only on a connection, and never again.
    async fn insert(&mut self, client: &mut Option<Client>) -> Result<(), String> {
        let connected = match client {
            Some(connected) => connected,
            None => client.insert(connect(&self.hosts, &self.options).await?),
        };
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let sql = format!("INSERT INTO {} (n) VALUES ({number})", self.options.table);
        // An insert that hangs past the end of the probe still gets its time to be answered.
        match statement(connected, &sql, self.options.answer_timeout).await {
            Ok(()) => {
                let at = Instant::now();
                let unix_us = self.shared.start.unix(at).as_micros() as u64;
                self.seen.acks.push(Ack { number, at, unix_us });
                if !self.shared.ready.swap(true, Ordering::Relaxed)
                    && let Some(file) = &self.options.ready_file
                {
                    std::fs::write(file, "").map_err(|e| e.to_string())?;
                }
                Ok(())
            }
            Err(why) => {
                self.seen.unknown.insert(number);
                Err(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_of_the_string_is_tried_with_its_own_port() {
        let hosts =
            single_hosts("postgresql://u:p@h1:1,h2:2/d?target_session_attrs=read-write", &Options::default());
        let ports: Vec<u16> = hosts.unwrap().iter().map(|h| h.get_ports()[0]).collect();
        assert_eq!(ports, [1, 2]);
        assert!(single_hosts("postgresql://", &Options::default()).is_err());
        assert!(check_name("a; drop table b").is_err());
    }
}
