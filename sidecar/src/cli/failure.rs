//! How a command fails: an exit code for scripts, a stable word for programs, a sentence for people.

use std::fmt::Display;

/// What the process returns. Scripts rely on these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Refused or failed.
    Failed = 1,
    /// The command was used wrongly; clap returns the same for what it refuses itself.
    Usage = 2,
    /// No leader, or nobody answers.
    Unreachable = 3,
    /// What was named does not exist.
    NotFound = 4,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    /// A stable word, the same as in the REST answer where there was one.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, code: &str, message: impl Into<String>) -> Failure {
        Failure { exit, code: code.to_owned(), message: message.into() }
    }

    pub fn failed(code: &str, message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, code, message)
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, "usage", message)
    }

    pub fn unreachable(code: &str, message: impl Into<String>) -> Failure {
        Failure::new(Exit::Unreachable, code, message)
    }

    pub fn not_found(code: &str, message: impl Into<String>) -> Failure {
        Failure::new(Exit::NotFound, code, message)
    }

    /// What an HTTP error means for the exit code. The statuses are those of the cluster's REST interface.
    pub fn from_status(status: u16, code: &str, message: impl Into<String>) -> Failure {
        let exit = match (status, code) {
            (410, _) | (404, _) => Exit::NotFound,
            (417 | 502..=504 | 530 | 531, _) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Failure::new(exit, code, message)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Failure {
        use crate::config::ConfigError;
        match &error {
            ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Failure::not_found("config_missing", error.to_string())
            }
            _ => Failure::failed("config_invalid", error.to_string()),
        }
    }
}

/// Adds what was being done to an error of the system.
pub trait Context<T> {
    fn or_fail(self, doing: impl Display) -> Result<T, Failure>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn or_fail(self, doing: impl Display) -> Result<T, Failure> {
        self.map_err(|e| Failure::failed("failed", format!("{doing}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_exit_codes() {
        let exit = |status| Failure::from_status(status, "x", "y").exit;
        assert_eq!(exit(410), Exit::NotFound);
        assert_eq!(exit(412), Exit::Failed);
        assert_eq!(exit(420), Exit::Failed);
        assert_eq!(exit(530), Exit::Unreachable);
        assert_eq!(exit(531), Exit::Unreachable);
        assert_eq!(exit(400), Exit::Failed);
    }
}
