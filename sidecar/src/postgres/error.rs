//! Failures: a kind for policy, a sentence for people. They never carry a password.

use pgquorum_agent::postgres::{PgFailure, PgFailureKind};

pub type Result<T> = std::result::Result<T, PgFailure>;

/// Why the supervisor could not begin its work.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "PostgreSQL does not run as root, so pgquorum does not either; run it as the user that owns the database, usually \"postgres\""
    )]
    Root,
    #[error("{0}")]
    Failed(#[from] PgFailure),
}

pub fn fail(kind: PgFailureKind, message: impl Into<String>) -> PgFailure {
    PgFailure { kind, message: message.into() }
}

pub fn failure(message: impl Into<String>) -> PgFailure {
    fail(PgFailureKind::Other, message)
}

pub fn no_data(message: impl Into<String>) -> PgFailure {
    fail(PgFailureKind::NoData, message)
}

pub fn not_running(what: &str) -> PgFailure {
    fail(
        PgFailureKind::NotRunning,
        format!("{what} needs a running server, and PostgreSQL is not running on this node"),
    )
}

pub fn timed_out(message: impl Into<String>) -> PgFailure {
    fail(PgFailureKind::TimedOut, message)
}

/// An I/O error with what was being done.
pub fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> PgFailure {
    move |error| failure(format!("{what}: {error}"))
}

/// A database error with what was being done, with the server's own words and SQLSTATE where it has some.
pub fn sql(what: impl std::fmt::Display) -> impl FnOnce(tokio_postgres::Error) -> PgFailure {
    move |error| match error.as_db_error() {
        Some(db) => {
            let hint = db.hint().map(|h| format!(" ({h})")).unwrap_or_default();
            failure(format!("{what}: {} [{}]{hint}", db.message(), db.code().code()))
        }
        None if error.is_closed() => {
            fail(PgFailureKind::NotRunning, format!("{what}: the server closed the connection"))
        }
        None => failure(format!("{what}: {}", chain(&error))),
    }
}

/// The error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let part = next.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = next.source();
    }
    text
}

/// Runs blocking file work off the event loop. Once begun it always completes.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(failure(format!("internal error while working with files: {error}"))),
    }
}
