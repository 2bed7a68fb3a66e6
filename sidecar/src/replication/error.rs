//! How this interface says that something cannot be done: a status, a number and a text.

use crate::feed::{FeedError, Kind};
use serde_json::{Value, json};

/// Numbers that clients know.
pub const BAD_PARAMETER: u16 = 400;
pub const NOT_IMPLEMENTED: u16 = 501;
pub const INVALID_JSON: u16 = 600;
pub const SUPERFLUOUS_SUFFIX: u16 = 601;
pub const FORBIDDEN: u16 = 11;
pub const COLLECTION_NOT_FOUND: u16 = 1203;
pub const DUPLICATE_NAME: u16 = 1207;
pub const ILLEGAL_NAME: u16 = 1208;
pub const DATABASE_NOT_FOUND: u16 = 1228;
pub const UNEXPECTED_MARKER: u16 = 1406;
pub const LOGGER_STOPPED: u16 = 1412;
pub const BATCH_NOT_FOUND: u16 = 1600;

/// A request that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub code: u16,
    pub number: u16,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(code: u16, number: u16, message: impl Into<String>) -> Failure {
        Failure { code, number, message: message.into() }
    }

    /// A parameter or a field that is not right.
    pub fn bad(message: impl Into<String>) -> Failure {
        Failure::new(400, BAD_PARAMETER, message)
    }

    pub fn not_implemented(message: impl Into<String>) -> Failure {
        Failure::new(501, NOT_IMPLEMENTED, message)
    }

    pub fn internal(message: impl Into<String>) -> Failure {
        Failure::new(500, 500, message)
    }

    pub fn no_collection(name: &str) -> Failure {
        let message = format!(
            "collection {name} not found: no table of this name is tracked in channel _logger, or it has no key. GET \
             /_api/replication/inventory lists those that there are; SELECT quorum.track('{name}', channel => '_logger') \
             adds one"
        );
        Failure::new(404, COLLECTION_NOT_FOUND, message)
    }

    /// The same for those who need a table, tracked or not.
    pub fn no_table(name: &str) -> Failure {
        let message = format!(
            "collection {name} not found: there is no such table. PUT /_api/replication/restore-collection makes one"
        );
        Failure::new(404, COLLECTION_NOT_FOUND, message)
    }

    pub fn no_batch(id: &str) -> Failure {
        let message = format!(
            "batch {id} not found: it was left alone for longer than its ttl, was deleted, or was begun at a leader that \
             leads no more. Begin a new one with POST /_api/replication/batch"
        );
        Failure::new(404, BATCH_NOT_FOUND, message)
    }

    pub fn no_logger(database: &str) -> Failure {
        let message = format!(
            "database {database} has no channel _logger, so nothing is recorded. PUT /_api/replication/logger-start makes \
             it; SELECT quorum.track('table', channel => '_logger') adds tables"
        );
        Failure::new(400, LOGGER_STOPPED, message)
    }

    pub fn stopped(database: &str) -> Failure {
        let message = format!(
            "the log of database {database} is stopped: no table is tracked, so there is nothing to copy and to follow. PUT \
             /_api/replication/logger-start goes on"
        );
        Failure::new(400, LOGGER_STOPPED, message)
    }

    pub fn body(&self) -> Value {
        json!({"error": true, "code": self.code, "errorNum": self.number, "errorMessage": self.message})
    }
}

impl From<FeedError> for Failure {
    fn from(error: FeedError) -> Failure {
        let (code, number) = match error.kind {
            Kind::UnknownDatabase | Kind::NoExtension => (404, DATABASE_NOT_FOUND),
            Kind::UnknownTable => (404, COLLECTION_NOT_FOUND),
            Kind::UnknownChannel => (400, LOGGER_STOPPED),
            Kind::CopyGone => (404, BATCH_NOT_FOUND),
            Kind::UnknownColumn | Kind::Refused | Kind::AlreadyExists => (400, BAD_PARAMETER),
            Kind::UnknownFollower | Kind::UnknownSubscription => (404, 404),
            // Clients ask another node then, if they know one.
            Kind::SnapshotTooOld
            | Kind::ReadOnly
            | Kind::Locked
            | Kind::TimedOut
            | Kind::Unavailable
            | Kind::Busy
            | Kind::Removed
            | Kind::OutOfResources => (503, 503),
            Kind::PositionPurged
            | Kind::PositionUnknownEpoch
            | Kind::PositionInFuture
            | Kind::RecordBroken
            | Kind::Internal => (500, 500),
        };
        Failure::new(code, number, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_written_as_clients_read_them() {
        let failure = Failure::from(FeedError::new(Kind::UnknownDatabase, "database \"x\" does not exist"));
        let text =
            r#"{"error":true,"code":404,"errorNum":1228,"errorMessage":"database \"x\" does not exist"}"#;
        let written: Value = serde_json::from_str(text).unwrap();
        assert_eq!(failure.body(), written);
        assert_eq!(Failure::no_batch("57").body()["errorNum"], 1600);
        assert_eq!(Failure::no_collection("t").body()["errorNum"], 1203);
        assert_eq!(Failure::bad("from").body()["code"], 400);
        let busy = Failure::from(FeedError::new(Kind::Busy, "too many"));
        assert_eq!((busy.code, busy.number), (503, 503));
    }
}
