//! How an operation is refused: a status, and one sentence in `{"error"}`, in the words that clients of this interface know.

use crate::feed::{FeedError, Kind};
use crate::follow::Trouble;
use serde_json::{Value, json};

const UNEXPECTED: &str = "There was an error processing your request. Check logs and try again.";

/// Why an operation was not carried out. The message holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub status: u16,
    pub message: String,
}

impl Fault {
    pub fn new(status: u16, message: impl Into<String>) -> Fault {
        Fault { status, message: message.into() }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Fault {
        Fault::new(400, message)
    }

    /// It cannot be done now; it may be later.
    pub fn not_now(message: impl Into<String>) -> Fault {
        Fault::new(503, message)
    }

    pub fn no_operation() -> Fault {
        Fault::invalid("Request body must include an 'operation' property.")
    }

    pub fn no_database(database: &str) -> Fault {
        Fault::new(404, format!("database '{database}' does not exist"))
    }

    pub fn no_table(database: &str, table: &str) -> Fault {
        Fault::new(404, format!("Table '{database}.{table}' does not exist"))
    }

    pub fn no_node(name: &str) -> Fault {
        Fault::new(404, format!("Node '{name}' has not been added; cluster_status lists those that were"))
    }

    /// Something that is no fault of the caller's, and nothing that a caller could act on.
    pub fn unexpected(what: &str) -> Fault {
        tracing::error!(what, "an operation failed");
        Fault::new(500, UNEXPECTED)
    }

    pub fn body(&self) -> Value {
        json!({ "error": self.message })
    }
}

impl From<FeedError> for Fault {
    fn from(error: FeedError) -> Fault {
        match error.kind {
            Kind::Internal | Kind::RecordBroken => Fault::unexpected(&error.message),
            Kind::UnknownDatabase
            | Kind::NoExtension
            | Kind::UnknownChannel
            | Kind::UnknownTable
            | Kind::UnknownSubscription => Fault::new(404, error.message),
            Kind::Refused
            | Kind::UnknownColumn
            | Kind::UnknownFollower
            | Kind::AlreadyExists
            | Kind::PositionUnknownEpoch
            | Kind::PositionInFuture
            | Kind::PositionPurged => Fault::invalid(error.message),
            _ => Fault::not_now(error.message),
        }
    }
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Fault {
        Fault::not_now(trouble.message)
    }
}
