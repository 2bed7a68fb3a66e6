//! What an error means for the write that got it: did it not happen, or does nobody know?

use tokio_postgres::error::{DbError, Severity};

/// How far the client was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Inside a transaction block, and COMMIT has not been sent. Whatever happens, the server cannot commit: it does so
    /// only when it reads the COMMIT, and a lost connection ends the block with a rollback.
    BeforeCommit,
    /// A statement that commits by itself, or COMMIT, has been sent.
    MayCommit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Failed,
    Unknown,
}

pub fn judge(stage: Stage, error: &tokio_postgres::Error) -> (Verdict, String) {
    let database = error.as_db_error();
    (verdict(stage, database.map(|e| (severity(e), e.code().code()))), text(error))
}

/// `None`: no answer of the server, but a broken connection, a timeout or nonsense.
fn verdict(stage: Stage, answer: Option<(Severity, &str)>) -> Verdict {
    if stage == Stage::BeforeCommit {
        return Verdict::Failed;
    }
    match answer {
        // transaction_resolution_unknown, statement_completion_unknown: says so itself.
        Some((_, "08007" | "40003")) => Verdict::Unknown,
        // An ERROR ends the transaction by a rollback, and the server says it only when that is done. After the commit
        // record is written PostgreSQL raises no ERROR any more (it would be a PANIC). This covers 25006 (the fence's
        // refusal), 40001, 40P01, 53100 (disk full before the commit record), 57014 (cancelled before it), 23505.
        Some((Severity::Error, _)) => Verdict::Failed,
        // FATAL and PANIC end the session wherever it stood: 57P01 by a terminate or a fast shutdown may come between the
        // commit record and the answer, 57P02 and a PANIC too.
        Some(_) => Verdict::Unknown,
        // Sent, and not answered: the commit record may be written, and may be on its way to the standbys.
        None => Verdict::Unknown,
    }
}

fn severity(error: &DbError) -> Severity {
    error.parsed_severity().unwrap_or(match error.severity() {
        "ERROR" => Severity::Error,
        _ => Severity::Fatal,
    })
}

/// Short, and with the SQLSTATE first, so that outcomes can be counted by it.
pub fn text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(e) => format!("{} {}", e.code().code(), e.message()),
        None => {
            let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
            format!("{error}{source}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_error_of_the_server_says_that_nothing_happened() {
        let of = |stage, answer| verdict(stage, answer);
        for code in ["25006", "40001", "40P01", "53100", "57014", "23505"] {
            assert_eq!(of(Stage::MayCommit, Some((Severity::Error, code))), Verdict::Failed, "{code}");
        }
        assert_eq!(of(Stage::MayCommit, Some((Severity::Error, "08007"))), Verdict::Unknown);
        assert_eq!(of(Stage::MayCommit, Some((Severity::Fatal, "08007"))), Verdict::Unknown);
        for code in ["57P01", "57P02", "25006", "XX000"] {
            assert_eq!(of(Stage::MayCommit, Some((Severity::Fatal, code))), Verdict::Unknown, "{code}");
            assert_eq!(of(Stage::MayCommit, Some((Severity::Panic, code))), Verdict::Unknown, "{code}");
        }
        assert_eq!(of(Stage::MayCommit, None), Verdict::Unknown);
    }

    #[test]
    fn what_was_never_told_to_commit_cannot_have_committed() {
        assert_eq!(verdict(Stage::BeforeCommit, None), Verdict::Failed);
        assert_eq!(verdict(Stage::BeforeCommit, Some((Severity::Fatal, "57P01"))), Verdict::Failed);
    }
}
