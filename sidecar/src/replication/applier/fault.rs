//! What keeps the applier from going on, and what is done about it.

use crate::follow::{Kind as TroubleKind, Trouble};
use crate::replication::Failure;

/// The remote does not answer.
pub const NO_RESPONSE: u16 = 1400;
/// What it answers is not what the protocol says.
pub const INVALID_RESPONSE: u16 = 1401;
/// It answers with an error.
pub const LEADER_ERROR: u16 = 1402;
/// It is this very server.
pub const LOOP: u16 = 1405;
pub const INVALID_CONFIG: u16 = 1410;
pub const RUNNING: u16 = 1411;
/// The tick from which the log is to be read is not in it any more.
pub const NOT_PRESENT: u16 = 1414;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The remote does not answer now, or not well: it is asked again, a number of times.
    Remote,
    /// A person is needed.
    Stopped,
    /// What comes next is not at the remote any more.
    Lost,
    /// The database here takes nothing now.
    Here,
    /// One event does not fit what is here.
    Event,
    /// The applier was stopped, or another one works by now.
    Gone,
}

/// A reason with the number that clients know and a sentence. Neither holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: Kind,
    pub number: u16,
    pub message: String,
    /// The status that the remote answered with, and its own number; 0: it did not.
    pub answered: (u16, u16),
}

pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    pub fn new(kind: Kind, number: u16, message: impl Into<String>) -> Fault {
        Fault { kind, number, message: message.into(), answered: (0, 0) }
    }

    pub fn stopped(number: u16, message: impl Into<String>) -> Fault {
        Fault::new(Kind::Stopped, number, message)
    }

    /// An event that does not fit.
    pub fn event(number: u16, message: impl Into<String>) -> Fault {
        Fault::new(Kind::Event, number, message)
    }

    /// The remote answered with what is not in the protocol.
    pub fn invalid(what: impl std::fmt::Display) -> Fault {
        Fault::new(Kind::Remote, INVALID_RESPONSE, format!("invalid response from the remote: {what}"))
    }

    /// The remote could not be asked.
    pub fn unreachable(trouble: Trouble) -> Fault {
        match trouble.kind {
            TroubleKind::Stopped => Fault::stopped(LEADER_ERROR, trouble.message),
            _ => Fault::new(Kind::Remote, NO_RESPONSE, trouble.message),
        }
    }

    /// What the database here says.
    pub fn from_database(error: &tokio_postgres::Error) -> Fault {
        let state = error.as_db_error().map(|db| db.code().code().to_owned()).unwrap_or_default();
        let trouble = Trouble::from_database(error);
        let kind = match trouble.kind {
            TroubleKind::Table => Kind::Event,
            TroubleKind::Gone => Kind::Gone,
            TroubleKind::Stopped | TroubleKind::Lost => Kind::Stopped,
            _ => Kind::Here,
        };
        let number = match state.as_str() {
            "23505" => 1210,
            "42P01" => 1203,
            _ if kind == Kind::Event => 400,
            _ => 500,
        };
        Fault::new(kind, number, trouble.message)
    }

    /// The same with where it happened.
    pub fn at(mut self, place: impl std::fmt::Display) -> Fault {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

/// What a request that is carried out at once answers with.
impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        let code = match (fault.kind, fault.number) {
            (_, INVALID_CONFIG | RUNNING | LOOP) => 400,
            (Kind::Event, _) => 400,
            (Kind::Here, _) => 503,
            _ => 500,
        };
        Failure::new(code, fault.number, fault.message)
    }
}
